"""The element types of checkpoints, by their numpy names.

numpy has no bfloat16, so its elements travel as their 16-bit patterns (`uint16`): ports move bytes and
never compute with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Dtype:
    """One element type: its name here, in safetensors, in a TensorFlow bundle, and how numpy holds it."""

    name: str
    safetensors: str
    tensorflow: int  # tensorflow/core/framework/types.proto
    storage: np.dtype


def _table() -> dict[str, Dtype]:
    rows = [
        ("float64", "F64", 2, "<f8"),
        ("float32", "F32", 1, "<f4"),
        ("float16", "F16", 19, "<f2"),
        ("bfloat16", "BF16", 14, "<u2"),
        ("int64", "I64", 9, "<i8"),
        ("int32", "I32", 3, "<i4"),
        ("int16", "I16", 5, "<i2"),
        ("int8", "I8", 6, "<i1"),
        ("uint64", "U64", 23, "<u8"),
        ("uint32", "U32", 22, "<u4"),
        ("uint16", "U16", 17, "<u2"),
        ("uint8", "U8", 4, "<u1"),
        ("bool", "BOOL", 10, "|b1"),
    ]
    return {name: Dtype(name, st, tf, np.dtype(storage)) for name, st, tf, storage in rows}


DTYPES = _table()
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in DTYPES.values()}
BY_TENSORFLOW = {dtype.tensorflow: dtype for dtype in DTYPES.values()}


def widened(array: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """The values of an array in float64, those of bfloat16's 16-bit patterns included."""
    if dtype == "bfloat16":  # the upper half of a float32's bits
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float64)


def narrowed(array: NDArray[np.floating[Any]], dtype: str) -> NDArray[Any]:
    """Floating values rounded to the nearest of a dtype (to even in a tie), as numpy holds it."""
    if dtype != "bfloat16":
        return array.astype(DTYPES[dtype].storage, copy=False)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    # Rounding must not carry the pattern of a number that is none into that of an infinity.
    return np.where(np.isnan(array), bits >> np.uint32(16) | np.uint32(0x40), upper).astype(np.uint16)


def not_finite(array: NDArray[Any], dtype: str) -> int:
    """How many elements are infinite or not a number; patterns of bfloat16 too."""
    if dtype == "bfloat16":
        return int(np.count_nonzero(array & np.uint16(0x7F80) == 0x7F80))
    return array.size - int(np.count_nonzero(np.isfinite(array)))
