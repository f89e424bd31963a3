"""Hubs: places that keep repositories of finished folders, at revisions, and tell the hash of every file.

A hub is a server that speaks as huggingface.co does (`vidweights.remote_hub`), or a folder that follows the same
rules (`vidweights.folder_hub`). Its name is an address or a path: an argument, `$VIDWEIGHTS_HUB`, or `$HF_ENDPOINT`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vidweights.errors import FormatError, IntegrityError, OutputError, UnavailableError, UsageError
from vidweights.files import git_blob_id_of, replace_text, sha256_of
from vidweights.home import expanded, other_hash, user_cache
from vidweights.progress import Progress, silent

# Whose repositories hold the releases of the catalog, each under its catalog name.
ORGANISATION = "vidweights"
MAIN = "main"
# A commit, or what git calls a small file; and the hash of a large one.
GIT_ID, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_LARGE = 10_000_000  # bytes; above, huggingface.co takes no file into git itself
_NAME = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_VARIABLES = ("VIDWEIGHTS_OFFLINE", "HF_HUB_OFFLINE", "VIDWEIGHTS_HUB", "HF_ENDPOINT", "HF_HOME")
_SECRETS = ("HF_TOKEN", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_OFFLINE = ("VIDWEIGHTS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Repository:
    """A repository on a hub, and the revision that is wanted: a branch, a tag or a commit; `main` if not given."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @staticmethod
    def parse(text: str) -> Repository | None:
        """The repository that `org/name` or `org/name@revision` names, or None for another text."""
        found = _NAME.fullmatch(text)
        if found is None or ".." in text or text.endswith(("/", ".git")):
            return None
        return Repository(found[1], found[2])


@dataclass(frozen=True)
class RemoteFile:
    """What a hub says of a file: its size, and the SHA-256 of a large one, or the id that git gives a small one."""

    size: int
    sha256: str | None
    git_blob: str

    @staticmethod
    def of(path: Path) -> RemoteFile:
        """What a hub would say of a local file, which is read now; no hub keeps a large one in git itself."""
        size = path.stat().st_size
        return RemoteFile(size, sha256_of(path), git_blob_id_of(path) if size <= _LARGE else "")

    @property
    def digest(self) -> str:
        """The hash by which the file is checked, and by which caches name it."""
        return self.sha256 or self.git_blob

    def differs(self, path: Path) -> str | None:
        """What a local file is instead of this one, or None if it is this one; each state of it is read once."""
        if (size := path.stat().st_size) != self.size:
            return f"{size} bytes instead of {self.size}"
        found = other_hash(path, self.digest, sha256_of if self.sha256 else git_blob_id_of)
        return found and f"{'SHA-256' if self.sha256 else 'git blob'} {found} instead of {self.digest}"


@dataclass(frozen=True)
class Revision:
    """The files of a repository in one commit."""

    repository: str
    commit: str
    files: Mapping[str, RemoteFile]


class Hub(Protocol):
    """What `download`, `load` and `push` ask of a hub."""

    @property
    def name(self) -> str:
        """The address or the path, as messages say it."""
        ...

    def describe(self, repository: Repository) -> Revision | None:
        """The files of a revision; None if there is no such repository, or it has no such revision.

        Raises:
            UnavailableError: the hub cannot be asked.
        """
        ...

    def folder(self, repository: Repository, progress: Progress = silent) -> Path:
        """The package of a revision as a finished folder on this machine, every file compared with its hash.

        Raises:
            NotHereError: the hub, or this machine without it, does not have it.
            FormatError: the repository holds no package.
            IntegrityError: the bytes are not those that the hub has a hash of, twice.
        """
        ...


class NotHereError(UnavailableError):
    """A package cannot be had; `attempts` holds (place, why not) in the order of trying."""

    def __init__(self, wanted: str, attempts: list[tuple[str, str]], advice: list[tuple[str, str]]) -> None:
        self.attempts = tuple(attempts)
        self.advice = tuple(advice)
        width = max((len(text) for text, _ in (*attempts, *advice)), default=0)
        lines = [f"  {place:<{width}}  {reason}" for place, reason in attempts]
        lines += [f"  {where:<{width}}  {command}" for where, command in advice]
        super().__init__("\n".join([f"cannot get the weights {wanted}", *lines]))


def without_network(download: str) -> list[tuple[str, str]]:
    """What to do where there is no network; `download` is what the command of that name is given elsewhere."""
    return [
        ("on a machine that is online", f"vidweights download {download} --to weights.tar"),
        ("and here", "vidweights download --from weights.tar    (checks every hash)"),
        ("behind a mirror or a proxy", "set HF_ENDPOINT=https://mirror, or HTTPS_PROXY"),
    ]


def opened(where: str | Path | None = None) -> Hub:
    """The hub of that address or path; by default `$VIDWEIGHTS_HUB`, `$HF_ENDPOINT`, or huggingface.co.

    Raises:
        UsageError: it is neither an address nor a folder.
    """
    named = where or os.environ.get("VIDWEIGHTS_HUB") or endpoint()
    if str(named).startswith(("http://", "https://")):
        from vidweights.remote_hub import RemoteHub

        return RemoteHub(str(named).rstrip("/"))
    if "://" in str(named):
        raise UsageError(f"{named} is no hub: expected an http address, or a folder")
    from vidweights.folder_hub import FolderHub

    return FolderHub(expanded(named).absolute())


def endpoint() -> str:
    """The address of the hub that `HF_ENDPOINT` names, read now and not when the client was imported."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def shown(address: str) -> str:
    """An address without the password that it may have."""
    parts = urllib.parse.urlsplit(address)
    return address if "@" not in parts.netloc else address.replace(parts.netloc, parts.netloc.rpartition("@")[2])


def offline() -> str | None:
    """The environment variable by which the person forbids the network, if any."""
    for name in _OFFLINE:
        value = os.environ.get(name, "")
        if value.upper() in {"1", "ON", "YES", "TRUE"} or (value and name == _OFFLINE[0]):
            return name
    return None


def environment(*more: str) -> str:
    """What the environment says of hubs, caches and proxies; of what may hold a password, only that it is set.

    Args:
        more: further variables to show.
    """
    named = [f"{name}={shown(os.environ[name])}" for name in (*_VARIABLES, *more) if os.environ.get(name)]
    named += [f"{name} set" for name in _SECRETS if os.environ.get(name)]
    return ", ".join(named) or "no proxy, no offline switch, no HF_ENDPOINT and no cache folder set"


# --- the cache of the hub's own client ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where the hub's client keeps repositories.

    Source: huggingface_hub/constants.py 2.4.
    """
    if path := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return expanded(os.path.expandvars(path))
    home = os.environ.get("HF_HOME") or user_cache() / "huggingface"
    return expanded(os.path.expandvars(home)) / "hub"


@dataclass(frozen=True)
class RepositoryCache:
    """What this machine has of a repository, in the layout that huggingface_hub gives its cache.

    `blobs/` holds each content once, under its hash; `snapshots/COMMIT/` links names to them; `refs/` says which
    commit a branch was when it was last asked for.
    """

    name: str
    root: Path = field(default_factory=cache_folder)

    @property
    def folder(self) -> Path:
        """The folder of the repository."""
        return self.root / f"models--{self.name.replace('/', '--')}"

    def blob(self, file: RemoteFile) -> Path:
        """Where the content of a file is kept."""
        return self.folder / "blobs" / file.digest

    def lock_file(self, digest: str) -> Path:
        """The file by which the hub's client locks a blob, too, while it is fetched."""
        return self.root / ".locks" / self.folder.name / f"{digest}.lock"

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit."""
        return self.folder / "snapshots" / commit

    def find(self, revision: str | None) -> Path | None:
        """The snapshot of a revision; without one, of `main` when it was last asked for, or else the newest."""
        snapshots = self.folder / "snapshots"
        with suppress(OSError, ValueError):
            commit = (self.folder / "refs" / (revision or MAIN)).read_text(encoding="utf-8").strip()
            if self._holds_package(snapshots / commit):
                return snapshots / commit
        there = [path for path in snapshots.glob("*") if self._holds_package(path)]
        if revision is None:
            return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)
        named = [path for path in there if len(revision) >= 7 and path.name.startswith(revision)]
        return named[0] if len(named) == 1 else None

    def revisions(self) -> list[str]:
        """The commits that are here, in words for a message."""
        return sorted(path.name[:8] for path in (self.folder / "snapshots").glob("*") if self._holds_package(path))

    @staticmethod
    def _holds_package(snapshot: Path) -> bool:
        from vidweights import folder

        with suppress(FormatError):
            config = folder.read_config(snapshot)
            return all((snapshot / name).is_file() for name in config.files)
        return False

    def publish(self, revision: Revision, names: tuple[str, ...], wanted: str | None) -> Path:
        """Let a snapshot show files that are in `blobs/` already, `config.json` last, and note the branch."""
        snapshot = self.snapshot(revision.commit)
        snapshot.mkdir(parents=True, exist_ok=True)
        for name in reversed(names):
            _link(self.blob(revision.files[name]), snapshot / name)
        if wanted != revision.commit:
            with suppress(OSError, OutputError):  # a cache that cannot be written serves all the same
                self._note(wanted or MAIN, revision.commit)
        return snapshot

    def _note(self, name: str, commit: str) -> None:
        """Remember which commit a branch or a tag was."""
        ref = self.folder / "refs" / name
        if not ref.is_file() or ref.read_text(encoding="utf-8").strip() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            replace_text(ref, commit)

    def verify(self, snapshot: Path) -> Path:
        """Check every file of a snapshot against the hash that its blob is named by.

        Raises:
            IntegrityError: one differs.
        """
        for path in snapshot.iterdir():
            blob = path.parent / path.readlink() if path.is_symlink() else None
            named = blob is not None and blob.parent.resolve() == (self.folder / "blobs").resolve()
            if blob is None or not named or len(blob.name) not in (40, 64):
                continue  # a copy, where links cannot be made, has no hash but that of the weights in config.json
            hash_of = sha256_of if len(blob.name) == 64 else git_blob_id_of
            if (found := other_hash(path, blob.name, hash_of)) is not None:
                raise IntegrityError(f"{path} is damaged: found {found}, expected {blob.name}")
        return snapshot


def _link(blob: Path, path: Path) -> None:
    """A name for a blob: a relative link, or a copy where links cannot be made."""
    if path.is_symlink() and path.resolve() == blob.resolve():
        return
    stage = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        try:
            stage.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            shutil.copyfile(blob, stage)
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)
