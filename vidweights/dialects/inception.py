"""The released namings of 2D Inception v1."""

from __future__ import annotations

from vidweights.dialects.base import COUNTERS, Constant, Dialect, Ignored, Place, Stored
from vidweights.families.base import Tensor
from vidweights.families.i3d import HEAD
from vidweights.families.inception import INCEPTION

_TF_NORM = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

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
    *path, last = tensor.name.split(".")
    if path == [HEAD]:
        unit = "Logits/Conv2d_0c_1x1"
        return Stored(f"{unit}/weights", "11IO") if last == "weight" else Stored(f"{unit}/biases", "C")
    *names, part = path
    # inception_v1.py calls this one kernel 0a, where its eight siblings are 0b; DeepMind's I3D inherited it.
    if names == ["Mixed_5b", "Branch_2", "Conv3d_0b_3x3"]:
        names[-1] = "Conv3d_0a_3x3"
    unit = "/".join(names).replace("Conv3d", "Conv2d")
    if part == "conv":
        return Stored(f"{unit}/weights", "HWIO")
    return Constant(1.0) if last == "weight" else Stored(f"{unit}/BatchNorm/{_TF_NORM[last]}", "C")


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
        ignored=(Ignored("*/RMSProp*", "optimiser slot"), Ignored("*/Momentum", "optimiser slot")),
        separator="/",
    ),
)
