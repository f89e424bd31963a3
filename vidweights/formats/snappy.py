"""Snappy's compression, expanded: copies from what came before, and literal bytes.

Format: format_description.txt of google/snappy.
"""

from __future__ import annotations

from vidweights.formats.protobuf import varint

# Three bytes can stand for 64 at most.
MAX_EXPANSION = 22
_WIDTHS = (0, 1, 2, 4)  # of the offset, by the kind of copy


def expand(data: memoryview) -> memoryview:
    """The bytes that were compressed.

    Raises:
        ValueError: it is cut, refers to bytes before its beginning, or has another length than it says.
    """
    size, at = varint(data, 0)
    if size > MAX_EXPANSION * len(data):
        raise ValueError(f"{len(data)} bytes of snappy claim to hold {size}")
    out = bytearray()
    while at < len(data) and len(out) <= size:
        tag, at = data[at], at + 1
        at = _copy(data, at, tag, out) if tag & 3 else _literal(data, at, tag, out)
    if len(out) != size:
        raise ValueError(f"bytes of snappy that claim to hold {size} hold {len(out)}")
    return memoryview(out)


def _literal(data: memoryview, at: int, tag: int, out: bytearray) -> int:
    """Append the literal bytes of an element, and return the place behind it."""
    length = (tag >> 2) + 1
    if length > 60:  # the length is in the next one to four bytes
        start, at = at, at + length - 60
        length = int.from_bytes(data[start:at], "little") + 1
    if length > len(data) - at:
        raise ValueError("a literal of snappy is cut")
    out += data[at : at + length]
    return at + length


def _copy(data: memoryview, at: int, tag: int, out: bytearray) -> int:
    """Append what an element copies, and return the place behind it."""
    kind, end = tag & 3, at + _WIDTHS[tag & 3]
    offset = int.from_bytes(data[at:end], "little")
    length = (tag >> 2) + 1
    if kind == 1:
        offset, length = offset | tag >> 5 << 8, (tag >> 2 & 7) + 4
    if end > len(data) or not 1 <= offset <= len(out):
        raise ValueError("a copy of snappy has no source")
    start = len(out) - offset
    # A copy longer than its offset goes on with the bytes that it has just made.
    source = bytes(out[start : start + length])
    out += (source * -(-length // len(source)))[:length]
    return end
