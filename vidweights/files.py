"""Files on disk: hashes while reading and writing, and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import OutputError

_CHUNK = 1 << 20
# From how many bytes on a buffer is hashed in a second thread while it is written.
_LARGE = 1 << 20


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return _digest(path, hashlib.sha256())


def md5_of(path: Path) -> str:
    """The MD5 of a file, in hexadecimal; only where nothing better is published."""
    return _digest(path, hashlib.md5(usedforsecurity=False))


def git_blob_id_of(path: Path) -> str:
    """The id that git gives the file's bytes: the SHA-1 of a header with the size, and the bytes."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return str(digest.hexdigest())


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, memory-mapped and read-only."""
    with path.open("rb") as file:
        if not path.stat().st_size:  # which cannot be mapped
            return np.frombuffer(b"", np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class HashedFile:
    """A new file that is written in one pass, and hashed (SHA-256) on the way.

    Raises:
        FileExistsError: the file is there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file = path.open("xb", buffering=0)
        self._sha256 = hashlib.sha256()
        # Its thread starts with the first large buffer.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vidweights-hash")

    def write(self, data: Any) -> None:
        """Append the bytes of any C-contiguous buffer."""
        view = memoryview(data)
        if not view.nbytes:  # an empty tensor, whose view cannot be cast
            return
        view = view.cast("B")
        self.size += len(view)
        if len(view) < _LARGE:
            self._sha256.update(view)
            self._append(view)
            return
        hashing = self._pool.submit(self._sha256.update, view)
        try:
            self._append(view)
        finally:
            hashing.result()

    def _append(self, view: memoryview) -> None:
        # A chunk at a time: the kernel takes 300 MB in one call ten times as slowly as in chunks of 1 MiB.
        while len(view):
            view = view[self._file.write(view[:_CHUNK]) :]

    def pad(self, alignment: int, fill: bytes = b"\0") -> None:
        """Append `fill` bytes up to a multiple of `alignment`."""
        self.write(fill * (-self.size % alignment))

    def close(self) -> str:
        """Close the file and return its SHA-256."""
        self._pool.shutdown()
        self._file.close()
        return self._sha256.hexdigest()


def refuse_existing(target: Path, *, overwrite: bool = False, mark: str = "") -> None:
    """Check that nothing is in the way of a new folder.

    Args:
        target: where the folder is to appear.
        overwrite: whether a folder may be there that has the file `mark`, by which an older one of its kind is known.

    Raises:
        OutputError: something is in the way.
    """
    if not os.path.lexists(target):
        return
    ours = target.is_dir() and not target.is_symlink() and (target / mark).is_file()
    if not overwrite:
        advice = "Remove it, choose another --out, or give --overwrite." if ours else "Choose another --out."
        raise OutputError(f"{target} exists already; nothing was written. {advice}")
    if not ours:
        raise OutputError(
            f"{target} is not a folder of the kind that would replace it (it has no {mark}), so it was left alone. "
            "Choose another --out."
        )


@contextmanager
def staged_folder(target: Path, *, overwrite: bool = False, mark: str = "") -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and vanishes if not.

    An interrupt or an error (a full disk among them) leaves nothing behind and an existing target untouched.

    Raises:
        OutputError: something is in the way (see `refuse_existing`), or the disk refuses.
    """
    refuse_existing(target, overwrite=overwrite, mark=mark)
    stage = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    try:
        # Inside the block that cleans up: an interrupt can come as soon as the folder is there.
        _make(stage)
        yield stage
        refuse_existing(target, overwrite=overwrite, mark=mark)  # it may have appeared in the meantime
        _replace(stage, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}. Nothing was left behind.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, for a new file that takes its place when the block ends well.

    Raises:
        OutputError: `target` exists already, or the disk refuses.
    """
    stage = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    try:
        if target.exists():
            raise OutputError(f"{target} exists already; nothing was written. Remove it, or choose another place.")
        yield stage
        stage.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}. Nothing was left behind.") from error
    finally:
        with suppress(OSError):
            stage.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: it has the old content or the new, whatever happens.

    Raises:
        OutputError: the disk refuses.
    """
    stage = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        stage.write_text(text, encoding="utf-8")
        stage.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}. It is as it was.") from error
    finally:
        stage.unlink(missing_ok=True)


def _make(stage: Path) -> None:
    try:
        stage.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write in {stage.parent}: {error.strerror}. Choose another --out.") from error


def _replace(stage: Path, target: Path) -> None:
    """Rename `stage` to `target`; what stood there is removed only after the new folder is in place."""
    if not target.exists():
        stage.rename(target)
        return
    old = target.parent / f".{target.name}-old-{secrets.token_hex(4)}"
    try:
        target.rename(old)
        stage.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
