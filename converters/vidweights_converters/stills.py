"""The images and clips that the proof of an inflated network runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidweights.clips import moving_clip, noise_clip

Values = NDArray[np.float64]
Floats = NDArray[np.float32]

# The spread of values that a source expects, roughly: these take 0..255 less the mean, the others what is normalised.
_WIDE = {"keras-resnet": 100.0, "keras-resnet-probs": 100.0, "slim-resnet": 100.0}


@dataclass(frozen=True)
class NamedInput:
    """An image (1, C, H, W) with the number of frames that it is repeated over, or a clip (1, C, T, H, W); float64."""

    kind: str
    array: Values
    frames: int

    @property
    def name(self) -> str:
        """Kind and size, T x H x W."""
        height, width = self.array.shape[-2:]
        return f"{self.kind} {self.frames}x{height}x{width}"

    @property
    def still(self) -> bool:
        """Whether all its frames are one image."""
        return self.array.ndim == 4

    @property
    def sha256(self) -> str:
        """The SHA-256 of the image's or the clip's bytes."""
        return hashlib.sha256(self.array.tobytes()).hexdigest()

    def clip(self, frames: int | None = None) -> Values:
        """(1, C, T, H, W), the still clip of `frames` (its own number if not given) for an image."""
        if not self.still:
            return self.array
        return np.repeat(self.array[:, :, None], frames or self.frames, axis=2)


def images(channels: int, dialect: str) -> tuple[NamedInput, ...]:
    """Three images of different kinds, so that no sound network takes them for the same; the smallest first.

    H and W differ and are odd and even, and T is odd and even.
    """
    spread = _WIDE.get(dialect, 1.0)

    def named() -> Iterator[tuple[str, Floats, int]]:
        yield "noise", noise_clip(1, 65, 80, channels, seed=0)[:, :, 0] + _cast(channels, seed=10), 9
        yield "patches", _patches(82, 67, channels, seed=1) + _cast(channels, seed=11), 16
        yield "texture", moving_clip(1, 72, 97, channels, seed=2)[:, :, 0], 17

    return tuple(NamedInput(kind, array.astype(np.float64) * spread, frames) for kind, array, frames in named())


def noise(channels: int, dialect: str) -> tuple[NamedInput, ...]:
    """Clips of unrelated frames, of odd and even T."""
    spread, sizes = _WIDE.get(dialect, 1.0), ((9, 65, 80), (16, 66, 71))
    return tuple(
        NamedInput("changing noise", noise_clip(*size, channels, seed=20 + i).astype(np.float64) * spread, size[0])
        for i, size in enumerate(sizes)
    )


def _cast(channels: int, seed: int) -> Floats:
    """A colour (1, C, 1, 1)."""
    return noise_clip(1, 1, 1, channels, seed)[:, :, 0] / np.float32(2)


def _patches(height: int, width: int, channels: int, seed: int) -> Floats:
    """Squares of 16 pixels, each of one colour."""
    coarse = noise_clip(1, -(-height // 16), -(-width // 16), channels, seed)[:, :, 0]
    return coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
