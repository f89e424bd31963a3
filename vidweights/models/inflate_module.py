"""Any 2D torch CNN as a 3D network, shown to compute the same on a still clip before it is returned.

The kernels are inflated as in Carreira and Zisserman, "Quo Vadis, Action Recognition?" (arXiv:1705.07750, section 2.4).
The network stays what it was: the same classes, names and `forward` code. Its 2D layers become 3D layers in place, and
its `forward` runs under a `TorchFunctionMode` that reads 2D calls on a clip as their 3D forms (`_CALLS`).
"""

from __future__ import annotations

import copy
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from vidweights.errors import InputError, PlanError, UsageError, ValidationError

Method = Literal["mean", "center"]
TimePadding = Literal["replicate", "zero"]

TOLERANCE = 1e-9  # of the largest value, in float64
LONGEST = 128  # frames; a network that needs more is refused


@dataclass(frozen=True)
class Inflation:
    """How a network was inflated, and what was measured before it was returned (`network.inflation`).

    A difference is the largest one on noise images, relative to the largest output of the 2D network.

    Attributes:
        method: `mean` or `center`.
        time_padding: `replicate` or `zero`.
        time_stride: whether time is strided as space is.
        layers: the convolutions that were inflated.
        not_run: those among them that evaluation does not reach (auxiliary classifiers); nothing is shown of them.
        clips: the still clips (N, C, T, H, W) on which every layer was compared in float64. The second has an odd
            number of frames, unless the code takes only even ones (as it then does of height and width).
        float64: still clips in float64 with replicate padding, against the 2D network that holds N * fl(W / N).
        float32: the same in float32, against the 2D network as it was given.
        zero_padding: the same as `float32`, with zero padding in time.
        noise_layer: `center` only: the last layer before anything pools over time. "" is the network's output; None if
            time is pooled before any layer.
        noise_stride: there, output frame j equals the 2D network on input frame `noise_stride * j` of any clip.
        noise: the difference there, in float64, on a clip of noise.
    """

    method: Method
    time_padding: TimePadding
    time_stride: bool
    layers: tuple[str, ...]
    not_run: tuple[str, ...]
    clips: tuple[tuple[int, ...], ...]
    float64: float
    float32: float
    zero_padding: float
    noise_layer: str | None = None
    noise_stride: int | None = None
    noise: float | None = None


def inflate_module(
    module: nn.Module,
    *,
    method: Method = "mean",
    time_padding: TimePadding = "replicate",
    time_stride: bool = True,
    check: Sequence[int] | None = None,
) -> nn.Module:
    """A 3D copy of a 2D CNN: (N, C, T, H, W) in, and out what the 2D network gives, with time where it is not pooled.

    `module` itself is untouched and shares no memory with the copy. Training mode, dtype, device and `requires_grad`
    are kept. The copy is of the same class and has the same `state_dict` keys; only the kernels have one axis more. To
    save it: `torch.save(network.state_dict(), path)`; to load it: inflate the same 2D network again and
    `load_state_dict`. `copy.deepcopy`, pickle, `torch.compile` and `torch.export` work; for several devices use
    `DistributedDataParallel`, since `DataParallel` copies only the surface of a network.

    What each layer does along time: a kernel (kh, kw) gets kh steps, a stride and a dilation those of the height
    (stride 1 if not `time_stride`), and (kh - 1) * dilation // 2 frames are added on both sides, whatever space is
    padded with. An adaptive pool pools all of time. An average pool never counts the frames that were added, a max-pool
    adds minus infinity. Groups and the padding mode of space are kept. Batch norm, instance norm and dropout
    become their 3D forms; padding layers pad each frame.

    Calls in `forward` that are read as 3D: `max_pool2d`, `avg_pool2d`, `lp_pool2d`, `adaptive_avg_pool2d`,
    `adaptive_max_pool2d`, `dropout2d`, `pad`, `conv2d` with a fixed kernel (a buffer), `mean`, `sum`, `amax` and
    `amin` over space (time is then pooled too), `permute` to channels last and back, slices of space, arithmetic with
    (N, C, 1, 1) or (C, 1, 1), and `expand_as`. Calls that have no meaning for a clip (`interpolate`, `pixel_shuffle`,
    ...) and code that unpacks four sizes are refused by name. This holds inside `network(clip)`; a part that is called
    by itself must not depend on such calls.

    Before it is returned, the copy is run in evaluation mode and float64 on still clips, and every layer must
    agree with the 2D network within 1e-9 at every frame (with replicate padding, under which a still clip stays
    still; the error under zero padding is measured). `center` is also run on noise, up to where time is pooled.

    Args:
        module: any 2D CNN, on any device, in any mode, of a floating dtype, taking one image batch (N, C, H, W).
        method: `mean` puts W / N at each of N steps; `center` puts W at the middle one and 0 elsewhere.
        time_padding: what the convolutions add before and behind: the first and last frame again, or zeros.
        time_stride: stride time as space; otherwise only adaptive pools and reductions shorten it.
        check: the (C, H, W) on which the copy is checked; C of the first convolution and 224 x 224 if not given. The
            time that a call takes grows with it.

    Returns:
        The 3D network. Its attribute `inflation` (`Inflation`) has the figures.

    Raises:
        UsageError: an argument is wrong, or the 2D network does not run on `check`.
        PlanError: layers or code that cannot be inflated, each by name.
        ValidationError: the copy does not compute what the 2D network computes; the first layer that departs is named.
    """
    _check_arguments(module, method, time_padding, check)
    _refuse(module, method)
    network = _copy(module)
    layers = _inflate(network, method, time_padding, time_stride)
    # Torch looks a module's `forward` up on the instance first, so class, names and keys stay as they are.
    cast(Any, network).forward = _Forward(network, method, time_padding, time_stride)
    size = tuple(check) if check is not None else (_convolutions(module)[0].in_channels, 224, 224)
    figures = _prove(module, network, method, size)
    reached = figures.pop("reached")
    not_run = tuple(name for name in layers if name not in reached)
    cast(Any, network).inflation = Inflation(method, time_padding, time_stride, layers, not_run, **figures)
    return network


# --- time ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """What a layer does along time: a window over frames, and how many frames are added `before` and `behind`."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    behind: int = 0
    ceil: bool = False

    def check(self, frames: int) -> None:
        span = self.dilation * (self.kernel - 1) + 1
        needed = 1 if self.ceil else span - self.before - self.behind
        if frames < needed:
            raise InputError(
                f"the clip is too short: {frames} frames reach a layer that needs {needed} (kernel {self.kernel} along "
                "time); give a clip with more frames"
            )


def _window(kernel: int, stride: int, dilation: int, *, time_stride: bool, even: str = "") -> _Window:
    """The window along time of a layer with these figures along height.

    `even` says what an even window does, which cannot lie symmetrically: "same" keeps the number of frames, "ceil"
    takes a last window that is not full, "" neither.
    """
    total = (kernel - 1) * dilation
    before = total // 2
    behind = total - before if even == "same" else before
    return _Window(
        kernel, stride if time_stride else 1, dilation, before, behind, ceil=even == "ceil" and kernel % 2 == 0
    )


def _pad_time(x: Tensor, window: _Window, fill: TimePadding) -> Tensor:
    """Add frames to (N, C, T, H, W)."""
    before, behind = window.before, window.behind
    if not before and not behind:
        return x
    if fill == "zero":
        return torch.constant_pad_nd(x, (0, 0, 0, 0, before, behind))
    first, last = x.narrow(2, 0, 1), x.narrow(2, -1, 1)
    return torch.cat([first.expand(-1, -1, before, -1, -1), x, last.expand(-1, -1, behind, -1, -1)], 2)


def _max_over_time(x: Tensor, window: _Window) -> Tensor:
    window.check(x.size(2))
    x = torch.constant_pad_nd(x, (0, 0, 0, 0, window.before, window.behind), -math.inf)
    return _pool_time(F.max_pool2d, x, window, dilation=(window.dilation, 1))


def _mean_over_time(x: Tensor, window: _Window) -> Tensor:
    window.check(x.size(2))
    return _pool_time(F.avg_pool2d, x, window, padding=(window.before, 0), count_include_pad=False)


def _pool_time(pool: Callable[..., Tensor], x: Tensor, window: _Window, **options: Any) -> Tensor:
    """Pool (N, C, T, H, W) over time, as images (N, C, T, H * W); torch's 3D pool refuses T below the kernel."""
    kernel, stride = (window.kernel, 1), (window.stride, 1)
    pooled = pool(x.flatten(3), kernel, stride, ceil_mode=window.ceil, **options)
    return pooled.view(*pooled.shape[:3], *x.shape[3:])


def _each_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of (N, C, H, W) that treats channels apart to each frame of (N, C, T, H, W)."""
    frames = function(x.flatten(1, 2))
    return frames.view(x.size(0), x.size(1), x.size(2), *frames.shape[2:])


# --- layers --------------------------------------------------------------------------------------------------------


class Conv3d(nn.Conv3d):
    """A convolution inflated from 2D: (N, C, T, H, W) to (N, C', T', H', W')."""

    window: _Window
    time_padding: TimePadding
    space: tuple[int, ...]  # frames' padding, as `F.pad` takes it

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, with the padding of time and that of space each of its own kind."""
        self.window.check(x.size(2))
        x = _pad_time(x, self.window, self.time_padding)
        left, right, top, bottom = self.space
        if self.padding_mode == "zeros" and (left, top) == (right, bottom):
            return F.conv3d(x, self.weight, self.bias, self.stride, (0, top, left), self.dilation, self.groups)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = _each_frame(partial(F.pad, pad=self.space, mode=mode), x)
        return F.conv3d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{nn.Conv3d.extra_repr(self)}, time_padding={self.time_padding}"  # type: ignore[no-untyped-call]


class _Pool(nn.Module):
    window: _Window

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{super().extra_repr()}, time=(kernel={self.window.kernel}, stride={self.window.stride})"


class MaxPool3d(_Pool, nn.MaxPool2d):
    """A max-pool inflated from 2D: over space as it was, then over time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C, T', H', W')."""
        return _max_over_time(_each_frame(super().forward, x), self.window)


class AvgPool3d(_Pool, nn.AvgPool2d):
    """An average pool inflated from 2D: over space as it was, then over the frames that there are."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C, T', H', W')."""
        return _mean_over_time(_each_frame(super().forward, x), self.window)


class LPPool3d(_Pool, nn.LPPool2d):
    """A power-average pool inflated from 2D: the sum over space as it was, the mean over time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C, T', H', W')."""
        return _power_over_time(_each_frame(super().forward, x), float(self.norm_type), self.window)


def _power_over_time(x: Tensor, power: float, window: _Window) -> Tensor:
    return _mean_over_time(x.pow(power), window).pow(1 / power)


def _kernel_3d(weight: Tensor, method: Method) -> Tensor:
    """The kernel (O, I, kh, kh, kw) of a kernel (O, I, kh, kw)."""
    steps = weight.shape[2]
    if method == "center":
        kernel = weight.new_zeros(*weight.shape[:2], steps, *weight.shape[2:])
        kernel.select(2, steps // 2).copy_(weight)
        return kernel
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return (wide / steps).to(weight.dtype).unsqueeze(2).repeat(1, 1, steps, 1, 1)


def _pair(value: Any) -> tuple[int, int]:
    """(height, width) of an argument that may be one number for both, or a tuple of one."""
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _space_padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top, bottom; the odd element of `same` goes behind, as in `torch.nn.functional.conv2d`."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        height, width = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size))
        return width // 2, width - width // 2, height // 2, height - height // 2
    height, width = _pair(conv.padding)
    return width, width, height, height


# --- calls in `forward` --------------------------------------------------------------------------------------------


class _ClipMode(TorchFunctionMode):
    """Reads calls that 2D code makes on a clip (5 axes) as their 3D forms; other calls pass through."""

    def __init__(self, method: Method, time_padding: TimePadding, time_stride: bool) -> None:
        super().__init__()
        self.method: Method = method
        self.time_padding: TimePadding = time_padding
        self.time_stride = time_stride

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _ARITHMETIC:
            args = _align(args)
        elif args and isinstance(args[0], Tensor) and args[0].dim() == 5:
            if name in _NOT_FOR_CLIPS:
                raise UsageError(f"the call {name} has no form for clips here")
            if name in _CALLS:
                return _CALLS[name](self, func, *args, **kwargs)
        return func(*args, **kwargs)


def _align(args: Sequence[Any]) -> Sequence[Any]:
    """Give operands (N, C, 1, 1) and (C, 1, 1) of a clip the axis of time that they lack."""
    if not any(isinstance(a, Tensor) and a.dim() == 5 for a in args):
        return args
    return [a.unsqueeze(-3) if isinstance(a, Tensor) and a.dim() in (3, 4) else a for a in args]


def _call_max_pool(  # noqa: PLR0917 (torch's signature)
    mode: _ClipMode,
    func: Any,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    window = _pool_window(kernel_size, stride, dilation, ceil_mode, mode.time_stride)
    pool = partial(
        F.max_pool2d,
        kernel_size=_pair(kernel_size[-2:] if _is_map(kernel_size) else kernel_size),
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
    )
    return _max_over_time(_each_frame(pool, x), window)


def _call_avg_pool(
    mode: _ClipMode, func: Any, x: Tensor, kernel_size: Any, stride: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    ceil = kwargs.get("ceil_mode", args[1] if len(args) > 1 else False)
    window = _pool_window(kernel_size, stride, 1, ceil, mode.time_stride)
    size = kernel_size[-2:] if _is_map(kernel_size) else kernel_size
    return _mean_over_time(_each_frame(lambda frame: func(frame, size, stride, *args, **kwargs), x), window)


def _call_lp_pool(  # noqa: PLR0917 (torch's signature)
    mode: _ClipMode,
    func: Any,
    x: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Tensor:
    window = _pool_window(kernel_size, stride, 1, ceil_mode, mode.time_stride)
    pooled = _each_frame(lambda frame: func(frame, norm_type, kernel_size, stride, ceil_mode), x)
    return _power_over_time(pooled, float(norm_type), window)


def _is_map(kernel_size: Any) -> bool:
    """Whether a pool's window is the size of the whole map, as `avg_pool2d(x, x.shape[2:])` asks for on a clip."""
    return not isinstance(kernel_size, int) and len(kernel_size) == 3


def _pool_window(kernel: Any, stride: Any, dilation: Any, ceil: bool, time_stride: bool) -> _Window:
    if _is_map(kernel):
        return _Window(int(kernel[0]), int(kernel[0]))
    steps = _pair(stride if stride else kernel)[0]  # torch reads None and [] as the kernel's size
    even = "ceil" if ceil else ""
    return _window(_pair(kernel)[0], steps, _pair(dilation)[0], time_stride=time_stride, even=even)


def _call_adaptive_avg(mode: _ClipMode, func: Any, x: Tensor, output_size: Any) -> Tensor:
    return F.adaptive_avg_pool3d(x, _all_time(output_size))


def _call_adaptive_max(mode: _ClipMode, func: Any, x: Tensor, output_size: Any, **_: Any) -> Tensor:
    return F.adaptive_max_pool3d(x, _all_time(output_size))


def _all_time(output_size: Any) -> Any:
    """The output size of an adaptive pool over a clip: time becomes one frame."""
    return (1, output_size, output_size) if isinstance(output_size, int) else (1, *tuple(output_size)[-2:])


def _call_dropout(mode: _ClipMode, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.dropout3d(x, *args, **kwargs)


def _call_pad(  # noqa: PLR0917 (torch's signature)
    clip: _ClipMode, func: Any, x: Tensor, pad: Any, mode: str = "constant", value: Any = None
) -> Tensor:
    """Space as it is; pairs behind the fourth number are of channels and batch, and time goes before them."""
    if len(pad) > 4 or (len(pad) == 4 and mode != "constant"):
        pad = [*pad[:4], 0, 0, *pad[4:]]
    return cast(Tensor, func(x, pad, mode, value))


def _call_conv(  # noqa: PLR0917 (torch's signature)
    mode: _ClipMode,
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
    (sh, sw), (ph, pw), (dh, dw) = _pair(stride), _pair(padding), _pair(dilation)
    window = _window(weight.size(2), sh, dh, time_stride=mode.time_stride)
    window.check(x.size(2))
    x = _pad_time(x, window, mode.time_padding)
    kernel = _kernel_3d(weight, mode.method)
    return F.conv3d(x, kernel, bias, (window.stride, sh, sw), (0, ph, pw), (dh, dh, dw), groups)


def _call_reduce(mode: _ClipMode, func: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """`mean`, `amax`, `amin`: over height and width means over time too; over one of them, over that one only."""
    axes, rest = _axes(dim, kwargs)
    if axes is None:
        return cast(Tensor, func(x, *args, **rest))
    return cast(Tensor, func(x, _with_time(axes), *args, **rest))


def _call_sum(mode: _ClipMode, func: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """The sum over height and width is that of the mean frame."""
    axes, rest = _axes(dim, kwargs)
    if axes is None:
        return cast(Tensor, func(x, *args, **rest))
    over = _with_time(axes)
    return cast(Tensor, func(x, over, *args, **rest)) / (x.size(2) if 2 in over else 1)


def _axes(dim: Any, kwargs: Mapping[str, Any]) -> tuple[list[int] | None, dict[str, Any]]:
    """The axes, counted in (N, C, H, W), that a reduction was asked for; None for all of them."""
    rest = dict(kwargs)
    dim = rest.pop("dim", rest.pop("axis", dim))
    if dim is None or dim == ():
        return None, rest
    return [axis % 4 for axis in ([dim] if isinstance(dim, int) else dim)], rest


def _with_time(axes: Sequence[int]) -> list[int]:
    """Axes of (N, C, H, W) as axes of (N, C, T, H, W); both axes of space bring time with them."""
    both = {2, 3} <= set(axes)
    return [axis if axis < 2 else axis + 1 for axis in axes] + ([2] if both else [])


def _call_permute(mode: _ClipMode, func: Any, x: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    """To channels last and back. Time stays before height in both orders."""
    order = kwargs.get("dims", dims[0] if len(dims) == 1 else dims)
    moved = {(0, 2, 3, 1): (0, 2, 3, 4, 1), (0, 3, 1, 2): (0, 4, 1, 2, 3)}.get(tuple(axis % 4 for axis in order))
    if moved is None:
        raise UsageError(f"the call permute{tuple(order)} has no form for clips here; only to channels last and back")
    return x.permute(moved)


def _call_index(mode: _ClipMode, func: Any, x: Tensor, index: Any) -> Any:
    """Slices of height and width; a step along height is one along time too, as a stride is."""
    if not isinstance(index, tuple) or len(index) < 3 or index[0] is Ellipsis:
        return func(x, index)
    if not all(isinstance(part, slice) for part in index[2:]) or any(part in (None, Ellipsis) for part in index[:2]):
        raise UsageError("indexing the height or width of a clip with anything but slices has no form for clips here")
    step = index[2].step if mode.time_stride else None
    return func(x, (*index[:2], slice(None, None, step), *index[2:]))


_ARITHMETIC = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "expand_as", "maximum", "minimum"}
_CALLS: dict[str, Callable[..., Any]] = {
    "max_pool2d": _call_max_pool,
    "avg_pool2d": _call_avg_pool,
    "lp_pool2d": _call_lp_pool,
    "adaptive_avg_pool2d": _call_adaptive_avg,
    "adaptive_max_pool2d": _call_adaptive_max,
    "dropout2d": _call_dropout,
    "pad": _call_pad,
    "conv2d": _call_conv,
    "mean": _call_reduce,
    "amax": _call_reduce,
    "amin": _call_reduce,
    "sum": _call_sum,
    "permute": _call_permute,
    "__getitem__": _call_index,
}
_NOT_FOR_CLIPS = {
    "conv_transpose2d",
    "fold",
    "fractional_max_pool2d",
    "grid_sample",
    "interpolate",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "std",
    "unfold",
    "upsample",
    "var",
}


class _Forward:
    """The `forward` of an inflated network: that of its class, under `_ClipMode`."""

    def __init__(self, network: nn.Module, method: Method, time_padding: TimePadding, time_stride: bool) -> None:
        self.network, self.method, self.time_padding, self.time_stride = network, method, time_padding, time_stride

    @property
    def __code__(self) -> CodeType:  # `torch.export` reads of a `forward` where its source is
        return cast(CodeType, cast(Any, type(self.network).forward).__code__)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dim() != 5:
            raise InputError(f"expected a clip (N, C, T, H, W), found an input of shape {tuple(x.shape)}")
        with _ClipMode(self.method, self.time_padding, self.time_stride):
            return type(self.network).forward(self.network, x, *args, **kwargs)


class _AsImage:
    """The `forward` of a batch norm that has code of its own (an activation): a clip as an image (N, C, T * H, W)."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        image: Tensor = type(self.norm).forward(self.norm, x.flatten(2, 3))
        return image.view_as(x)


class _EachFrame:
    """The `forward` of a layer that pads space."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return _each_frame(partial(type(self.layer).forward, self.layer), x)


# --- inflating -----------------------------------------------------------------------------------------------------


def _check_arguments(module: Any, method: Any, time_padding: Any, check: Any) -> None:
    if not isinstance(module, nn.Module):
        raise UsageError(f"expected a torch.nn.Module, found {type(module).__name__}")
    for name, value, known in (("method", method, ("mean", "center")), ("time_padding", time_padding, _FILLS)):
        if value not in known:
            raise UsageError(f"{name}={value!r} is not known; expected one of {', '.join(known)}")
    if isinstance(getattr(module, "inflation", None), Inflation):
        raise UsageError("this network has been inflated already; give the 2D network")
    wrapped = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
    if type(module).__name__ in wrapped:
        raise UsageError(
            f"found a {type(module).__name__}; give the network inside, `.{wrapped[type(module).__name__]}`"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("found a scripted network, whose code cannot be read for clips; give the original module")
    sizes = [3, 224, 224] if check is None else list(check)
    if len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise UsageError(f"check={check!r}: expected three positive numbers (C, H, W)")
    if not _convolutions(module):
        raise UsageError(f"{type(module).__name__} has no Conv2d; there is nothing to inflate")
    _check_weights(module)


def _check_weights(module: nn.Module) -> None:
    if any(is_lazy(p) or p.device.type == "meta" for p in module.parameters()):
        raise UsageError("the network holds no weights yet (lazy layers, or the meta device); load or run it first")
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d) and not part.weight.is_floating_point():
            raise UsageError(f"{name} has weights of {part.weight.dtype}; expected a floating dtype, which W / N needs")


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def _refuse(module: nn.Module, method: Method) -> None:
    """Name every part that cannot be inflated, before anything is computed."""
    found = [(name, part, _reason(part, method)) for name, part in module.named_modules()]
    lines = [f"{name or 'the network'} ({type(part).__name__}): {reason}" for name, part, reason in found if reason]
    if lines:
        raise PlanError(
            f"{type(module).__name__} cannot be inflated",
            {"parts without a 3D form here": lines},
            "Replace these parts, or inflate the part of the network that is without them.",
        )


def _reason(part: nn.Module, method: Method) -> str | None:
    """Why a module cannot be inflated, or None."""
    base = _base(part)
    changed = _changed_by_hand(part)
    if changed or base is None:
        return changed or _unknown(part)
    if not _forward_is_of(part, base) and base is not nn.BatchNorm2d:
        return f"a {base.__name__} with a forward of its own"
    if isinstance(part, nn.Conv2d) and method == "center" and part.kernel_size[0] % 2 == 0:
        return f"kernel {part.kernel_size} has no middle for method='center'; use 'mean'"
    return "returns indices" if getattr(part, "return_indices", False) else None


def _changed_by_hand(part: nn.Module) -> str | None:
    """What was done to a module that a 3D layer would not do, or None."""
    if part._forward_hooks or part._forward_pre_hooks:
        return "has forward hooks, which were written for images; remove them first"
    if "forward" in part.__dict__:
        return "its forward was replaced on the instance"
    if parametrize.is_parametrized(part) and _base(part) is not None:
        return "is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    return None


def _forward_is_of(part: nn.Module, base: type[nn.Module]) -> bool:
    names = ("forward", "_conv_forward") if base is nn.Conv2d else ("forward",)
    return all(getattr(type(part), name) is getattr(base, name) for name in names)


def _unknown(part: nn.Module) -> str | None:
    """Why a module that no rule changes cannot stay as it is, or None."""
    if isinstance(part, _NO_3D_FORM):
        return "has no 3D form here"
    if isinstance(part, nn.LayerNorm) and len(part.normalized_shape) > 1:
        return f"its weight is of one map size {part.normalized_shape}"
    if type(part).__module__.startswith("torch.nn.") and type(part).__name__.endswith(("2d", "3d")):
        return "has no 3D form here" if type(part).__name__.endswith("2d") else "is 3D already"
    return None


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise UsageError(f"{type(module).__name__} cannot be copied with copy.deepcopy: {error}") from error


def _inflate(network: nn.Module, method: Method, time_padding: TimePadding, time_stride: bool) -> tuple[str, ...]:
    """Turn the 2D layers of `network` into 3D layers in place, and return the names of the convolutions.

    A layer changes its class and stays the same object, so that shared layers, `training` and whatever else is set on
    it remain.
    """
    layers = []
    kernels: dict[int, nn.Parameter] = {}  # by the id of the 2D one: layers that share a kernel go on sharing it
    for name, part in list(network.named_modules()):
        base = _base(part)
        if base is None:
            continue
        if base is nn.BatchNorm2d and not _forward_is_of(part, base):
            cast(Any, part).forward = _AsImage(part)
        elif base in _PADS:
            cast(Any, part).forward = _EachFrame(part)
        else:
            part.__class__ = _FORMS[base]
            if isinstance(part, Conv3d):
                _inflate_conv(cast(Any, part), method, time_padding, time_stride, kernels)
                layers.append(name)
            _set_sizes(part, time_stride)
    return tuple(layers)


def _inflate_conv(
    conv: Any, method: Method, time_padding: TimePadding, time_stride: bool, kernels: dict[int, nn.Parameter]
) -> None:
    even = "same" if conv.padding == "same" else ""
    conv.window = _window(conv.kernel_size[0], conv.stride[0], conv.dilation[0], time_stride=time_stride, even=even)
    conv.space = _space_padding(conv)
    conv.time_padding = time_padding
    conv.padding = (conv.window.before, conv.space[2], conv.space[0])
    conv.kernel_size = (conv.window.kernel, *conv.kernel_size)
    conv.stride = (conv.window.stride, *conv.stride)
    conv.dilation = (conv.window.dilation, *conv.dilation)
    conv.output_padding = (0, 0, 0)
    flat = conv.weight
    if id(flat) not in kernels:
        kernels[id(flat)] = nn.Parameter(_kernel_3d(flat.detach(), method), requires_grad=flat.requires_grad)
    conv.weight = kernels[id(flat)]


def _set_sizes(part: Any, time_stride: bool) -> None:
    """Give a pool that has become 3D its sizes along time."""
    if isinstance(part, (MaxPool3d, AvgPool3d, LPPool3d)):
        dilation = getattr(part, "dilation", 1)
        part.window = _pool_window(part.kernel_size, part.stride, dilation, part.ceil_mode, time_stride)
    elif isinstance(part, (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)):
        part.output_size = _all_time(part.output_size)


def _base(part: nn.Module) -> type[nn.Module] | None:
    return next((cls for cls in type(part).__mro__ if cls in _FORMS or cls in _PADS), None)


_FILLS = ("replicate", "zero")
_FORMS: dict[type, type] = {
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
_PADS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
_NO_3D_FORM = (
    nn.ConvTranspose2d,
    nn.Fold,
    nn.MultiheadAttention,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.TransformerEncoderLayer,
    nn.Unfold,
    nn.Upsample,
)


# --- the proof -----------------------------------------------------------------------------------------------------


class _FailedError(Exception):
    """A network raised `error` inside its part `name`."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error


@dataclass
class _Departure:
    name: str
    difference: float
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass
class _Comparison:
    """A still clip in the 3D network against the image in the 2D network."""

    output: float = math.inf
    frames: int = sys.maxsize  # the fewest that reach a layer before space is pooled
    reached: set[str] = field(default_factory=set)
    first: _Departure | None = None


def _prove(module: nn.Module, network: nn.Module, method: Method, size: tuple[int, ...]) -> dict[str, Any]:
    """The figures of `Inflation`, or an error that names the part that is wrong."""
    with torch.no_grad(), torch.autocast(_device(module).type, enabled=False):
        reference, proof = _reference(module, method), _evaluated(network, torch.float64)
        _fill(proof, "replicate")
        images = _noise(2, size, _device(reference))
        frames, short = _still_first(reference, proof, images)
        odd = frames + 1 if short.frames >= 2 else max(33, frames + 1)
        more, long = _still_second(reference, proof, images[:1], frames, odd)
        figures: dict[str, Any] = {
            "reached": short.reached | long.reached,
            "clips": tuple(
                (len(batch), size[0], count, *size[1:]) for batch, count in ((images, frames), (images[:1], more))
            ),
            "float64": max(short.output, long.output),
        }
        if method == "center":
            figures |= _on_noise(reference, proof, _noise(more, size, _device(reference)))
        del reference, proof
        return figures | _single(module, network, images[:1].float(), frames)


def _still_first(reference: nn.Module, proof: nn.Module, images: Tensor) -> tuple[int, _Comparison]:
    """The comparison on the shortest clip of 8, 16, ... frames that the 3D network takes."""
    frames = 8
    while True:
        try:
            return frames, _still(reference, proof, images, frames)
        except InputError as error:
            frames *= 2
            if frames > LONGEST:
                raise PlanError(f"the inflated network takes no clip of {LONGEST} frames: {error}", {}) from error


def _still_second(
    reference: nn.Module, proof: nn.Module, images: Tensor, frames: int, odd: int
) -> tuple[int, _Comparison]:
    """The comparison on an odd number of frames; on an even one for 2D code that takes only images of even sizes."""
    try:
        return odd, _still(reference, proof, images, odd)
    except PlanError:
        return 4 * frames, _still(reference, proof, images, 4 * frames)


def _still(reference: nn.Module, proof: nn.Module, images: Tensor, frames: int) -> _Comparison:
    """Compare every layer; raise an error that names the first one that departs."""
    expected: dict[tuple[str, int], list[Tensor]] = {}
    result = _Comparison()

    def record(name: str, call: int, output: Any) -> None:
        expected[name, call] = [tensor.clone() for tensor in _tensors(output)]  # later layers may work in place

    def compare(name: str, call: int, output: Any) -> None:
        result.reached.add(name)
        wanted = expected.get((name, call), [])
        for a, b in zip(_tensors(output), wanted):
            if a.dim() == 5 and a[0, 0, 0].numel() > 1:
                result.frames = min(result.frames, a.size(2))
            difference = _difference(a, b)
            if name == "":
                difference = result.output = math.inf if difference is None else difference
            if difference is not None and not difference <= TOLERANCE and result.first is None:
                result.first = _Departure(name, difference, tuple(b.shape), tuple(a.shape))

    _run_image(reference, images, record)
    clip = images.unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()
    _run_clip(proof, clip, compare)
    if result.first is not None:
        raise _departs(result.first, proof, clip)
    return result


def _departs(first: _Departure, proof: nn.Module, clip: Tensor) -> ValidationError:
    kind = type(proof.get_submodule(first.name)).__name__
    where = f"the first part that departs is {first.name} ({kind})" if first.name else "all parts agree but its output"
    return ValidationError(
        f"on a still clip the inflated network does not compute what the 2D network computes: {where}\n"
        f"  largest difference: {first.difference:.2g} of the largest value, expected at most {TOLERANCE:g}\n"
        f"  shape there in 2D: {first.expected}, in 3D: {first.found}, of the clip: {tuple(clip.shape)}\n"
        "Look in the `forward` around this part for code that holds for 4 axes only."
    )


def _on_noise(reference: nn.Module, proof: nn.Module, frames: Tensor) -> dict[str, Any]:
    """`center` on noise: at the last layer before time is pooled, frame j is the 2D network on frame s * j."""
    last: list[tuple[tuple[str, int], Tensor]] = []
    expected: list[Tensor] = []

    def keep(name: str, call: int, output: Any) -> None:
        tensors = _tensors(output)
        if not watch.mixed and len(tensors) == 1 and tensors[0].dim() == 5:
            last[:] = [((name, call), tensors[0].clone())]

    def fetch(name: str, call: int, output: Any) -> None:
        if (name, call) == last[0][0]:
            expected[:] = [tensor.clone() for tensor in _tensors(output)]

    with _TimeMixing() as watch:
        _run_clip(proof, frames.transpose(0, 1).unsqueeze(0).contiguous(), keep)
    if not last:
        return {}
    _run_image(reference, frames, fetch)
    (name, _), found = last[0]
    wanted = expected[0].transpose(0, 1).unsqueeze(0)  # (1, C, T, H, W)
    steps = [s for s in range(1, len(frames) + 1) if -(-len(frames) // s) == found.size(2)]
    differences = [(_difference(found, wanted[:, :, ::s]), s) for s in steps]
    difference, step = min(((math.inf if d is None else d, s) for d, s in differences), default=(math.inf, 0))
    if not difference <= TOLERANCE:
        raise ValidationError(
            "on a clip of noise the frames of the inflated network are not those of the 2D network: at "
            f"{name or 'the output'} the largest difference is {difference:.2g} of the largest value, expected at most "
            f"{TOLERANCE:g} (method 'center')"
        )
    return {"noise_layer": name, "noise_stride": step, "noise": difference}


class _TimeMixing(TorchFunctionMode):
    """Notes when a call brings frames of a clip together."""

    mixed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("max_pool2d", "avg_pool2d"):
            self.mixed = True
        elif args and isinstance(args[0], Tensor) and args[0].dim() == 5:
            # Batch norm without running statistics takes those of the clip.
            self.mixed |= name in _MIXES_TIME or (name == "batch_norm" and args[1] is None)
        return func(*args, **(kwargs or {}))


_MIXES_TIME = {
    "adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "amax",
    "amin",
    "group_norm",
    "instance_norm",
    "mean",
    "reshape",
    "sum",
    "view",
}


def _single(module: nn.Module, network: nn.Module, images: Tensor, frames: int) -> dict[str, float]:
    """The differences in float32 from the 2D network as it was given, with either padding in time."""
    source, single = _evaluated(module, torch.float32), _evaluated(network, torch.float32)
    expected = _tensors(source(images))
    clip = images.unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()
    figures = {}
    for name, fill in (("float32", "replicate"), ("zero_padding", "zero")):
        _fill(single, cast(TimePadding, fill))
        pairs = zip(_tensors(single(clip)), expected)
        differences = [_difference(found, wanted) for found, wanted in pairs]
        figures[name] = max(math.inf if d is None else d for d in differences)
    return figures


def _reference(module: nn.Module, method: Method) -> nn.Module:
    """The 2D network in float64 whose kernels are what the steps of the 3D kernels must add up to: N * fl(W / N)."""
    reference = _evaluated(module, torch.float64)
    if method == "center":
        return reference
    done: set[int] = set()
    for source, target in zip(_convolutions(module), _convolutions(reference)):
        if id(target.weight) in done:
            continue
        done.add(id(target.weight))
        steps = source.kernel_size[0]
        weight = source.weight.detach()
        wide = weight if weight.dtype == torch.float64 else weight.float()
        target.weight.copy_((wide / steps).to(weight.dtype).double() * steps)
    return reference


def _evaluated(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in evaluation mode, on a device that has float64."""
    twin = copy.deepcopy(network)
    if _device(network).type == "mps":
        twin = twin.cpu()
    return twin.to(dtype).eval()


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _fill(network: nn.Module, fill: TimePadding) -> None:
    for part in network.modules():
        if isinstance(part, Conv3d):
            part.time_padding = fill
    cast(_Forward, network.forward).time_padding = fill


def _noise(count: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *size, generator=generator, dtype=torch.float64).to(device)


Visit = Callable[[str, int, Any], None]


def _run_image(network: nn.Module, images: Tensor, visit: Visit) -> None:
    try:
        _run(network, images, visit)
    except _FailedError as failed:
        raise UsageError(
            f"the 2D network itself does not take images {tuple(images.shape)}: "
            f"{_said(failed)}; give check=(C, H, W) with a size that it takes"
        ) from failed.error


def _run_clip(network: nn.Module, clip: Tensor, visit: Visit) -> None:
    try:
        _run(network, clip, visit)
    except _FailedError as failed:
        if isinstance(failed.error, InputError):
            raise failed.error from None
        raise PlanError(
            f"{type(network).__name__} cannot be inflated: its code does not take a clip {tuple(clip.shape)}",
            {"raised by": [_said(failed)]},
            "Rewrite that part so that it does not count axes (x.mean((2, 3)), x.flatten(1), ...), or leave it out.",
        ) from failed.error


def _said(failed: _FailedError) -> str:
    return f"{failed.name or 'the network'}: {type(failed.error).__name__}: {failed.error}".splitlines()[0]


def _run(network: nn.Module, x: Tensor, visit: Visit) -> None:
    """Run a network and call `visit(name, number of the call, output)` as each of its parts ends."""
    running: list[str] = []
    calls: Counter[str] = Counter()

    def enter(name: str, *_: Any) -> None:
        running.append(name)

    def leave(name: str, part: nn.Module, args: Any, output: Any) -> None:
        running.pop()
        with torch._C.DisableTorchFunction():  # what is done here is not code of the network
            visit(name, calls[name], output)
        calls[name] += 1

    with _hooks(network, enter, leave):
        try:
            network(x)
        except Exception as error:
            raise _FailedError(running[-1] if running else "", error) from error


@contextmanager
def _hooks(network: nn.Module, enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    handles = []
    for name, part in network.named_modules():
        handles.append(part.register_forward_pre_hook(partial(enter, name)))
        handles.append(part.register_forward_hook(partial(leave, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts: Any = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _tensors(part)] if isinstance(output, (Mapping, Sequence)) else []


def _difference(found: Tensor, expected: Tensor) -> float | None:
    """The largest difference, relative to the largest expected value; None if the shapes cannot be compared.

    `found` may have one axis more than `expected`, that of time: every frame is then compared.
    """
    if found.shape == expected.shape:
        return _relative(found, expected)
    for axis in (2, 1, *range(3, found.dim())):
        if axis < found.dim() and found.shape[:axis] + found.shape[axis + 1 :] == expected.shape:
            return _relative(found, expected.unsqueeze(axis))
    return None


def _relative(found: Tensor, expected: Tensor) -> float:
    if not found.numel():
        return 0.0
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if error == 0:
        return 0.0
    return error / scale if scale and math.isfinite(error) else math.inf
