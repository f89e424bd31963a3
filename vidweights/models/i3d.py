"""I3D in PyTorch, built from the layer table of `vidweights.families.i3d`.

It computes what `i3d.py` of google-deepmind/kinetics-i3d (commit 0667e889) computes, at every size of the input:
the padding is TensorFlow's `SAME`, worked out from the size that each axis has at run time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vidweights.errors import InputError, UsageError
from vidweights.families import i3d as family
from vidweights.families.i3d import ENDPOINTS, HEAD, HeadPool, I3DConfig
from vidweights.families.units import Pool, Unit
from vidweights.models.inputs import check_clip
from vidweights.models.pretrained import PretrainedMixin
from vidweights.models.units import MaxPool, Padding, Rule, Style, build_unit, sonnet_init


class Mixed(nn.Module):
    """Inception module: four branches, joined along the channels."""

    def __init__(self, in_channels: int, mixed: family.Mixed, style: Style) -> None:
        super().__init__()
        for index, branch in enumerate(mixed.branches):
            steps, width = OrderedDict[str, nn.Module](), in_channels
            for layer in branch:
                steps[layer.name], width = _build(layer, width, style)
            self.add_module(f"Branch_{index}", nn.Sequential(steps))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T, H, W)."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def _build(layer: family.Layer, in_channels: int, style: Style) -> tuple[nn.Module, int]:
    """The module of a layer, and the number of channels that it puts out."""
    match layer:
        case Unit():
            return build_unit(in_channels, layer, style), layer.channels
        case family.Mixed():
            return Mixed(in_channels, layer, style), layer.out_channels
        case Pool():
            return MaxPool(layer.kernel, layer.stride, style.padding), in_channels


def _style(config: I3DConfig) -> Style:
    """How the units of a configuration pad and normalise."""
    space: Rule = "same" if config.padding == "same" else "ceil"
    padding = Padding(time="same", space=space, replicate=config.time_padding == "replicate")
    return Style(padding, config.batch_norm_epsilon, family.FACTS["batch_norm_momentum"])


def feature_shape(config: I3DConfig, endpoint: str, size: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape (C', T', H', W') of an endpoint for clips of `size` (T, H, W); nothing is computed.

    Each axis is divided by the product of the strides so far, rounded up: at `Mixed_5c` T' = ceil(T / 8),
    H' = ceil(H / 32) and W' = ceil(W / 32). (With the `padding` of torchvision's GoogLeNet H' and W' may be one less.)

    Raises:
        UsageError: there is no such endpoint.
    """
    _check_endpoint(endpoint)
    channels, (t, h, w) = config.in_channels, size
    for layer in family.layers(config):
        match layer:
            case family.Mixed():
                channels = layer.out_channels
            case Unit() | Pool():
                t, h, w = (-(-n // s) for n, s in zip((t, h, w), layer.stride))
                channels = layer.channels if isinstance(layer, Unit) else channels
        if layer.name == endpoint:
            break
    return channels, t, h, w


def _check_endpoint(endpoint: str) -> None:
    if endpoint not in ENDPOINTS:
        raise UsageError(f"no endpoint is called {endpoint!r}; there are: {', '.join(ENDPOINTS)}")


class I3D(PretrainedMixin, nn.Module):
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
        head_pool: in place of the configuration's: `release` averages 2 frames x 7 x 7 with stride 1, which needs H
            and W from 193 to 224 and T >= 9; `mean` averages over time and space, at any size. They differ in how they
            weigh the first and last frames.
    """

    def __init__(
        self,
        config: I3DConfig = I3DConfig(),  # noqa: B008  (frozen)
        *,
        dropout: float = 0.0,
        head_pool: HeadPool | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.head_pool = (config if head_pool is None else replace(config, head_pool=head_pool)).head_pool
        width, style = config.in_channels, _style(config)
        for layer in family.layers(config):
            module, width = _build(layer, width, style)
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
            sonnet_init(self.Logits, generator)

    @property
    def _stem(self) -> Tensor:
        return next(self.parameters())

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

    def per_frame(self, x: Tensor) -> Tensor:
        """Class scores of each output frame by itself; the mean over T' is what `forward` gives with `mean`.

        Args:
            x: clips (N, C, T, H, W) in [-1, 1], of any size.

        Returns:
            (N, T', num_classes); for a network without head the features of each frame, averaged over space.
        """
        self._check(x)
        return self._classify(self._run(x).mean((3, 4), keepdim=True)).mean((3, 4)).transpose(1, 2)

    def _head(self, x: Tensor) -> Tensor:
        """Map `Mixed_5c` (N, C, T', H', W') to (N, num_classes), or to (N, C) without head."""
        pooled = x.mean((3, 4), keepdim=True)
        if self.head_pool == "release":
            # The mean of a 2x7x7 window over a 7x7 map; torch lacks avg_pool3d for float16 and bfloat16 on a CPU.
            pooled = (pooled[:, :, :-1] + pooled[:, :, 1:]) / 2
        else:
            pooled = pooled.mean(2, keepdim=True)
        return self._classify(pooled).mean((2, 3, 4))

    def _classify(self, pooled: Tensor) -> Tensor:
        return pooled if self.Logits is None else self.Logits(self.dropout(pooled))

    def _check(self, x: Tensor, *, pooled: bool = False) -> None:
        """Refuse a clip that does not fit the network, from its dtype and shape alone.

        Raises:
            InputError: what was found, what is expected, and the likely cause.
        """
        check_clip(x, self._stem.dtype, self.config.in_channels)
        if pooled and self.head_pool == "release":
            _check_release_size(self.config, x.shape[2:])


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
