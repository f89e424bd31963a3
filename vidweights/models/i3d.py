"""I3D in PyTorch, built from the layer table of `vidweights.families.i3d`.

It computes what `i3d.py` of google-deepmind/kinetics-i3d (commit 0667e889) computes, at every size of the input:
the padding is TensorFlow's `SAME`, worked out from the size that each axis has at run time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidweights.errors import InputError, UsageError
from vidweights.families import i3d as family
from vidweights.families.i3d import ENDPOINTS, HEAD, I3DConfig, Triple

HeadPool = Literal["release", "mean"]


def same_padding(size: Sequence[int], kernel: Triple, stride: Triple) -> tuple[list[int], list[int]]:
    """TensorFlow's `SAME` padding for an input of `size` (T, H, W).

    Source: tensorflow/core/framework/kernel_shape_util.cc. The output has ceil(n / stride) elements, and what the
    windows need beyond the input is split in two halves; an odd element goes behind.

    Returns:
        What each axis needs on both sides, and what it needs behind beside that (0 or 1).
    """
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride)]
    return [total // 2 for total in totals], [total % 2 for total in totals]


class Conv(nn.Conv3d):
    """3D convolution without bias and with `SAME` padding, initialised as Sonnet's `snt.Conv3D`."""

    def __init__(self, in_channels: int, channels: int, kernel: Triple, stride: Triple) -> None:
        super().__init__(in_channels, channels, kernel, stride, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        _sonnet_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', ceil(T / stride), ceil(H / stride), ceil(W / stride))."""
        both, behind = same_padding(x.shape[2:], self.kernel_size, self.stride)  # type: ignore[arg-type]
        if any(behind):
            t, h, w = behind
            x = F.pad(x, (0, w, 0, h, 0, t))
        return F.conv3d(x, self.weight, self.bias, self.stride, both)


class MaxPool(nn.Module):
    """3D max-pool with `SAME` padding, where the padding never wins, as in TensorFlow.

    The kernel must be odd where the stride is 1, as it is throughout I3D.
    """

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C, ceil(T / stride), ceil(H / stride), ceil(W / stride))."""
        # With a stride above 1, `ceil_mode` adds just the one element behind that SAME may need, and makes no copy.
        both, _ = same_padding(x.shape[2:], self.kernel, self.stride)
        return F.max_pool3d(x, self.kernel, self.stride, both, ceil_mode=True)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"kernel={self.kernel}, stride={self.stride}"


class BatchNorm(nn.BatchNorm3d):
    """Batch norm with the release's epsilon and momentum.

    Its counter of training steps is not a weight: it is not saved, and loading sets it to zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=family.FACTS["batch_norm_epsilon"], momentum=family.FACTS["batch_norm_momentum"])
        self.register_buffer("num_batches_tracked", self.num_batches_tracked, persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Torch's own would add the counter that it misses, and a strict load would then refuse it.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)
        assert self.running_mean is not None
        self.num_batches_tracked = torch.zeros((), dtype=torch.long, device=self.running_mean.device)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, unit: family.Unit) -> None:
        super().__init__()
        self.conv = Conv(in_channels, unit.channels, unit.kernel, unit.stride)
        self.bn = BatchNorm(unit.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Inception module: four branches, joined along the channels."""

    def __init__(self, in_channels: int, mixed: family.Mixed) -> None:
        super().__init__()
        for index, branch in enumerate(mixed.branches):
            steps, width = OrderedDict[str, nn.Module](), in_channels
            for layer in branch:
                steps[layer.name], width = _build(layer, width)
            self.add_module(f"Branch_{index}", nn.Sequential(steps))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T, H, W)."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def _build(layer: family.Layer, in_channels: int) -> tuple[nn.Module, int]:
    """The module of a layer, and the number of channels that it puts out."""
    match layer:
        case family.Unit():
            return Unit(in_channels, layer), layer.channels
        case family.Mixed():
            return Mixed(in_channels, layer), layer.out_channels
        case family.Pool():
            return MaxPool(layer.kernel, layer.stride), in_channels


def _sonnet_init(conv: nn.Conv3d, generator: torch.Generator | None = None) -> None:
    """Sonnet's default: truncated normal of deviation 1 / sqrt(fan in), cut at two deviations; zero bias.

    Source: `create_weight_initializer` in sonnet/python/modules/conv.py, version 1.
    """
    deviation = 1 / math.sqrt(conv.weight[0].numel())
    nn.init.trunc_normal_(conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def feature_shape(config: I3DConfig, endpoint: str, size: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape (C', T', H', W') of an endpoint for clips of `size` (T, H, W); nothing is computed.

    Each axis is divided by the product of the strides so far, rounded up: at `Mixed_5c` T' = ceil(T / 8),
    H' = ceil(H / 32) and W' = ceil(W / 32).

    Raises:
        UsageError: there is no such endpoint.
    """
    _check_endpoint(endpoint)
    channels, (t, h, w) = config.in_channels, size
    for layer in family.layers(config):
        match layer:
            case family.Mixed():
                channels = layer.out_channels
            case family.Unit() | family.Pool():
                t, h, w = (-(-n // s) for n, s in zip((t, h, w), layer.stride))
                channels = layer.channels if isinstance(layer, family.Unit) else channels
        if layer.name == endpoint:
            break
    return channels, t, h, w


def _check_endpoint(endpoint: str) -> None:
    if endpoint not in ENDPOINTS:
        raise UsageError(f"no endpoint is called {endpoint!r}; there are: {', '.join(ENDPOINTS)}")


class I3D(nn.Module):
    """The inflated Inception v1 of Carreira and Zisserman (arXiv 1705.07750), one stream.

    Its `state_dict` has the canonical names of `vidweights.families.i3d.tensors`. Parameters are created on torch's
    default device and initialised as Sonnet does, so `with torch.device("meta"): I3D(config)` followed by
    `load_state_dict(weights, assign=True)` loads without filling anything twice.

    Clips are (N, C, T, H, W) in [-1, 1], of the floating dtype of the weights. The range is not looked at here: that
    would read every clip once more, and wait for it on a GPU. `vidweights.clips.ClipTransform` makes such clips.

    Args:
        config: channels, classes and width.
        dropout: share of the pooled features that is dropped in training, before the head (the release trained
            with 0.5).
        head_pool: `release` averages 2 frames x 7 x 7 with stride 1, which needs H and W from 193 to 224 and T >= 9;
            `mean` averages over time and space, at any size. They differ in how they weigh the first and last
            frames.
    """

    def __init__(
        self,
        config: I3DConfig = I3DConfig(),  # noqa: B008  (frozen)
        *,
        dropout: float = 0.0,
        head_pool: HeadPool = "release",
    ) -> None:
        super().__init__()
        if head_pool not in ("release", "mean"):
            raise UsageError(f"head_pool is {head_pool!r}; expected 'release' or 'mean'")
        self.config, self.head_pool = config, head_pool
        width = config.in_channels
        for layer in family.layers(config):
            module, width = _build(layer, width)
            self.add_module(layer.name, module)
        self.dropout = nn.Dropout(dropout)
        self.Logits: nn.Conv3d | None = None
        self.reset_head(config.num_classes)

    def reset_head(self, num_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Put a new head in, initialised as Sonnet does (or none, for 0 classes), and update `config`.

        It has the device and the dtype of the rest. `generator` makes the draw repeatable.

        Raises:
            UsageError: `num_classes` is negative.
        """
        self.config = replace(self.config, num_classes=num_classes)
        self.Logits = None
        if num_classes:
            stem, width = self._stem, family.feature_channels(self.config)
            self.Logits = nn.Conv3d(width, num_classes, 1, device=stem.device, dtype=stem.dtype)
            self.Logits.train(self.training)
            _sonnet_init(self.Logits, generator)

    @property
    def _stem(self) -> Tensor:
        weight: Tensor = getattr(self, ENDPOINTS[0]).conv.weight
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before the softmax, averaged over time.

        Args:
            x: clips (N, C, T, H, W) in [-1, 1].

        Returns:
            (N, num_classes); for a network without head the pooled features (N, 1024), averaged over time.

        Raises:
            InputError: the dtype, the number of axes or channels, or the size does not fit.
        """
        self._check(x, pooled=True)
        return self._head(self._run(x))

    def features(self, x: Tensor, endpoint: str = "Mixed_5c") -> Tensor:
        """The output of one endpoint; layers behind it are not computed.

        The names, and the size that is left of clips of (T, H, W), always rounded up:

        | endpoints | channels | T' | H', W' |
        |---|---|---|---|
        | `Conv3d_1a_7x7` | 64 | T / 2 | / 2 |
        | `MaxPool3d_2a_3x3`, `Conv3d_2b_1x1`; `Conv3d_2c_3x3` | 64; 192 | T / 2 | / 4 |
        | `MaxPool3d_3a_3x3`; `Mixed_3b`; `Mixed_3c` | 192; 256; 480 | T / 2 | / 8 |
        | `MaxPool3d_4a_3x3`; `Mixed_4b` to `4d`; `Mixed_4e`; `Mixed_4f` | 480; 512; 528; 832 | T / 4 | / 16 |
        | `MaxPool3d_5a_2x2`, `Mixed_5b`; `Mixed_5c` | 832; 1024 | T / 8 | / 32 |

        Args:
            x: clips (N, C, T, H, W) in [-1, 1], of any size.
            endpoint: one of `ENDPOINTS`.

        Returns:
            (N, C', T', H', W'), as `feature_shape` says.

        Raises:
            UsageError: there is no such endpoint.
            InputError: the dtype, or the number of axes or channels, does not fit.
        """
        _check_endpoint(endpoint)
        self._check(x)
        return self._run(x, endpoint)

    def endpoints(self, x: Tensor) -> dict[str, Tensor]:
        """Every endpoint in order, and `Logits` (N, num_classes) if the network has a head.

        Args:
            x: clips (N, C, T, H, W) in [-1, 1].

        Raises:
            InputError: as for `forward`; a network without head takes any size.
        """
        self._check(x, pooled=self.Logits is not None)
        outputs: dict[str, Tensor] = {}
        for name in ENDPOINTS:
            outputs[name] = x = self.get_submodule(name)(x)
        if self.Logits is not None:
            outputs[HEAD] = self._head(x)
        return outputs

    def _run(self, x: Tensor, endpoint: str = ENDPOINTS[-1]) -> Tensor:
        for name in ENDPOINTS[: ENDPOINTS.index(endpoint) + 1]:
            x = self.get_submodule(name)(x)
        return x

    def _head(self, x: Tensor) -> Tensor:
        """Map `Mixed_5c` (N, C, T', H', W') to (N, num_classes), or to (N, C) without head."""
        pooled = x.mean((3, 4), keepdim=True)
        if self.head_pool == "release":
            # The mean of a 2x7x7 window over a 7x7 map; torch lacks avg_pool3d for float16 and bfloat16 on a CPU.
            pooled = (pooled[:, :, :-1] + pooled[:, :, 1:]) / 2
        else:
            pooled = pooled.mean(2, keepdim=True)
        if self.Logits is not None:
            pooled = self.Logits(self.dropout(pooled))
        return pooled.mean((2, 3, 4))

    def _check(self, x: Tensor, *, pooled: bool = False) -> None:
        """Refuse a clip that does not fit the network, from its dtype and shape alone.

        Raises:
            InputError: what was found, what is expected, and the likely cause.
        """
        _check_clip(x, self.config.in_channels)
        weight = self._stem
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(
                f"the clip is {_name(x.dtype)}, the network {_name(weight.dtype)}; expected the same. "
                f"Convert the clip with x.to(torch.{_name(weight.dtype)})."
            )
        if pooled and self.head_pool == "release":
            _check_release_size(self.config, x.shape[2:])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_clip(x: Tensor, channels: int) -> None:
    expected = f"expected floating-point clips (N, {channels}, T, H, W) in [-1, 1]"
    if not isinstance(x, Tensor):
        raise InputError(f"the clip is a {type(x).__name__}, not a torch.Tensor; {expected}")
    shape = tuple(x.shape)
    if not x.is_floating_point():
        advice = "Scale 8-bit frames with x / 127.5 - 1, or use vidweights.clips.ClipTransform."
        raise InputError(f"the clip is {_name(x.dtype)}; {expected}. {advice}")
    if x.ndim != 5:
        advice = " Add the batch axis with x[None]." if x.ndim == 4 and shape[0] == channels else ""
        raise InputError(f"the clip has {x.ndim} axes, {shape}; {expected}.{advice}")
    if shape[1] != channels:
        raise InputError(f"the clip has {shape[1]} channels, {shape}; {expected}.{_channel_advice(shape, channels)}")
    if 0 in shape[2:]:
        raise InputError(f"the clip is empty, {shape}; {expected}")


def _channel_advice(shape: tuple[int, ...], channels: int) -> str:
    if shape[4] == channels:
        return " The channels seem to stand last (NTHWC); reorder with x.permute(0, 4, 1, 2, 3)."
    if shape[2] == channels:
        return " The channels seem to stand third (NTCHW); reorder with x.transpose(1, 2)."
    if {shape[1], channels} == {2, 3}:
        return " An RGB network takes 3 channels, a flow network 2."
    return ""


def _check_release_size(config: I3DConfig, size: Sequence[int]) -> None:
    _, time, height, width = feature_shape(config, ENDPOINTS[-1], size)
    instead = "or build the network with head_pool='mean', or use features()"
    if time < 2:
        raise InputError(f"clip too short: T={size[0]}, needs at least 9 frames. Repeat frames, {instead}.")
    if (height, width) != (7, 7):
        raise InputError(
            f"the clip is {size[1]}x{size[2]} in space; the release's 7x7 average pool needs H and W from 193 to 224. "
            f"Resize or crop it (the release took 224x224), {instead}."
        )


class TwoStreamI3D(nn.Module):
    """The RGB and the flow network side by side; their logits are added with equal weight.

    Source: evaluate_sample.py of google-deepmind/kinetics-i3d, `eval_type` joint.

    Raises:
        UsageError: the two do not have the same classes, or take the same input.
    """

    def __init__(self, rgb: I3D, flow: I3D) -> None:
        super().__init__()
        if rgb.config.num_classes != flow.config.num_classes or not rgb.config.num_classes:
            raise UsageError(
                f"the RGB network has {rgb.config.num_classes} classes, the flow network {flow.config.num_classes}; "
                "expected two heads over the same classes"
            )
        if rgb.config.in_channels == flow.config.in_channels:
            raise UsageError(
                f"both networks take {rgb.config.in_channels} channels; expected one for RGB, one for flow"
            )
        self.rgb, self.flow = rgb, flow
        self.train(rgb.training)

    def forward(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """The sum of the logits of both streams.

        Args:
            rgb: clips (N, 3, T, H, W) in [-1, 1].
            flow: clips (N, 2, T, H, W) in [-1, 1], of the same videos.

        Returns:
            (N, num_classes).

        Raises:
            InputError: as for `I3D.forward`, or not as many clips of each.
        """
        if len(rgb) != len(flow):
            raise InputError(f"{len(rgb)} RGB clips and {len(flow)} flow clips; expected the two of each video")
        logits: Tensor = self.rgb(rgb) + self.flow(flow)
        return logits
