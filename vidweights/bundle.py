"""Packages in one tar file, for a machine that is offline: every file with its hash, and nothing else.

The first member, `packages.json`, says which packages follow, where each belongs, and size and hashes of its files; a
reader takes what is listed there, in that order, and nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from vidweights import home
from vidweights.errors import FormatError, IntegrityError, OutputError, UsageError
from vidweights.files import sha256_of, staged_file, staged_folder
from vidweights.folder import CONFIG, package_files, read_config
from vidweights.hub import GIT_ID, ORGANISATION, SHA256, RemoteFile, Repository, RepositoryCache, Revision
from vidweights.progress import Progress, silent

_LIST = "packages.json"
_VERSION = 1
_LARGEST_LIST = 1 << 20
_FILE_NAME = re.compile(r"[\w-][\w. -]*")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """A package in a tar file.

    Attributes:
        name: what `load` takes: a name in `$VIDWEIGHTS_HOME`, or `org/name`.
        commit: of a package from a hub; None for one that was made here.
        revision: the branch or tag by which it was asked for.
        files: what it consists of.
    """

    name: str
    commit: str | None
    revision: str | None
    files: Mapping[str, RemoteFile]

    @property
    def pinned(self) -> str:
        """What `load` takes to get these very bytes."""
        return self.name if self.commit is None else f"{self.name}@{self.commit}"


def described(folder: Path, asked: str) -> Package:
    """The package in a finished folder: a snapshot of the hub's cache, a commit of a folder hub, or one made here."""
    config = read_config(folder)
    files = {name: RemoteFile.of(folder / name) for name in package_files(folder, config)}
    for name, sha256 in config.files.items():
        if files[name].sha256 != sha256:
            raise IntegrityError(f"{folder / name} is not the file that its {CONFIG} describes. Fetch it again.")
    if not GIT_ID.fullmatch(folder.name):
        return Package(config.name, None, None, files)
    # A release may have come from the hub by its catalog name.
    repository = Repository.parse(asked) or Repository(f"{ORGANISATION}/{config.name}")
    return Package(repository.name, folder.name, repository.revision, files)


def write(path: Path, packages: Sequence[tuple[Package, Path]], progress: Progress = silent) -> None:
    """Write packages into a new tar file, which appears whole or not at all; the same packages give the same bytes.

    Raises:
        OutputError: the file exists, or the disk refuses.
    """
    listed = [{**asdict(package), "files": {n: asdict(f) for n, f in package.files.items()}} for package, _ in packages]
    text = json.dumps({"vidweights": _VERSION, "packages": listed}, indent=2).encode()
    told = _Told(progress, sum(file.size for package, _ in packages for file in package.files.values()))
    with staged_file(path) as stage, tarfile.open(stage, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_member(_LIST, len(text)), BytesIO(text))
        for index, (package, folder) in enumerate(packages):
            for name, file in package.files.items():
                with (folder / name).open("rb") as content:
                    tar.addfile(_member(f"{index}/{name}", file.size), content)
                told.add(f"writing {path.name}", file.size)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def read(path: Path, progress: Progress = silent) -> tuple[tuple[Package, Path], ...]:
    """Take the packages out of a tar file, each to where `load` finds it; a package appears whole or not at all.

    Returns:
        Each package, and its folder.

    Raises:
        UsageError: there is no such file.
        FormatError: it is no such file, is cut, or lacks what it lists.
        IntegrityError: a file has another hash than is listed.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; expected one that `vidweights download NAME --to FILE.tar` wrote")
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            members = _members(tar)
            packages = _listed(members)
            told = _Told(progress, sum(f.size for package in packages for f in package.files.values()))
            taken = [_take(package, index, members, told) for index, package in enumerate(packages)]
    except (FormatError, IntegrityError) as error:
        raise type(error)(f"{path}: {error}. Nothing of that package was kept; carry the file over again.") from error
    except (tarfile.TarError, EOFError) as error:
        raise FormatError(f"{path} is damaged, or no tar file ({error}). Carry it over again.") from error
    return tuple(taken)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for member in tar:
        content = tar.extractfile(member) if member.isreg() else None
        if content is None:
            raise FormatError(f"it holds {ascii(member.name)[:80]}, which is no regular file")
        yield member.name, member.size, content


def _listed(members: Iterator[tuple[str, int, IO[bytes]]]) -> tuple[Package, ...]:
    name, size, content = next(members, ("", 0, BytesIO()))
    if name != _LIST or size > _LARGEST_LIST:
        raise FormatError(f"it does not begin with {_LIST}: `vidweights download --to` did not write it")
    try:
        found = json.loads(content.read())
        if found["vidweights"] != _VERSION:
            raise FormatError("another version of vidweights wrote it; upgrade the older one")
        packages = tuple(_package(**fields) for fields in found["packages"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"its {_LIST} is damaged ({error})") from error
    return packages


def _package(name: str, commit: str | None, revision: str | None, files: Mapping[str, Any]) -> Package:
    """A listed package, of which nothing is believed that leads outside its folder."""
    made = Package(name, commit, revision, {str(n): RemoteFile(**f) for n, f in files.items()})
    hub = commit is not None
    repository = Repository.parse(name)
    named = repository is not None and repository.revision is None if hub else bool(_FILE_NAME.fullmatch(name))
    if not named or (hub and not GIT_ID.fullmatch(str(commit))) or CONFIG not in made.files:
        raise FormatError(f"it lists a package that cannot be: {ascii(name)[:80]}")
    if revision is not None and Repository.parse(f"a/b@{revision}") is None:
        raise FormatError(f"it lists a revision that cannot be: {ascii(revision)[:80]}")
    for file, facts in made.files.items():
        sound = isinstance(facts.size, int) and bool(SHA256.fullmatch(str(facts.sha256)))
        known = facts.git_blob == "" or bool(GIT_ID.fullmatch(facts.git_blob))  # of a large file there is none
        if not _FILE_NAME.fullmatch(file) or not sound or not known:
            raise FormatError(f"it lists a file that cannot be: {ascii(file)[:80]}")
    return made


class _Told:
    """Adds up the bytes for a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, what: str, size: int) -> None:
        self.done += size
        self.progress(what, self.done, self.total)


def _take(
    package: Package, index: int, members: Iterator[tuple[str, int, IO[bytes]]], told: _Told
) -> tuple[Package, Path]:
    with _place(package) as stage:
        for name, file in package.files.items():
            found = next(members, None)
            if found is None or found[:2] != (f"{index}/{name}", file.size):
                raise FormatError(f"{name} of {package.name} is not where it is listed")
            with (stage / name).open("xb") as out:
                shutil.copyfileobj(found[2], out, _CHUNK)
            if (other := sha256_of(stage / name)) != file.sha256:
                raise IntegrityError(f"{name} of {package.name} has the SHA-256 {other}, expected {file.sha256}")
            told.add(f"reading {package.name}", file.size)
        read_config(stage)
        folder = _moved(package, stage)
    return package, folder


@contextmanager
def _place(package: Package) -> Iterator[Path]:
    """A folder to unpack into: that of a package that was made elsewhere, or one beside the hub's cache."""
    if package.commit is None:
        target = home.weights_folder(package.name)
        there = read_config(target).files if (target / CONFIG).is_file() else {}
        if {name: file.sha256 for name, file in package.files.items() if name in there} != dict(there):
            raise OutputError(f"{target} exists already, with other weights; it was left alone. Move it away first.")
        with staged_folder(target, overwrite=True, mark=CONFIG) as stage:
            yield stage
        return
    cache = RepositoryCache(package.name)
    (cache.folder / "blobs").mkdir(parents=True, exist_ok=True)
    stage = cache.folder / f".{package.commit}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _moved(package: Package, stage: Path) -> Path:
    """For a package from a hub, its files as blobs of the hub's cache, and then its snapshot."""
    if package.commit is None:
        return home.weights_folder(package.name)
    cache = RepositoryCache(package.name)
    for name, file in package.files.items():
        blob = cache.blob(file)
        (stage / name).replace(blob)
        home.remember(blob, file.digest)
    revision = Revision(package.name, package.commit, package.files)
    return cache.publish(revision, tuple(package.files), package.revision or package.commit)
