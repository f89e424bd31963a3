"""A hub that is a server: what huggingface.co and its mirrors answer, and what their client leaves undone.

The client (huggingface_hub, 1.x and 2.x) compares the size of what it gets, but no hash; a connection that is reset
ends its download, and a process that is killed leaves a file that nobody finds again. So bytes that come over plain
HTTP are fetched here: hashed on the way, resumed where they stopped, by another process if need be. What a hub keeps
in Xet the client fetches, and it is hashed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from vidweights import home
from vidweights.errors import FormatError, IntegrityError, OutputError, UnavailableError, VidweightsError
from vidweights.folder import CONFIG, package
from vidweights.hub import (
    GIT_ID,
    SHA256,
    NotHereError,
    RemoteFile,
    Repository,
    RepositoryCache,
    Revision,
    environment,
    offline,
    shown,
    without_network,
)
from vidweights.progress import Progress, silent
from vidweights.sources import why, within

T = TypeVar("T")

# Seconds to wait for an answer, and for each piece of a body.
TIMEOUT = 10.0
# Seconds between tries, as long as no byte comes; a piece that comes starts them anew.
PAUSES = (0.5, 1.0, 2.0, 4.0)
# The longest that a hub may ask to wait, in seconds, before the person is told instead.
PATIENCE = 60.0
_CHUNK = 1 << 20
# What the client's HTTP library calls a connection that never was.
_UNREACHED = ("ConnectError", "ConnectTimeout", "ProxyError", "TimeoutError")
_AGAIN = (408, 429, 500, 502, 503, 504)


class HubError(UnavailableError):
    """A hub refused, failed or could not be reached.

    Attributes:
        status: of its answer; None if there was none.
        again: whether the same request may succeed later.
        wait: seconds that the hub asks to wait.
        reached: whether there was a connection at all.
    """

    def __init__(
        self, message: str, status: int | None = None, *, again: bool = False, wait: float = 0.0, reached: bool = True
    ) -> None:
        super().__init__(message)
        self.reached = reached
        self.status = status
        self.again = again
        self.wait = wait

    @property
    def final(self) -> bool:
        """Whether there is no point in trying again, or the hub asks for more patience than there is."""
        return not self.again or self.wait > PATIENCE


@dataclass(frozen=True)
class RemoteHub:
    """The hub at an address."""

    endpoint: str

    @property
    def name(self) -> str:
        """The address, without a password."""
        return shown(self.endpoint)

    @cached_property
    def api(self) -> Any:
        """The client (`huggingface_hub.HfApi`), with the person's token."""
        from huggingface_hub import HfApi

        from vidweights import __version__

        return HfApi(endpoint=self.endpoint, library_name="vidweights", library_version=__version__)

    def describe(self, repository: Repository) -> Revision | None:
        """The files of a revision, with their hashes; None if the hub has no such repository or revision.

        Raises:
            HubError: it cannot be asked.
        """
        if name := offline():
            raise HubError(f"not tried: {name} is set")
        try:
            with told(self.name):
                # In a thread: resolving a name has no timeout of its own.
                info = within(TIMEOUT, lambda: self._info(repository))
        except HubError as error:
            if error.status == 404 or (error.status == 401 and self.token is None):
                return None  # the answer to whoever has no token, and asks for what does not exist
            raise
        files = {
            file.rfilename: RemoteFile(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in info.siblings or ()
        }
        # The hashes become names in the cache, so they must be hashes.
        sound = all((SHA256 if f.sha256 else GIT_ID).fullmatch(str(f.digest)) for f in files.values())
        if not GIT_ID.fullmatch(str(info.sha)) or not sound or any(type(f.size) is not int for f in files.values()):
            raise HubError(f"{self.name} answers, but not as a hub does: it tells no hashes. Is HF_ENDPOINT right?")
        return Revision(repository.name, info.sha, files)

    def _info(self, repository: Repository) -> Any:
        return self.api.model_info(repository.name, revision=repository.revision, files_metadata=True, timeout=TIMEOUT)

    @property
    def token(self) -> str | None:
        """The person's token."""
        from huggingface_hub import get_token

        found: str | None = get_token()
        return found

    def folder(self, repository: Repository, progress: Progress = silent) -> Path:
        """See `vidweights.hub.Hub.folder`; a commit that is here already is not asked for."""
        cache = RepositoryCache(repository.name)
        here = cache.find(repository.revision)
        if here is not None and here.name == repository.revision:
            with suppress(IntegrityError):  # it is fetched again
                return cache.verify(here)
        try:
            revision = self.describe(repository) if here else again(lambda: self.describe(repository), first=True)
        except HubError as error:
            if here is not None:
                return cache.verify(here)
            raise self._not_here(repository, str(error).removeprefix(f"{self.name} ")) from error
        if revision is None:
            raise self._not_here(repository, "has no such repository, or no such revision, for this token or without")
        try:
            return self._fetch(revision, repository, cache, progress)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"cannot write {cache.folder}: {reason}. Nothing of {repository} shows there that is not whole. "
                "Make room, or set HF_HOME to another place."
            ) from error

    def _not_here(self, repository: Repository, reason: str) -> NotHereError:
        cache = RepositoryCache(repository.name)
        others = cache.revisions()
        attempts = [
            (str(cache.folder), f"has {', '.join(others)}" if others else "not there"),
            (self.name, reason),
            ("environment", environment()),
        ]
        return NotHereError(str(repository), attempts, without_network(str(repository)))

    def _fetch(self, revision: Revision, wanted: Repository, cache: RepositoryCache, progress: Progress) -> Path:
        """Fetch what is missing, `config.json` first, and then show all of it at once."""
        names = _package(revision, {})
        if CONFIG not in names:
            raise FormatError(f"{wanted} on {self.name} has no {CONFIG}: it holds no weights of vidweights.")
        self._bring(revision, CONFIG, cache, progress)
        weights = _weights(cache.blob(revision.files[CONFIG]), wanted)
        names = _package(revision, weights)
        for name, sha256 in weights.items():
            if name not in names or revision.files[name].sha256 not in (sha256, None):
                raise IntegrityError(
                    f"{wanted} on {self.name} contradicts itself: its {CONFIG} and its list of files name different "
                    f"bytes for {name}. Nothing was kept; tell whoever published it."
                )
        for name in names[1:]:
            self._bring(revision, name, cache, progress)
        _sweep(cache)
        return cache.publish(revision, names, wanted.revision)

    def _bring(self, revision: Revision, name: str, cache: RepositoryCache, progress: Progress) -> None:
        """Have the blob of a file, with its hash; bytes that are wrong are deleted and fetched once more.

        Raises:
            IntegrityError: they are wrong again.
        """
        file, blob = revision.files[name], cache.blob(revision.files[name])
        blob.parent.mkdir(parents=True, exist_ok=True)
        found: str | None = None
        for _ in range(2):
            if not blob.exists():
                self._receive_any(revision, name, cache, progress)
            if (found := file.differs(blob)) is None:
                return
            with _locked(cache, file.digest):
                if blob.exists() and file.differs(blob) is not None:  # unless another process has mended it
                    _remove(blob, cache)
        raise IntegrityError(
            f"{name} of {revision.repository} came from {self.name} twice with other bytes than it has a hash of: "
            f"{found}. Nothing was kept. A proxy may alter what passes; try another network, or later."
        )

    def _receive_any(self, revision: Revision, name: str, cache: RepositoryCache, progress: Progress) -> None:
        file = revision.files[name]
        url = f"{self.endpoint}/{revision.repository}/resolve/{revision.commit}/{urllib.parse.quote(name)}"
        if file.sha256 is not None and self._in_xet(url):
            with _locked(cache, file.digest):
                _remove_partials(cache, file.digest)
            again(lambda: self._by_client(revision, name))
            return
        with _locked(cache, file.digest):
            if not cache.blob(file).exists():  # unless another process was faster
                _Download(self, url, file, blob=cache.blob(file), name=name, progress=progress).run()

    def _in_xet(self, url: str) -> bool:
        """Whether the hub keeps a file in Xet, and this client can fetch it from there."""
        from huggingface_hub import constants

        if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
            return False
        answer = again(lambda: self._answer("HEAD", url))
        return "X-Xet-Hash" in answer.headers

    def _answer(self, method: str, url: str) -> Any:
        from huggingface_hub.utils import get_session

        with told(self.name):
            answer = get_session().request(
                method, url, headers=self.headers(url), follow_redirects=False, timeout=TIMEOUT
            )
            raise_for_status(answer, self.name)
        return answer

    def _by_client(self, revision: Revision, name: str) -> None:
        from huggingface_hub import hf_hub_download

        from vidweights import __version__

        with told(self.name), quiet():
            hf_hub_download(
                revision.repository,
                name,
                revision=revision.commit,
                endpoint=self.endpoint,
                cache_dir=RepositoryCache(revision.repository).root,
                library_name="vidweights",
                library_version=__version__,
            )

    def headers(self, url: str) -> dict[str, str]:
        """The headers of a request; the token is for the hub's own origin alone."""
        from huggingface_hub.utils import build_hf_headers

        from vidweights import __version__

        own = _origin(url) == _origin(self.endpoint)
        made: dict[str, str] = build_hf_headers(
            token=None if own else False, library_name="vidweights", library_version=__version__
        )
        return {**made, "Accept-Encoding": "identity"}


def again(call: Callable[[], T], *, first: bool = False) -> T:
    """What `call` returns, tried again after a pause where that may help.

    With `first`, nobody has answered yet: a hub that cannot be reached at all ends it at once.
    """
    for pause in PAUSES:
        try:
            return call()
        except HubError as error:
            if error.final or (first and not error.reached):
                raise
            time.sleep(max(pause, error.wait))
    return call()


class _Partial:
    """A file that is written in pieces, and its hash so far; what a killed process left of it is read first."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self._file = file
        self._out = path.open("a+b", buffering=0)
        self.restart(keep=path.stat().st_size <= file.size)

    def restart(self, *, keep: bool = False) -> None:
        """Begin anew, or, with `keep`, after what is there."""
        header = b"blob %d\0" % self._file.size
        self._hash = hashlib.sha256() if self._file.sha256 else hashlib.sha1(header, usedforsecurity=False)
        self.size = 0
        if not keep:
            self._out.truncate(0)
        self._out.seek(0)
        while data := self._out.read(_CHUNK):
            self._hash.update(data)
            self.size += len(data)

    def write(self, data: bytes) -> None:
        """Append a piece."""
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[self._out.write(view) :]

    @property
    def digest(self) -> str:
        """The hash of what there is."""
        return self._hash.hexdigest()

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()


class _Download:
    """One file over plain HTTP, hashed while it comes, and resumed where a connection, or a process, stopped."""

    def __init__(
        self, hub: RemoteHub, url: str, file: RemoteFile, *, blob: Path, name: str, progress: Progress
    ) -> None:
        self.hub, self.url, self.file, self.blob, self.name = hub, url, file, blob, name
        self.progress = progress
        # Under this name the 0.x and 1.x clients resume, too; it is written under their lock.
        self.partial = blob.with_name(f"{blob.name}.incomplete")

    def run(self) -> None:
        """Have the blob, whatever its hash: the caller compares it."""
        pauses = list(PAUSES)
        with _Partial(self.partial, self.file) as out:
            while out.size < self.file.size:
                before = out.size
                try:
                    self._receive(out)
                except HubError as error:
                    if out.size > before:
                        pauses = list(PAUSES)
                    if error.final or not pauses:
                        raise
                    time.sleep(max(pauses.pop(0), error.wait))
        self.partial.replace(self.blob)
        home.remember(self.blob, out.digest)

    def _receive(self, out: _Partial) -> None:
        from huggingface_hub.utils import get_session

        resumed = {"Range": f"bytes={out.size}-"} if out.size else {}
        url = self.url
        for _ in range(10):
            headers = {**self.hub.headers(url), **resumed}
            with (
                told(self.hub.name),
                get_session().stream("GET", url, headers=headers, follow_redirects=False, timeout=TIMEOUT) as answer,
            ):
                if answer.has_redirect_location:
                    url = urllib.parse.urljoin(url, answer.headers["Location"])
                    continue
                raise_for_status(answer, self.hub.name)
                if out.size and answer.status_code != 206:  # the server ignores ranges
                    out.restart()
                self._save(answer, out)
                return
        raise HubError(f"{self.hub.name} redirects in circles")

    def _save(self, answer: Any, out: _Partial) -> None:
        for data in answer.iter_raw(_CHUNK):
            if out.size + len(data) > self.file.size:
                out.restart()
                raise HubError(f"{self.hub.name} sends more than the {self.file.size} bytes of {self.name}", again=True)
            out.write(data)
            self.progress(f"downloading {self.name}", out.size, self.file.size)
        if out.size < self.file.size:
            raise HubError(f"{self.hub.name} sent {out.size} of {self.file.size} bytes of {self.name}", again=True)


# --- what a repository holds ----------------------------------------------------------------------------------------


def _package(revision: Revision, weights: dict[str, str]) -> tuple[str, ...]:
    return package((name for name in revision.files if "/" not in name and "\\" not in name), weights)


def _weights(config: Path, wanted: Repository) -> dict[str, str]:
    """{file: SHA-256} of the weights, read from a `config.json` that is not in its folder yet."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        listed = json.loads(config.read_text(encoding="utf-8"))["files"]
        return {str(name): str(sha256) for name, sha256 in listed.items()}
    raise FormatError(
        f"{wanted} holds no weights of vidweights: its {CONFIG} lists no files with their SHA-256. "
        f"`hf download {wanted.name}` fetches it as it is; `vidweights inspect FILE` says what its weights are."
    )


# --- the cache, while others use it ---------------------------------------------------------------------------------


@contextmanager
def _locked(cache: RepositoryCache, digest: str, seconds: float = -1) -> Iterator[None]:
    """Hold the lock of a blob, as the hub's client does.

    Raises:
        TimeoutError: another process holds it.
    """
    from filelock import FileLock

    path = cache.lock_file(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=seconds):  # filelock.Timeout is a TimeoutError
        yield


def _remove_partials(cache: RepositoryCache, digest: str) -> None:
    for path in (cache.folder / "blobs").glob(f"{digest}*.incomplete"):
        path.unlink(missing_ok=True)


def _sweep(cache: RepositoryCache) -> None:
    """Remove what killed downloads left: partial files of blobs that no process has the lock of."""
    digests = {path.name.partition(".")[0] for path in (cache.folder / "blobs").glob("*.incomplete")}
    for digest in digests:
        with suppress(TimeoutError), _locked(cache, digest, 0):
            _remove_partials(cache, digest)


def _remove(blob: Path, cache: RepositoryCache) -> None:
    """Delete a blob, and the file that it links to if the client keeps that for several repositories."""
    shared = blob.resolve()
    blob.unlink(missing_ok=True)
    if cache.root.resolve() in shared.parents:
        shared.unlink(missing_ok=True)
    for link in (cache.folder / "snapshots").glob("*/*"):
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)


# --- what the client raises -----------------------------------------------------------------------------------------


@contextmanager
def told(hub: str) -> Iterator[None]:
    """Turn whatever the client and its HTTP library raise into our own error, which has no address and no token."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except VidweightsError:
        raise
    except OfflineModeIsEnabled as error:
        raise HubError("not tried: HF_HUB_OFFLINE was set when this process started") from error
    except Exception as error:
        # What goes wrong with an upload the client wraps; what it says of a card, in a ValueError, is for the caller.
        for cause in (error, None if isinstance(error, ValueError) else error.__cause__):
            if getattr(getattr(cause, "response", None), "status_code", None) is not None:
                raise _refused(cause.response, hub) from error  # type: ignore[union-attr]
        if not _broken(error):
            raise
        reached = type(error).__name__ not in _UNREACHED
        reason = _scrubbed(why(error, TIMEOUT))
        raise HubError(f"{hub} cannot be reached: {reason}", again=True, reached=reached) from error


def raise_for_status(answer: Any, hub: str) -> None:
    """Refuse an answer that is no success.

    Raises:
        HubError: as `told` does.
    """
    if answer.status_code >= 400:
        raise _refused(answer, hub)


def _broken(error: Exception) -> bool:
    """Whether a connection failed, in the words of any HTTP library that the client stands on, or of Xet."""
    import huggingface_hub.errors

    bases = {base for base in huggingface_hub.errors.HfHubHTTPError.__mro__ if base.__module__.startswith("httpx")}
    network = [getattr(sys.modules[base.__module__.partition(".")[0]], "TransportError", None) for base in bases]
    kinds = tuple(kind for kind in network if kind is not None)
    causes: list[BaseException | None] = [error, error.__cause__]
    return any(isinstance(cause, (*kinds, ConnectionError, TimeoutError)) for cause in causes) or (
        isinstance(error, (OSError, RuntimeError)) and not getattr(error, "filename", None) and _names_xet(error)
    )


def _names_xet(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("xet", "cas", "consistency check", "network", "reconstruct"))


def _scrubbed(text: str) -> str:
    """The first line of a message, without the queries of addresses, which may sign a request."""
    return " ".join(word.partition("?")[0] for word in text.splitlines()[0].split())[:200] if text.strip() else "broken"


_REFUSALS = {
    401: "does not know the token: log in with `hf auth login`, or set HF_TOKEN",
    403: "forbids this to the token: it needs the right to write there, or the conditions of the repository accepted",
    404: "has no such repository or revision",
    412: "has a newer commit than the one that this was prepared for",
    429: "has had too many requests",
}


def _refused(answer: Any, hub: str) -> HubError:
    status = int(answer.status_code)
    said = _scrubbed(answer.headers.get("X-Error-Message") or answer.reason_phrase or "")
    meaning = _REFUSALS.get(status, "failed" if status >= 500 else "refused")
    wait = _asked_to_wait(answer.headers)
    until = f"; it asks to wait {wait:.0f} s" if wait else ""
    return HubError(f"{hub} {meaning} ({status} {said}){until}", status, again=status in _AGAIN, wait=wait)


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a hub asks to wait, in `Retry-After`, or as huggingface.co does: `"api";r=0;t=55`."""
    found = re.fullmatch(r"\d+", headers.get("Retry-After") or "") or re.search(
        r"\br=0;t=(\d+)", (headers.get("ratelimit") or "").replace(" ", "")
    )
    return float(found[found.re.groups]) if found else 0.0


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the client's bars and warnings (their addresses are signed) to a terminal, where a person waits."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    if sys.stderr.isatty():
        yield
        return
    before, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            enable_progress_bars()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
