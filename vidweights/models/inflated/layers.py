"""The layers of an inflated network, and how a 2D layer becomes one in place."""

from __future__ import annotations

from functools import partial
from types import CodeType
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from vidweights.errors import InputError
from vidweights.models.inflated.calls import ClipMode
from vidweights.models.inflated.window import Options, Window, all_time, as_image, each_frame, kernel_3d, pair


class Conv3d(nn.Conv3d):
    """A convolution inflated from 2D: (N, C, T, H, W) to (N, C', T', H', W')."""

    window: Window
    options: Options
    space: tuple[int, ...]  # the padding of frames, as `F.pad` takes it

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, with the padding of time and that of space each of its own kind."""
        x = self.window.pad(x, self.options.time_padding)
        left, right, top, bottom = self.space
        padding = (0, top, left)
        if self.padding_mode != "zeros" or (left, top) != (right, bottom):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = each_frame(partial(F.pad, pad=self.space, mode=mode), x), (0, 0, 0)
        return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{nn.Conv3d.extra_repr(self)}, time_padding={self.options.time_padding}"  # type: ignore[no-untyped-call]


class _Pool(nn.Module):
    options: Options

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C, T', H', W'): over space as it was, then over time."""
        with ClipMode(self.options):
            return cast(Tensor, super().forward(x))


class MaxPool3d(_Pool, nn.MaxPool2d):
    """A max-pool inflated from 2D."""


class AvgPool3d(_Pool, nn.AvgPool2d):
    """An average pool inflated from 2D."""


class LPPool3d(_Pool, nn.LPPool2d):
    """A power-average pool inflated from 2D."""


class Forward:
    """The `forward` of an inflated network: that of its class, under `ClipMode`.

    Torch looks a module's `forward` up on the instance first, so class, names and keys stay as they are.
    """

    def __init__(self, network: nn.Module, options: Options) -> None:
        self.network, self.options = network, options

    @property
    def __code__(self) -> CodeType:  # `torch.export` reads of a `forward` where its source is
        return cast(CodeType, cast(Any, type(self.network).forward).__code__)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run on a clip (N, C, T, H, W); anything else is an `InputError`."""
        if not isinstance(x, Tensor) or x.dim() != 5:
            found = f"an input of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"expected a clip (N, C, T, H, W), found {found}")
        with ClipMode(self.options):
            return type(self.network).forward(self.network, x, *args, **kwargs)


class _Forward2d:
    """The `forward` of a layer that stays 2D, applied to a clip `way` (`each_frame`, `as_image`)."""

    def __init__(self, layer: nn.Module, way: Any) -> None:
        self.layer, self.way = layer, way

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.way(partial(type(self.layer).forward, self.layer), x))


FORMS: dict[type, type] = {
    nn.Conv2d: Conv3d,
    nn.MaxPool2d: MaxPool3d,
    nn.AvgPool2d: AvgPool3d,
    nn.LPPool2d: LPPool3d,
    nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool2d: nn.AdaptiveMaxPool3d,
    nn.BatchNorm2d: nn.BatchNorm3d,
    nn.InstanceNorm2d: nn.InstanceNorm3d,
    nn.Dropout2d: nn.Dropout3d,
}
PADS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)


def base_of(part: nn.Module) -> type[nn.Module] | None:
    """The 2D layer of torch that a module is, or None."""
    return next((cls for cls in type(part).__mro__ if cls in FORMS or cls in PADS), None)


def keeps_forward(part: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a module computes what the layer of torch computes that it is a subclass of."""
    names = ("forward", "_conv_forward") if base is nn.Conv2d else ("forward",)
    return all(getattr(type(part), name) is getattr(base, name) for name in names)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """The 2D convolutions of a network, each once."""
    return [part for part in network.modules() if isinstance(part, nn.Conv2d)]


def inflate_layers(network: nn.Module, options: Options) -> tuple[str, ...]:
    """Turn the 2D layers of `network` into 3D layers in place, and return the names of the convolutions.

    A layer changes its class and stays the same object, so that shared layers, `training` and whatever else is set on
    it remain.
    """
    names = []
    kernels: dict[int, nn.Parameter] = {}  # by the id of the 2D one: layers that share a kernel go on sharing it
    for name, part in list(network.named_modules()):
        base = base_of(part)
        if base is None:
            continue
        if base in PADS or not keeps_forward(part, base):
            # The latter is a batch norm with an activation; other layers were refused.
            cast(Any, part).forward = _Forward2d(part, each_frame if base in PADS else as_image)
            continue
        part.__class__ = FORMS[base]
        if isinstance(part, Conv3d):
            _inflate_conv(part, options, kernels)
            names.append(name)
        elif isinstance(part, _Pool):
            part.options = options
        elif isinstance(part, (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)):
            part.output_size = all_time(part.output_size)
    return tuple(names)


def _inflate_conv(conv: Any, options: Options, kernels: dict[int, nn.Parameter]) -> None:
    """Make a convolution, which still has its 2D attributes, 3D."""
    flat, figures = conv.weight, (conv.kernel_size[0], conv.stride[0], conv.dilation[0])
    conv.options = options
    conv.window = window = Window.of_conv(*figures, options.time_stride, same=conv.padding == "same")
    conv.space = _space_padding(conv)
    conv.padding = (window.before, conv.space[2], conv.space[0])
    conv.kernel_size = (window.kernel, *conv.kernel_size)
    conv.stride = (window.stride, *conv.stride)
    conv.dilation = (window.dilation, *conv.dilation)
    conv.output_padding = (0, 0, 0)
    if id(flat) not in kernels:
        kernel = kernel_3d(flat.detach(), options.method)
        kernels[id(flat)] = nn.Parameter(kernel, requires_grad=flat.requires_grad)
    conv.weight = kernels[id(flat)]


def _space_padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top, bottom; the odd element of `same` goes behind, as in `torch.nn.functional.conv2d`."""
    if conv.padding == "same":
        height, width = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size))
        return width // 2, width - width // 2, height // 2, height - height // 2
    height, width = (0, 0) if conv.padding == "valid" else pair(conv.padding)
    return width, width, height, height
