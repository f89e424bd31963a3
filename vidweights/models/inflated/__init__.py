"""Any 2D torch CNN as a 3D network, shown to compute the same on a still clip before it is returned.

The kernels are inflated as in Carreira and Zisserman, "Quo Vadis, Action Recognition?" (arXiv:1705.07750, section 2.4).
The network stays what it was: the same classes, names and `forward` code. Its 2D layers become 3D layers in place
(`layers`), and its `forward` runs in a mode that reads 2D calls on a clip as their 3D forms (`calls`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from vidweights.errors import UsageError
from vidweights.kernels import Taps
from vidweights.models.inflated.layers import Forward, convolutions, inflate_layers
from vidweights.models.inflated.proof import enough_memory, prove
from vidweights.models.inflated.refusals import refuse_arguments, refuse_parts
from vidweights.models.inflated.window import Options, TimePadding


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

    method: Taps
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
    method: Taps = "mean",
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
        UsageError: an argument is wrong, the 2D network does not run on `check` or gives NaN, or memory is not enough.
        PlanError: layers or code that cannot be inflated, each by name.
        ValidationError: the copy does not compute what the 2D network computes; the first layer that departs is named.
    """
    options = Options(method, time_padding, time_stride)
    refuse_arguments(module, options, check)
    refuse_parts(module, method)
    size = (convolutions(module)[0].in_channels, 224, 224) if check is None else tuple(check)
    with enough_memory():
        network = _copy(module)
        layers = inflate_layers(network, options)
        cast(Any, network).forward = Forward(network, options)
        reached, figures = prove(module, network, method, size)
    not_run = tuple(name for name in layers if name not in reached)
    cast(Any, network).inflation = Inflation(method, time_padding, time_stride, layers, not_run, **figures)
    return network


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"{type(module).__name__} cannot be copied with copy.deepcopy: {error}") from error
