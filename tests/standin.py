"""A narrow I3D that sees its input, and a reference written apart: torch's functions over DeepMind's names.

Networks with random running statistics can be blind to their input, so these were calibrated by training passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidweights import clips
from vidweights.families.i3d import I3DConfig
from vidweights.layout import Array
from vidweights.models.i3d import I3D

NARROW = I3DConfig(num_classes=10, depth_multiplier=1 / 16)


@cache
def calibrated_arrays(config: I3DConfig = NARROW) -> Mapping[str, Array]:
    """The canonical tensors of a network with random weights, and the batch-norm statistics that noise has in it."""
    torch.manual_seed(0)
    model: Any = I3D(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.bias, std=0.5)
            module.momentum = None  # the plain mean over the passes
    nn.init.normal_(model.Logits.bias)
    with torch.no_grad():
        for t, h, w in ((9, 200, 224), (16, 224, 199)):
            model.train()(torch.from_numpy(clips.noise_clip(t, h, w, config.in_channels, seed=t)))
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def calibrated(config: I3DConfig = NARROW) -> Any:
    """A network of one's own with those tensors, in evaluation mode."""
    model = I3D(config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in calibrated_arrays(config).items()})
    return model.eval()


_POOLS = {"2a_3x3": ((1, 3, 3), (1, 2, 2)), "3a_3x3": ((1, 3, 3), (1, 2, 2)), "4a_3x3": ((3, 3, 3), (2, 2, 2))}
_POOLS["5a_2x2"] = ((2, 2, 2), (2, 2, 2))
_ORDER = (
    *("Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "MaxPool3d_3a_3x3"),
    *("Mixed_3b", "Mixed_3c", "MaxPool3d_4a_3x3", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    *("MaxPool3d_5a_2x2", "Mixed_5b", "Mixed_5c"),
)


class StandIn:
    """`Reference` over the variables of a scoped DeepMind checkpoint, kernels (T, H, W, I, O)."""

    name = "stand-in"
    version = "1"
    framework = "tensorflow"  # so that it is compared as another framework's would be

    def __init__(self, variables: Mapping[str, Array], epsilon: float = 1e-3) -> None:
        self.variables = {name.split("inception_i3d/")[-1]: value for name, value in variables.items()}
        self.epsilon = epsilon

    @torch.no_grad()
    def endpoints(self, clip: Any, precision: str) -> dict[str, Array]:
        self.dtype = getattr(torch, precision)
        net, ends = torch.from_numpy(np.array(clip)).to(self.dtype), {}
        for name in _ORDER:
            if name.startswith("Mixed"):
                net = self.mixed(name, net)
            elif name.startswith("MaxPool3d"):
                net = self.pool(net, *_POOLS[name.removeprefix("MaxPool3d_")])
            else:
                net = self.unit(name, net, 2 if name == "Conv3d_1a_7x7" else 1)
            ends[name] = net.numpy()
        pooled = F.avg_pool3d(net, (2, 7, 7), stride=1)
        ends["Logits"] = self.convolve("Logits/Conv3d_0c_1x1", pooled, 1, bias=True).mean(2)[:, :, 0, 0].numpy()
        return ends

    def variable(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.variables[name])).to(self.dtype)

    def unit(self, name: str, net: Tensor, stride: int = 1) -> Tensor:
        net = self.convolve(name, net, stride)
        beta, mean, variance = (
            self.variable(f"{name}/batch_norm/{leaf}").reshape(1, -1, 1, 1, 1)
            for leaf in ("beta", "moving_mean", "moving_variance")
        )
        return F.relu((net - mean) / (variance + self.epsilon).sqrt() + beta)

    def convolve(self, name: str, net: Tensor, stride: int, bias: bool = False) -> Tensor:
        kernel = self.variable(f"{name}/conv_3d/w").permute(4, 3, 0, 1, 2)
        padded = self.padded(net, kernel.shape[2:], (stride,) * 3, 0.0)
        return F.conv3d(padded, kernel, self.variable(f"{name}/conv_3d/b") if bias else None, stride)

    def mixed(self, name: str, net: Tensor) -> Tensor:
        last = "0a" if name == "Mixed_5b" else "0b"
        one = self.unit(f"{name}/Branch_1/Conv3d_0a_1x1", net)
        two = self.unit(f"{name}/Branch_2/Conv3d_0a_1x1", net)
        branches = (
            self.unit(f"{name}/Branch_0/Conv3d_0a_1x1", net),
            self.unit(f"{name}/Branch_1/Conv3d_0b_3x3", one),
            self.unit(f"{name}/Branch_2/Conv3d_{last}_3x3", two),
            self.unit(f"{name}/Branch_3/Conv3d_0b_1x1", self.pool(net, (3, 3, 3), (1, 1, 1))),
        )
        return torch.cat(branches, 1)

    def pool(self, net: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(self.padded(net, kernel, stride, float("-inf")), kernel, stride)

    @staticmethod
    def padded(net: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], fill: float) -> Tensor:
        pads: list[int] = []
        for size, window, step in zip(reversed(net.shape[2:]), reversed(kernel), reversed(stride)):
            needed = window - step if size % step == 0 else window - size % step
            pads += [max(needed, 0) // 2, max(needed, 0) - max(needed, 0) // 2]
        return F.pad(net, pads, value=fill)
