"""The released namings of 2D Inception v1."""

from __future__ import annotations

from vidweights.dialects.base import COUNTERS, MOMENTUM, TF_NORM, Constant, Dialect, Ignored, Place, Stored
from vidweights.dialects.i3d import deepmind_unit, split
from vidweights.families.base import Tensor
from vidweights.families.i3d import HEAD
from vidweights.families.inception import INCEPTION

# What torchvision calls the layers in front of the Inception modules, and the units of a module.
_FRONT = {"Conv3d_1a_7x7": "conv1", "Conv3d_2b_1x1": "conv2", "Conv3d_2c_3x3": "conv3"}
_UNITS = {
    "Branch_0.Conv3d_0a_1x1": "branch1",
    "Branch_1.Conv3d_0a_1x1": "branch2.0",
    "Branch_1.Conv3d_0b_3x3": "branch2.1",
    "Branch_2.Conv3d_0a_1x1": "branch3.0",
    "Branch_2.Conv3d_0b_3x3": "branch3.1",
    "Branch_3.Conv3d_0b_1x1": "branch4.1",
}
# The modules of one size are lettered from a in torchvision, from b in TF-slim (a is the pool before them).
_LETTERS = dict(zip("bcdef", "abcde"))


def _torchvision(tensor: Tensor) -> Place:
    *path, last = tensor.name.split(".")
    if path == [HEAD]:
        return Stored(f"fc.{last}", tensor.layout)
    block, *branch, part = path
    if branch:
        size = block.removeprefix("Mixed_")
        unit = f"inception{size[0]}{_LETTERS[size[1]]}.{_UNITS['.'.join(branch)]}"
    else:
        unit = _FRONT[block]
    return Stored(f"{unit}.{part}.{last}", tensor.layout)


def _slim(tensor: Tensor) -> Place:
    path, part, last = split(tensor.name)
    # DeepMind's I3D has the names of inception_v1.py, the one odd kernel among them.
    unit = deepmind_unit(path).replace("Conv3d", "Conv2d")
    if part == "bn":
        return Constant(1.0) if last == "weight" else Stored(f"{unit}/BatchNorm/{TF_NORM[last]}", "C")
    if last == "bias":
        return Stored(f"{unit}/biases", "C")
    return Stored(f"{unit}/weights", "11IO" if path == [HEAD] else "HWIO")


DIALECTS = (
    Dialect(
        "torchvision-googlenet",
        INCEPTION,
        "torch",
        _torchvision,
        "pytorch/vision@0.28.0:torchvision/models/googlenet.py",
        settings={"padding": "symmetric"},
        ignored=(COUNTERS, Ignored("aux[12].*", "an auxiliary classifier, used in training only")),
        separator=".",
    ),
    Dialect(
        "slim-inception",
        INCEPTION,
        "tensorflow",
        _slim,
        "tensorflow/models@169dcbd0:research/slim/nets/inception_v1.py",
        ignored=(Ignored("*/RMSProp*", "optimiser slot"), MOMENTUM),
        separator="/",
    ),
)
