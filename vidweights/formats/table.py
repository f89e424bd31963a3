"""The sorted string table of LevelDB: the index of a TensorFlow checkpoint, or the whole of an old one.

A table is a run of blocks and a footer. A block holds sorted (key, value) pairs, each key without the prefix
that it shares with the one before it; the last block is an index of the others.

Format: doc/table_format.md of LevelDB; tensorflow/core/lib/io/table_builder.cc, block_builder.cc.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c

from vidweights.errors import FormatError, IntegrityError
from vidweights.files import map_file
from vidweights.formats import snappy
from vidweights.formats.protobuf import encode_varint, varint

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5  # the compression, and a masked CRC32C of the block and that byte
_PLAIN, _SNAPPY = 0, 1  # kinds of compression
_BLOCK_SIZE = 256 << 10
_RESTART = 16
# An index of a million tensors stays below these; a hostile one cannot make us expand more.
_MAX_FILE = 256 << 20
_MAX_KEYS = 256 << 20

Handle = tuple[int, int]  # the offset and size of a block


def mask(crc32c: int) -> int:
    """The form in which tables and bundles store a CRC32C, so that sums of data with sums in it stay good."""
    return ((crc32c >> 15 | crc32c << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def unmask(masked: int) -> int:
    """The inverse of `mask`."""
    rotated = (masked - 0xA282EAD8) & 0xFFFF_FFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFF_FFFF


@contextmanager
def reported_as_damage(path: Path) -> Iterator[None]:
    """Turns a `ValueError` of parsing into the `FormatError` that a person reads."""
    try:
        yield
    except ValueError as error:
        raise FormatError(f"{path} is damaged: {error}. Download it again.") from error


class Table:
    """A table in a file that is memory-mapped; its blocks are checked, and expanded, when they are asked for.

    Raises:
        FormatError: it is no table, or is damaged.
        IntegrityError: a block fails its CRC32C.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = map_file(path)
        self._data = self._bytes.data  # the same as a memoryview, which hands out numbers and not arrays
        if len(self._data) < _FOOTER or self._data[-8:] != MAGIC:
            raise FormatError(
                f"{path} does not end as the index of a TensorFlow checkpoint does: it is cut, or is another file. "
                "Download it again."
            )
        with reported_as_damage(path):
            _, at = _handle(self._data, len(self._data) - _FOOTER)  # the filters, which TensorFlow leaves empty
            index, _ = _handle(self._data, at)
            pairs = [(key, _handle(value, 0)[0]) for key, value in _bounded(_pairs(self._block(index)))]
        self._last_keys = [key for key, _ in pairs]  # or a key between the block and the next
        self._handles = [handle for _, handle in pairs]

    def __iter__(self) -> Iterator[tuple[bytes, memoryview]]:
        """Every key and value, in the order of the file."""
        with reported_as_damage(self.path):
            for handle in self._handles:
                yield from _pairs(self._block(handle))

    def get(self, key: bytes) -> memoryview | None:
        """The value of a key, for which one block is read; None if there is none."""
        at = bisect_left(self._last_keys, key)
        if at == len(self._handles):
            return None
        with reported_as_damage(self.path):
            return next((value for found, value in _pairs(self._block(self._handles[at])) if found == key), None)

    def _block(self, handle: Handle) -> memoryview:
        """The content of a block, checked."""
        offset, size = handle
        if offset + size + _TRAILER > len(self._data) - _FOOTER:
            raise ValueError(f"a block of {size} bytes at byte {offset} reaches beyond the end")
        body = self._data[offset : offset + size + 1]
        (stored,) = struct.unpack_from("<I", self._data, offset + size + 1)
        if google_crc32c.value(self._bytes[offset : offset + size + 1]) != unmask(stored):
            raise IntegrityError(
                f"{self.path} is damaged: the block at byte {offset} fails its CRC32C. Download it again."
            )
        if body[-1] not in (_PLAIN, _SNAPPY):
            raise ValueError(f"the block at byte {offset} is compressed in an unknown way ({body[-1]})")
        return snappy.expand(body[:-1]) if body[-1] == _SNAPPY else body[:-1]


def read(path: Path) -> dict[bytes, bytes]:
    """Every key and value of a table that is the index of a checkpoint, in order.

    Raises:
        FormatError: it is no table, is too large for an index, or is damaged.
        IntegrityError: a block fails its CRC32C.
    """
    size = path.stat().st_size
    if size > _MAX_FILE:
        raise FormatError(f"{path} has {size:,} bytes; an index of a checkpoint has at most {_MAX_FILE:,}.")
    pairs: dict[bytes, bytes] = {}
    last = None
    with reported_as_damage(path):
        for key, value in _bounded(Table(path)):
            if last is not None and key <= last:
                raise ValueError("its keys are not in order")
            pairs[key] = bytes(value)
            last = key
    return pairs


def _bounded(pairs: Iterable[tuple[bytes, memoryview]]) -> Iterator[tuple[bytes, memoryview]]:
    """The same pairs, whose keys are to be held: each may share all of a long one, so few bytes can make many."""
    expanded = 0
    for key, value in pairs:
        expanded += len(key)
        if expanded > _MAX_KEYS:
            raise ValueError(f"its keys have more than {_MAX_KEYS:,} bytes")
        yield key, value


def _handle(data: memoryview, at: int) -> tuple[Handle, int]:
    """The place of a block, and the byte behind it."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _pairs(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The keys and values of a block; the restart points behind them only serve a search."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or end < 0:
        raise ValueError("a block is cut")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        size, at = varint(block, at)
        if shared > len(key) or own + size > end - at:
            raise ValueError("an entry reaches beyond its block")
        key = key[:shared] + block[at : at + own]
        at += own + size
        yield key, block[at - size : at]


def blocks(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The bytes of the table that holds sorted pairs, block by block, as TensorFlow's builder lays them out."""
    offset = 0
    handles: list[tuple[bytes, bytes]] = []
    block, last = _Block(_RESTART), b""
    for key, value in pairs:
        if block.size >= _BLOCK_SIZE:
            chunk = block.close()
            handles.append((_separator(last, key), _encode_handle(offset, chunk)))
            offset += len(chunk)
            yield chunk
            block = _Block(_RESTART)
        block.add(key, value)
        last = key
    chunk = block.close()
    handles.append((_successor(last), _encode_handle(offset, chunk)))
    yield from (chunk, *_tail(handles, offset + len(chunk)))


def _tail(handles: list[tuple[bytes, bytes]], offset: int) -> tuple[bytes, bytes, bytes]:
    """The empty block of filters, the index of the blocks, and the footer."""
    filters, index = _Block(_RESTART).close(), _Block(1)
    for key, handle in handles:
        index.add(key, handle)
    chunk = index.close()
    places = _encode_handle(offset, filters) + _encode_handle(offset + len(filters), chunk)
    return filters, chunk, places.ljust(_FOOTER - 8, b"\0") + MAGIC


def _encode_handle(offset: int, chunk: bytes) -> bytes:
    return encode_varint(offset) + encode_varint(len(chunk) - _TRAILER)


class _Block:
    """A block in the making; every `interval` pairs a key is stored whole."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._data = bytearray()
        self._restarts = [0]
        self._count = 0
        self._last = b""

    @property
    def size(self) -> int:
        """The bytes of the block so far, without its trailer."""
        return len(self._data) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        """Append a pair."""
        shared = 0
        if self._count and self._count % self._interval == 0:
            self._restarts.append(len(self._data))
        else:
            shared = _common_prefix(self._last, key)
        lengths = (shared, len(key) - shared, len(value))
        self._data += b"".join(map(encode_varint, lengths)) + key[shared:] + value
        self._count += 1
        self._last = key

    def close(self) -> bytes:
        """The block with its restart points and trailer, uncompressed."""
        restarts = struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))
        body = bytes(self._data) + restarts + b"\0"
        return body + struct.pack("<I", mask(int(google_crc32c.value(body))))


def _common_prefix(a: bytes, b: bytes) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def _separator(last: bytes, following: bytes) -> bytes:
    """A short key from `last` on and before `following`: the one that LevelDB puts into the index."""
    at = _common_prefix(last, following)
    if at < min(len(last), len(following)) and last[at] + 1 < following[at]:
        return last[:at] + bytes([last[at] + 1])
    return last


def _successor(last: bytes) -> bytes:
    """A short key from `last` on."""
    at = next((i for i, byte in enumerate(last) if byte != 0xFF), None)
    return last if at is None else last[:at] + bytes([last[at] + 1])
