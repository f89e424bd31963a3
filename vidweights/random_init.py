"""Seeded weights for trying a job where no pretrained ones can be had: the same bits on every machine.

They are integers of PCG64, whose raw output numpy keeps stable (its distributions it does not), scaled once. Each
tensor has a stream of its own, named after its canonical name, so neither the order of the tensors nor the dialect
in which they are stored changes a number.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vidweights.dialects.base import Row, Stored
from vidweights.errors import UsageError
from vidweights.families.base import Tensor
from vidweights.formats.base import Checkpoint, TensorInfo
from vidweights.layout import Array, Shape, relayout

_BITS = 24  # of a float32's significand
# Without it the sums of a ResNet-152 grow so much that float32 is 20 % off.
_DAMPED = 0.25


def _integers(count: int, seed: int, name: str) -> NDArray[np.int64]:
    """Odd integers between plus and minus 2**24, uniformly."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "big")
    raw = np.random.PCG64(entropy).random_raw(count)
    return (raw >> np.uint64(64 - _BITS)).astype(np.int64) * 2 + 1 - (1 << _BITS)


def uniform(shape: Shape, bound: float, seed: int, name: str) -> NDArray[np.float32]:
    """Uniform numbers in (-bound, bound).

    Args:
        shape: of the result.
        bound: rounded to float32; the result is rounded once more, so it is the same on every machine.
        seed: and `name` choose the stream.

    Returns:
        float32 of `shape`.
    """
    scale = np.float32(bound) / np.float32(1 << _BITS)
    return (_integers(math.prod(shape), seed, name).astype(np.float32) * scale).reshape(shape)


def centred_kernel(shape: Shape, bound: float, seed: int, name: str) -> NDArray[np.float32]:
    """A kernel (O, I, ...) of numbers that are uniform in (-bound, bound), less the mean of each output's.

    Behind a ReLU all inputs are positive, so with a mean left in it, each layer would turn every input more towards
    one direction, and a deep network would be blind. The mean is taken off in integers, which is exact.

    Returns:
        float32 of `shape`.
    """
    fan_in = math.prod(shape[1:])
    values = _integers(math.prod(shape), seed, name).reshape(shape[0], fan_in)
    centred = values * fan_in - values.sum(axis=1, keepdims=True)
    kernel: NDArray[np.float32] = (centred * (bound / (fan_in << _BITS))).astype(np.float32)
    return kernel.reshape(shape)


def _drawn(tensor: Tensor, seed: int, *, ends_branch: bool) -> NDArray[np.float32]:
    """What a canonical tensor gets, by its kind."""
    *_, part, last = ("", *tensor.name.split("."))
    shape, name = tensor.shape, tensor.name
    if last == "weight" and part == "conv":
        return centred_kernel(shape, math.sqrt(6 / math.prod(shape[1:])), seed, name)
    if last == "weight" and part != "bn":  # the head
        return uniform(shape, 1 / math.sqrt(math.prod(shape[1:])), seed, name)
    if last in ("weight", "running_var"):
        around_one = uniform(shape, 0.5, seed, name) + np.float32(1)
        return around_one * np.float32(_DAMPED) if ends_branch else around_one
    return uniform(shape, 0.1, seed, name)


def _ends_branch(name: str, names: set[str]) -> bool:
    """Whether it is the weight of the last batch norm of a residual branch: of conv3 in a block without conv4."""
    found = re.fullmatch(r"(.*\.conv)(\d)(\.bn\.weight)", name)
    return found is not None and f"{found[1]}{int(found[2]) + 1}{found[3]}" not in names


class RandomCheckpoint(Checkpoint):
    """Seeded weights for the rows of a dialect's table, as if they had been read from a file of it.

    Kernels are uniform as He et al. (arXiv 1502.01852) scale them, less each output's mean; batch-norm weights and
    variances lie in [0.5, 1.5], the weights at the end of a residual branch in a quarter of that; the head is uniform
    within 1 / sqrt(inputs), biases and means within 0.1. A tensor is drawn when it is read; constants have none.

    Raises:
        UsageError: the seed is negative.
    """

    format: ClassVar[str] = "random"

    def __init__(self, rows: Iterable[Row], seed: int) -> None:
        if seed < 0:
            raise UsageError(f"the seed is {seed}; expected an integer from 0 on")
        stored = [(row.tensor, row.place, row.stored_shape) for row in rows if isinstance(row.place, Stored)]
        self.seed = seed
        self.path = Path(f"random-{seed}")
        self.files = ()
        self.tensors = {place.key: TensorInfo(place.key, shape, "float32") for _, place, shape in stored}
        self.others = {}
        self._rows = {place.key: (tensor, place.layout) for tensor, place, _ in stored}
        self._names = {tensor.name for tensor, _, _ in stored}

    def read(self, key: str) -> Array:
        """The tensor in the dialect's layout, float32."""
        tensor, layout = self._rows[key]
        drawn = _drawn(tensor, self.seed, ends_branch=_ends_branch(tensor.name, self._names))
        return relayout(drawn, tensor.layout, layout)
