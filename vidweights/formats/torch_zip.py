"""The zip archives of torch >= 1.6, read and written without torch; TorchScript archives are read as well.

Format: torch/serialization.py (`_save`), caffe2/serialize/inline_container.h (names, alignment); APPNOTE.TXT of
PKWARE (zip).
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import FormatError
from vidweights.files import HashedFile, map_file
from vidweights.formats import pickles
from vidweights.formats.base import TensorInfo, Writer
from vidweights.formats.pickles import integer, text
from vidweights.formats.torch_pickle import GLOBALS, STORAGES, Storage, TorchCheckpoint, storage
from vidweights.layout import Array

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_MAX_INFLATED = 256 << 20


class _Archive:
    """The records of a zip file, memory-mapped; nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
            self.data = map_file(path)
        except Exception as error:  # zipfile lets a damaged directory fail in many ways
            raise FormatError(f"{path} is not a whole zip archive ({error}); download it again.") from error
        self.infos = {info.filename: info for info in infos}
        self._verified: set[str] = set()
        if len(self.infos) != len(infos):
            raise FormatError(f"{path} has two records of the same name; it cannot be known which one is meant.")

    def record(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a stored record.

        Raises:
            FormatError: there is none, it is compressed, reaches beyond the file, or fails its CRC-32.
        """
        if name not in self.infos:
            raise FormatError(f"{self._name} has no record {name}; it was cut, or is not a checkpoint of torch.")
        info = self.infos[name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise FormatError(f"{self._name}: the record {name} is compressed; torch stores tensors as they are.")
        data = self._slice(info, info.file_size)
        # torch.serialization.set_crc32_options(False) leaves a zero.
        if info.CRC and name not in self._verified and zlib.crc32(data.data) != info.CRC:
            raise FormatError(f"{self._name}: the record {name} fails its CRC-32; download the file again.")
        self._verified.add(name)
        return data

    def small(self, name: str) -> bytes:
        """The bytes of a record that may be compressed."""
        info = self.infos.get(name)
        if info is None or info.compress_type != zipfile.ZIP_DEFLATED:
            return self.record(name).tobytes()
        limit = min(info.file_size, _MAX_INFLATED)
        try:
            data = zlib.decompressobj(-15).decompress(self._slice(info, info.compress_size).data, limit + 1)
        except zlib.error as error:
            raise FormatError(f"{self._name}: the record {name} is damaged ({error}).") from error
        if len(data) != info.file_size:
            raise FormatError(f"{self._name}: the record {name} does not inflate to {info.file_size:,} bytes.")
        return data

    def _slice(self, info: zipfile.ZipInfo, size: int) -> NDArray[np.uint8]:
        at = info.header_offset
        header = self.data[at : at + _LOCAL_HEADER.size].tobytes()
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
            raise FormatError(f"{self._name}: the record {info.filename} has no header; the file is damaged.")
        *_, name, extra = _LOCAL_HEADER.unpack(header)
        start = at + _LOCAL_HEADER.size + name + extra
        if start + size > len(self.data):
            raise FormatError(f"{self._name}: the record {info.filename} reaches beyond the end of the file.")
        return self.data[start : start + size]


class TorchZip(TorchCheckpoint):
    """A file of `torch.save` (torch >= 1.6), or of `torch.jit.save`; tensors are memory-mapped and read one by one.

    Keys are those of the pickle, what is nested joined by dots: `torch.save({"state_dict": ..., "epoch": 3})` gives
    `state_dict.conv1.weight` among `tensors` and `epoch` among `others`. A TorchScript archive gives the attributes
    of its modules.

    Raises:
        FormatError: it is no such file, is damaged, or its pickle asks for anything but data (nothing is run).
    """

    format = "torch"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        self._archive = _Archive(path)
        self._root = _root(self._archive.infos, path)
        if f"{self._root}/byteorder" in self._archive.infos:
            order = self._archive.small(f"{self._root}/byteorder")
            if order != b"little":
                raise FormatError(f"{path} was saved with the byte order {order[:10]!r}; only little-endian is read.")
        data = io.BytesIO(self._archive.small(f"{self._root}/data.pkl"))
        tree = pickles.load(data, str(path), known=GLOBALS, persistent_load=storage)
        self._adopt(tree, len(self._archive.data))

    def _record(self, storage: Storage) -> NDArray[np.uint8]:
        data = self._archive.record(f"{self._root}/data/{storage.key}")
        if len(data) < (storage.offset + storage.count) * storage.itemsize:
            raise FormatError(
                f"{self.path}: the storage {storage.key} has {len(data):,} bytes; "
                f"its pickle claims {storage.count:,} elements of {storage.dtype}"
            )
        return data


def _root(names: Iterable[str], path: Path) -> str:
    """The folder of the archive in which everything is; torch calls it `archive`, or as the file was called."""
    roots = [match[1] for name in names if (match := re.fullmatch(r"([^/\\]+)/data\.pkl", name)) and match[1] != ".."]
    if len(roots) != 1:
        raise FormatError(
            f"{path} is a zip archive with {len(roots)} records <name>/data.pkl; a checkpoint of torch has one. "
            "If it is an archive of checkpoints, unpack it first."
        )
    return roots[0]


class TorchZipWriter(Writer):
    """Writes a state dict as `torch.save` does: an OrderedDict of contiguous tensors, each with its own storage.

    The shapes are known from the start, so the pickle comes first and the tensors are streamed behind it. Records
    are aligned to 64 bytes and carry no date. `torch.load` reads it with `weights_only=True` and with `mmap=True`.
    """

    file_name = "model.pt"

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        super().__init__(path, tensors)
        self._file = HashedFile(path)
        self._zip = zipfile.ZipFile(_Stream(self._file), "w")
        self._store("data.pkl", _state_dict(self.tensors))
        self._store("byteorder", b"little")

    def write(self, key: str, array: Array) -> None:
        """Append a tensor."""
        index = len(self.tensors) - len(self._due)
        self._take(key, array)
        self._store(f"data/{index}", array)

    def _store(self, name: str, data: Any) -> None:
        info = zipfile.ZipInfo(f"archive/{name}")  # the constructor's date is 1980-01-01
        size = memoryview(data).nbytes
        # A record from here on has a zip64 field of 20 bytes before our own.
        zip64 = size > 1 << 30
        header = _LOCAL_HEADER.size + len(info.filename) + 4 + 20 * zip64
        info.extra = struct.pack("<2sH", b"FB", -(self._file.size + header) % 64)
        info.extra += b"Z" * (-(self._file.size + header) % 64)
        with self._zip.open(info, "w", force_zip64=zip64) as record:
            record.write(data)

    def _finish(self) -> dict[str, str]:
        """Write the directory."""
        self._store("version", b"3\n")
        self._zip.close()
        return {self.path.name: self._file.close()}

    def abort(self) -> None:
        """Close the file."""
        self._zip.fp = None  # or zipfile writes its directory when the object is collected
        self._file.close()


class _Stream(io.RawIOBase):
    """A `HashedFile` as zipfile wants it: a stream that tells where it is and cannot seek."""

    def __init__(self, file: HashedFile) -> None:
        self._file = file

    def write(self, data: Any, /) -> int:
        self._file.write(data)
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self._file.size


_STORAGE_OF = {dtype: name for name, dtype in reversed(STORAGES.items())} | {"uint8": "ByteStorage"}


def _state_dict(tensors: Iterable[TensorInfo]) -> bytes:
    """The pickle (protocol 2, as torch's): an OrderedDict of tensors whose storages are named by their number."""
    ordered = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    items = [text(info.key) + _tensor(info, index, ordered) for index, info in enumerate(tensors)]
    return pickle.PROTO + b"\x02" + ordered + pickle.MARK + b"".join(items) + pickle.SETITEMS + pickle.STOP


def _tensor(info: TensorInfo, index: int, hooks: bytes) -> bytes:
    """`_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`; the types that came after torch 2.2
    have no storage class and name their dtype in `_rebuild_tensor_v3`.
    """
    count = math.prod(info.shape)
    stride = [math.prod(max(n, 1) for n in info.shape[axis + 1 :]) for axis in range(len(info.shape))]
    typed = info.dtype in _STORAGE_OF
    kind = f"torch\n{_STORAGE_OF[info.dtype]}\n" if typed else "torch.storage\nUntypedStorage\n"
    size = integer(count if typed else info.nbytes)
    place = text("storage") + pickle.GLOBAL + kind.encode() + text(str(index)) + text("cpu") + size
    place = pickle.MARK + place + pickle.TUPLE + pickle.BINPERSID
    function = b"torch._utils\n_rebuild_tensor_v%d\n" % (2 if typed else 3)
    args = place + integer(0) + _integers(info.shape) + _integers(stride) + pickle.NEWFALSE + hooks
    if not typed:
        args += pickle.GLOBAL + f"torch\n{info.dtype}\n".encode()
    return pickle.GLOBAL + function + pickle.MARK + args + pickle.TUPLE + pickle.REDUCE


def _integers(values: Iterable[int]) -> bytes:
    return pickle.MARK + b"".join(map(integer, values)) + pickle.TUPLE
