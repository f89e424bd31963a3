"""Where the bytes of 2D ImageNet weights come from: a given file, caches that are there, the hub, the official url.

They are tried in this order. Each file is compared with the hash that is published for it before it is used: the
digits in torchvision's file names, Keras' MD5, the SHA-256 by which the hub names its large files.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import time
import urllib.parse
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vidweights.errors import FormatError, IntegrityError, UnavailableError
from vidweights.files import md5_of, sha256_of, staged_folder
from vidweights.home import expanded, source_folder, user_cache
from vidweights.hub import SHA256, RepositoryCache, endpoint, environment, offline
from vidweights.images import HUB_FILES, ImageWeights, PublishedFile
from vidweights.progress import Progress, silent
from vidweights.sources import (
    Place,
    Source,
    SourceUnavailableError,
    differs,
    first_of,
    opened,
    refuse_offline,
    save,
    why,
    within,
)

# In so many seconds the servers, all together, must begin to answer.
PATIENCE = 3.5
# No file of 2D weights that is known here has half of it.
_LARGEST = 1 << 30
_SUMS = "SHA256SUMS"


def locate(weights: ImageWeights, given: Path | None = None, progress: Progress = silent) -> Source:
    """The first source that has 2D weights.

    Args:
        weights: what is wanted.
        given: a file or folder that the person has; if given, nothing else is tried, and no hash is compared.
        progress: told of the bytes of a download.

    Raises:
        SourceUnavailableError: no source has them, or none has the published bytes.
    """
    if given is not None:
        return Source(_given(weights, given), f"--weights {given}")
    return first_of(_places(weights, progress), lambda attempts: _unavailable(weights, attempts))


def _places(weights: ImageWeights, progress: Progress) -> list[Place]:
    own = source_folder(weights.name)
    places: list[Place] = [(f"cache {own}", lambda: _kept(own))]
    if weights.cache is not None:
        name, folder = _CACHES[weights.cache]
        places.append((f"{name} {folder()}", lambda: _in_folder(folder(), weights.files)))
    patience = _Patience(PATIENCE)
    if weights.hub is not None:
        hub, repository = weights.hub, RepositoryCache(weights.hub).folder
        places.append((f"hub cache {repository}", lambda: _in_hub_cache(repository)))
        places.append((f"hub {endpoint()}/{hub}", lambda: _from_hub(hub, own, patience, progress)))
    for file in weights.files:
        if file.url is not None:
            places.append((f"official url {file.url}", partial(_from_url, file, own, patience, progress)))
    return places


class _Patience:
    """Seconds that several servers share, counted from when the first of them is asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def share(self, servers: int) -> float:
        """An equal part of what is left, if so many servers are still to be asked."""
        if self._end is None:
            self._end = time.monotonic() + self._seconds
        return max(0.1, (self._end - time.monotonic()) / servers)


# --- what is on this machine ----------------------------------------------------------------------------------------


def _given(weights: ImageWeights, given: Path) -> Path:
    """The checkpoint that a person's path means: itself, or the one of these weights in a folder of theirs."""
    names = [file.member or file.name for file in weights.files] + list(HUB_FILES)
    return next((given / name for name in names if (given / name).is_file()), given)


def _kept(folder: Path) -> Path:
    """What was downloaded before, with the hash that it had then."""
    try:
        digest, name = (folder / _SUMS).read_text(encoding="utf-8").split()
    except OSError as error:
        raise UnavailableError("not there") from error
    except ValueError as error:
        raise FormatError(f"{folder / _SUMS} is damaged. Remove the folder.") from error
    path = folder / name
    if not path.is_file():
        raise UnavailableError(f"{name} is not there")
    if (found := sha256_of(path)) != digest:
        raise IntegrityError(differs(path, f"SHA-256 {found}", digest))
    return path


def _torch_hub() -> Path:
    """Source: torch.hub.get_dir of torch 2.13."""
    home = os.environ.get("TORCH_HOME") or user_cache() / "torch"
    return expanded(home) / "hub" / "checkpoints"


def _keras() -> Path:
    """Source: keras 3.15, keras/src/utils/file_utils.py (get_file) and backend/config.py (keras_home)."""
    return expanded(os.environ.get("KERAS_HOME") or "~/.keras") / "models"


_CACHES: dict[str, tuple[str, Callable[[], Path]]] = {"torch": ("torch hub", _torch_hub), "keras": ("Keras", _keras)}


def _in_folder(folder: Path, files: tuple[PublishedFile, ...]) -> Path:
    """The first file of a library's cache folder that is as published."""
    there = [file for file in files if (folder / file.name).is_file()]
    if not there:
        raise UnavailableError(f"has no {' and no '.join(file.name for file in files)}")
    return _first_intact([(folder / file.name, partial(_check, file=file)) for file in there])


def _in_hub_cache(repository: Path) -> Path:
    """A file of any revision in the hub cache, that of `main` first; its SHA-256 must be the name of a blob."""
    try:
        main = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    revisions = sorted(repository.glob("snapshots/*"), key=lambda folder: (folder.name != main, folder.name))
    found = [folder / name for name in HUB_FILES for folder in revisions if (folder / name).is_file()]
    if not found:
        raise UnavailableError(f"has no {HUB_FILES[0]}" if revisions else "not there")
    return _first_intact([(path, partial(_check_blob, blobs=repository / "blobs")) for path in found])


def _first_intact(candidates: list[tuple[Path, Callable[[Path], None]]]) -> Path:
    """The first file that passes its check, or the error of the last."""
    *others, last = candidates
    for path, check in others:
        try:
            check(path)
            return path
        except IntegrityError:
            continue
    last[1](last[0])
    return last[0]


def _check(path: Path, file: PublishedFile) -> None:
    """Compare a file with what is published of it; where nothing is, there is nothing to compare.

    Raises:
        IntegrityError: they differ.
    """
    if file.sha256 is not None and not (found := sha256_of(path)).startswith(file.sha256):
        raise IntegrityError(differs(path, f"SHA-256 {found}", f"{file.sha256}..."))
    if file.md5 is not None and (found := md5_of(path)) != file.md5:
        raise IntegrityError(differs(path, f"MD5 {found}", file.md5))


def _check_blob(path: Path, blobs: Path) -> None:
    if not (blobs / (found := sha256_of(path))).exists():
        raise IntegrityError(
            f"{path} has the SHA-256 {found}, by which the hub names no file there: it is damaged, or a copy that "
            "cannot be checked. Remove it, or give it as --weights."
        )


# --- the network ----------------------------------------------------------------------------------------------------


def _from_hub(repository: str, folder: Path, patience: _Patience, progress: Progress) -> Path:
    """Ask the hub for the file's SHA-256 and address, then fetch it.

    The hub's own client would go on trying for 23 seconds, and checks the size of what it gets, but not the hash.
    """
    if switch := offline():
        raise UnavailableError(f"not tried: {switch} is set")
    name = HUB_FILES[0]
    about, token = _asked(repository, name, patience.share(2))
    if not SHA256.fullmatch(about.etag or "") or not about.commit_hash:
        raise UnavailableError(f"answers, but not as a hub does: no SHA-256 of {name}. Is HF_ENDPOINT right?")
    own = urllib.parse.urlsplit(about.location).netloc == urllib.parse.urlsplit(endpoint()).netloc
    response = opened(about.location, {"Authorization": f"Bearer {token}"} if token and own else {}, patience.share(2))
    with response, staged_folder(folder, overwrite=True, mark=_SUMS) as stage:
        save(response, stage / name, about.size or _LARGEST, progress)
        _check(stage / name, PublishedFile(name, sha256=about.etag))
        _record(stage, name)
    return folder / name


def _asked(repository: str, name: str, seconds: float) -> tuple[Any, str | None]:
    """What the hub says of a file (`huggingface_hub.HfFileMetadata`), and the person's token."""
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    def ask() -> tuple[Any, str | None]:
        token = get_token()
        url = hf_hub_url(repository, name, endpoint=endpoint())
        return get_hf_file_metadata(url, token=token, timeout=seconds, endpoint=endpoint()), token

    try:
        return within(seconds, ask)
    except Exception as error:  # the client's HTTP library, whose errors these are, differs between its versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        answer = f"the server answered {status}" if status else f"cannot be reached ({why(error, seconds)})"
        raise UnavailableError(answer) from error


def _from_url(file: PublishedFile, folder: Path, patience: _Patience, progress: Progress) -> Path:
    assert file.url is not None
    refuse_offline()
    response = opened(file.url, seconds=patience.share(1))
    with response, staged_folder(folder, overwrite=True, mark=_SUMS) as stage:
        save(response, stage / file.name, _LARGEST, progress)
        _check(stage / file.name, file)
        if file.member is not None:
            _extract(stage / file.name, file.member, stage / file.member)
            (stage / file.name).unlink()
        _record(stage, file.member or file.name)
    return folder / (file.member or file.name)


def _record(stage: Path, name: str) -> None:
    """Write the hash of a file that was compared with what is published, in the format of `sha256sum`."""
    (stage / _SUMS).write_text(f"{sha256_of(stage / name)}  {name}\n", encoding="utf-8")


def _extract(archive: Path, member: str, target: Path) -> None:
    """One regular file of a tar.gz, written to `target` whatever path the archive gives it; nothing else of it.

    Raises:
        FormatError: it is no such archive, is damaged, lacks the file, or holds too much.
    """
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=content, mode="r|") as tar:
            found = _copy_member(tar, member, target)
            while content.read(1 << 20):  # up to the CRC-32 at the end
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise FormatError(f"{archive.name} cannot be unpacked ({error})") from error
    if not found:
        raise FormatError(f"{archive.name} holds no {member}")


def _copy_member(tar: tarfile.TarFile, member: str, target: Path) -> bool:
    size = 0
    found = False
    for entry in tar:
        size += entry.size
        if size > _LARGEST:
            raise FormatError(f"the archive holds more than {_LARGEST} bytes; not kept")
        content = tar.extractfile(entry) if entry.isreg() and entry.name.removeprefix("./") == member else None
        if content is not None and not found:
            found = True
            with target.open("xb") as out:
                shutil.copyfileobj(content, out)
    return found


# --- what is said when there are none -------------------------------------------------------------------------------


def _unavailable(weights: ImageWeights, attempts: list[tuple[str, str]]) -> SourceUnavailableError:
    commands = _commands(weights)
    advice = [
        f"Environment: {environment('TORCH_HOME', 'KERAS_HOME')}",
        "On a machine that is online, one of",
        *(f"  {command}" for command, _ in commands),
        "and here, with the file that it leaves,",
        *(
            f"  vidweights inflate {weights.name} --weights {file}"
            for file in dict.fromkeys(left for _, left in commands)
        ),
        "Behind a mirror or a proxy, set HF_ENDPOINT or HTTPS_PROXY. To try the job without pretrained weights,",
        f"  vidweights inflate {weights.name} --random-init 0",
    ]
    return SourceUnavailableError(f"{weights.name} ({_described(weights)})", attempts, "\n".join(advice))


def _described(weights: ImageWeights) -> str:
    """The file that is wanted, with its size and hash as far as they are published."""
    if not weights.files:
        return f"{HUB_FILES[0]} of {weights.hub}"
    file = weights.files[0]
    facts = [file.name]
    facts += [f"{file.mib:.1f} MiB"] if file.mib else []
    facts += [f"SHA-256 {file.sha256}{'' if len(file.sha256) == 64 else '...'}"] if file.sha256 else []
    facts += [f"MD5 {file.md5}"] if file.md5 else []
    return ", ".join(facts)


def _commands(weights: ImageWeights) -> list[tuple[str, str]]:
    """Commands that fetch the weights, each of them alone, and the file that it leaves."""
    found: list[tuple[str, str]] = []
    for file in weights.files:
        if file.url is not None:
            unpack = f" && tar -xzf {file.name} {file.member}" if file.member else ""
            save = f"import urllib.request as r; r.urlretrieve('{file.url}', '{file.name}')"
            left = file.member or file.name
            found += [(f"curl -LO {file.url}{unpack}", left), (f'python -c "{save}"{unpack}', left)]
    if weights.hub is not None:
        found.append((f"hf download {weights.hub} {HUB_FILES[0]} --local-dir .", HUB_FILES[0]))
    return found
