"""The layers of a network as values: what each computes, written out, so that one fact of it can be changed.

The arithmetic stands here apart from `vidweights.models`, with batch norm as (x - m) * rsqrt(v + eps) * g + b, so
that statistics have gradients too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidweights.models import units
from vidweights.models.units import MaxPool, Unit

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Padding:
    """How a layer pads.

    Attributes:
        moved: elements of (T, H, W) that pad before instead of behind.
        symmetric: half the kernel on both sides (a window of even length is not padded); TensorFlow's `SAME` if not.
        fill: the value that pads.
        time: whether the time is padded too.
    """

    moved: Triple = (0, 0, 0)
    symmetric: bool = False
    fill: float = 0.0
    time: bool = True

    def __call__(self, x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
        """Pad (N, C, T, H, W)."""
        pads: list[int] = []
        for axis, (n, k, s, moved) in enumerate(zip(x.shape[2:], kernel, stride, self.moved)):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            if self.symmetric:
                total = k - 1 if k % 2 else 0
            if axis == 0 and not self.time:
                total = 0
            before, behind = total // 2, total - total // 2
            pads = [before + moved, behind - moved, *pads]  # F.pad takes the last axis first
        return F.pad(x, pads, value=self.fill)


@dataclass(frozen=True)
class Norm:
    """Batch norm in evaluation mode; each vector is (C,)."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to the same shape."""
        scale, shift, mean, variance = (v.view(-1, 1, 1, 1) for v in (self.scale, self.shift, self.mean, self.variance))
        return (x - mean) * torch.rsqrt(variance + self.epsilon) * scale + shift


@dataclass(frozen=True)
class Convolution:
    """A convolution with the batch norm and the ReLU behind it; a head has neither, but a bias."""

    kernel: Tensor  # OIDHW
    bias: Tensor | None
    norm: Norm | None
    stride: Triple
    relu: bool
    padding: Padding = Padding()

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        y = F.conv3d(self.padding(x, self.kernel.shape[2:], self.stride), self.kernel, self.bias, self.stride)
        if self.norm is not None:
            y = self.norm(y)
        return F.relu(y) if self.relu else y


@dataclass(frozen=True)
class Pool:
    """A max-pool."""

    kernel: Triple
    stride: Triple
    padding: Padding = Padding(fill=-math.inf)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C, T', H', W')."""
        return F.max_pool3d(self.padding(x, self.kernel, self.stride), self.kernel, self.stride)


@dataclass(frozen=True)
class Dense:
    """A fully connected head."""

    matrix: Tensor  # OI
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C) to (N, classes)."""
        return F.linear(x, self.matrix, self.bias)


Layer = Convolution | Pool | Dense
# What the heads of the families' networks are called.
_HEADS = ("Logits", "fc")


def head_of(model: nn.Module) -> str:
    """The name of a network's head."""
    return next(name for name in _HEADS if hasattr(model, name))


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Every layer of a network by the name of its module, in order; the tensors are the network's own."""
    found = ((name, _layer(name, module)) for name, module in model.named_modules())
    return {name: layer for name, layer in found if layer is not None}


def _layer(name: str, module: nn.Module) -> Layer | None:
    if isinstance(module, MaxPool):
        return Pool(module.kernel, module.stride, _padding(module.rule, fill=-math.inf))
    if isinstance(module, Unit):
        bn = module.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        norm = Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
        conv, padding = module.conv, _padding(module.conv.rule)
        return Convolution(conv.weight, conv.bias, norm, _triple(conv.stride), module.relu, padding)
    if name in _HEADS and isinstance(module, nn.Conv3d):
        return Convolution(module.weight, module.bias, None, _triple(module.stride), relu=False)
    if name in _HEADS and isinstance(module, nn.Linear):
        return Dense(module.weight, module.bias)
    return None


def _padding(rule: units.Padding, fill: float = 0.0) -> Padding:
    return Padding(symmetric=rule.space == "symmetric", fill=fill, time=rule.time != "none")


def _triple(values: Sequence[int]) -> Triple:
    t, h, w = values
    return t, h, w


@contextmanager
def replaced(model: nn.Module, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[nn.Module]:
    """The network, with other functions in the place of some of its modules while the block runs."""
    modules = [model.get_submodule(name) for name in functions]
    before = [dict(vars(module)) for module in modules]
    for module, function in zip(modules, functions.values()):
        vars(module)["forward"] = function
    try:
        yield model
    finally:
        for module, attributes in zip(modules, before):
            del vars(module)["forward"]
            vars(module).update(attributes)
