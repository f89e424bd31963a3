"""The sorted string table of LevelDB, which TensorFlow uses as the index of a checkpoint.

A table is a run of blocks and a footer. A block holds sorted (key, value) pairs, each key without the prefix
that it shares with the one before it; the last block is an index of the others.

Format: doc/table_format.md of LevelDB; tensorflow/core/lib/io/table_builder.cc, block_builder.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import google_crc32c

from vidweights.errors import FormatError, IntegrityError
from vidweights.formats.protobuf import encode_varint, varint

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5  # the compression, and a masked CRC32C of the block and that byte
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


def read(path: Path) -> dict[bytes, bytes]:
    """Every key and value of a table, in order.

    Raises:
        FormatError: it is no table, is compressed, or is damaged.
        IntegrityError: a block fails its CRC32C.
    """
    data = _load(path)
    pairs: dict[bytes, bytes] = {}
    expanded, last = 0, None
    try:
        _, at = _handle(data, len(data) - _FOOTER)  # the block of filters, which TensorFlow leaves empty
        index, _ = _handle(data, at)
        for _, value in _pairs(_block(data, index, path)):
            for key, content in _pairs(_block(data, _handle(value, 0)[0], path)):
                expanded += len(key)
                if last is not None and key <= last:
                    raise ValueError("its keys are not in order")
                if expanded > _MAX_KEYS:
                    raise ValueError(f"its keys have more than {_MAX_KEYS:,} bytes")
                pairs[key] = content
                last = key
    except ValueError as error:
        raise FormatError(f"{path} is damaged: {error}. Download it again.") from error
    return pairs


def _load(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _MAX_FILE:
        raise FormatError(f"{path} has {size:,} bytes; an index of a checkpoint has at most {_MAX_FILE:,}.")
    data = path.read_bytes()
    if len(data) < _FOOTER or data[-8:] != MAGIC:
        raise FormatError(
            f"{path} does not end as the index of a TensorFlow checkpoint does: it is cut, or is another file. "
            "Download it again."
        )
    return data


def _handle(data: bytes, at: int) -> tuple[Handle, int]:
    """The place of a block, and the byte behind it."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: Handle, path: Path) -> bytes:
    """The content of a block, checked."""
    offset, size = handle
    if offset + size + _TRAILER > len(data) - _FOOTER:
        raise ValueError(f"a block of {size} bytes at byte {offset} reaches beyond the end")
    body = data[offset : offset + size + 1]
    (stored,) = struct.unpack_from("<I", data, offset + size + 1)
    if google_crc32c.value(body) != unmask(stored):
        raise IntegrityError(f"{path} is damaged: the block at byte {offset} fails its CRC32C. Download it again.")
    if body[-1]:
        raise FormatError(
            f"{path} is compressed (type {body[-1]}; 1 is snappy), as TensorFlow's V1 checkpoints are, which are not "
            "read. Restore it in TensorFlow and save it again with tf.compat.v1.train.Saver()."
        )
    return body[:-1]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
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
