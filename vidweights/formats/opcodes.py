"""The opcodes of a pickle, passed over without being run: what they claim is bounded, and large bytes stay in the file.

A length or a memo index that the file cannot fill is refused here, before the machine allocates anything for it. Where
the pickle holds large bytes, the machine gets a program in which a reference to a buffer stands in their place
(`NEXT_BUFFER`, PEP 574), so that they are not copied.

Format: Lib/pickletools.py of CPython.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vidweights.errors import FormatError

# A bound that no real checkpoint comes near; it keeps a small hostile file from taking long.
_MAX_OPCODES = 5_000_000
# Bytes of so many or more stay in the file.
_LARGE = 1 << 12

Source = bytes | mmap.mmap


class _Layout(NamedTuple):
    """What follows an opcode: `fixed` bytes, the first `width` of which give how many more follow; or `lines`."""

    name: str
    fixed: int
    width: int = 0
    signed: bool = False
    lines: int = 0


def _layout(opcode: pickletools.OpcodeInfo) -> _Layout:
    argument = opcode.arg
    if argument is None:
        return _Layout(opcode.name, 0)
    if argument.n >= 0:
        return _Layout(opcode.name, argument.n)
    if argument.n == pickletools.UP_TO_NEWLINE:
        return _Layout(opcode.name, 0, lines=2 if argument.name.endswith("_pair") else 1)
    width = {
        pickletools.TAKEN_FROM_ARGUMENT1: 1,
        pickletools.TAKEN_FROM_ARGUMENT4: 4,
        pickletools.TAKEN_FROM_ARGUMENT4U: 4,
        pickletools.TAKEN_FROM_ARGUMENT8U: 8,
    }[argument.n]
    return _Layout(opcode.name, width, width, signed=argument.n == pickletools.TAKEN_FROM_ARGUMENT4)


_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_OUTSIDE = ("NEXT_BUFFER", "READONLY_BUFFER")
_CHECKED = (*_MEMO, *_OUTSIDE, "FRAME", "STOP")
_LAYOUTS: Mapping[int, _Layout] = {ord(opcode.code): _layout(opcode) for opcode in pickletools.opcodes}
# The others need no look: so many bytes, themselves included.
_PLAIN: Mapping[int, int] = {
    code: 1 + layout.fixed
    for code, layout in _LAYOUTS.items()
    if not (layout.width or layout.lines) and layout.name not in _CHECKED
}
_BYTES = ("BINSTRING", "BINBYTES", "BINBYTES8", "BYTEARRAY8")


@dataclass(frozen=True)
class Program:
    """One pickle of a file.

    Attributes:
        end: the position behind it.
        opcodes: what the machine is to run in place of the file's own; None if nothing was left out.
        buffers: what was left out, in order: views of the file.
    """

    end: int
    opcodes: bytes | None
    buffers: tuple[memoryview, ...]


def scan(source: Source, start: int) -> Program:
    """Pass over the pickle that begins at `start`.

    Raises:
        FormatError: it is cut, has a byte that is no opcode, claims more than the file has, has a memo index that its
            opcodes cannot have reached, or refers to buffers outside of it.
    """
    view, at = memoryview(source), start
    pieces: list[bytes | memoryview] = []
    buffers: list[memoryview] = []
    copied = start
    for count in range(_MAX_OPCODES):
        if at >= len(view):
            raise FormatError(f"it ends after {at - start:,} bytes, in the middle of a pickle")
        code = view[at]
        if code in _PLAIN:
            at += _PLAIN[code]
            continue
        if code not in _LAYOUTS:
            raise FormatError(f"byte {at:,} is {code:#04x}, which is no opcode of a pickle")
        layout = _LAYOUTS[code]
        begin, end = _argument(source, layout, at + 1)
        if layout.name in _MEMO:
            _check_memo(bytes(view[at + 1 : end]), layout, count)
        elif layout.name in _BYTES and end - begin >= _LARGE:
            pieces += [view[copied:at], pickle.NEXT_BUFFER]
            buffers.append(view[begin:end].toreadonly())
            copied = end
        elif layout.name == "FRAME":  # what is left out would make it too long
            _check_frame(int.from_bytes(view[at + 1 : end], "little"), len(view) - end)
            pieces.append(view[copied:at])
            copied = end
        elif layout.name in _OUTSIDE:
            raise FormatError("the pickle refers to data outside of it")
        at = end
        if layout.name == "STOP":
            return Program(at, b"".join([*pieces, view[copied:at]]) if buffers else None, tuple(buffers))
    raise FormatError(f"the pickle has more than {_MAX_OPCODES:,} opcodes; expected tensors, not loose values")


def _argument(source: Source, layout: _Layout, at: int) -> tuple[int, int]:
    """Where the argument of an opcode begins, behind its length if it has one, and where it ends."""
    size = len(source)
    begin = end = at + layout.fixed
    for _ in range(layout.lines):
        end = source.find(b"\n", end) + 1 or size + 1
    if layout.width and begin <= size:
        length = int.from_bytes(source[at:begin], "little", signed=layout.signed)
        if not 0 <= length <= size - begin:
            raise FormatError(f"the opcode {layout.name} claims {length:,} bytes; the file has {size - begin:,} more")
        end += length
    if end > size:
        raise FormatError(f"it ends in the middle of the opcode {layout.name}")
    return begin, end


def _check_memo(argument: bytes, layout: _Layout, count: int) -> None:
    index = int(argument) if layout.lines else int.from_bytes(argument, "little")
    if index > count:
        raise FormatError(f"the pickle's memo has an entry {index:,} after {count:,} opcodes")


def _check_frame(length: int, left: int) -> None:
    if length > left:
        raise FormatError(f"a frame of the pickle claims {length:,} bytes; the file has {left:,}")
