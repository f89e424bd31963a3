"""numpy's `.npz`: a zip archive of `.npy` arrays.

Format: numpy/lib/_format_impl.py (`.npy`); APPNOTE.TXT of PKWARE (zip).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError, IntegrityError
from vidweights.formats.base import Checkpoint, TensorInfo, checked_shape
from vidweights.layout import Array

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Deflate cannot shrink anything more than 1032 times (zlib.net/zlib_tech.html).
_MAX_RATIO = 1032
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class _Member:
    """A `.npy` inside the archive."""

    zipped: zipfile.ZipInfo
    shape: tuple[Any, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int  # where its elements begin


class NpzFile(Checkpoint):
    """A `.npz` archive of arrays, each read when it is asked for. Nothing is unpickled or extracted.

    A key is a member's name without `.npy`, whatever it looks like.

    Raises:
        FormatError: it is no zip archive, is damaged, or claims more than it can hold.
    """

    format = "npz"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        self.tensors: dict[str, TensorInfo] = {}
        self.others: dict[str, str] = {}
        self._members: dict[str, _Member] = {}
        with ExitStack() as opened:
            try:
                self._size = path.stat().st_size
                self._archive = opened.enter_context(zipfile.ZipFile(path))
                for zipped in self._archive.infolist():
                    self._adopt(zipped)
            except _DAMAGE as error:
                raise FormatError(f"{path} is not a whole zip archive ({error}). Download it again.") from error
            opened.pop_all()

    def _adopt(self, zipped: zipfile.ZipInfo) -> None:
        """List a member under `tensors` or `others`."""
        key = zipped.filename.removesuffix(".npy")
        where = f"{self.path}: {key}"
        if key in self.tensors or key in self.others:
            raise FormatError(f"{where} is there twice; it cannot be known which one is meant.")
        if key == zipped.filename:
            self.others[key] = f"a file of {zipped.file_size:,} bytes, not an array"
            return
        if zipped.compress_type not in _METHODS or zipped.flag_bits & 1:
            raise FormatError(f"{where} is encrypted or compressed in a way that numpy does not use.")
        if zipped.compress_size > self._size or zipped.file_size > _MAX_RATIO * zipped.compress_size:
            raise FormatError(
                f"{where} claims {zipped.file_size:,} bytes out of {zipped.compress_size:,}, which cannot "
                "be: the file is damaged, or made to harm."
            )
        member = self._open(zipped, where)
        if member.dtype.hasobject:
            self.others[key] = "an array of Python objects, which is never unpickled"
        elif member.dtype.name not in DTYPES:
            self.others[key] = f"an array of {str(member.dtype)[:40]}, {zipped.file_size:,} bytes"
        else:
            self._members[key] = member
            self.tensors[key] = TensorInfo(key, member.shape, member.dtype.name)

    def _open(self, zipped: zipfile.ZipInfo, where: str) -> _Member:
        """Read the header of a member."""
        with self._archive.open(zipped) as file:
            shape, fortran, dtype = _read_header(file, where)
            member = _Member(zipped, checked_shape(shape, where), fortran, dtype, file.tell())
        size = math.prod(member.shape) * dtype.itemsize + member.begin
        if size != zipped.file_size and not dtype.hasobject:
            raise FormatError(
                f"{where} has the shape {shape} and type {dtype}, which is {size:,} bytes with its header; the archive "
                f"says {zipped.file_size:,}. The file is damaged; download it again."
            )
        return member

    def read(self, key: str) -> Array:
        """The array, C-contiguous and little-endian.

        Raises:
            KeyError: there is no such array.
            IntegrityError: its bytes fail their CRC-32.
        """
        member = self._members[key]
        flat = np.empty(math.prod(member.shape), member.dtype)
        target = flat.view(np.uint8).data
        try:
            with self._archive.open(member.zipped) as file:
                file.read(member.begin)
                while len(target):
                    count = file.readinto(target)  # type: ignore[attr-defined]  # typeshed calls it IO[bytes]
                    if not count:
                        raise EOFError("it ends early")
                    target = target[count:]
                file.read(1)  # the CRC-32 is compared when the end is met
        except _DAMAGE as error:
            raise IntegrityError(f"{key} is damaged in {self.path} ({error}). Download it again.") from error
        array = flat.reshape(member.shape[::-1]).T if member.fortran else flat.reshape(member.shape)
        return array.astype(DTYPES[self.tensors[key].dtype].storage, order="C", copy=False)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def _read_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and dtype of the `.npy` that begins here."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"its version is {version}; arrays of numbers have 1.0 or 2.0")
        return readers[version](file)
    except Exception as error:  # numpy lets a damaged header fail in many ways
        raise FormatError(f"{where} is not a whole .npy array ({str(error)[:120]}).") from error
