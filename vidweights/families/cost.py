"""What a 3D ResNet costs: parameters, multiply-adds and the size of what it puts out, from its table of layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vidweights.errors import UsageError
from vidweights.families import resnet3d
from vidweights.families.resnet3d import Block3D, ResNet3DConfig
from vidweights.families.units import Pool, Triple, Unit


@dataclass(frozen=True)
class Cost:
    """What a network costs for one clip.

    Attributes:
        parameters: the numbers that training changes; batch norm counts with two for each channel.
        multiply_adds: of convolutions and head, as papers count FLOPs; batch norm, ReLU and pools are left out.
        output: (T, H, W) of the last block's output, which is averaged.
    """

    parameters: int
    multiply_adds: int
    output: Triple


def cost(config: ResNet3DConfig, clip: Triple) -> Cost:
    """What a configuration costs for a clip of (T, H, W).

    Raises:
        UsageError: the clip is too short, or not of the length that R2D takes.
    """
    if config.frames not in (None, clip[0]):
        raise UsageError(f"R2D of {config.frames} frames takes no clip of {clip[0]}")
    walk = _Walk(config, clip)
    total = sum(walk.layers()) + config.num_classes * config.feature_channels
    numbers = (math.prod(t.shape) for t in resnet3d.tensors(config) if ".running_" not in t.name)
    return Cost(sum(numbers), total, walk.size)


class _Walk:
    """Goes through the layers with the size of what each puts out."""

    def __init__(self, config: ResNet3DConfig, clip: Triple) -> None:
        self.config, self.size, self.width = config, clip, config.in_channels

    def layers(self) -> Iterator[int]:
        """The multiply-adds of each convolution."""
        for layer in resnet3d.layers(self.config):
            match layer:
                case Unit():
                    yield from self._unit(layer)
                case Pool():
                    self.size = self._after(layer.kernel, layer.stride, folded=False)
                case Block3D():
                    before = self.size, self.width
                    for unit in layer.units:
                        yield from self._unit(unit)
                    after = self.size, self.width
                    if layer.shortcut:
                        self.size, self.width = before
                        yield from self._unit(layer.shortcut)
                    self.size, self.width = after

    def _unit(self, unit: Unit) -> Iterator[int]:
        for part in unit.parts:
            self.size = self._after(part.kernel, part.stride, folded=unit.folded)
            yield math.prod(self.size) * math.prod(part.kernel) * self.width * part.channels
            self.width = part.channels

    def _after(self, kernel: Triple, stride: Triple, *, folded: bool) -> Triple:
        pads = [k // 2 if k % 2 else 0 for k in kernel]  # a pool of even length takes whole windows only
        pads[0] = 0 if folded else pads[0]
        t, h, w = ((n + 2 * pad - k) // s + 1 for n, pad, k, s in zip(self.size, pads, kernel, stride))
        if t < 1:
            raise UsageError(f"{self.size[0]} frames are left where {self.config.variant} takes {kernel[0]}")
        return t, h, w
