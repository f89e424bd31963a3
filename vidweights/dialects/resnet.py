"""The released namings of 2D ResNets.

PyTorch stores a kernel as `OIHW`, TensorFlow and Keras as `HWIO`; the head is a matrix (`OI`, `IO`), and in TF-slim a
1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Callable

from vidweights.dialects.base import COUNTERS, MOMENTUM, TF_NORM, Dialect, Ignored, Place, Stored
from vidweights.families.base import Tensor
from vidweights.families.resnet import HEAD, RESNET, STEM


def _split(name: str) -> tuple[str, str, str, str]:
    """`layer1.0.conv2.bn.bias` -> (`layer1.0`, `conv2`, `bn`, `bias`); the stem has no block, the head no part."""
    *path, last = name.split(".")
    if path == [HEAD]:
        return "", HEAD, "", last
    *block, conv, part = path
    return ".".join(block), conv, part, last


def _torchvision(tensor: Tensor) -> Place:
    block, conv, part, last = _split(tensor.name)
    if conv in (HEAD, STEM):
        return Stored(f"{HEAD if conv == HEAD else {'conv': 'conv1', 'bn': 'bn1'}[part]}.{last}", tensor.layout)
    if conv == "downsample":
        unit = f"downsample.{0 if part == 'conv' else 1}"
    else:
        unit = conv if part == "conv" else conv.replace("conv", "bn")
    return Stored(f"{block}.{unit}.{last}", tensor.layout)


def _keras(head: str) -> Callable[[Tensor], Place]:
    def bind(tensor: Tensor) -> Place:
        block, conv, part, last = _split(tensor.name)
        if conv == HEAD:
            return Stored(f"{head}/kernel", "IO") if last == "weight" else Stored(f"{head}/bias", "C")
        if conv == STEM:
            unit = "conv1"
        else:
            group, index = block.removeprefix("layer").split(".")
            number = "0" if conv == "downsample" else conv.removeprefix("conv")
            unit = f"conv{int(group) + 1}_block{int(index) + 1}_{number}"
        if part == "bn":
            return Stored(f"{unit}_bn/{TF_NORM[last]}", "C")
        return Stored(f"{unit}_conv/kernel", "HWIO") if last == "weight" else Stored(f"{unit}_conv/bias", "C")

    return bind


def _slim(tensor: Tensor) -> Place:
    block, conv, part, last = _split(tensor.name)
    if conv == HEAD:
        return Stored("logits/weights", "11IO") if last == "weight" else Stored("logits/biases", "C")
    if conv == STEM:
        unit = "conv1"
    else:
        group, index = block.removeprefix("layer").split(".")
        unit = f"block{group}/unit_{int(index) + 1}/bottleneck_v1/{'shortcut' if conv == 'downsample' else conv}"
    return Stored(f"{unit}/weights", "HWIO") if part == "conv" else Stored(f"{unit}/BatchNorm/{TF_NORM[last]}", "C")


_KERAS_SETTINGS = {"stride_on": "1x1", "conv_bias": True, "batch_norm_epsilon": 1.001e-5}
_KERAS_SOURCE = "keras-team/keras@3.15.1:keras/src/applications/resnet.py"

DIALECTS = (
    Dialect(
        "torchvision-resnet",
        RESNET,
        "torch",
        _torchvision,
        "pytorch/vision@0.28.0:torchvision/models/resnet.py; timm has the same names",
        settings={"stride_on": "3x3", "conv_bias": False, "batch_norm_epsilon": 1e-5, "pool_padding": "symmetric"},
        ignored=(COUNTERS,),
        separator=".",
    ),
    Dialect("keras-resnet", RESNET, "keras", _keras("predictions"), _KERAS_SOURCE, settings=_KERAS_SETTINGS),
    # The files that keras-applications released call the head so; Keras loads them by position.
    Dialect("keras-resnet-probs", RESNET, "keras", _keras("probs"), _KERAS_SOURCE, settings=_KERAS_SETTINGS),
    Dialect(
        "slim-resnet",
        RESNET,
        "tensorflow",
        _slim,
        "tensorflow/models@169dcbd0:research/slim/nets/resnet_v1.py",
        settings={"stride_on": "last", "pool_padding": "same"},
        ignored=(
            MOMENTUM,
            Ignored("mean_rgb", "the mean of the images, which the input states"),
        ),
        separator="/",
    ),
)
