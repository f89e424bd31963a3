"""A faster copy of a network for inference: batch norm folded into the convolutions, channels last in memory.

With channels last, all frames of a clip are one batch of images, and all places of a frame are one row of an image as
high as the clip is long, without a copy. On a CPU torch convolves images up to six times sooner than clips where the
kernel is long in time alone, or the clip is short.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidweights.errors import UsageError
from vidweights.models.units import Conv

Model = TypeVar("Model", bound=nn.Module)

# For clips of no more frames torch chooses a slow way to convolve them in this order of memory (measured in 2.11 and
# 2.13, on 64 to 512 channels).
_FEW_FRAMES = 5
# With fewer input channels, what two outputs at a time save is less than what they cost in memory.
_PAIR_CHANNELS = 64


def optimize(model: Model, *, channels_last: bool = True) -> Model:
    """A copy of `model` that gives the same results sooner on a CPU; `model` itself is untouched.

    Each batch norm is folded, in float64, into the convolution before it: wherever a module has a `Conv3d` called
    `conv` and a `BatchNorm3d` called `bn`, as the models of vidweights have. The copy is for inference only: it can
    neither be trained nor saved under the canonical names. Results differ by rounding alone (in float32 by less than
    1e-5 of the largest logit). On a GPU it helps where TF32 is allowed, and costs time in full float32 (measured on
    one: 0.78 to 0.97, and 0.98 to 1.13, of the network as it is).

    Args:
        model: in evaluation mode.
        channels_last: keep the kernels and all that they put out in `torch.channels_last_3d`, and convolve images where
            that is faster; clips are given as before.

    Raises:
        UsageError: the model is in training mode, or has no batch norm to fold.
    """
    if any(module.training for module in model.modules()):
        raise UsageError("the model is in training mode; call model.eval() first, folding is for inference only")
    fast = copy.deepcopy(model)
    units = [module for module in fast.modules() if _is_unit(module)]
    if not units:
        raise UsageError(
            f"found no convolution with a batch norm behind it in {type(model).__name__}; "
            "expected a model of vidweights that has not been optimized before"
        )
    for unit in units:
        _fold(unit)
        unit.bn = _ChannelsLast() if channels_last else nn.Identity()
    if channels_last:
        fast.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack it
        for unit in units:
            unit.conv = _of_images(unit.get_submodule("conv"))
    return fast.eval().requires_grad_(False)


def _of_images(conv: nn.Module) -> nn.Module:
    """The convolution as one of images where that is faster."""
    if not isinstance(conv, Conv):
        return conv
    (time, *space), (_, *strides) = conv.kernel_size, conv.stride
    if space != [1, 1]:
        return _FrameConv(conv)
    return _TimeConv(conv) if time > 1 and strides == [1, 1] else conv


class _TimeConv(nn.Module):
    """A kernel that is long in time alone, on images of T x (H * W)."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.conv = conv
        self.weight = nn.Parameter(conv.weight.flatten(3).contiguous(memory_format=torch.channels_last))
        conv.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H, W)."""
        x, (time, _, _) = self.conv.padded(x)
        y = F.conv2d(x.flatten(3), self.weight, self.conv.bias, (self.conv.stride[0], 1), (time, 0))
        return y.reshape(*y.shape[:3], *x.shape[3:])


class _FrameConv(nn.Module):
    """Each step of a kernel in time, on the frames that it meets, if they are few; what they give is added up.

    Of more frames a kernel of three steps takes two outputs at a time, where channels are many enough to pay for it.
    Any other kernel is kept in both orders, if it is more than one step long.
    """

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.conv = conv
        first, *others = conv.weight.unbind(2)
        self.steps = _images([first, *others])
        self.mixed: nn.ParameterList | None = None
        if len(others) == 2 and set(conv.stride) == {1} and conv.in_channels >= _PAIR_CHANNELS:
            middle, last = others
            self.mixed = _images([(first + middle + last) / 2, (first - middle + last) / 2])
            conv.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        if x.shape[2] <= _FEW_FRAMES:
            return self.of_frames(x)
        return self.conv(x) if self.mixed is None else self.of_pairs(x, *self.mixed)

    def of_pairs(self, x: Tensor, even: Tensor, odd: Tensor) -> Tensor:
        """The same for a kernel of three steps: two outputs take four convolutions of images, not six.

        Source: F(2, 3) in section 4.1 of Lavin and Gray, arXiv 1509.09308, along time.
        """
        x, (before, *space) = self.conv.padded(x)
        frames, bias = x.shape[2], self.conv.bias
        outputs = frames + 2 * before - 2
        nothing = torch.zeros_like(x[:, :, 0])

        def frame(index: int) -> Tensor:
            return x[:, :, index] if 0 <= index < frames else nothing

        y: Tensor | None = None  # (N, T', H', W', C'), written while what is written is still in the cache
        for output in range(0, outputs, 2):
            a, b, c, d = (frame(output - before + index) for index in range(4))
            first = F.conv2d(a - c, self.steps[0], bias, padding=space)
            second = F.conv2d(b + c, even, padding=space)
            third = F.conv2d(c - b, odd, padding=space)
            last = F.conv2d(d - b, self.steps[2], bias, padding=space)
            if y is None:
                n, channels, height, width = first.shape
                y = first.new_empty(n, outputs, height, width, channels)
            y[:, output] = first.add_(second).add_(third).permute(0, 2, 3, 1)
            if output + 1 < outputs:
                y[:, output + 1] = second.sub_(third).add_(last).permute(0, 2, 3, 1)
        assert y is not None
        return y.permute(0, 4, 1, 2, 3)

    def of_frames(self, x: Tensor) -> Tensor:
        """The same, for any number of frames."""
        x, (before, *space) = self.conv.padded(x)
        length, stride, frames = len(self.steps), self.conv.stride[0], x.shape[2]
        outputs = (frames + 2 * before - length) // stride + 1

        def step(index: int, first: int, count: int, bias: Tensor | None = None) -> Tensor:
            """The outputs from `first` on, of one step of the kernel alone."""
            start = first * stride + index - before
            met = x[:, :, start : start + (count - 1) * stride + 1 : stride].transpose(1, 2)
            y = F.conv2d(met.flatten(0, 1), self.steps[index], bias, self.conv.stride[1:], space)
            return y.reshape(*met.shape[:2], *y.shape[1:])

        y = step(before, 0, outputs, self.conv.bias)  # which meets a frame at each output
        for index in range(length):
            offset = index - before
            first = max(0, -(offset // stride))
            count = min(outputs, (frames - 1 - offset) // stride + 1) - first
            if offset and count > 0:
                y[:, first : first + count] += step(index, first, count)
        return y.transpose(1, 2)


def _images(kernels: Sequence[Tensor]) -> nn.ParameterList:
    """Kernels of images, (C', C, H, W) each, in the order in memory that torch convolves images with soonest."""
    return nn.ParameterList(kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels)


class _ChannelsLast(nn.Module):
    """Puts (N, C, T, H, W) into `torch.channels_last_3d`, in which torch pools many times faster on a CPU.

    Torch convolves small maps of a single clip with a kernel that leaves the other order behind.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same values; a copy only where the order differs."""
        return x.contiguous(memory_format=torch.channels_last_3d)


def _is_unit(module: nn.Module) -> bool:
    return isinstance(getattr(module, "conv", None), nn.Conv3d) and isinstance(
        getattr(module, "bn", None), nn.BatchNorm3d
    )


def _fold(unit: nn.Module) -> None:
    """Let the convolution of a unit do the work of its batch norm, (x - mean) / sqrt(var + eps) * weight + bias."""
    conv, bn = unit.conv, unit.bn
    assert isinstance(conv, nn.Conv3d)
    assert isinstance(bn, nn.BatchNorm3d)
    dtype = conv.weight.dtype
    mean, var, weight, bias = (_wide(v) for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    scale = weight / torch.sqrt(var + bn.eps)
    shift = bias - mean * scale if conv.bias is None else bias + (_wide(conv.bias) - mean) * scale
    conv.weight = nn.Parameter((_wide(conv.weight) * scale.view(-1, 1, 1, 1, 1)).to(dtype))
    conv.bias = nn.Parameter(shift.to(dtype))


def _wide(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.detach().double()
