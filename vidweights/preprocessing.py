"""How a release turns video into the input of its network: a record, kept in the catalog and in `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vidweights.errors import FormatError, UsageError

CHANNELS = {"rgb": 3, "bgr": 3, "flow": 2}

_RATES = (1e-3, 1e5)

Rounding = Literal["down", "nearest", "up", "even"]


@dataclass(frozen=True)
class Resizer:
    """What "resized bilinearly, then the centre is cropped" leaves open, as one library does it.

    All take half-pixel centres (`align_corners=False` in torch).

    Attributes:
        longer: how the length of the longer side is rounded, where only the shorter one is given.
        offset: how half of the pixels that a crop leaves over is rounded, at the top and at the left.
        levels: resized 8-bit values are rounded to 8 bits again.
        antialias: where an image shrinks, all pixels under an output pixel count, not the nearest four.
    """

    longer: Rounding
    offset: Rounding
    levels: bool = False
    antialias: bool = False


RESIZERS = {
    # What DeepMind's README leaves open; F.interpolate in torch.
    "plain": Resizer("nearest", "down"),
    # cv2.resize with INTER_LINEAR on 8-bit frames, and CenterCrop of open-mmlab/mmaction2@4d6c9347.
    "opencv": Resizer("nearest", "down", levels=True),
    # The preset VideoClassification: pytorch/vision@v0.28.0:torchvision/transforms/_presets.py, functional.py.
    "torchvision": Resizer("down", "even", levels=True),
    # Resize and CenterCrop of torchvision on PIL images.
    "pillow": Resizer("down", "even", levels=True, antialias=True),
    # VMZ's PyTorch code, on floats: facebookresearch/VMZ@4cc542d5:pt/vmz/common/transforms.py.
    "vmz": Resizer("nearest", "even"),
    # facebookresearch/pytorchvideo@f3142bb:pytorchvideo/transforms/functional.py, short_side_scale and uniform_crop.
    "pytorchvideo": Resizer("down", "up"),
}


def check_rate(fps: Any) -> float:
    """A rate that video can have.

    Raises:
        UsageError: it is none.
    """
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not _RATES[0] <= fps <= _RATES[1]:
        raise UsageError(f"fps {fps!r}: expected frames per second, from {_RATES[0]:g} to {_RATES[1]:g}")
    return float(fps)


def check_count(name: str, value: Any) -> None:
    """A number of clips, frames or classes.

    Raises:
        UsageError: it is none.
    """
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} {value!r}: expected a whole number from 1 on")


@dataclass(frozen=True)
class Preprocessing:
    """How a release turned video, or images, into its input. The defaults are DeepMind's for I3D.

    Source: README.md of google-deepmind/kinetics-i3d, "Sample data and preprocessing"; the 64 frames are from
    section 3.1 of arXiv 1705.07750.

    Attributes:
        channels: `rgb`, `bgr` (frames are given as RGB and reversed here), or `flow` (horizontal, then vertical
            displacement).
        short_side: frames are resized, bilinearly and with their proportions kept, until the shorter side has this
            many pixels; the shorter side of `size` where that is given.
        crop: height and width of the centre crop.
        value_range: what the darkest and the brightest value become, or the extremes of the flow.
        flow_clamp: displacements, in pixels of the resized frame, are cut at plus and minus this, its extremes. None:
            they stay as they are, and `value_range` means nothing. It means nothing for images.
        frames: length of the clips that the release was trained on; it takes others too.
        fps: frames per second at which the video is sampled, or `native`: every frame that it has.
        mean: subtracted, and `std` divided by, when the values are in `value_range`: one number for each channel, in
            the order of `channels`. None: nothing is.
        size: (height, width) to which frames are resized, proportions not kept; None for `short_side`.
        resizer: whose way of resizing and cropping it is, a key of `RESIZERS`.
        stride: each clip takes every so many-th frame of those at `fps`.
        spread: the frames of a clip are spread evenly over `frames * stride` frames, the last included, in place of
            every `stride`-th (PySlowFast and pytorchvideo).
        clips: how many clips, evenly spaced, stand for a video when the release is measured; 1 is its centre.
        scores: what is averaged over the clips of a video, and combined over two streams: `softmax`, the class
            probabilities, which are averaged over streams too, or `logits`, which are summed over streams.
        short_videos: a video too short for one clip is refused, or repeated from its start (`loop`).
    """

    channels: Literal["rgb", "bgr", "flow"] = "rgb"
    short_side: int = 256
    crop: int = 224
    value_range: tuple[float, float] = (-1.0, 1.0)
    flow_clamp: float | None = 20.0
    frames: int = 64
    fps: float | Literal["native"] = 25.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    resizer: str = "plain"
    stride: int = 1
    spread: bool = False
    clips: int = 1
    scores: Literal["logits", "softmax"] = "logits"
    short_videos: Literal["refuse", "loop"] = "refuse"

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "short_side", min(self.size))
        low, high = self.value_range
        counts = (self.crop, self.short_side - self.crop + 1, self.frames, self.stride, self.clips)
        clamp = 1.0 if self.flow_clamp is None else self.flow_clamp
        if self.channels not in CHANNELS or min(counts) < 1 or min(clamp, high - low) <= 0:
            raise UsageError(
                f"{self}: expected channels 'rgb', 'bgr' or 'flow', 1 <= crop <= short_side, frames, stride and clips "
                ">= 1, flow_clamp above 0, and a value_range that rises"
            )
        if self.fps != "native":
            check_rate(self.fps)
        self._check_choices()
        lengths = {len(numbers) for numbers in (self.mean, self.std) if numbers is not None}
        if lengths - {CHANNELS[self.channels]} or min(self.std or (1,)) <= 0:
            raise UsageError(f"{self}: expected a mean and a positive std for each channel, or None")

    def _check_choices(self) -> None:
        known = {
            "resizer": tuple(RESIZERS),
            "spread": (False, True),
            "scores": ("logits", "softmax"),
            "short_videos": ("refuse", "loop"),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(map(str, choices))}")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, in their order; `mean` and those after it only where they are not the default.

        With `size` there is no `short_side`, and without `flow_clamp` flow has no `value_range`.
        """
        values = asdict(self)
        left_out = {name for name in _OPTIONAL if values[name] == _OPTIONAL[name]}
        left_out |= {"short_side"} if self.size is not None else set()
        left_out |= {"value_range"} if self.channels == "flow" and self.flow_clamp is None else set()
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in left_out
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read back what `to_json` gave.

        Raises:
            FormatError: a field is unknown, missing, or not of its kind.
        """
        names = {field.name for field in fields(cls)}
        replaced = {"short_side"} if "size" in values else set()
        replaced |= {"value_range"} if values.get("channels") == "flow" and "flow_clamp" not in values else set()
        missing, unknown = sorted(names - set(values) - set(_OPTIONAL) - replaced), sorted(set(values) - names)
        if missing or unknown:
            raise FormatError(f"preprocessing: missing {missing}, unknown {unknown}; expected {sorted(names)}")
        try:
            found = {name: _READERS.get(name, str)(value) for name, value in values.items()}
            read = cls(**{"flow_clamp": None, **found})
            if values.get("short_side", read.short_side) != read.short_side:
                raise ValueError(f"short_side is not that of size {read.size}")
        except (TypeError, ValueError, UsageError) as error:
            raise FormatError(f"preprocessing: {dict(values)} does not hold the expected values ({error})") from error
        return read


# Fields that came after the first folders were written, or that not every release has, and what their absence means.
_OPTIONAL: dict[str, Any] = {
    field.name: field.default
    for field in fields(Preprocessing)
    if field.name in ("mean", "std", "size", "resizer", "stride", "spread", "clips", "scores", "short_videos")
} | {"flow_clamp": None}


def _pair(value: Any) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)


def _size(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value))


def _as_it_is(value: Any) -> Any:
    return value


def _rate(value: Any) -> float | str:
    return "native" if value == "native" else float(value)


# Field: what makes its value of a JSON value; `str` for those not named.
_READERS: dict[str, Any] = {
    **dict.fromkeys(("short_side", "crop", "frames", "stride", "clips"), int),
    "value_range": _pair,
    "flow_clamp": float,
    "fps": _rate,
    "spread": _as_it_is,
    "mean": _numbers,
    "std": _numbers,
    "size": _size,
}
