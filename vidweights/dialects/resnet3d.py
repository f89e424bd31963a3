"""The released namings of 3D ResNets, and our own.

All are of PyTorch and Caffe2, which store a kernel as `OIDHW` and the head as a matrix `OI`. What one code does
otherwise than another stands in the settings of its dialect, in the terms of `ResNet3DConfig`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vidweights.dialects.base import COUNTERS, Bind, Dialect, Ignored, Naming, Place, Stored, native
from vidweights.families.base import Tensor
from vidweights.families.resnet import DEPTHS, HEAD, STEM
from vidweights.families.resnet3d import PAPER, RESNET3D


class _Name(NamedTuple):
    """The parts of a canonical name: `layer2.0.conv1.spatial.bn.bias` has them all; the head has only the last."""

    block: str
    unit: str
    half: str
    part: str
    last: str


def _split(name: str) -> _Name:
    *path, last = name.split(".")
    if path == [HEAD]:
        return _Name("", HEAD, "", "", last)
    *path, part = path
    half = path.pop() if path[-1] in ("spatial", "temporal") else ""
    return _Name(".".join(path[:-1]), path[-1], half, part, last)


def _torchvision(tensor: Tensor) -> Place:
    """`layer2.0.conv1.0.3.weight`: the modules are numbered, the ReLU behind a batch norm among them."""
    name = _split(tensor.name)
    if name.unit == HEAD:
        return Stored(f"{HEAD}.{name.last}", tensor.layout)
    second = 3 * (name.half == "temporal")
    if name.unit == STEM:
        module = f"stem.{second + (name.part == 'bn')}"
    elif name.part == "bn" and name.half != "spatial":
        module = f"{name.block}.{name.unit}.1"
    elif name.half:
        module = f"{name.block}.{name.unit}.0.{second + (name.part == 'bn')}"
    else:
        module = f"{name.block}.{name.unit}.0"
    return Stored(f"{module}.{name.last}", tensor.layout)


_CAFFE2_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def _caffe2(depth: int) -> Bind:
    """`blobs.comp_3_conv_1_middle_w`: blocks are numbered through, and the head has the number of its classes."""
    starts = [sum(DEPTHS[depth].counts[:group]) for group in range(4)]

    def bind(tensor: Tensor) -> Place:
        name = _split(tensor.name)
        if name.unit == HEAD:
            classes = tensor.shape[0] if tensor.shape else "*"
            return Stored(f"blobs.last_out_L{classes}_{name.last[0]}", tensor.layout)
        middle = "_middle" if name.half == "spatial" else ""
        if name.unit == STEM:
            conv, norm = f"conv1{middle}", f"conv1{middle}_spatbn_relu"
        else:
            group, index = name.block.removeprefix("layer").split(".")
            number = starts[int(group) - 1] + int(index)
            if name.unit == "downsample":
                conv = f"shortcut_projection_{number}{middle}"
                norm = f"{conv}_spatbn"
            else:
                place = f"{name.unit.removeprefix('conv')}{middle}"
                conv, norm = (f"comp_{number}_{kind}_{place}" for kind in ("conv", "spatbn"))
        key = f"{conv}_w" if name.part == "conv" else f"{norm}_{_CAFFE2_NORM[name.last]}"
        return Stored(f"blobs.{key}", tensor.layout)

    return bind


def _mmaction2(tensor: Tensor) -> Place:
    """`backbone.layer2.0.conv1.conv.conv_s.weight`: each convolution is a module with its batch norm."""
    name = _split(tensor.name)
    if name.unit == HEAD:
        return Stored(f"cls_head.fc_cls.{name.last}", tensor.layout)
    unit = f"{name.block}.{name.unit}" if name.block else "conv1"
    part = name.part
    if name.half == "spatial":
        part = f"conv.{name.part}_s"
    elif name.half == "temporal" and name.part == "conv":
        part = "conv.conv_t"
    return Stored(f"backbone.{unit}.{part}.{name.last}", tensor.layout)


def _kenshohara(tensor: Tensor) -> Place:
    """`layer2.0.conv1_s.weight`, `layer2.0.bn1_s.weight`: convolutions and batch norms stand side by side."""
    name = _split(tensor.name)
    if name.unit == HEAD:
        return Stored(f"{HEAD}.{name.last}", tensor.layout)
    half = f"_{name.half[0]}" if name.half else ""
    if name.unit == "downsample":
        module = f"{name.block}.downsample.{0 if name.part == 'conv' else 1}{half}"
        return Stored(f"{module}.{name.last}", tensor.layout)
    number = "1" if name.unit == STEM else name.unit.removeprefix("conv")
    module = f"{name.part}{number}{half}"
    return Stored(f"{name.block}.{module}.{name.last}" if name.block else f"{module}.{name.last}", tensor.layout)


def _pytorchvideo(tensor: Tensor) -> Place:
    """`blocks.2.res_blocks.0.branch2.conv_b.conv_xy.weight`: the stem, each group and the head are blocks."""
    name = _split(tensor.name)
    if name.unit == HEAD:
        return Stored(f"blocks.5.proj.{name.last}", tensor.layout)
    part = {"conv": "conv", "bn": "norm"}[name.part]
    if name.unit == STEM:
        return Stored(f"blocks.0.{part}{name.half and f'.{name.half}'}.{name.last}", tensor.layout)  # never in halves
    group, index = name.block.removeprefix("layer").split(".")
    block = f"blocks.{group}.res_blocks.{index}"
    if name.unit == "downsample":
        return Stored(f"{block}.branch1_{part}.{name.last}", tensor.layout)
    letter = "abc"[int(name.unit.removeprefix("conv")) - 1]
    module = f"{part}_{letter}"
    if name.half and (
        name.part == "conv" or name.half == "temporal"
    ):  # the batch norm of the second half is the unit's
        inner = {"spatial": "conv_xy", "temporal": "conv_t"}[name.half] if name.part == "conv" else "norm"
        module = f"conv_{letter}.{inner}"
    return Stored(f"{block}.branch2.{module}.{name.last}", tensor.layout)


# What no tensor tells, as most of the released codes have it.
_LINE: dict[str, Any] = {
    "time_padding": "zero",
    "stride_on": "3x3",
    "conv_bias": False,
    "pool_padding": "symmetric",
    "pool_time": None,
    "time_first": False,
    "shortcut": "projection",
    "space_strides": None,
    "time_strides": None,
    "head_window": None,
    "middle_epsilon": None,
}
_PAPER = tuple(PAPER)
# `use_pool1` would put a max-pool behind the stem; no release did (the operations that model_zoo.md counts for the 152
# layers are those without it).
_VMZ = {**_LINE, "batch_norm_epsilon": 1e-3, "stem_pool": False, "planes": "conv", "stem_planes": 45}


def _mmaction2_dialect(name: str, file: str, **settings: Any) -> Dialect:
    return Dialect(
        f"mmaction2-{name}",
        RESNET3D,
        "torch",
        _mmaction2,
        f"open-mmlab/mmaction2@4d6c9347:mmaction/models/backbones/{file}",
        settings={**_LINE, "stem_pool": True, "stem_frames": None, **settings},
        ignored=(
            COUNTERS,
            Ignored("data_preprocessor.*", "the mean and deviation of the input, which the input states"),
        ),
        separator=".",
    )


def _kenshohara_dialect(name: str, file: str, **settings: Any) -> Dialect:
    line = {key: value for key, value in _LINE.items() if key != "shortcut"}  # type A or type B, which tensors tell
    return Dialect(
        name,
        RESNET3D,
        "torch",
        _kenshohara,
        f"kenshohara/3D-ResNets-PyTorch@540a0ea1:models/{file}",
        settings={**line, "batch_norm_epsilon": 1e-5, "stem_pool": True, "pool_time": True, **settings},
        ignored=(COUNTERS,),
        separator=".",
    )


DIALECTS = (
    native(RESNET3D),
    Dialect(
        "torchvision-video",
        RESNET3D,
        "torch",
        _torchvision,
        "pytorch/vision@0.28.0:torchvision/models/video/resnet.py",
        requires={"variant": ("r3d", "mc2", "mc3", "mc4", "mc5", "r2plus1d")},
        settings={
            **_LINE,
            "batch_norm_epsilon": 1e-5,
            "stem_pool": False,
            "stem_frames": None,
            "planes": "block",
            "stem_planes": 45,
        },
        ignored=(COUNTERS,),
        separator=".",
    ),
    # moabitcoin/ig65m-pytorch@fc749e2e:ig65m/models.py takes the same state dict and computes the same.
    Dialect(
        "vmz",
        RESNET3D,
        "torch",
        _torchvision,
        "facebookresearch/VMZ@4cc542d5:pt/vmz/models/r2plus1d.py",
        settings={**_VMZ, "variant": "r2plus1d", "stem_frames": None},
        facts={"batch_norm_momentum": 0.9},
        ignored=(COUNTERS,),
        separator=".",
    ),
    Dialect(
        "vmz-caffe2",
        RESNET3D,
        "caffe2",
        tuple(Naming({"depth": depth}, _caffe2(depth)) for depth in DEPTHS),
        "facebookresearch/VMZ@4cc542d5:c2/lib/models/r3d_model.py and builder/video_model.py",
        requires={"variant": _PAPER},
        settings=_VMZ,
        ignored=(
            Ignored("blobs.*_momentum", "optimiser slot"),
            *(Ignored(f"blobs.{name}", "the learning rate") for name in ("lr", "LR")),
            *(Ignored(f"blobs.{name}", "a counter of training steps, not a weight") for name in ("model_iter", "ITER")),
        ),
        separator=".",
    ),
    _mmaction2_dialect(
        "r2plus1d",
        "resnet2plus1d.py",
        variant="r2plus1d",
        batch_norm_epsilon=1e-3,
        middle_epsilon=1e-5,  # `Conv2plus1d` is built without the configuration's `norm_cfg`
        planes="conv",
        stem_planes=None,
        shortcut="factorised",
    ),
    _mmaction2_dialect("i3d", "resnet3d.py", variant="i3d-resnet-mm", batch_norm_epsilon=1e-5),
    _mmaction2_dialect("slowonly", "resnet3d_slowonly.py", variant="slowonly", batch_norm_epsilon=1e-5),
    _kenshohara_dialect("kenshohara", "resnet.py", variant="r3d"),
    _kenshohara_dialect("kenshohara-r2plus1d", "resnet2p1d.py", variant="r2plus1d", planes="conv", stem_planes=None),
    Dialect(
        "pytorchvideo-r2plus1d",
        RESNET3D,
        "torch",
        _pytorchvideo,
        "facebookresearch/pytorchvideo@f3142bb0:pytorchvideo/models/r2plus1d.py",
        settings={
            **_LINE,
            "variant": "r2plus1d",
            "batch_norm_epsilon": 1e-5,
            "stem_pool": False,
            "stem_frames": 1,
            "planes": "width",
            "time_first": True,
            "space_strides": (2, 2, 2, 2),
            "time_strides": (1, 1, 2, 2),
            "head_window": (4, 7, 7),
        },
        facts={
            "head": "average pool of stride 1, fully connected layer, softmax, average; logits are before the softmax"
        },
        ignored=(COUNTERS,),
        separator=".",
    ),
)
