"""The units that every family's networks are made of, and the tensors of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vidweights.families.base import Tensor

Triple = tuple[int, int, int]

# The vectors of a batch norm, in canonical order.
NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Unit:
    """Convolution, batch norm and, unless it stands before a sum, ReLU. Kernel and stride are (T, H, W).

    Attributes:
        planes: None for one whole kernel. Else the kernel is factorised: a spatial convolution (1, k, k) to that many
            planes, batch norm, ReLU, then a temporal one (t, 1, 1).
        relu: whether a ReLU follows.
        bias: whether the convolution has a bias beside the batch norm (of a factorised one, the second half).
        time_first: whether the temporal half of a factorised kernel stands first.
        folded: whether nothing pads the time: the kernel takes the whole clip.
        epsilon: of the batch norm, and `middle_epsilon` of that between the halves; None for that of the network.
    """

    name: str
    channels: int
    kernel: Triple
    stride: Triple = (1, 1, 1)
    planes: int | None = None
    relu: bool = True
    bias: bool = False
    time_first: bool = False
    folded: bool = False
    epsilon: float | None = None
    middle_epsilon: float | None = None

    @property
    def parts(self) -> tuple[Unit, ...]:
        """The unit itself, or its two halves in the order in which they run."""
        if self.planes is None:
            return (self,)
        (t, h, w), (st, sh, sw) = self.kernel, self.stride
        spatial = Unit(f"{self.name}.spatial", self.planes, (1, h, w), (1, sh, sw))
        temporal = Unit(f"{self.name}.temporal", self.planes, (t, 1, 1), (st, 1, 1))
        first, last = (temporal, spatial) if self.time_first else (spatial, temporal)
        first = replace(first, epsilon=self.middle_epsilon or self.epsilon)
        return first, replace(last, channels=self.channels, relu=self.relu, bias=self.bias, epsilon=self.epsilon)


@dataclass(frozen=True)
class Pool:
    """Max-pool, whose padding never wins. Kernel and stride are (T, H, W)."""

    name: str
    kernel: Triple
    stride: Triple


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value, which may be from a file, is a number of channels or classes that a network can have.

    It is below a million, above any network: a configuration must not make one that fills the memory.
    """
    return type(value) is int and least <= value < 1 << 20


def unit_tensors(prefix: str, unit: Unit, in_channels: int) -> Iterator[Tensor]:
    """The tensors of a unit that takes `in_channels`."""
    for part in unit.parts:
        name, width = prefix + part.name, (part.channels,)
        yield Tensor(f"{name}.conv.weight", (part.channels, in_channels, *part.kernel), "OIDHW")
        if part.bias:
            yield Tensor(f"{name}.conv.bias", width, "C")
        yield from (Tensor(f"{name}.bn.{vector}", width, "C") for vector in NORM)
        in_channels = part.channels


def without_time(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of the 2D network of which these are the 3D ones: each kernel without its time axis."""

    def flat(tensor: Tensor) -> Tensor:
        if tensor.layout != "OIDHW":
            return tensor
        out, inner, _, *space = tensor.shape
        return Tensor(tensor.name, (out, inner, *space), "OIHW")

    return tuple(flat(tensor) for tensor in tensors)
