"""Inflation rules: what a 2D tensor becomes in a 3D network, as values that can be printed and applied.

A rule takes the 2D tensors that it names (kernels `OIHW`, vectors `C`) in float32, or float64 where they are stored so,
and gives the 3D tensor. Sources: Carreira and Zisserman (arXiv 1705.07750, section 2.4.1) for the mean; Girdhar et al.
(arXiv 1712.09184, section 3.1) for the centre; the temporal-segment-networks rule (arXiv 1608.00859, section 3.2) for
another number of input channels. The pairs of the (2+1)D rules are our own: relu(x) - relu(-x) = x.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import DTYPES, narrowed, widened
from vidweights.errors import UsageError
from vidweights.layout import Shape

Method = Literal["mean", "center", "exact"]
Taps = Literal["mean", "center"]
Floats = NDArray[np.floating[Any]]

# Half the range of values around the mean, in standard deviations, that a shifted plane carries without being cut.
DEVIATIONS = 64


class Rule:
    """What one 3D tensor is made of; subclasses are frozen dataclasses."""

    def __call__(self, *arrays: Floats) -> Floats:
        """The 3D tensor."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON values."""
        return {"rule": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Copy(Rule):
    """A vector or a matrix as it is; `ones` unit axes are added behind."""

    ones: int = 0

    def __call__(self, *arrays: Floats) -> Floats:
        """(...) to (..., 1, 1)."""
        (array,) = arrays
        return array.reshape(*array.shape, *(1,) * self.ones)


@dataclass(frozen=True)
class Inflate(Rule):
    """A kernel made `length` long in time: W / N at each of N steps, or W in the middle and zero elsewhere.

    Attributes:
        length: N, at least 1; odd for the centre, or there is no middle.
        taps: `mean` or `center`.
        inputs: None, or the number of input channels that each get the mean of the kernel's own.
    """

    length: int
    taps: Taps = "mean"
    inputs: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or (self.taps == "center" and self.length % 2 == 0):
            wanted = "an odd length, which has a middle" if self.length >= 1 else "a length of at least 1"
            raise UsageError(
                f"a kernel cannot be {self.length} long in time by the rule {self.taps}: expected {wanted}."
            )

    def __call__(self, *arrays: Floats, out: Floats | None = None) -> Floats:
        """(O, I, H, W) to (O, I', N, H, W), in `out` if that is given and a copy is made at all."""
        (kernel,) = arrays
        kernel = over_inputs(kernel, self.inputs)
        if self.length == 1:
            return kernel[:, :, None]
        outer, inner, *space = kernel.shape
        inflated = np.empty((outer, inner, self.length, *space), kernel.dtype) if out is None else out
        if self.taps == "mean":
            _repeat(kernel / kernel.dtype.type(self.length), inflated)
        else:
            inflated[:] = 0
            inflated[:, :, self.length // 2] = kernel
        return inflated


def _repeat(kernel: Floats, inflated: Floats) -> None:
    """Put (O, I, H, W) at each of the N steps of the contiguous (O, I, N, H, W)."""
    # As one element of many bytes a whole H x W is copied at once, which is twice as fast as by its numbers.
    space = np.dtype((np.void, kernel.itemsize * math.prod(kernel.shape[2:])))
    steps = inflated.reshape(-1, inflated.shape[2] * math.prod(kernel.shape[2:])).view(space)
    steps[:] = np.ascontiguousarray(kernel).reshape(len(steps), -1).view(space)


def over_inputs(kernel: Floats, inputs: int | None) -> Floats:
    """(O, I, H, W) with `inputs` input channels, each the mean over the I that there were; as it is for None."""
    if inputs is None:
        return kernel
    mean = kernel.mean(axis=1, keepdims=True, dtype=np.float64).astype(kernel.dtype)
    return np.repeat(mean, inputs, axis=1)


@dataclass(frozen=True)
class Planes:
    """How the middle planes of a factorised unit carry its outputs through the ReLU between its halves.

    Output c has the plane c. The first `pairs` outputs also have the plane C + c with the kernel negated, and
    relu(x) - relu(-x) = x. The other outputs have no second plane: theirs is shifted by a bias so far up that nothing
    is cut, and the batch norm behind takes the shift back. Planes beyond C + pairs repeat kernels and have no tap: they
    add nothing until they are trained. With fewer planes than outputs, each plane carries a mixture of outputs, of the
    best low rank, shifted like the others.

    Attributes:
        outputs: C, the outputs of the unit.
        middle: the planes between its halves.
        inputs: as of `Inflate`.
    """

    outputs: int
    middle: int
    inputs: int | None = None

    @property
    def pairs(self) -> int:
        """How many outputs have two planes."""
        return max(0, min(self.outputs, self.middle - self.outputs))

    @property
    def promise(self) -> Literal["exact", "bounded", "approximate"]:
        """What the unit computes: the 2D one; that, while no plane is cut; or something near it."""
        if self.middle < self.outputs:
            return "approximate"
        return "exact" if self.pairs == self.outputs else "bounded"


@dataclass(frozen=True)
class SpatialKernel(Rule):
    """The spatial half of a (2+1)D kernel: W, -W for the pairs, and repetitions of W."""

    planes: Planes

    def __call__(self, *arrays: Floats) -> Floats:
        """(C, I, H, W) to (M, I', 1, H, W)."""
        kernel = over_inputs(arrays[0], self.planes.inputs)
        c, m, pairs = self.planes.outputs, self.planes.middle, self.planes.pairs
        if m < c:
            _, mixed = _low_rank(arrays[0], self.planes)
            return mixed.reshape(m, *kernel.shape[1:])[:, :, None].astype(kernel.dtype)
        spare = kernel[np.arange(m - c - pairs) % c]
        return np.concatenate([kernel, -kernel[:pairs], spare])[:, :, None]


@dataclass(frozen=True)
class TemporalKernel(Rule):
    """The temporal half of a (2+1)D kernel: [I, -I] over the pairs of planes, at each step or in the middle."""

    planes: Planes
    length: int
    taps: Taps
    dtype: str

    def __call__(self, *arrays: Floats) -> Floats:
        """Nothing, or for a low-rank fit the kernel (C, I, H, W), to (C, M, N, 1, 1)."""
        c, m, pairs = self.planes.outputs, self.planes.middle, self.planes.pairs
        if m < c:
            matrix, _ = _low_rank(arrays[0], self.planes)
        else:
            matrix = np.zeros((c, m), np.float32)
            matrix[np.arange(c), np.arange(c)] = 1
            matrix[np.arange(pairs), c + np.arange(pairs)] = -1
        steps = time_taps(self.length, self.taps, self.dtype)
        return (matrix[:, :, None] * steps)[..., None, None]


@dataclass(frozen=True)
class Identity(Rule):
    """The temporal half of a separable kernel: the identity over channels, at each step or in the middle."""

    outputs: int
    length: int
    taps: Taps
    dtype: str

    def __call__(self, *arrays: Floats) -> Floats:
        """Nothing to (C, C, N, 1, 1)."""
        steps = time_taps(self.length, self.taps, self.dtype)
        return (np.eye(self.outputs)[:, :, None] * steps)[..., None, None].astype(np.float32)


@dataclass(frozen=True)
class Constant(Rule):
    """A vector of one value."""

    size: int
    value: float

    def __call__(self, *arrays: Floats) -> Floats:
        """Nothing to (C,)."""
        return np.full(self.size, self.value)


@dataclass(frozen=True)
class Draw(Rule):
    """A tensor drawn uniformly from (-bound, bound) by a seed: the head of classes that the source does not have."""

    name: str
    shape: Shape
    bound: float
    seed: int

    def __call__(self, *arrays: Floats) -> Floats:
        """Nothing to the shape."""
        from vidweights.random_init import uniform

        return uniform(self.shape, self.bound, self.seed, self.name)


@dataclass(frozen=True)
class PlaneMean(Rule):
    """The running mean of the middle batch norm: zero for pairs, the 2D network's for shifted planes."""

    planes: Planes

    def __call__(self, *arrays: Floats) -> Floats:
        """Kernel (C, I, H, W), mean (C,) and, where convolutions have one, bias (C,) to (M,)."""
        kernel, mean, *bias = arrays
        c, m, pairs = self.planes.outputs, self.planes.middle, self.planes.pairs
        if m < c:
            matrix, _ = _low_rank(kernel, self.planes)
            return matrix.T @ (mean.astype(np.float64) - (bias[0] if bias else 0))
        return np.concatenate([np.zeros(pairs), mean[pairs:], np.zeros(m - c)])


@dataclass(frozen=True)
class PlaneShift(Rule):
    """The bias of the middle batch norm: what lifts a shifted plane above zero."""

    planes: Planes

    def __call__(self, *arrays: Floats) -> Floats:
        """Kernel (C, I, H, W) and variance (C,) to (M,)."""
        kernel, variance = arrays
        c, m, pairs = self.planes.outputs, self.planes.middle, self.planes.pairs
        deviation = np.sqrt(variance.astype(np.float64))
        if m < c:
            matrix, _ = _low_rank(kernel, self.planes)
            return DEVIATIONS * (np.abs(matrix).T @ deviation)
        return np.concatenate([np.zeros(pairs), DEVIATIONS * deviation[pairs:], np.zeros(m - c)])


@dataclass(frozen=True)
class ShiftedMean(Rule):
    """The running mean of the batch norm behind: the 2D network's for pairs, the shift for the others."""

    planes: Planes
    dtype: str

    def __call__(self, *arrays: Floats) -> Floats:
        """Kernel (C, I, H, W), variance (C,), mean (C,) and, where there is one, bias (C,) to (C,)."""
        kernel, variance, mean, *bias = arrays
        c, m, pairs = self.planes.outputs, self.planes.middle, self.planes.pairs
        # As the middle batch norm stores it: what is taken back is what was added, to the last bit.
        shift = widened(narrowed(PlaneShift(self.planes)(kernel, variance), self.dtype), self.dtype)
        if m < c:
            matrix, _ = _low_rank(kernel, self.planes)
            return matrix @ shift + (bias[0] if bias else 0)
        return np.concatenate([mean[:pairs], shift[pairs:c]])


def _low_rank(kernel: Floats, planes: Planes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best A (C, M) with orthonormal columns and B (M, I' * H * W) for W = A B, by singular values.

    All rules of a unit must have the same two. Their last bits are those of the machine's LAPACK.
    """
    matrix = over_inputs(kernel, planes.inputs).reshape(len(kernel), -1).astype(np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, : planes.middle], values[: planes.middle, None] * right[: planes.middle]


def time_taps(length: int, taps: Taps, dtype: str) -> NDArray[np.float64]:
    """The weights of N steps, (N,): 1 in the middle, or 1 / N at each with a middle that makes their sum 1 exactly."""
    Inflate(length, taps)  # refuses what has no middle
    steps = np.zeros(length)
    if taps == "mean":
        steps[:] = widened(narrowed(np.array([1 / length], np.float32), dtype), dtype)
    steps[length // 2] = 1 - (steps.sum() - steps[length // 2])
    return steps


@lru_cache(maxsize=16)
def identity_norm(epsilon: float, dtype: str) -> tuple[float, float]:
    """(weight, variance) for which weight / sqrt(variance + epsilon) is nearest to 1 among numbers of the dtype.

    Both are near 1, so that the batch norm can be trained. With 1 and 1 the network would be wrong by epsilon / 2.
    """
    one = np.array([1.0], DTYPES[dtype].storage) if dtype != "bfloat16" else np.array([0x3F80], np.uint16)
    pattern = np.dtype(f"u{one.itemsize}")
    # Among many numbers one fits well: all from 1 down to 0.9, or a quarter of a million.
    below = np.arange(1 << (8 if one.itemsize == 2 else 18)).astype(pattern)
    variance = widened((one.view(pattern) - below).view(one.dtype), dtype)
    variance = variance[variance > 0.9]
    exact = np.sqrt(variance + epsilon)
    weight = widened(narrowed(exact if dtype == "float64" else exact.astype(np.float32), dtype), dtype)
    best = int(np.argmin(np.abs(weight / exact - 1)))
    return float(weight[best]), float(variance[best])
