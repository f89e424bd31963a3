"""TF-slim's networks as the genuine code ran them: their variables, drawn again without TensorFlow, images and logits.

`tensorflow.contrib.slim.nets` of tensorflow 1.15.5 (v1.15.4-39-g3db52be) built the networks, `is_training=False`, and
computed the logits, in float32 and in float64. Its variables were the ones of `variables`: everything is drawn here
but the statistics of the batch norms, which it calibrated by a train-mode pass over sixteen other images, and which
were rounded to float16 before the logits were computed.

`data/slim_names.json` has every variable and shape that it creates; `data/slim_<name>.npz` the statistics, and the
logits of `images`.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_DATA = Path(__file__).parent / "data"
_SHAPES = ((2, 224, 224, 3), (1, 209, 193, 3))
_CELL = 112  # the side of an image's patches of one colour
# What TF-slim subtracts before its VGG-style networks, resnet_v1 among them (preprocessing/vgg_preprocessing.py).
_MEAN_RGB = (123.68, 116.78, 103.94)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """{variable: shape}, in the order of creation, of `inception_v1`, `resnet_v1_50`, `resnet_v1_101` or `_152`."""
    names = json.loads((_DATA / "slim_names.json").read_text())[name]
    return {variable: tuple(shape) for variable, shape in names.items()}


def variables(name: str) -> dict[str, Floats]:
    """{variable: values} of `inception_v1` (1001 classes) or `resnet_v1_50` (1000)."""
    statistics = _stored(name)
    return {
        variable: statistics[variable].astype(np.float32) if "/moving_" in variable else draw(variable, shape)
        for variable, shape in shapes(name).items()
    }


def logits(name: str, dtype: str = "float32") -> list[NDArray[Any]]:
    """The logits `(N, classes)` of each batch of `images`, computed in float32 or in float64."""
    stored = _stored(name)
    return [stored[f"logits/{dtype}/{batch}"] for batch in range(len(_SHAPES))]


def images(name: str) -> list[Floats]:
    """Two batches `(N, H, W, 3)`: two images of 224 x 224 and one of 209 x 193, preprocessed as the network wants."""
    return [preprocess(name, pixels(f"images{batch}", shape)) for batch, shape in enumerate(_SHAPES)]


def preprocess(name: str, image: Floats) -> Floats:
    """RGB of 0 to 255, as the network wants it: without the mean for a ResNet, from -1 to 1 for Inception."""
    if name == "inception_v1":
        return image * np.float32(2 / 255) - np.float32(1)
    return image - np.array(_MEAN_RGB, np.float32)


def draw(variable: str, shape: tuple[int, ...]) -> Floats:
    """The values of a variable that is no statistic."""
    drawn = _uniform(variable, shape)
    if variable.endswith("/gamma"):
        return np.float32(1) + drawn * np.float32(1 / 2)
    if len(shape) == 1:  # beta, or the biases of the logits
        return drawn * np.float32(1 / 4)
    return drawn * np.float32(math.sqrt(6 / math.prod(shape[:-1])))


def pixels(seed: str, shape: tuple[int, ...]) -> Floats:
    """Images `(N, H, W, 3)` of whole numbers from 0 to 255: patches of one colour under fine noise."""
    n, height, width, channels = shape
    patches = _uniform(f"{seed}/patches", (n, -(-height // _CELL), -(-width // _CELL), channels))
    coarse = patches.repeat(_CELL, 1).repeat(_CELL, 2)[:, :height, :width]
    rounded: Floats = np.rint(
        np.float32(128) + np.float32(96) * coarse + np.float32(31) * _uniform(f"{seed}/noise", shape)
    )
    return rounded


def _uniform(seed: str, shape: tuple[int, ...]) -> Floats:
    """Multiples of 2**-23 from -1 on and below 1, the same on every machine and under every numpy."""
    raw = np.random.PCG64(zlib.crc32(seed.encode())).random_raw(math.prod(shape)) >> np.uint64(40)
    drawn: Floats = raw.astype(np.float32).reshape(shape) * np.float32(2**-23) - np.float32(1)
    return drawn


def _stored(name: str) -> dict[str, NDArray[Any]]:
    with np.load(_DATA / f"slim_{name}.npz") as file:
        return dict(file)
