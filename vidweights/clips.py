"""Frames to tensors: a release's preprocessing as data, the transform built from it, and seeded test clips."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import InputError
from vidweights.footage import Footage, Source, load_array, open_footage
from vidweights.preprocessing import CHANNELS, RESIZERS, Preprocessing, Rounding
from vidweights.progress import Progress, silent
from vidweights.sampling import Sampling, sample

if TYPE_CHECKING:
    import torch

__all__ = ["ClipTransform", "Preprocessing", "moving_clip", "noise_clip", "read_clip"]

_MOST_PIXELS = 1 << 26  # of a resized frame: one of 1x9999 would fill the memory

_ROUND: dict[Rounding, Callable[[float], int]] = {
    "down": math.floor,
    "nearest": lambda x: math.floor(x + 0.5),
    "up": math.ceil,
    "even": round,
}


class ClipTransform:
    """Turns decoded frames, or a video, into clips, as a `Preprocessing` says.

    Frames are resized bilinearly with half-pixel centres (`align_corners=False` in torch). What else there is to
    choose (antialiasing, rounding to 8 bits, where the odd pixel goes) is that of the preprocessing's `resizer`.
    DeepMind's README says bilinear and no more, and the library behind it was never released as it was used: `plain`
    does not antialias, does not round, and leaves an odd pixel at the bottom or right.

    A flow field that is resized is also multiplied by the same factor, since its values are pixels: DeepMind computed
    TV-L1 flow on frames of 25 per second that were resized already.

    Example:
        >>> transform = ClipTransform(Preprocessing())
        >>> logits = model(transform(frames)[None])  # uint8 (T, H, W, 3) -> float32 (3, T, 224, 224)
        >>> logits = model(transform.video("video.mp4"))  # (N, 3, 64, 224, 224)
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, frames: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        """Transform the frames of one clip, in time order and at the preprocessing's `fps` and `stride`.

        Args:
            frames: for RGB and BGR (T, H, W, 3), red first, uint8, or floats in [0, 255] and not scaled to [0, 1];
                for flow (T, H, W, 2), x first, floats in pixels.

        Returns:
            float32 (C, T, crop, crop) within `value_range`, less `mean` and over `std`, on the device of `frames`.

        Raises:
            InputError: the shape, the dtype or the range of the values is not that.
        """
        import torch

        pixels = self._checked(frames)
        # One frame at a time: a long high-resolution video does not fit in memory as float32.
        return torch.stack([self._frame(frame) for frame in pixels], dim=1)

    def video(
        self,
        source: Source,
        *,
        clips: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
        progress: Progress = silent,
    ) -> torch.Tensor:
        """The clips of a whole video, as the release samples them.

        Args:
            source: a video file (`vidweights.video` says which), or all frames of one: an array or tensor as `__call__`
                takes it, an `.npy` file of one, or a folder of images (for flow, of `.npy` files (H, W, 2)).
            clips: how many, evenly spaced (one is the middle of the video); as many as the release is measured with
                if not given.
            frames: how long each is; as the release was trained on if not given.
            fps: the rate of frames that come without one (all but video files); the release's own if not given.
            progress: told how many of the frames are done.

        Returns:
            float32 (clips, C, frames, crop, crop).

        Raises:
            InputError: the frames do not fit, or are too few for a clip and the release does not repeat them.
            FormatError: the file is damaged, or is no video.
            UnavailableError: PyAV, which decodes video, is not installed.
        """
        with open_footage(source, self.preprocessing, fps) as footage:
            chosen = sample(footage.timeline, self.preprocessing, clips=clips, frames=frames)
            return self.clips(footage, chosen, progress)

    def clips(self, footage: Footage, chosen: Sampling, progress: Progress = silent) -> torch.Tensor:
        """The clips of opened footage; each frame is decoded and transformed once, and no others are held.

        Returns:
            float32 (clips, C, frames, crop, crop).
        """
        import torch

        wanted, places = np.unique(chosen.indices, return_inverse=True)
        places = places.reshape(chosen.indices.shape)
        crop, channels = self.preprocessing.crop, CHANNELS[self.preprocessing.channels]
        count, length = chosen.indices.shape
        out = torch.empty((count, channels, length, crop, crop))
        brightest = 0.0
        for done, frame in enumerate(footage.read(wanted)):
            (pixels,) = self._checked(frame[None], whole=False)
            if pixels.is_floating_point():
                brightest = max(brightest, float(pixels.max()))
            image = self._frame(pixels)
            for clip, time in np.argwhere(places == done):
                out[clip, :, time] = image
            progress("frames", done + 1, len(wanted))
        _check_scale(brightest, self.preprocessing.channels, f"the frames are floats of at most {brightest:.4g}")
        return out

    def _checked(self, frames: Any, *, whole: bool = True) -> torch.Tensor:
        """Frames (T, H, W, C) as a tensor; of some of a clip, one cannot tell the scale from how bright they are.

        Raises:
            InputError: they do not fit.
        """
        pixels = _as_tensor(frames)
        _check_shape(tuple(pixels.shape), CHANNELS[self.preprocessing.channels])
        _check_values(pixels, self.preprocessing.channels, whole=whole)
        return pixels

    def _frame(self, frame: torch.Tensor) -> torch.Tensor:
        """Map one frame (H, W, C) to (C, crop, crop)."""
        return self._normalise(self._scale(self._crop(self._resize(frame.permute(2, 0, 1)))))

    def _scale(self, image: torch.Tensor) -> torch.Tensor:
        """Bring the values into `value_range`, and the channels into their order."""
        low, high = self.preprocessing.value_range
        if self.preprocessing.channels == "flow":
            clamp = self.preprocessing.flow_clamp
            if clamp is None:
                return image
            return image.clamp(-clamp, clamp) / (2 * clamp / (high - low)) + (high + low) / 2
        if self.preprocessing.channels == "bgr":
            image = image.flip(0)
        return image / (255 / (high - low)) + low

    def _normalise(self, image: torch.Tensor) -> torch.Tensor:
        if self.preprocessing.mean is not None:
            image = image - image.new_tensor(self.preprocessing.mean).view(-1, 1, 1)
        if self.preprocessing.std is not None:
            image = image / image.new_tensor(self.preprocessing.std).view(-1, 1, 1)
        return image

    def _resize(self, image: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        height, width = image.shape[1:]
        size = self._size(height, width)
        if size == (height, width):
            return image.float()
        if size[0] * size[1] > _MOST_PIXELS:
            raise InputError(f"frames of {height}x{width} pixels become {size[0]}x{size[1]}; expected a usual shape")
        rule = RESIZERS[self.preprocessing.resizer]
        # With antialiasing torch resizes 8-bit images as Pillow does, which rounds between the two axes too.
        whole = rule.levels and rule.antialias and not image.is_floating_point()
        batch = image[None].contiguous() if whole else image[None].float()
        resized = F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=rule.antialias)[0].float()
        if self.preprocessing.channels == "flow":
            resized *= resized.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
        return resized if image.is_floating_point() or not rule.levels else resized.round()

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width to which a frame is resized."""
        if self.preprocessing.size is not None:
            return self.preprocessing.size
        short = self.preprocessing.short_side
        longer = _ROUND[RESIZERS[self.preprocessing.resizer].longer](short * max(height, width) / min(height, width))
        return (short, longer) if height <= width else (longer, short)

    def _crop(self, image: torch.Tensor) -> torch.Tensor:
        crop, offset = self.preprocessing.crop, _ROUND[RESIZERS[self.preprocessing.resizer].offset]
        top, left = (offset((n - crop) / 2) for n in image.shape[1:])
        return image[:, top : top + crop, left : left + crop]


def _as_tensor(frames: Any) -> torch.Tensor:
    """The frames as a tensor, without a copy where the array allows it."""
    import torch

    if isinstance(frames, torch.Tensor):
        return frames
    if not isinstance(frames, np.ndarray) or frames.dtype.kind not in "uif":
        found = f"an array of {frames.dtype}" if isinstance(frames, np.ndarray) else f"a {type(frames).__name__}"
        raise InputError(f"the frames are {found}; expected a numpy array or torch tensor of numbers")
    # Torch takes neither negative strides (a flipped axis) nor foreign byte orders, and warns of read-only memory.
    native = frames.astype(frames.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def _check_shape(shape: tuple[int, ...], channels: int) -> None:
    if len(shape) == 4 and shape[3] == channels and 0 not in shape:
        return
    advice = ""
    if len(shape) == 3:
        advice = " A single frame is a clip of one: frames[None]."
    elif len(shape) == 4 and shape[1] == channels:
        advice = " The channels seem to stand second (TCHW); move them last."
    elif len(shape) == 4 and {shape[3], channels} == {2, 3}:
        advice = " RGB frames have 3 channels, flow has 2: choose the Preprocessing of the right stream."
    elif len(shape) == 5:
        advice = " Transform one clip at a time, and stack the results into a batch."
    raise InputError(f"the frames have shape {shape}; expected (T, H, W, {channels}).{advice}")


def _check_values(pixels: torch.Tensor, channels: str, *, whole: bool) -> None:
    import torch

    flow = channels == "flow"
    kind = str(pixels.dtype).removeprefix("torch.")
    if pixels.dtype == torch.uint8 and not flow:
        return
    channels = "flow" if flow else "rgb"  # frames for a BGR network are given as RGB
    if not pixels.is_floating_point():
        expected = "floating-point displacements in pixels" if flow else "uint8 in [0, 255]"
        stored = "; flow stored as 8-bit images is x * 40 / 255 - 20" if flow else ""
        raise InputError(f"the {channels} frames are {kind}; expected {expected}{stored}")
    low, high = (float(v) for v in torch.aminmax(pixels))
    seen = f"the {channels} frames are {kind} with values from {low:.4g} to {high:.4g}"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{seen}; expected finite numbers")
    if not flow and (low < 0 or high > 255):
        raise InputError(f"{seen}; expected uint8, or floats in [0, 255]. Are they scaled already, or normalised?")
    if whole:
        _check_scale(high, channels, seen)


def _check_scale(brightest: float, channels: str, seen: str) -> None:
    """Refuse floats that are in [0, 1]; black frames are black in either scale."""
    if channels != "flow" and 0 < brightest <= 1:
        raise InputError(
            f"{seen}; expected uint8, or floats in [0, 255]. They look scaled to [0, 1]: give the decoded frames "
            "as uint8, or multiply by 255."
        )


def noise_clip(t: int, h: int, w: int, channels: int, seed: int) -> NDArray[np.float32]:
    """Uniform noise in [-1, 1): the same bits on every machine and with every numpy.

    Drawn as 24-bit integers from the PCG64 stream of `seed`, whose raw output numpy keeps stable (its
    distributions it does not), so each value is exact in float32.

    Returns:
        float32 (1, channels, t, h, w).
    """
    raw = np.random.PCG64(seed).random_raw(channels * t * h * w)
    values = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return values.reshape(1, channels, t, h, w)


def moving_clip(t: int, h: int, w: int, channels: int, seed: int) -> NDArray[np.float32]:
    """A smooth texture that drifts: a stand-in for the statistics of natural video, where no video is at hand.

    Six plane waves of 1 to 32 cycles across 256 pixels, coarser ones stronger, each drifting its own way by up to
    three pixels a frame, with phases of their own in each channel. The values are rounded to 256 levels, as those of
    decoded video, which also hides the last bits in which sine functions differ.

    Returns:
        float32 (1, channels, t, h, w) in [-1, 1].
    """
    cycles = 2.0 ** np.arange(6) / 256
    draws = np.random.PCG64(seed).random_raw((6, 2 + channels)) / 2.0**64
    heading, drift, phases = draws[:, 0], draws[:, 1], draws[:, 2:]
    time, y, x = np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij", sparse=True)
    clip = np.zeros((1, channels, t, h, w))
    for f, angle, speed, phase in zip(cycles, 2 * np.pi * heading, 1 + 2 * drift, phases):
        travel = f * (np.cos(angle) * x + np.sin(angle) * y - speed * time)
        for channel, offset in enumerate(phase):
            clip[0, channel] += np.sin(2 * np.pi * (travel + offset)) / f
    levels = np.round((clip / np.sum(1 / cycles) + 1) * 127.5)
    return (levels / 127.5 - 1).astype(np.float32)


def read_clip(path: Path, channels: int) -> NDArray[np.float32]:
    """A clip from an `.npy` file as DeepMind ships its samples.

    Args:
        path: the file: (1, T, H, W, C) or (T, H, W, C), float32 in [-1, 1].
        channels: C.

    Returns:
        float32 (1, C, T, H, W).

    Raises:
        InputError: the file is not that.
    """
    wanted = f"expected an .npy file of float32 (1, T, H, W, {channels}) in [-1, 1]"
    try:
        clip = load_array(path)
    except InputError as error:
        raise InputError(f"{path} cannot be read as a clip ({error.__cause__ or error}); {wanted}") from error
    if clip.dtype != np.float32:
        raise InputError(f"{path} holds {clip.dtype}; {wanted}")
    clip = clip[None] if clip.ndim == 4 else clip
    if clip.ndim != 5 or clip.shape[0] != 1 or clip.shape[-1] != channels:
        raise InputError(f"{path} has the shape {clip.shape}; {wanted}")
    if not np.abs(clip).max(initial=0) <= 1:
        raise InputError(f"{path} has values from {clip.min()} to {clip.max()}; {wanted}")
    return np.ascontiguousarray(np.moveaxis(clip, -1, 1))
