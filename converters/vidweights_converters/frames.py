"""Which input frame each output frame of a 3D network stands for, where only the centre of its kernels counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vidweights.families import i3d, resnet3d
from vidweights.families.resnet3d import Block3D, ResNet3DConfig
from vidweights.families.units import Pool, Unit

Layer = Unit | Pool | Block3D | i3d.Mixed


def frame_map(config: ResNet3DConfig, frames: int) -> tuple[int, ...]:
    """The input frame that the centre taps of all layers lead to, for each output frame of a clip of `frames`.

    Raises:
        AssertionError: the two paths of a residual block do not lead to the same frame.
    """
    inputs = tuple(range(frames))
    for layer in resnet3d.layers(config):
        if not isinstance(layer, Block3D):
            inputs = _behind(inputs, layer.kernel[0], layer.stride[0])
            continue
        shortcut = _behind(inputs, 1, layer.stride[0])
        for unit in layer.units:
            inputs = _behind(inputs, unit.kernel[0], unit.stride[0])
        assert inputs == shortcut, (layer.name, inputs, shortcut)
    return inputs


def _behind(inputs: tuple[int, ...], kernel: int, stride: int) -> tuple[int, ...]:
    """The frames that stand at the centre of a layer's windows; half the kernel is padded on both sides."""
    before = kernel // 2
    outputs = (len(inputs) + 2 * before - kernel) // stride + 1
    return tuple(inputs[j * stride - before + kernel // 2] for j in range(outputs))


def pools_over_time(config: Any) -> bool:
    """Whether a max-pool takes more than one frame."""
    return any(isinstance(layer, Pool) and layer.kernel[0] > 1 for layer in _layers(config))


def mixes_frames(config: Any) -> bool:
    """Whether a convolution takes more than one frame."""
    return any(isinstance(layer, Unit) and layer.kernel[0] > 1 for layer in _layers(config))


def _layers(config: Any) -> Iterator[Layer]:
    """The layers of a configuration, and those inside residual blocks."""
    for layer in resnet3d.layers(config) if isinstance(config, ResNet3DConfig) else i3d.layers(config):
        yield layer
        if isinstance(layer, Block3D):
            yield from layer.units
