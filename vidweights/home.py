"""Where things are kept on this machine, and which files were verified before."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vidweights.errors import IntegrityError, UsageError
from vidweights.files import sha256_of

_MEMORY = "verified.json"


def home() -> Path:
    """The folder of vidweights: `$VIDWEIGHTS_HOME`, or the platform's cache folder."""
    if path := os.environ.get("VIDWEIGHTS_HOME"):
        return expanded(path)
    from platformdirs import user_cache_path

    return user_cache_path("vidweights", appauthor=False)


def expanded(path: str | Path) -> Path:
    """The path with `~` resolved.

    Raises:
        UsageError: it names the home of a user that there is not.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}") from error


def user_cache() -> Path:
    """The folder in which other libraries, too, keep theirs."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def weights_folder(name: str) -> Path:
    """Where the finished folder of a release is kept."""
    return home() / "weights" / name


def source_folder(name: str) -> Path:
    """Where the published files of a release are kept once they were downloaded."""
    return home() / "sources" / name


def verify(path: Path, sha256: str) -> None:
    """Check a file's SHA-256; a file that was checked before and has not changed since is not read again.

    Raises:
        IntegrityError: the hash differs.
    """
    if (found := other_hash(path, sha256)) is not None:
        raise IntegrityError(
            f"{path} is not the file that its config.json describes: found SHA-256 {found}, expected {sha256}. "
            "Make or fetch it again."
        )


def other_hash(path: Path, expected: str, hash_of: Callable[[Path], str] = sha256_of) -> str | None:
    """The hash that a file has instead of the expected one, or None; each state of a file is read once."""
    memory, key, state = home() / _MEMORY, str(path.resolve()), _state(path, expected)
    if (known := _read(memory)).get(key, [])[:4] == state:
        return None
    if (found := hash_of(path)) != expected:
        return found
    _write(memory, {**known, key: state})
    return None


def remember(path: Path, digest: str, *marks: str) -> None:
    """Note that a file has this hash, and what else was found of it, for as long as it does not change."""
    memory = home() / _MEMORY
    _write(memory, {**_read(memory), str(path.resolve()): [*_state(path, digest), *marks]})


def is_known(path: Path, mark: str) -> bool:
    """Whether `mark` was remembered of a file, and it has not changed since."""
    entry = _read(home() / _MEMORY).get(str(path.resolve()), [])
    return mark in entry[4:] and entry[:3] == _state(path, "")[:3]


def _state(path: Path, digest: str) -> list[object]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, digest]


def _read(memory: Path) -> dict[str, list[object]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(memory: Path, known: dict[str, list[object]]) -> None:
    """Remember; a home that cannot be written only means that the next load hashes again."""
    temporary = memory.with_name(f"{memory.name}.{secrets.token_hex(4)}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(memory)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
