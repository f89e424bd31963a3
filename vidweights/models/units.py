"""The modules that the networks of all families are built of, each from its entry in a family's layer table.

How an axis is padded is worked out from the size that it has at run time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidweights.families import units as family
from vidweights.families.units import Triple

Rule = Literal["same", "symmetric", "ceil", "none"]
Pads = list[tuple[int, int]]  # (before, behind) of each axis


@dataclass(frozen=True)
class Padding:
    """How a network pads (T, H, W).

    Attributes:
        time, space: `same` as TensorFlow, `symmetric` for half the kernel on both sides, `none`; `ceil` is `symmetric`,
            but max-pools with a stride are not padded and round the size up.
        replicate: whether the first and the last frame are repeated where a convolution pads in time; zeros if not.
    """

    time: Rule
    space: Rule
    replicate: bool = False


def same_padding(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> tuple[list[int], list[int]]:
    """TensorFlow's `SAME` padding for an input of `size` (T, H, W).

    Source: tensorflow/core/framework/kernel_shape_util.cc. The output has ceil(n / stride) elements, and what the
    windows need beyond the input is split in two halves; an odd element goes behind.

    Returns:
        What each axis needs on both sides, and what it needs behind beside that (0 or 1).
    """
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride)]
    return [total // 2 for total in totals], [total % 2 for total in totals]


def _pads(x: Tensor, kernel: Triple, stride: Triple, padding: Padding, *, pool: bool) -> Pads:
    """The padding of each axis of (N, C, T, H, W)."""
    pads: Pads = []
    for n, k, s, rule in zip(x.shape[2:], kernel, stride, (padding.time, padding.space, padding.space)):
        if rule == "same":
            (both,), (behind,) = same_padding([n], [k], [s])
            pads.append((both, both + behind))
        elif rule == "ceil" and pool and s > 1:
            # Torch lets no window begin behind the input.
            outputs = max(-(-(n - k) // s), 0) + 1
            pads.append((0, max((outputs - 1) * s + k - n, 0)))
        else:
            # A pool of even length has no middle; it takes whole windows only.
            pads.append((k // 2, k // 2) if k % 2 and rule != "none" else (0, 0))
    return pads


class Conv(nn.Conv3d):
    """3D convolution with the padding of its network, initialised as Sonnet's `snt.Conv3D`."""

    def __init__(self, in_channels: int, unit: family.Unit, padding: Padding) -> None:
        super().__init__(in_channels, unit.channels, unit.kernel, unit.stride, bias=unit.bias)
        self.rule = replace(padding, time="none") if unit.folded else padding

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        sonnet_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        x, pads = self.padded(x)
        return F.conv3d(x, self.weight, self.bias, self.stride, pads)

    def padded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """The clip with all padding that is not zeros on both sides, and what is left to pad on both sides."""
        time, *space = _pads(x, self.kernel_size, self.stride, self.rule, pool=False)  # type: ignore[arg-type]
        if self.rule.replicate and any(time):
            x, time = repeat_ends(x, *time), (0, 0)
        pads = [time, *space]
        behind = [b - a for a, b in pads]
        if any(behind):
            t, h, w = behind
            x = F.pad(x, (0, w, 0, h, 0, t))
        return x, [a for a, _ in pads]


def repeat_ends(x: Tensor, before: int, behind: int) -> Tensor:
    """(N, C, T, H, W) with the first frame `before` more times, and the last one `behind` more times."""
    frames = torch.arange(-before, x.shape[2] + behind, device=x.device).clamp(0, x.shape[2] - 1)
    return x.index_select(2, frames)


class MaxPool(nn.Module):
    """3D max-pool in which the padding never wins."""

    def __init__(self, kernel: Triple, stride: Triple, padding: Padding = Padding("same", "same")) -> None:
        super().__init__()
        self.kernel, self.stride, self.rule = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C, T', H', W')."""
        pads = _pads(x, self.kernel, self.stride, self.rule, pool=True)
        before = [a for a, _ in pads]
        sizes = list(zip(x.shape[2:], pads, self.kernel, self.stride))
        wanted = [(n + a + b - k) // s + 1 for n, (a, b), k, s in sizes]
        # With `ceil_mode` torch adds the few elements behind that SAME may need, and makes no copy.
        for ceil in (False, True):
            found = [_outputs(n, a, k, s, ceil) for n, (a, _), k, s in sizes]
            if found == wanted and all(a <= k // 2 for a, k in zip(before, self.kernel)):
                return F.max_pool3d(x, self.kernel, self.stride, before, ceil_mode=ceil)
        (t0, t1), (h0, h1), (w0, w1) = pads
        return F.max_pool3d(F.pad(x, (w0, w1, h0, h1, t0, t1), value=-math.inf), self.kernel, self.stride)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"kernel={self.kernel}, stride={self.stride}"


def _outputs(n: int, pad: int, k: int, s: int, ceil: bool) -> int:
    """How many windows torch takes along an axis of `n` elements with `pad` on both sides."""
    span = n + 2 * pad - k
    if not ceil:
        return span // s + 1
    count = -(-span // s) + 1
    return count - 1 if (count - 1) * s >= n + pad else count


class BatchNorm(nn.BatchNorm3d):
    """Batch norm whose counter of training steps is no weight: it is not saved, and loading sets it to zero."""

    def __init__(self, channels: int, epsilon: float, momentum: float) -> None:
        super().__init__(channels, eps=epsilon, momentum=momentum)
        self.register_buffer("num_batches_tracked", self.num_batches_tracked, persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Torch's own would add the counter that it misses, and a strict load would then refuse it.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)
        assert self.running_mean is not None
        self.num_batches_tracked = torch.zeros((), dtype=torch.long, device=self.running_mean.device)


@dataclass(frozen=True)
class Style:
    """What all units of a network share: padding, and the epsilon and momentum of batch norm."""

    padding: Padding
    epsilon: float
    momentum: float


class Unit(nn.Module):
    """Convolution, batch norm and, if the table says so, ReLU."""

    def __init__(self, in_channels: int, unit: family.Unit, style: Style) -> None:
        super().__init__()
        self.conv = Conv(in_channels, unit, style.padding)
        self.bn = BatchNorm(unit.channels, unit.epsilon or style.epsilon, style.momentum)
        self.relu = unit.relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        y = self.bn(self.conv(x))
        return F.relu(y, inplace=True) if self.relu else y


def build_unit(in_channels: int, unit: family.Unit, style: Style) -> nn.Module:
    """The module of a unit; a factorised one has the children `spatial` and `temporal`, in the order of the table."""
    if unit.planes is None:
        return Unit(in_channels, unit, style)
    halves, width = OrderedDict[str, nn.Module](), in_channels
    for part in unit.parts:
        halves[part.name.rpartition(".")[2]] = Unit(width, part, style)
        width = part.channels
    return nn.Sequential(halves)


def sonnet_init(conv: nn.Conv3d, generator: torch.Generator | None = None) -> None:
    """Sonnet's default: truncated normal of deviation 1 / sqrt(fan in), cut at two deviations; zero bias.

    Source: `create_weight_initializer` in sonnet/python/modules/conv.py, version 1.
    """
    deviation = 1 / math.sqrt(conv.weight[0].numel())
    nn.init.trunc_normal_(conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
