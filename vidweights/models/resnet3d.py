"""3D ResNets in PyTorch, built from the layer table of `vidweights.families.resnet3d`."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidweights.errors import InputError
from vidweights.families import resnet3d as family
from vidweights.families.resnet import HEAD
from vidweights.families.resnet3d import Block3D, ResNet3DConfig
from vidweights.families.units import Pool, Unit
from vidweights.models.inputs import check_clip
from vidweights.models.pretrained import PretrainedMixin
from vidweights.models.units import MaxPool, Padding, Style, build_unit


class Block(nn.Module):
    """A residual block: its units, and the input, projected or subsampled, added before the last ReLU.

    Where the input is not projected, channels that it does not have are zero (type A of arXiv 1512.03385).
    """

    def __init__(self, in_channels: int, block: Block3D, style: Style) -> None:
        super().__init__()
        width = in_channels
        for unit in block.units:
            self.add_module(unit.name, build_unit(width, unit, style))
            width = unit.channels
        self.downsample = build_unit(in_channels, block.shortcut, style) if block.shortcut else None
        self.names = tuple(unit.name for unit in block.units)
        self.stride = block.stride
        self.new_channels = width - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        shortcut = self._subsampled(x) if self.downsample is None else self.downsample(x)
        for name in self.names:
            x = self.get_submodule(name)(x)
        x += shortcut
        return F.relu(x, inplace=True)

    def _subsampled(self, x: Tensor) -> Tensor:
        t, h, w = self.stride
        x = x[:, :, ::t, ::h, ::w]
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x


class ResNet3D(PretrainedMixin, nn.Module):
    """A 3D ResNet: stem, max-pool, four groups of blocks, global average pool, fully connected layer.

    Its `state_dict` has the canonical names of `vidweights.families.resnet3d.tensors`. Clips are (N, C, T, H, W) of
    the floating dtype of the weights, in the range and channel order that the weights' `config.json` states; any H
    and W, and any T that the strides and pools of the variant leave a frame of (for R2D exactly `config.frames`).

    Args:
        config: depth, classes, variant, and what the released code does.
        dropout: share of the pooled features that is dropped in training, before the head.
    """

    def __init__(self, config: ResNet3DConfig = ResNet3DConfig(), *, dropout: float = 0.0) -> None:  # noqa: B008
        super().__init__()
        self.config = config
        padding = Padding("symmetric", "symmetric", replicate=config.time_padding == "replicate")
        style = Style(padding, config.batch_norm_epsilon, family.FACTS["batch_norm_momentum"])
        pool_padding = replace(padding, space=config.pool_padding)
        width, groups = config.in_channels, dict[str, nn.Sequential]()
        for layer in family.layers(config):
            match layer:
                case Unit():
                    self.add_module(layer.name, build_unit(width, layer, style))
                    width = layer.channels
                case Pool():
                    self.add_module(layer.name, MaxPool(layer.kernel, layer.stride, pool_padding))
                case Block3D():
                    name = layer.name.partition(".")[0]
                    if name not in groups:
                        groups[name] = nn.Sequential()
                        self.add_module(name, groups[name])
                    groups[name].append(Block(width, layer, style))
                    width = layer.units[-1].channels
        self.dropout = nn.Dropout(dropout)
        self.fc: nn.Linear | None = None
        self.reset_head(config.num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """He's initialisation for the kernels (arXiv 1502.01852), as torchvision/models/video/resnet.py has it."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def reset_head(self, num_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Put a new head in, drawn as torchvision does (or none, for 0 classes), and update `config`.

        It has the device and the dtype of the rest. `generator` makes the draw repeatable.

        Raises:
            UsageError: `num_classes` is negative.
        """
        self.config = replace(self.config, num_classes=num_classes)
        self.fc = None
        if num_classes:
            like = next(self.parameters())
            self.fc = nn.Linear(self.config.feature_channels, num_classes, device=like.device, dtype=like.dtype)
            nn.init.normal_(self.fc.weight, 0, 0.01, generator=generator)
            nn.init.zeros_(self.fc.bias)
            self.fc.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before the softmax.

        Args:
            x: clips (N, C, T, H, W).

        Returns:
            (N, num_classes); for a network without head the pooled features.

        Raises:
            InputError: the dtype, or the number of axes, channels or frames does not fit.
        """
        features = self.features(x)
        if self.config.head_window is not None:
            self._check_window(features)
            features = F.avg_pool3d(features, self.config.head_window, stride=1)
        # The head is linear: the mean of the scores is the score of the mean.
        return self._classify(features.mean((2, 3, 4)))

    def _check_window(self, features: Tensor) -> None:
        found, window = tuple(features.shape[2:]), self.config.head_window
        if any(n < k for n, k in zip(found, window or ())):
            raise InputError(f"clip too small: {found} (T, H, W) is left of it where the head averages {window}")

    def features(self, x: Tensor) -> Tensor:
        """The output of the last block: (N, C, T, H, W) to (N, C', T', H / 32, W / 32).

        Raises:
            InputError: as for `forward`.
        """
        check_clip(x, next(self.parameters()).dtype, self.config.in_channels, "")
        if self.config.frames not in (None, x.shape[2]):
            raise InputError(
                f"the clip has {x.shape[2]} frames; expected {self.config.frames}, since the frames of R2D are channels"
            )
        for name, module in self.named_children():
            if name in (HEAD, "dropout"):
                continue
            if name == "pool2" and x.shape[2] < 2:
                raise InputError(f"clip too short: {x.shape[2]} frame is left where {self.config.variant} pools two")
            x = module(x)
        return x

    def per_frame(self, x: Tensor) -> Tensor:
        """Class scores of each output frame by itself; their mean over T' is what `forward` gives.

        Args:
            x: clips (N, C, T, H, W).

        Returns:
            (N, T', num_classes); for a network without head the features of each frame, averaged over space.
        """
        return self._classify(self.features(x).mean((3, 4)).transpose(1, 2))

    def _classify(self, pooled: Tensor) -> Tensor:
        return pooled if self.fc is None else self.fc(self.dropout(pooled))
