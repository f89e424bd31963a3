"""What a layer does along time: a window over the frames of a clip, worked out from that over height."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidweights.errors import InputError
from vidweights.kernels import Taps
from vidweights.models.units import repeat_ends

TimePadding = Literal["replicate", "zero"]


@dataclass
class Options:
    """What all layers of a network share; the arguments of `inflate_module` of the same names."""

    method: Taps
    time_padding: TimePadding
    time_stride: bool


@dataclass(frozen=True)
class Window:
    """A window over T of clips (N, C, T, H, W).

    Attributes:
        kernel, stride, dilation: in frames.
        before, behind: how many frames are added.
        ceil: whether a last window counts that is not full.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    behind: int = 0
    ceil: bool = False

    @classmethod
    def of_conv(cls, kernel: int, stride: int, dilation: int, time_stride: bool, *, same: bool = False) -> Window:
        """That of a convolution with these figures along height; `same` keeps the number of frames."""
        total = (kernel - 1) * dilation
        behind = total - total // 2 if same else total // 2
        return cls(kernel, stride if time_stride else 1, dilation, total // 2, behind)

    @classmethod
    def of_pool(cls, kernel: Any, stride: Any, dilation: Any, ceil: bool, time_stride: bool) -> Window:
        """That of a pool with these arguments; all frames for a kernel of three sizes (`x.shape[2:]` of a clip)."""
        if not isinstance(kernel, int) and len(kernel) == 3:
            return cls(int(kernel[0]), int(kernel[0]))
        (size, _), (step, _), (gap, _) = pair(kernel), pair(stride or kernel), pair(dilation)
        added = (size - 1) * gap // 2
        return cls(size, step if time_stride else 1, gap, added, added, ceil and size % 2 == 0)

    def check(self, x: Tensor) -> None:
        """Refuse a clip with too few frames."""
        span = self.dilation * (self.kernel - 1) + 1
        needed = 1 if self.ceil else span - self.before - self.behind
        if x.size(2) < needed:
            raise InputError(
                f"the clip is too short: {x.size(2)} frames reach a layer that needs {needed} (kernel {self.kernel} "
                "along time); give a clip with more frames"
            )

    def pad(self, x: Tensor, fill: TimePadding) -> Tensor:
        """Add frames: the first and last one again, or zeros."""
        self.check(x)
        if not self.before and not self.behind:
            return x
        if fill == "zero":
            return torch.constant_pad_nd(x, (0, 0, 0, 0, self.before, self.behind))
        return repeat_ends(x, self.before, self.behind)

    def max(self, x: Tensor) -> Tensor:
        """The largest value of each window; frames that are added are minus infinity."""
        self.check(x)
        x = torch.constant_pad_nd(x, (0, 0, 0, 0, self.before, self.behind), -math.inf)
        return self._pool(F.max_pool2d, x, dilation=(self.dilation, 1))

    def mean(self, x: Tensor) -> Tensor:
        """The mean of each window; frames that are added do not count."""
        self.check(x)
        return self._pool(F.avg_pool2d, x, padding=(self.before, 0), count_include_pad=False)

    def _pool(self, pool: Callable[..., Tensor], x: Tensor, **options: Any) -> Tensor:
        # As images (N, C, T, H * W), since torch's 3D pools refuse a T below the kernel.
        pooled = pool(x.flatten(3), (self.kernel, 1), (self.stride, 1), ceil_mode=self.ceil, **options)
        return pooled.view(*pooled.shape[:3], *x.shape[3:])


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of an argument that may be one number for both, or a tuple of one."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def all_time(output_size: Any) -> Any:
    """The output size of an adaptive pool over a clip: time becomes one frame."""
    return (1, output_size, output_size) if isinstance(output_size, int) else (1, *tuple(output_size)[-2:])


def kernel_3d(weight: Tensor, method: Taps) -> Tensor:
    """A kernel (O, I, H, W) inflated to (O, I, H, H, W), as `vidweights.kernels.Inflate` does with arrays."""
    steps = weight.shape[2]
    if method == "mean":
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return (wide / steps).to(weight.dtype).unsqueeze(2).repeat(1, 1, steps, 1, 1)
    kernel = weight.new_zeros(*weight.shape[:2], steps, *weight.shape[2:])
    kernel.select(2, steps // 2).copy_(weight)
    return kernel


def each_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of (N, C, H, W) that treats channels apart to each frame of (N, C, T, H, W)."""
    frames = function(x.flatten(1, 2))
    return frames.view(*x.shape[:3], *frames.shape[2:])


def as_image(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of (N, C, H, W) that treats places alike to (N, C, T, H, W)."""
    return function(x.flatten(2, 3)).view_as(x)
