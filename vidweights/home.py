"""Where things are kept on this machine, and which files were verified before."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from vidweights.errors import IntegrityError, UsageError
from vidweights.files import sha256_of


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
    stat = path.stat()
    entry = [stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256]
    memory = home() / "verified.json"
    known = _read(memory)
    if known.get(str(path.resolve())) == entry:
        return
    found = sha256_of(path)
    if found != sha256:
        raise IntegrityError(
            f"{path} is not the file that its config.json describes: found SHA-256 {found}, expected {sha256}. "
            "Make or fetch it again."
        )
    _write(memory, {**known, str(path.resolve()): entry})


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
