"""Frames to tensors: a release's preprocessing as data, the transform built from it, and seeded test clips."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import FormatError, InputError, UsageError

if TYPE_CHECKING:
    import torch

_CHANNELS = {"rgb": 3, "bgr": 3, "flow": 2}
_OPTIONAL = ("mean", "std")  # left out of the JSON where there is none


@dataclass(frozen=True)
class Preprocessing:
    """How a release turned video, or images, into its input. The defaults are DeepMind's for I3D.

    Source: README.md of google-deepmind/kinetics-i3d, "Sample data and preprocessing"; the 64 frames are from
    section 3.1 of arXiv 1705.07750.

    Attributes:
        channels: `rgb`, `bgr` (frames are given as RGB and reversed here), or `flow` (horizontal, then vertical
            displacement).
        short_side: frames are resized, bilinearly and with their proportions kept, until the shorter side has this
            many pixels.
        crop: height and width of the centre crop.
        value_range: what the darkest and the brightest value become, or the extremes of the flow.
        flow_clamp: displacements, in pixels of the resized frame, are cut at plus and minus this.
        frames: length of the clips that the release was trained on; it takes others too.
        fps: frames per second at which the video is sampled. That is left to whoever decodes it.
        mean: subtracted, and `std` divided by, when the values are in `value_range`: one number for each channel, in
            the order of `channels`. None: nothing is.
    """

    channels: Literal["rgb", "bgr", "flow"] = "rgb"
    short_side: int = 256
    crop: int = 224
    value_range: tuple[float, float] = (-1.0, 1.0)
    flow_clamp: float = 20.0
    frames: int = 64
    fps: float = 25.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        low, high = self.value_range
        counts = (self.crop, self.short_side - self.crop + 1, self.frames)
        if self.channels not in _CHANNELS or min(counts) < 1 or min(self.fps, self.flow_clamp, high - low) <= 0:
            raise UsageError(
                f"{self}: expected channels 'rgb', 'bgr' or 'flow', 1 <= crop <= short_side, frames >= 1, "
                "positive fps and flow_clamp, and a value_range that rises"
            )
        lengths = {len(numbers) for numbers in (self.mean, self.std) if numbers is not None}
        if lengths - {_CHANNELS[self.channels]} or min(self.std or (1,)) <= 0:
            raise UsageError(f"{self}: expected a mean and a positive std for each channel, or None")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, in their order; without `mean` and `std` where they are None."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read back what `to_json` gave.

        Raises:
            FormatError: a field is unknown, missing, or not of its kind.
        """
        names = {field.name for field in fields(cls)}
        missing, unknown = sorted(names - set(values) - set(_OPTIONAL)), sorted(set(values) - names)
        if missing or unknown:
            raise FormatError(f"preprocessing: missing {missing}, unknown {unknown}; expected {sorted(names)}")
        try:
            low, high = values["value_range"]
            return cls(
                channels=values["channels"],
                short_side=int(values["short_side"]),
                crop=int(values["crop"]),
                value_range=(float(low), float(high)),
                flow_clamp=float(values["flow_clamp"]),
                frames=int(values["frames"]),
                fps=float(values["fps"]),
                **{name: tuple(map(float, values[name])) for name in _OPTIONAL if name in values},
            )
        except (TypeError, ValueError, UsageError) as error:
            raise FormatError(f"preprocessing: {dict(values)} does not hold the expected values ({error})") from error


class ClipTransform:
    """Turns decoded frames into one clip, as a `Preprocessing` says.

    Frames are resized bilinearly with half-pixel centres and without antialiasing, as OpenCV's `INTER_LINEAR` does
    (`align_corners=False` in torch), and are not rounded back to 8 bits. DeepMind's README says bilinear and no more;
    the library behind it was never released as it was used. Where the crop cannot be centred, the odd pixel is left
    at the bottom or right.

    A flow field that is resized is also multiplied by the same factor, since its values are pixels: the release
    computed TV-L1 flow on frames of 25 per second that were resized already.

    Example:
        >>> clip = ClipTransform(Preprocessing())(frames)  # uint8 (T, H, W, 3) -> float32 (3, T, 224, 224)
        >>> logits = model(torch.stack([clip]))
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, frames: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        """Transform the frames of one clip, in time order and at the preprocessing's `fps`.

        Args:
            frames: for RGB and BGR (T, H, W, 3), red first, uint8, or floats in [0, 255] and not scaled to [0, 1];
                for flow (T, H, W, 2), x first, floats in pixels.

        Returns:
            float32 (C, T, crop, crop) within `value_range`, less `mean` and over `std`, on the device of `frames`.

        Raises:
            InputError: the shape, the dtype or the range of the values is not that.
        """
        import torch

        pixels = _as_tensor(frames)
        _check_shape(tuple(pixels.shape), _CHANNELS[self.preprocessing.channels])
        _check_values(pixels, self.preprocessing.channels)
        # One frame at a time: a long high-resolution video does not fit in memory as float32.
        return torch.stack([self._frame(frame) for frame in pixels], dim=1)

    def _frame(self, frame: torch.Tensor) -> torch.Tensor:
        """Map one frame (H, W, C) to (C, crop, crop)."""
        return self._normalise(self._scale(self._crop(self._resize(frame.permute(2, 0, 1).float()))))

    def _scale(self, image: torch.Tensor) -> torch.Tensor:
        """Bring the values into `value_range`, and the channels into their order."""
        low, high = self.preprocessing.value_range
        if self.preprocessing.channels == "flow":
            clamp = self.preprocessing.flow_clamp
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
        scale = self.preprocessing.short_side / min(height, width)
        size = round(height * scale), round(width * scale)
        if size == (height, width):
            return image
        resized = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        if self.preprocessing.channels == "flow":
            resized *= resized.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
        return resized

    def _crop(self, image: torch.Tensor) -> torch.Tensor:
        crop = self.preprocessing.crop
        top, left = ((n - crop) // 2 for n in image.shape[1:])
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


def _check_values(pixels: torch.Tensor, channels: str) -> None:
    import torch

    channels = "flow" if channels == "flow" else "rgb"  # frames for a BGR network are given as RGB
    kind = str(pixels.dtype).removeprefix("torch.")
    if pixels.dtype == torch.uint8 and channels == "rgb":
        return
    if not pixels.is_floating_point():
        expected = "uint8 in [0, 255]" if channels == "rgb" else "floating-point displacements in pixels"
        stored = "; flow stored as 8-bit images is x * 40 / 255 - 20" if channels == "flow" else ""
        raise InputError(f"the {channels} frames are {kind}; expected {expected}{stored}")
    low, high = (float(v) for v in torch.aminmax(pixels))
    seen = f"the {channels} frames are {kind} with values from {low:.4g} to {high:.4g}"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{seen}; expected finite numbers")
    if channels == "rgb" and (low < 0 or high > 255):
        raise InputError(f"{seen}; expected uint8, or floats in [0, 255]. Are they scaled already, or normalised?")
    if channels == "rgb" and 0 < high <= 1:  # black frames are black in either scale
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
        clip = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a clip ({error}); {wanted}") from error
    if not isinstance(clip, np.ndarray) or clip.dtype != np.float32:
        raise InputError(f"{path} holds {getattr(clip, 'dtype', 'several arrays')}; {wanted}")
    clip = clip[None] if clip.ndim == 4 else clip
    if clip.ndim != 5 or clip.shape[0] != 1 or clip.shape[-1] != channels:
        raise InputError(f"{path} has the shape {clip.shape}; {wanted}")
    if not np.abs(clip).max(initial=0) <= 1:
        raise InputError(f"{path} has values from {clip.min()} to {clip.max()}; {wanted}")
    return np.ascontiguousarray(np.moveaxis(clip, -1, 1))
