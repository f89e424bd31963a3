"""The kernels of a network's first layer, each as a strip of its steps in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vidweights import formats
from vidweights.dialects.base import Stored
from vidweights.dtypes import widened
from vidweights.families.base import Tensor
from vidweights.folder import FolderConfig
from vidweights.layout import Array, relayout
from vidweights_converters.pictures.canvas import WHITE
from vidweights_converters.pictures.png import Image

_MOST = 64  # kernels that are shown
_WIDTH = 960  # pixels, about
_PIXEL = 4  # pixels of a weight's side, at most
_GAP = 8  # between strips; between the steps of one there is one pixel


def first_tensor(config: FolderConfig) -> Tensor | None:
    """The kernel of the first layer, if it is a convolution over time and space."""
    first = next(iter(config.speaks.family.tensors(config.config)))
    return first if first.layout == "OIDHW" else None


def caption(tensor: Tensor) -> str:
    """What `draw` shows of a kernel."""
    outputs, channels, steps = tensor.shape[:3]
    shown = f"The first {_MOST} of the {outputs} kernels" if outputs > _MOST else f"The {outputs} kernels"
    how = {1: "grey", 2: "red for the first channel, green for the second", 3: "the three channels as red, green, blue"}
    colours = how.get(channels, f"the sum over the {channels} channels in grey")
    time = f"its {steps} steps in time from left to right" if steps > 1 else "which have one step in time"
    return f"{shown} of `{tensor.name}`, {time}; {colours}. Grey in the middle is zero; each is scaled by its largest."


def first_kernels(folder: Path, config: FolderConfig) -> Array | None:
    """The first layer's kernel (O, I, T, H, W) as a folder's file has it, in float64."""
    tensor = first_tensor(config)
    if tensor is None:
        return None
    place = next(row.place for row in config.speaks.table(config.config) if row.tensor.name == tensor.name)
    if not isinstance(place, Stored):
        return None
    with formats.open_checkpoint(folder / config.main) as written:
        stored = widened(written.read(place.key), written.tensors[place.key].dtype)
        return np.array(relayout(stored, place.layout, tensor.layout), np.float64)


def draw(kernels: Array) -> Image:
    """The kernels (O, I, T, H, W) in rows of strips."""
    colours = _colours(kernels[:_MOST])  # (O, T, H, W, 3)
    outputs, steps, height, width, _ = colours.shape
    size = max(min(_PIXEL, _WIDTH // (steps * width)), 1)
    colours = colours.repeat(size, 2).repeat(size, 3)
    height, width = height * size, width * size
    across = max(min(_WIDTH // (steps * (width + 1) + _GAP), outputs), 1)
    down = -(-outputs // across)
    strip = steps * (width + 1) - 1
    image = np.full((down * (height + _GAP) + _GAP, across * (strip + _GAP) + _GAP, 3), WHITE, np.uint8)
    for index, frames in enumerate(colours):
        top, left = _GAP + index // across * (height + _GAP), _GAP + index % across * (strip + _GAP)
        for step, frame in enumerate(frames):
            x = left + step * (width + 1)
            image[top : top + height, x : x + width] = frame
    return image


def _colours(kernels: Array) -> Image:
    """(O, I, T, H, W) to (O, T, H, W, 3): zero becomes the middle grey, the largest weight of a kernel 0 or 255."""
    channels = kernels.shape[1]
    if channels not in (1, 2, 3):
        kernels = kernels.sum(1, keepdims=True)
    largest = np.abs(kernels).max(axis=(1, 2, 3, 4), keepdims=True)
    scaled = np.clip(np.nan_to_num(kernels / np.where(largest > 0, largest, 1)), -1, 1)
    bytes_ = np.rint(127.5 + 127.5 * scaled).astype(np.uint8)
    if bytes_.shape[1] == 1:
        bytes_ = bytes_.repeat(3, 1)
    elif bytes_.shape[1] == 2:
        bytes_ = np.concatenate([bytes_, np.full_like(bytes_[:, :1], 128)], axis=1)
    return bytes_.transpose(0, 2, 3, 4, 1)
