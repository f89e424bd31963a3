"""Axis orders, written as strings of axis letters, and the way from one to another.

A convolution kernel is `OIDHW` in PyTorch and `DHWIO` in TensorFlow (D is the time axis of the kernel); a
vector of batch norm is `C`, and `1111C` where a release keeps it broadcastable. A `1` is an axis of length
one that holds no letter. Two layouts name the same tensor when their letters are the same set.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Array = NDArray[Any]

# From how many bytes on `relayout` works in blocks; the bytes of a block, and the rows of a tile inside it.
_LARGE = 16 << 20
_BLOCK = 4 << 20
_TILE = 256


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


def relayout(array: Array, source: str, target: str, scratch: NDArray[np.uint8] | None = None) -> Array:
    """`array`, stored in the layout `source`, as a C-contiguous array in the layout `target`.

    No copy is made where the bytes already are in that order. A copy is made in `scratch`, if that is given and
    has room for it, and then lasts only until `scratch` is used again.
    """
    shape = reshape(array.shape, source, target)
    bare = array.reshape([n for n, axis in zip(array.shape, source) if axis != "1"])
    order = [letters(source).index(axis) for axis in letters(target)]
    return _permute(bare, order, scratch).reshape(shape)


def _permute(array: Array, order: list[int], scratch: NDArray[np.uint8] | None) -> Array:
    """`array.transpose(order)` as a C-contiguous array.

    When a kernel's last axis becomes its first, or the other way round, numpy's copy touches another page with
    nearly every element. That costs a large kernel more than working in blocks that stay in the cache does, and a
    small one less (benchmarks/permutation.py).
    """
    view = array.transpose(order)
    if view.flags.c_contiguous:
        return view
    if scratch is None or scratch.nbytes < view.nbytes:
        out = np.empty(view.shape, view.dtype)
    else:
        out = scratch[: view.nbytes].view(view.dtype).reshape(view.shape)
    if array.nbytes > _LARGE and order[0] == array.ndim - 1:
        _last_to_first(array, order, out)
    elif array.nbytes > _LARGE and order[-1] == 0:
        _first_to_last(array, order, out)
    else:
        out[...] = view
    return out


def _last_to_first(array: Array, order: list[int], out: Array) -> None:
    """A block of the last axis at a time: bring it to the front, then put the other axes in order."""
    rows = array.reshape(-1, array.shape[-1])
    inner = [0, *(axis + 1 for axis in order[1:])]

    def bring(start: int, stop: int, block: Array) -> None:
        _transpose(rows[:, start:stop], block)
        out[start:stop] = block.reshape(-1, *array.shape[:-1]).transpose(inner)

    _in_blocks(bring, array.shape[-1], rows.shape[0], array.dtype)


def _first_to_last(array: Array, order: list[int], out: Array) -> None:
    """A block of the first axis at a time: put the other axes in order, then bring it to the back."""
    rows = out.reshape(-1, array.shape[0])
    inner = [0, *order[:-1]]

    def bring(start: int, stop: int, block: Array) -> None:
        part = array[start:stop].transpose(inner)
        block.reshape(part.shape)[...] = part
        _transpose(block, rows[:, start:stop])

    _in_blocks(bring, array.shape[0], rows.shape[0], array.dtype)


def _in_blocks(bring: Callable[[int, int, Array], None], count: int, length: int, dtype: np.dtype) -> None:
    """Call `bring(start, stop, block)` for the ranges of an axis of `count` rows of `length` elements, in two threads.

    `block` has a row for each of the range. It is memory that a thread uses again and again; a range has about
    `_BLOCK` bytes, and at least the 16 elements that share a cache line.
    """
    step = max(16, _BLOCK // (length * dtype.itemsize))

    def work(first: int) -> None:
        block = np.empty((step, length), dtype)
        for start in range(first * step, count, 2 * step):
            stop = min(start + step, count)
            bring(start, stop, block[: stop - start])

    with ThreadPoolExecutor(2, thread_name_prefix="vidweights-permute") as pool:
        list(pool.map(work, range(2)))


def _transpose(source: Array, target: Array) -> None:
    """Copy the transpose of a matrix, a tile at a time along the longer axis."""
    length = max(source.shape)
    for start in range(0, length, _TILE):
        part = slice(start, start + _TILE)
        if source.shape[0] == length:
            target[:, part] = source[part].T
        else:
            target[part] = source[:, part].T
