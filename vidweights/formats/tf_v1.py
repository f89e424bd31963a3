"""TensorFlow's V1 checkpoints, of before the bundle: one sorted table, read without TensorFlow.

The value of its first key, the empty one, lists the tensors; every other value holds one tensor, as protocol buffers
hold numbers. Early versions of TensorFlow compressed the blocks of the table with snappy.

Format: tensorflow/core/util/saved_tensor_slice.proto (the values), saved_tensor_slice_util.cc (the keys and the
fields); tensorflow/core/lib/strings/ordered_code.cc; tensorflow/core/framework/tensor.proto.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import BY_TENSORFLOW, DTYPES
from vidweights.errors import FormatError
from vidweights.formats import protobuf, snappy
from vidweights.formats.base import Checkpoint, TensorInfo, checked_shape
from vidweights.formats.table import Table, reported_as_damage
from vidweights.formats.tf_bundle import tensor_shape, type_name
from vidweights.layout import Array, Shape

_PART = re.compile(r".+-\d{5}-of-(?P<parts>\d{5})")
# The field of a TensorProto that holds the elements, by their type: as they are in memory, or as varints.
_PLAIN = {"float32": 5, "float64": 6}
_VARINTS = {
    **dict.fromkeys(("int32", "int16", "int8", "uint16", "uint8"), 7),
    "int64": 10,
    "bool": 11,
    "float16": 13,  # its bits
}
# In a TensorSliceProto: an axis that is whole. In a key of the table: its start 0 and its length -1.
_WHOLE_EXTENT = b"\x0a\0"
_WHOLE_CODE = b"\x80\x7f"


class TFV1File(Checkpoint):
    """A TensorFlow V1 checkpoint; it is memory-mapped, and one tensor is decoded at a time.

    Raises:
        FormatError: it is another table, one part of a sharded checkpoint, or damaged.
    """

    format = "tf-v1"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        _refuse_part(path)
        self._table = Table(path)
        self.tensors: dict[str, TensorInfo] = {}
        self.others: dict[str, str] = {}
        key, value = next(iter(self._table), (None, memoryview(b"")))
        if key != b"" or bytes(value[:1]) != b"\x0a":  # field 1, a message: the list
            raise FormatError(f"{path} is a table, but not a TensorFlow checkpoint. Give the checkpoint itself.")
        with reported_as_damage(path):
            for number, listed in protobuf.fields(_message(value, 1)):
                if number == 1 and isinstance(listed, memoryview):
                    self._list(listed)

    def _list(self, listed: memoryview) -> None:
        """Enter a SavedSliceMeta among the tensors or the others."""
        key, number, slices = "", 0, []
        shape: Shape = ()
        for field, value in protobuf.fields(listed):
            if field == 3 and isinstance(value, int):
                number = value
            elif field in (1, 2, 4) and isinstance(value, memoryview):
                if field == 1:
                    key = str(value, "utf-8")
                elif field == 2:
                    shape = tensor_shape(value)
                else:
                    slices.append(value)
        if key in self.tensors or key in self.others:
            raise ValueError(f"it lists {key} twice")
        dtype = BY_TENSORFLOW.get(number)
        if slices != [_WHOLE_EXTENT * len(shape)]:
            self.others[key] = f"a partitioned variable, of which {len(slices)} slices are here; they are not assembled"
        elif dtype is None or dtype.name not in _PLAIN | _VARINTS:
            self.others[key] = f"a tensor of type {dtype.name if dtype else type_name(number)}, shape {shape}"
        else:
            self.tensors[key] = self._checked(TensorInfo(key, shape, dtype.name))

    def _checked(self, info: TensorInfo) -> TensorInfo:
        """What is listed of a tensor, if the file can hold it."""
        count = math.prod(checked_shape(info.shape, f"{self.path}: {info.key}"))
        least, size = info.nbytes if info.dtype in _PLAIN else count, self.path.stat().st_size
        if least > size * snappy.MAX_EXPANSION:
            raise ValueError(f"{info.key} has the shape {info.shape}, {count:,} elements, in a file of {size:,} bytes")
        return info

    def read(self, key: str) -> Array:
        """The tensor, decoded at each call.

        Raises:
            KeyError: there is no such tensor.
            FormatError: it is listed but not there, or has another number of elements than is listed.
            IntegrityError: the block that holds it fails its CRC32C.
        """
        info = self.tensors[key]
        value = self._table.get(_table_key(info))
        with reported_as_damage(self.path):
            if value is None:
                raise ValueError(f"{key} is listed but not there")
            saved = _message(value, 2)
            if _message(saved, 1) != key.encode():
                raise ValueError(f"under the name {key} it holds another tensor")
            return _elements(_message(saved, 3), info)


def _refuse_part(path: Path) -> None:
    match = _PART.fullmatch(path.name)
    if match and int(match["parts"]) > 1:
        raise FormatError(
            f"{path} is one of the {int(match['parts'])} files of a sharded TensorFlow V1 checkpoint, which are not "
            "put together here. Restore it in TensorFlow and save it again with tf.compat.v1.train.Saver()."
        )


def _message(data: memoryview, number: int) -> memoryview:
    """The field of that number, a message or bytes; empty if it is not stored."""
    found = memoryview(b"")
    for field, value in protobuf.fields(data):
        if field == number:
            if isinstance(value, int) or found:
                raise ValueError(f"the field {number} of a message is a number, or is there twice")
            found = value
    return found


def _table_key(info: TensorInfo) -> bytes:
    """The key of a whole tensor: 0, the name, the rank and the extents, in TensorFlow's ordered code."""
    name = info.key.encode().replace(b"\0", b"\0\xff")  # 0xFF would be escaped too, but UTF-8 has none
    rank = len(info.shape)
    return b"\0" + name + b"\0\1" + (bytes([1, rank]) if rank else b"\0") + _WHOLE_CODE * rank


def _elements(tensor: memoryview, info: TensorInfo) -> Array:
    """The elements that a TensorProto holds."""
    storage, where = DTYPES[info.dtype].storage, f"{info.key} has the shape {info.shape} and type {info.dtype}"
    if info.dtype in _PLAIN:
        data = _message(tensor, _PLAIN[info.dtype])
        if len(data) != info.nbytes:
            raise ValueError(f"{where}, which is {info.nbytes:,} bytes, and {len(data):,} are stored")
        return np.frombuffer(data, storage).reshape(info.shape).copy()  # aligned, which it need not be in the file
    values = _varints(np.frombuffer(_message(tensor, _VARINTS[info.dtype]), np.uint8))
    if len(values) != math.prod(info.shape):
        raise ValueError(f"{where}, which is {math.prod(info.shape):,} elements, and {len(values):,} are stored")
    bits = values.astype("<u2" if info.dtype == "float16" else storage)
    if not np.array_equal(bits, values):
        raise ValueError(f"{where}, and has elements that are not")
    return bits.view(storage).reshape(info.shape)


def _varints(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The integers, in two's complement, that are stored one after the other in seven bits to the byte."""
    ends = np.flatnonzero(data < 0x80)
    lengths = np.diff(ends, prepend=-1)
    longest = int(lengths.max(initial=0))
    if longest > 10 or (len(data) and data[-1] >= 0x80):
        raise ValueError("an integer has more than ten bytes, or is cut")
    starts = ends - lengths + 1
    values = np.zeros(len(ends), np.uint64)
    for at in range(longest):
        longer = lengths > at
        values[longer] |= (data[starts[longer] + at] & np.uint64(0x7F)) << np.uint64(7 * at)
    return values.view(np.int64)
