"""TensorFlow's V2 checkpoints ("tensor bundles"), read and written without TensorFlow.

A bundle is `PREFIX.index`, a sorted table of entries, and the bytes of the tensors in
`PREFIX.data-00000-of-00001` (several where it is sharded).

Format: tensorflow/core/util/tensor_bundle/tensor_bundle.h; tensorflow/core/protobuf/tensor_bundle.proto (the
entries); doc/table_format.md of LevelDB (the index, see `vidweights.formats.table`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import BY_TENSORFLOW, DTYPES
from vidweights.errors import FormatError, IntegrityError
from vidweights.files import HashedFile, map_file
from vidweights.formats import protobuf, table
from vidweights.formats.base import Checkpoint, TensorInfo, Writer, checked_shape
from vidweights.formats.sniff import HEAD, impostor
from vidweights.layout import Array, Shape

DATA_FILE = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}")
_MAX_SHARDS = 99_999  # their numbers have five digits
# Of tensorflow/core/framework/types.proto, those that are not weights.
_NOT_WEIGHTS = {7: "string", 8: "complex64", 18: "complex128", 20: "resource", 21: "variant"}


@dataclass(frozen=True)
class Entry:
    """A BundleEntryProto: where a tensor's bytes are. `crc32c` is masked, `slices` counts the parts of a
    partitioned variable, whose own entry has no bytes.
    """

    dtype: int
    shape: Shape
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: int = 0

    @property
    def end(self) -> int:
        """The byte after the last in the shard."""
        return self.offset + self.size


@dataclass(frozen=True)
class Index:
    """What an `.index` says: the number of data files, and the entry of every key."""

    shards: int
    entries: Mapping[bytes, Entry]

    def sizes(self) -> dict[int, int]:
        """{shard: the least size of its file}, of the shards that hold anything."""
        sizes: dict[int, int] = {}
        for entry in self.entries.values():
            if not entry.slices:
                sizes[entry.shard] = max(sizes.get(entry.shard, 0), entry.end)
        return dict(sorted(sizes.items()))


def read_index(path: Path) -> Index:
    """Read an `.index`; its data files need not be there.

    Raises:
        FormatError: it is not the index of a bundle, is damaged, or contradicts itself.
    """
    entries = table.read(path)
    header = entries.pop(b"", b"")
    if not header.startswith(b"\x08"):  # field 1, a varint: num_shards
        raise FormatError(
            f"{path} is a table, but not the index of a TensorFlow V2 checkpoint. Give the .index that came with it."
        )
    with table.reported_as_damage(path):
        for key in entries:
            if not _is_slice(key):
                key.decode()
        index = Index(_shards(header), {key: _entry(value) for key, value in entries.items()})
        _check_places(index)
    return index


def _shards(header: bytes) -> int:
    fields = dict(protobuf.fields(header))
    if fields.get(2):
        raise ValueError("it says that it was written on a big-endian machine, which is not read")
    shards = fields.get(1)
    if not isinstance(shards, int) or not 1 <= shards <= _MAX_SHARDS:
        raise ValueError(f"it claims {shards!r} data files")
    return shards


def _entry(data: bytes) -> Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: Shape = ()
    slices = 0
    for field, value in protobuf.fields(data):
        if field in numbers and isinstance(value, int):
            numbers[field] = value
        elif field == 2 and isinstance(value, bytes):
            shape = tensor_shape(value)
        elif field == 7:
            slices += 1
    return Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], slices)


def tensor_shape(data: protobuf.Data) -> Shape:
    """The axes of a TensorShapeProto, as the file claims them.

    Raises:
        ValueError: it is no such message.
    """
    return tuple(_dim(dim) for number, dim in protobuf.fields(data) if number == 2)


def _dim(data: int | protobuf.Data) -> int:
    if isinstance(data, int):
        raise ValueError("an axis of a shape is not a message")
    return protobuf.signed(next((size for field, size in protobuf.fields(data) if field == 1), 0))


def type_name(dtype: int) -> str:
    """What TensorFlow calls a type of elements that are not weights."""
    return _NOT_WEIGHTS.get(dtype, f"DataType {dtype}")


def _check_places(index: Index) -> None:
    """Check that every entry lies in a data file and that no two share a byte."""
    placed = sorted((e.shard, e.offset, e.size, key) for key, e in index.entries.items() if not e.slices)
    last_shard, last_end, last_key = -1, 0, b""
    for shard, offset, size, key in placed:
        if shard >= index.shards:
            raise ValueError(f"{_name(key)} is in data file {shard} of {index.shards}")
        if offset + size >= 1 << 63:
            raise ValueError(f"{_name(key)} is {size} bytes from byte {offset}")
        if shard == last_shard and offset < last_end and size:
            raise ValueError(f"{_name(last_key)} and {_name(key)} overlap")
        if shard != last_shard or offset + size > last_end:
            last_shard, last_end, last_key = shard, offset + size, key


def _is_slice(key: bytes) -> bool:
    """Whether it is the key of a part of a partitioned variable (saved_tensor_slice_util.cc, EncodeTensorNameSlice)."""
    return key.startswith(b"\0")


def _name(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


class TFBundle(Checkpoint):
    """A TensorFlow V2 checkpoint; its data files are memory-mapped.

    Args:
        path: the prefix (`model.ckpt`), the `.index`, or a data file.

    Raises:
        FormatError: a file is missing, truncated, or damaged.
    """

    format = "tf"

    def __init__(self, path: Path) -> None:
        self.path = index_path(path)
        index = read_index(self.path)
        prefix, sizes = str(self.path).removesuffix(".index"), index.sizes()
        names = {shard: Path(f"{prefix}.data-{shard:05d}-of-{index.shards:05d}") for shard in sizes}
        self._entries: dict[str, Entry] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.others: dict[str, str] = {}
        self._sort(index)
        self._data = {shard: _map(names[shard], size, self.path) for shard, size in sizes.items()}
        self.files = (self.path, *names.values())

    def _sort(self, index: Index) -> None:
        """Divide the entries into tensors and others."""
        for raw, entry in index.entries.items():
            if _is_slice(raw):  # the variable that it is a part of has an entry of its own
                continue
            key, dtype = _name(raw), BY_TENSORFLOW.get(entry.dtype)
            if entry.slices:
                self.others[key] = f"a partitioned variable in {entry.slices} slices, which are not assembled"
            elif dtype is None:
                self.others[key] = f"a tensor of type {type_name(entry.dtype)}, {entry.size:,} bytes"
            else:
                where = f"{self.path}: {key}"
                info = TensorInfo(key, checked_shape(entry.shape, where), dtype.name)
                if info.nbytes != entry.size:
                    raise FormatError(
                        f"{where} has the shape {info.shape} and type {info.dtype}, which is {info.nbytes:,} bytes; "
                        f"the index gives it {entry.size:,}. The file is damaged; download it again."
                    )
                self.tensors[key], self._entries[key] = info, entry

    def read(self, key: str) -> Array:
        """The tensor, as a read-only view of the mapped file.

        Raises:
            KeyError: there is no such tensor.
            IntegrityError: its bytes fail their CRC32C.
        """
        entry, info = self._entries[key], self.tensors[key]
        data = self._data[entry.shard][entry.offset : entry.end]
        found, expected = int(google_crc32c.value(data)), table.unmask(entry.crc32c)
        if found != expected:
            raise IntegrityError(
                f"{key} is damaged in {self.path}: its bytes have the CRC32C {found:08x}, the index records "
                f"{expected:08x}. Download the checkpoint again."
            )
        return data.view(DTYPES[info.dtype].storage).reshape(info.shape)

    def recorded_crc32c(self, key: str) -> int:
        """The CRC32C of the tensor's bytes that the index records."""
        return table.unmask(self._entries[key].crc32c)


def index_path(path: Path) -> Path:
    """The `.index` of a bundle that is named by its prefix, its `.index` or a data file.

    Raises:
        FormatError: there is none.
    """
    match = DATA_FILE.fullmatch(path.name)
    if match is None and path.is_file():
        return path
    index = path.with_name((match["prefix"] if match else path.name) + ".index")
    if index.is_file():
        return index
    if match is None:
        raise FormatError(f"{path}: no such file or folder, and no TensorFlow checkpoint of that prefix ({index}).")
    raise FormatError(
        f"{index} is missing. {path.name} is a data file of a TensorFlow checkpoint, whose index names the tensors in "
        "it. Download it as well, into the same folder."
    )


def _map(path: Path, size: int, index: Path) -> NDArray[np.uint8]:
    """The bytes of a data file that must have at least `size`."""
    if not path.is_file():
        raise FormatError(
            f"{path} is missing. {index.name} only lists the tensors; their bytes ({size:,}) are in that file. "
            "Download it as well, and keep the two in one folder under these names."
        )
    data = map_file(path)
    if len(data) < size:
        what = impostor(data[:HEAD].tobytes())
        raise FormatError(
            f"{path} is {what or 'cut. Download it again.'} It has {len(data):,} bytes; {index.name} needs {size:,}."
        )
    return data


class TFBundleWriter(Writer):
    """Writes `PREFIX.index` and one data file, as TensorFlow's BundleWriter does, byte for byte.

    TensorFlow's Saver stores the tensors in the order of their names, one after the other without gaps.
    """

    file_name = "model.ckpt"

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        super().__init__(path, tensors)
        self._data = HashedFile(path.with_name(path.name + ".data-00000-of-00001"))
        self._entries: dict[bytes, bytes] = {b"": _header()}

    @classmethod
    def order(cls, tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
        """By the bytes of the key."""
        return tuple(sorted(tensors, key=lambda info: info.key.encode()))

    def write(self, key: str, array: Array) -> None:
        """Append a tensor."""
        info = self._take(key, array)
        crc32c = table.mask(int(google_crc32c.value(array.reshape(-1).view(np.uint8))))
        dtype = DTYPES[info.dtype].tensorflow
        entry = Entry(dtype, info.shape, 0, self._data.size, array.nbytes, crc32c)
        self._entries[key.encode()] = b"".join(_encode(entry))
        self._data.write(array)

    def _finish(self) -> dict[str, str]:
        """Write the index."""
        index = HashedFile(self.path.with_name(self.path.name + ".index"))
        for block in table.blocks(sorted(self._entries.items())):
            index.write(block)
        return {index.path.name: index.close(), self._data.path.name: self._data.close()}

    def abort(self) -> None:
        """Close the data file."""
        self._data.close()


def _header() -> bytes:
    """A BundleHeaderProto: one shard, little-endian (the default, not stored), written by version 1."""
    return protobuf.varint_field(1, 1) + protobuf.bytes_field(3, protobuf.varint_field(1, 1))


def _encode(entry: Entry) -> Iterator[bytes]:
    """The fields of a BundleEntryProto; zeros are not stored."""
    yield protobuf.varint_field(1, entry.dtype)
    yield protobuf.bytes_field(2, b"".join(protobuf.bytes_field(2, protobuf.varint_field(1, n)) for n in entry.shape))
    yield protobuf.varint_field(3, entry.shard)
    yield protobuf.varint_field(4, entry.offset)
    yield protobuf.varint_field(5, entry.size)
    yield protobuf.fixed32_field(6, entry.crc32c)
