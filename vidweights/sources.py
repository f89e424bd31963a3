"""Where the bytes of a release come from: a given file, the cache, an installed package, the official url.

They are tried in this order, and each is checked against the catalog's hashes before it is used; a given file is
compared tensor by tensor when it is ported, whatever its format.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vidweights import catalog, formats
from vidweights.catalog import Copy, Release, SourceFile
from vidweights.errors import FormatError, IntegrityError, OutputError, UnavailableError
from vidweights.files import git_blob_id_of, sha256_of, staged_folder
from vidweights.home import source_folder
from vidweights.progress import Progress, silent

# The network is imported when it is used: most jobs find their weights on the machine.
if TYPE_CHECKING:
    from http.client import HTTPResponse

# Seconds to wait for a connection, and for each read after it: a firewall that drops packets must not hang a port.
TIMEOUT = 4.0
_CHUNK = 1 << 20
# More than this is not taken of a file whose size was not published.
_MOST = 4 << 30

T = TypeVar("T")

# Where weights may be, in words, and what looks for them there.
Place = tuple[str, Callable[[], Path]]


@dataclass(frozen=True)
class Source:
    """A checkpoint file that holds the weights.

    Attributes:
        origin: where it was found, in a few words.
        identity: how it is known to be the release, in a few words; nothing for a person's own checkpoint.
    """

    path: Path
    origin: str
    identity: str = ""


class SourceUnavailableError(UnavailableError):
    """No source has the bytes; `attempts` holds (place, why not) in the order of trying."""

    def __init__(self, wanted: str, attempts: list[tuple[str, str]], advice: str) -> None:
        self.attempts = tuple(attempts)
        width = max(len(place) for place, _ in attempts)
        tried = "\n".join(f"  {place:<{width}}  {reason}" for place, reason in attempts)
        super().__init__(f"cannot get the weights {wanted}\n{tried}\n{advice}")


def first_of(places: Iterable[Place], unavailable: Callable[[list[tuple[str, str]]], SourceUnavailableError]) -> Source:
    """The first place that has the weights.

    Raises:
        SourceUnavailableError: none has them; made by `unavailable` of what each place said.
    """
    attempts: list[tuple[str, str]] = []
    for place, find in places:
        try:
            return Source(find(), place)
        except (UnavailableError, FormatError, OutputError) as error:
            attempts.append((place, str(error)))
    raise unavailable(attempts)


def _unavailable(release: Release, attempts: list[tuple[str, str]]) -> SourceUnavailableError:
    files = "\n".join(f"  {release.url_of(file)}" for file in release.files)
    given = "THE_FILE" if len(release.files) == 1 else "FOLDER_WITH_THESE_FILES"
    return SourceUnavailableError(
        release.name if release.size is None else f"{release.name} ({release.shown_size})",
        attempts,
        f"On a machine that is online, fetch\n{files}\n"
        f"and here run\n  vidweights port {release.name} --weights {given}",
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
    return first_of(_places(release, progress), lambda attempts: _unavailable(release, attempts))


def _places(release: Release, progress: Progress) -> list[Place]:
    folder = source_folder(release.name)
    places: list[Place] = [(f"cache {folder}", lambda: _cached(release, folder))]
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
            raise _unavailable(release, [(f"--weights {weights}", f"{found / file.name} is missing")])
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


def check(path: Path, file: SourceFile) -> str:
    """Compare a file with what was published: size, then SHA-256 or git blob id.

    Returns:
        What was compared, in a few words; nothing if nothing was published.

    Raises:
        IntegrityError: they differ.
    """
    size = path.stat().st_size
    if file.size not in (None, size):
        raise IntegrityError(differs(path, f"{size} bytes", f"{file.size} bytes"))
    if known := file.sha256 or file.sha256_begins:
        found = sha256_of(path)
        begins = "" if file.sha256 else "one that begins with "
        if not found.startswith(known):
            raise IntegrityError(differs(path, f"SHA-256 {found}", begins + known))
        return f"the published SHA-256{', of which the beginning is known: ' if begins else ' '}{known}"
    if file.git_blob is not None and (found := git_blob_id_of(path)) != file.git_blob:
        raise IntegrityError(differs(path, f"git blob {found}", file.git_blob))
    return f"the published git blob {file.git_blob}" if file.git_blob else ""


def differs(path: Path, found: str, expected: str) -> str:
    """What is said of a file that has another hash than the published one."""
    return f"{path} is not the published file: found {found}, expected {expected}. Remove it and fetch it again."


def _installed(copy: Copy) -> Path:
    """The file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(copy.module)
    if spec is None or spec.origin is None:
        raise UnavailableError(f"not installed; pip install {copy.package}=={copy.version}")
    path = Path(spec.origin).parent / copy.file
    if not path.is_file():
        raise UnavailableError(f"{_version(copy.package)} is installed, which lacks {copy.file}")
    check(path, SourceFile(copy.file, copy.size, sha256=copy.sha256))
    return path


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"version {version(package)}"
    except PackageNotFoundError:
        return "a module of that name, but not the package,"


def refuse_offline() -> None:
    """Ask nothing of the network if the person said so.

    Raises:
        UnavailableError: VIDWEIGHTS_OFFLINE is set.
    """
    if os.environ.get("VIDWEIGHTS_OFFLINE"):
        raise UnavailableError("not tried: VIDWEIGHTS_OFFLINE is set")


def _download(release: Release, folder: Path, progress: Progress) -> Path:
    """Fetch the published files, once; the folder appears when every file has its hash."""
    if release.manual:
        raise UnavailableError(f"not tried: {release.manual}")
    refuse_offline()
    with staged_folder(folder, overwrite=True, mark=release.files[0].name) as stage:
        for file in release.files:
            fetch(release.url_of(file), stage / file.name, file.size or _MOST, progress)
            check(stage / file.name, file)
    return folder / release.files[0].name


def fetch(url: str, path: Path, size: int, progress: Progress = silent) -> None:
    """Download a file: one try, no retries; see `opened` and `save`."""
    save(opened(url), path, size, progress)


def opened(url: str, headers: Mapping[str, str] | None = None, seconds: float | None = None) -> HTTPResponse:
    """The beginning of a server's answer.

    Args:
        url: what is asked for.
        headers: of the request; a redirection does not take them along, since a token may be among them.
        seconds: how long to wait; `TIMEOUT` by default.

    Raises:
        UnavailableError: the server cannot be reached, or refuses.
    """
    import urllib.error
    import urllib.request
    from http.client import HTTPResponse

    if not url.startswith(("http://", "https://")):
        raise UnavailableError(f"{ascii(url)[:80]} is not an http address")
    request = urllib.request.Request(url, headers={"User-Agent": "vidweights"})
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)
    patience = TIMEOUT if seconds is None else seconds
    with _told():
        try:
            response = within(patience, lambda: urllib.request.urlopen(request, timeout=TIMEOUT))
        except urllib.error.HTTPError as error:
            raise UnavailableError(f"the server answered {error.code} {error.reason}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise UnavailableError(f"cannot be reached ({why(error, patience)})") from error
    if not isinstance(response, HTTPResponse):
        raise UnavailableError("leads to an address that is not http")
    return response


def save(response: HTTPResponse, path: Path, size: int, progress: Progress = silent) -> None:
    """Write the body of an answer to a new file, and never more bytes than expected.

    Args:
        response: see `opened`; it is closed.
        path: the file; it must not exist.
        size: the published number of bytes, or the most that there may be.
        progress: told of the bytes.

    Raises:
        UnavailableError: the connection breaks.
        FormatError: there are more than `size` bytes.
    """
    done = 0
    with response, path.open("xb") as out:
        for data in _received(response):
            done += len(data)
            if done > size:
                raise FormatError(f"{response.url} sends more than the {size} bytes that were published; not kept")
            out.write(data)
            progress(f"downloading {path.name}", done, size if response.length is None else done + response.length)


def _received(response: HTTPResponse) -> Iterator[bytes]:
    """The body of the server's answer; what goes wrong with the file that it is written to is not caught here."""
    while True:
        with _told():
            data = response.read(_CHUNK)
        if not data:
            break
        yield data
    if response.length:  # `read` of a size does not mind
        raise UnavailableError(f"the answer is cut: {response.length} bytes are missing")


@contextmanager
def _told() -> Iterator[None]:
    """Turn what a broken connection raises into our own error."""
    from http.client import HTTPException

    try:
        yield
    except OSError as error:
        raise UnavailableError(f"the connection broke ({error})") from error
    except HTTPException as error:
        raise UnavailableError(f"the answer is cut, or is not HTTP ({ascii(error)[:80]})") from error


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, if it does so in time.

    It runs in a thread that is left behind when it takes longer: resolving a name has no timeout of its own.

    Raises:
        TimeoutError: it takes longer.
    """
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="vidweights-within", daemon=True).start()
    try:
        return future.result(seconds)
    except futures.TimeoutError as error:
        raise TimeoutError(f"no answer in {seconds:.1f} s") from error


def why(error: BaseException, seconds: float) -> str:
    """Why a server was not reached, in a few words, from whatever a client library made of it."""
    import socket

    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return "name not resolved: no network, or no DNS, on this machine"
        if isinstance(cause, TimeoutError):
            return f"no answer in {seconds:.1f} s"
        if isinstance(cause, OSError) and cause.strerror and cause.errno is not None:
            return cause.strerror.lower()
    return str(error)[:200] or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those behind it: those it was raised from, and those that urllib keeps as its reason."""
    following: BaseException | None = error
    while following is not None:
        yield following
        reason = getattr(following, "reason", None)
        nearest = reason if isinstance(reason, BaseException) else following.__cause__ or following.__context__
        following = nearest
