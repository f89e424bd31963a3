"""The wire format of protocol buffers: fields in, fields out, without a schema.

Format: protobuf.dev/programming-guides/encoding. Messages inside messages are left to the caller as bytes, so
nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

Data = TypeVar("Data", bytes, memoryview)


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The integer (0 to 2**64 - 1) that begins at a byte, and the place behind it.

    Raises:
        ValueError: it is longer than ten bytes, or cut.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("an integer is cut")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError("an integer has more than ten bytes")


def signed(value: int | bytes | memoryview) -> int:
    """The int64 whose two's complement a varint field holds."""
    if not isinstance(value, int):
        raise ValueError("bytes where an integer belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def fields(data: Data) -> Iterator[tuple[int, int | Data]]:
    """(number, value) of each field: integers for varint, fixed64 and fixed32, a part of `data` for the others.

    Raises:
        ValueError: the message is cut, or has a group or an unknown wire type.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if size > len(data) - at:
            raise ValueError("a field is cut")
        chunk = data[at : at + size]
        at += size
        yield number, chunk if wire == 2 else int.from_bytes(chunk, "little")


def encode_varint(value: int) -> bytes:
    """A non-negative integer, seven bits to the byte."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_field(number: int, value: int) -> bytes:
    """An integer field; nothing for zero, which proto3 does not store."""
    return encode_varint(number << 3) + encode_varint(value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """A string, bytes or message field."""
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def fixed32_field(number: int, value: int) -> bytes:
    """A fixed32 field; nothing for zero, which proto3 does not store."""
    return encode_varint(number << 3 | 5) + value.to_bytes(4, "little") if value else b""
