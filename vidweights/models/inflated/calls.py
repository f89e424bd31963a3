"""Calls that 2D code makes on a clip (N, C, T, H, W), read as their 3D forms while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vidweights.errors import UsageError
from vidweights.models.inflated.window import Options, Window, all_time, each_frame, kernel_3d, pair


class ClipMode(TorchFunctionMode):
    """Reads the calls of `_CALLS` as 3D, gives operands the axis that they lack, and refuses `_NOT_FOR_CLIPS`."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _ARITHMETIC and any(_is_clip(a) for a in args):
            # Operands (N, C, 1, 1) and (C, 1, 1).
            args = [a.unsqueeze(-3) if isinstance(a, Tensor) and a.dim() in (3, 4) else a for a in args]
        elif args and _is_clip(args[0]):
            if name in _NOT_FOR_CLIPS:
                raise UsageError(f"the call {name} has no form for clips here")
            if name in _CALLS:
                return _CALLS[name](self.options, func, *args, **kwargs)
        return func(*args, **kwargs)


def _is_clip(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 5


def _pool(options: Options, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Over space as it was, then over time; a power is summed over space, and its mean taken over time."""
    name = func.__name__
    given = dict(zip(_POOLS[name], args)) | kwargs
    given.pop("return_indices", None)  # false, or it were another call
    kernel = given["kernel_size"]
    sizes = (given.get("stride"), given.get("dilation", 1), given.get("ceil_mode", False))
    window = Window.of_pool(kernel, *sizes, options.time_stride)
    given["kernel_size"] = kernel if isinstance(kernel, int) else tuple(kernel)[-2:]
    x = each_frame(partial(getattr(F, name), **given), x)
    if name == "lp_pool2d":
        power = float(given["norm_type"])
        return window.mean(x.pow(power)).pow(1 / power)
    return window.max(x) if name == "max_pool2d" else window.mean(x)


def _adaptive(options: Options, func: Any, x: Tensor, output_size: Any, **_: Any) -> Tensor:
    pool: Any = F.adaptive_avg_pool3d if func.__name__ == "adaptive_avg_pool2d" else F.adaptive_max_pool3d
    return cast(Tensor, pool(x, all_time(output_size)))


def _dropout(options: Options, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.dropout3d(x, *args, **kwargs)


def _pad(options: Options, func: Any, x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Any:  # noqa: PLR0917
    """Space as it is; pairs behind the fourth number are of channels and batch, and time goes before them."""
    if len(pad) > 4 or (len(pad) == 4 and mode != "constant"):
        pad = [*pad[:4], 0, 0, *pad[4:]]
    return func(x, pad, mode, value)


def _conv(  # noqa: PLR0917 (torch's signature)
    options: Options,
    func: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution with a fixed kernel (anti-aliasing); a trained one must be a layer, or it would stay 2D unseen."""
    if isinstance(weight, nn.Parameter) or isinstance(padding, str):
        raise UsageError("the call conv2d has a form for clips only with a fixed kernel and padding in numbers")
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    window = Window.of_conv(weight.size(2), sh, dh, options.time_stride)
    x = window.pad(x, options.time_padding)
    steps = (window.stride, sh, sw), (0, *pair(padding)), (dh, dh, dw)
    return F.conv3d(x, kernel_3d(weight, options.method), bias, *steps, groups)


def _reduce(options: Options, func: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over height and width means over time too, with the sum that of the mean frame; over one axis, over that only."""
    dim = kwargs.pop("dim", kwargs.pop("axis", dim))
    if dim is None or dim == ():
        return func(x, *args, **kwargs)
    axes = {axis % 4 for axis in ([dim] if isinstance(dim, int) else dim)}
    over = [axis if axis < 2 else axis + 1 for axis in axes] + ([2] if axes >= {2, 3} else [])
    reduced = func(x, over, *args, **kwargs)
    return reduced / x.size(2) if 2 in over and func.__name__ == "sum" else reduced


def _permute(options: Options, func: Any, x: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    """To channels last and back. Time stays before height in both orders."""
    order = kwargs.get("dims", dims[0] if len(dims) == 1 else dims)
    moved = {(0, 2, 3, 1): (0, 2, 3, 4, 1), (0, 3, 1, 2): (0, 4, 1, 2, 3)}.get(tuple(axis % 4 for axis in order))
    if moved is None:
        raise UsageError(f"the call permute{tuple(order)} has no form for clips here; only to channels last and back")
    return x.permute(moved)


def _index(options: Options, func: Any, x: Tensor, index: Any) -> Any:
    """Slices of height and width; a step along height is one along time too, as a stride is."""
    if not isinstance(index, tuple) or len(index) < 3 or index[0] is Ellipsis:
        return func(x, index)
    if not all(isinstance(part, slice) for part in index[2:]) or any(part in (None, Ellipsis) for part in index[:2]):
        raise UsageError("indexing the height or width of a clip with anything but slices has no form for clips here")
    step = index[2].step if options.time_stride else None
    return func(x, (*index[:2], slice(None, None, step), *index[2:]))


_ARITHMETIC = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "expand_as"}
_ARITHMETIC |= {"maximum", "minimum", "max", "min", "where", "gt", "lt"}
_POOLS = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "lp_pool2d": ("norm_type", "kernel_size", "stride", "ceil_mode"),
}
_CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    "dropout2d": _dropout,
    "pad": _pad,
    "conv2d": _conv,
    "permute": _permute,
    "__getitem__": _index,
}
# Torch refuses other calls (`conv_transpose2d`, `unfold`, ...) itself; these would run on 5 axes, or say little.
_NOT_FOR_CLIPS = {"interpolate", "pixel_shuffle", "pixel_unshuffle", "std", "upsample", "var"}
