"""PNG files that are the same bytes on every machine.

A library of zlib may compress as it likes, and two of them do so differently. So the deflate stream is made here:
fixed Huffman codes (RFC 1951, section 3.2.6), and matches only with the byte before, which is what a picture of flat
areas consists of once its rows are filtered.
"""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3)

_LONGEST = 258  # bytes of a match
_SHORTEST = 3
# RFC 1951, 3.2.5: the shortest match of each length symbol from 257 on, and how many extra bits follow the symbol.
_LENGTHS = (
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227,
)  # fmt: skip
_EXTRA = (0,) * 8 + (1,) * 4 + (2,) * 4 + (3,) * 4 + (4,) * 4 + (5,) * 4


def encode(image: Image) -> bytes:
    """A PNG of 8 bits RGB."""
    height, width, _ = image.shape
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    data = _zlib(_filtered(image))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _filtered(image: Image) -> bytes:
    """Rows behind their filter: `Up` (2) for a row that repeats the one above, else `Sub` (1)."""
    flat = image.reshape(len(image), -1)
    left = np.pad(flat, ((0, 0), (3, 0)))[:, :-3]
    above = np.pad(flat, ((1, 0), (0, 0)))[:-1]
    same = (flat == above).all(1)
    rows = np.where(same[:, None], 0, flat - left)  # uint8 wraps around, as the format wants
    return np.column_stack([np.where(same, 2, 1), rows]).astype(np.uint8).tobytes()


def _zlib(data: bytes) -> bytes:
    return b"\x78\x01" + _deflate(np.frombuffer(data, np.uint8)) + zlib.adler32(data).to_bytes(4, "big")


def _deflate(data: NDArray[np.uint8]) -> bytes:
    """One block of fixed Huffman codes: each run of equal bytes as one literal, then matches at distance 1."""
    starts = np.flatnonzero(np.concatenate([[True], data[1:] != data[:-1]]))
    repeats = np.diff(np.append(starts, len(data))) - 1
    whole, rest = np.divmod(repeats, _LONGEST)
    value = data[starts].astype(np.int64)
    short = rest < _SHORTEST  # too little for a match
    last = np.where(short, value, 256 + rest)
    symbols = np.stack([value, np.full_like(value, 256 + _LONGEST), last], axis=1)
    counts = np.stack([np.ones_like(value), whole, np.where(short, rest, 1)], axis=1)
    codes, lengths = _codes()
    stream = np.repeat(symbols.ravel(), counts.ravel())
    # The block's header (last block, fixed codes) goes before, the code of its end, seven zeros, behind.
    return _packed(np.concatenate([[0b011], codes[stream], [0]]), np.concatenate([[3], lengths[stream], [7]]))


def _packed(codes: NDArray[np.int64], lengths: NDArray[np.int64]) -> bytes:
    """Codes one behind the other, the lowest bit of each first."""
    ends = np.cumsum(lengths)
    place = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    bits = (np.repeat(codes, lengths) >> place) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


@cache
def _codes() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(bits, how many) of each literal at 0 to 255, and of a match of n bytes with the byte before at 256 + n."""
    codes, lengths = np.zeros(256 + _LONGEST + 1, np.int64), np.zeros(256 + _LONGEST + 1, np.int64)
    for byte in range(256):
        codes[byte], lengths[byte] = _reversed(0x30 + byte, 8) if byte < 144 else _reversed(0x190 + byte - 144, 9)
    for n in range(_SHORTEST, _LONGEST):
        index = max(i for i, first in enumerate(_LENGTHS) if first <= n)
        code, length = _reversed(1 + index, 7) if index < 23 else _reversed(0xC0 + index - 23, 8)
        codes[256 + n] = code | (n - _LENGTHS[index]) << length
        lengths[256 + n] = length + _EXTRA[index] + 5  # five zeros: the distance 1
    codes[256 + _LONGEST], lengths[256 + _LONGEST] = _reversed(0xC0 + 5, 8)[0], 8 + 5
    return codes, lengths


def _reversed(code: int, length: int) -> tuple[int, int]:
    """A Huffman code with its first bit lowest."""
    return int(f"{code:0{length}b}"[::-1], 2), length
