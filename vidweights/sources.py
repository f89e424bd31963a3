"""Where the bytes of a release come from: a given file, the cache, an installed package, the official url.

They are tried in this order, and each is checked against the catalog's hashes before it is used; a given file is
compared tensor by tensor when it is ported, whatever its format.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vidweights import catalog, formats
from vidweights.catalog import Copy, Release, SourceFile
from vidweights.errors import FormatError, IntegrityError, OutputError, UnavailableError
from vidweights.files import git_blob_id_of, sha256_of, staged_folder
from vidweights.home import source_folder
from vidweights.progress import Progress, silent

# Seconds to wait for a connection, and for each read after it: a firewall that drops packets must not hang a port.
TIMEOUT = 4.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A checkpoint file that holds a release, and in a few words where it was found."""

    path: Path
    origin: str


class SourceUnavailableError(UnavailableError):
    """No source has the bytes; `attempts` holds (place, why not) in the order of trying."""

    def __init__(self, release: Release, attempts: list[tuple[str, str]]) -> None:
        self.attempts = tuple(attempts)
        width = max(len(place) for place, _ in attempts)
        tried = "\n".join(f"  {place:<{width}}  {reason}" for place, reason in attempts)
        files = "\n".join(f"  {release.url}/{file.name}" for file in release.files)
        super().__init__(
            f"cannot get the weights {release.name} ({release.size / 1e6:.1f} MB)\n{tried}\n"
            f"On a machine that is online, fetch\n{files}\n"
            f"and here run\n  vidweights port {release.name} --weights FOLDER_WITH_THESE_FILES"
        )


def locate(release: Release, weights: Path | None = None, progress: Progress = silent) -> Source:
    """The first source that has a release.

    Args:
        release: what is wanted.
        weights: a file or folder that the person has; if given, nothing else is tried.
        progress: told of the bytes of a download.

    Raises:
        SourceUnavailableError: no source has it, or none has the published bytes.
    """
    if weights is not None:
        return Source(_given(release, weights), f"--weights {weights}")
    attempts: list[tuple[str, str]] = []
    for place, find in _places(release, progress):
        try:
            return Source(find(), place)
        except (UnavailableError, FormatError, OutputError) as error:
            attempts.append((place, str(error)))
    raise SourceUnavailableError(release, attempts)


def _places(release: Release, progress: Progress) -> list[tuple[str, Callable[[], Path]]]:
    folder = source_folder(release.name)
    places: list[tuple[str, Callable[[], Path]]] = [(f"cache {folder}", lambda: _cached(release, folder))]
    for copy in release.copies:
        places.append((f"package {copy.package} {copy.version}", lambda copy=copy: _installed(copy)))  # type: ignore[misc]
    places.append(("official url", lambda: _download(release, folder, progress)))
    return places


def _given(release: Release, weights: Path) -> Path:
    """The checkpoint that a person's path means: itself, or the release's files in a folder of theirs.

    Raises:
        SourceUnavailableError: it is a folder of the release's collection, without all files of this one.
    """
    if not weights.is_dir():
        return weights
    index = release.files[0].name
    own = _folders(release, weights)
    found = next((folder for folder in (weights, *own) if (folder / index).is_file()), None)
    if found is None:
        siblings = [folder for other in catalog.select(release.collection) for folder in _folders(other, weights)]
        if not any(folder.is_dir() for folder in siblings) or formats.checkpoints(weights):
            return weights
        found = next((folder for folder in own if folder.is_dir()), own[0])
    for file in release.files:
        if not (found / file.name).is_file():
            raise SourceUnavailableError(release, [(f"--weights {weights}", f"{found / file.name} is missing")])
    return found / index


def _folders(release: Release, folder: Path) -> list[Path]:
    """Where a folder may hold a release: as its repository lays it out, or under its catalog name."""
    return [folder / release.checkpoint, folder / "data" / "checkpoints" / release.checkpoint, folder / release.name]


def _cached(release: Release, folder: Path) -> Path:
    for file in release.files:
        if not (folder / file.name).is_file():
            raise UnavailableError("not there")
        check(folder / file.name, file)
    return folder / release.files[0].name


def check(path: Path, file: SourceFile) -> None:
    """Compare a file with what was published: size, then SHA-256 or git blob id.

    Raises:
        IntegrityError: they differ.
    """
    size = path.stat().st_size
    if size != file.size:
        raise IntegrityError(_differs(path, f"{size} bytes", f"{file.size} bytes"))
    if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
        raise IntegrityError(_differs(path, f"SHA-256 {found}", file.sha256))
    if file.sha256 is None and (found := git_blob_id_of(path)) != file.git_blob:
        raise IntegrityError(_differs(path, f"git blob {found}", file.git_blob))


def _differs(path: Path, found: str, expected: str) -> str:
    return f"{path} is not the published file: found {found}, expected {expected}. Remove it and fetch it again."


def _installed(copy: Copy) -> Path:
    """The file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(copy.module)
    if spec is None or spec.origin is None:
        raise UnavailableError(f"not installed; pip install {copy.package}=={copy.version}")
    path = Path(spec.origin).parent / copy.file
    if not path.is_file():
        raise UnavailableError(f"{_version(copy.package)} is installed, which lacks {copy.file}")
    check(path, SourceFile(copy.file, copy.size, "", copy.sha256))
    return path


def _version(package: str) -> str:
    try:
        return f"version {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return "a module of that name, but not the package,"


def _download(release: Release, folder: Path, progress: Progress) -> Path:
    """Fetch the published files, once; the folder appears when every file has its hash."""
    if os.environ.get("VIDWEIGHTS_OFFLINE"):
        raise UnavailableError("not tried: VIDWEIGHTS_OFFLINE is set")
    with staged_folder(folder, overwrite=True, mark=release.files[0].name) as stage:
        for file in release.files:
            _fetch(f"{release.url}/{file.name}", stage / file.name, file, progress)
            check(stage / file.name, file)
    return folder / release.files[0].name


def _fetch(url: str, path: Path, file: SourceFile, progress: Progress) -> None:
    """One try: no retries, and never more bytes than were published."""
    done = 0
    with path.open("xb") as out:
        for data in _received(url):
            done += len(data)
            if done > file.size:
                raise FormatError(f"{url} sends more than the {file.size} bytes that were published; not kept")
            out.write(data)
            progress(f"downloading {file.name}", done, file.size)


def _received(url: str) -> Iterator[bytes]:
    """The body of the server's answer; what goes wrong with the file that it is written to is not caught here."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            while data := response.read(_CHUNK):
                yield data
    except urllib.error.HTTPError as error:
        raise UnavailableError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UnavailableError(f"cannot be reached ({_reason(error.reason)})") from error
    except OSError as error:
        raise UnavailableError(f"the connection broke ({error})") from error
    except http.client.HTTPException as error:
        raise UnavailableError(f"the answer is cut, or is not HTTP ({ascii(error)[:80]})") from error


def _reason(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"no answer in {TIMEOUT:.0f} s"
    return reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
