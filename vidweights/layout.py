"""Axis orders, written as strings of axis letters, and the way from one to another.

A convolution kernel is `OIDHW` in PyTorch and `DHWIO` in TensorFlow (D is the time axis of the kernel); a
vector of batch norm is `C`, and `1111C` where a release keeps it broadcastable. A `1` is an axis of length
one that holds no letter. Two layouts name the same tensor when their letters are the same set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Array = NDArray[Any]


def letters(layout: str) -> str:
    """The layout without its unit axes."""
    return layout.replace("1", "")


def reshape(shape: Shape, source: str, target: str) -> Shape:
    """The shape in `target` of a tensor that has `shape` in `source`.

    Raises:
        ValueError: `shape` does not fit `source` (another rank, or a unit axis that is not 1), or the two
            layouts do not name the same axes.
    """
    if len(shape) != len(source) or any(n != 1 for n, axis in zip(shape, source) if axis == "1"):
        raise ValueError(f"shape {shape} does not fit the layout {source}")
    if sorted(letters(source)) != sorted(letters(target)):
        raise ValueError(f"layouts {source} and {target} name different axes")
    sizes = dict(zip(source, shape))
    return tuple(1 if axis == "1" else sizes[axis] for axis in target)


def relayout(array: Array, source: str, target: str) -> Array:
    """`array`, stored in the layout `source`, as a C-contiguous array in the layout `target`.

    No copy is made where the bytes already are in that order.
    """
    shape = reshape(array.shape, source, target)
    bare = array.reshape([n for n, axis in zip(array.shape, source) if axis != "1"])
    order = [letters(source).index(axis) for axis in letters(target)]
    return np.ascontiguousarray(bare.transpose(order)).reshape(shape)
