"""Which frames of a video make its clips: pure functions of when each frame is shown."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import InputError, UsageError
from vidweights.preprocessing import Preprocessing, check_count

Indices = NDArray[np.int64]

_MOST_SAMPLES = 1 << 31  # of one video; a timestamp that is damaged must not fill the memory
_MOST_FRAMES = 1 << 20  # of all clips


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        ticks: int64 (N,), rising: when each frame appears, in units of `tick`.
        end: when the last frame disappears.
        tick: the unit, in seconds.
    """

    ticks: Indices
    end: int
    tick: Fraction

    @classmethod
    def constant(cls, count: int, fps: float | Fraction) -> Timeline:
        """That of `count` frames at a constant rate."""
        return cls(np.arange(count, dtype=np.int64), count, 1 / exact(fps))

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return float((self.end - int(self.ticks[0])) * self.tick) if len(self) else 0.0

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        return len(self) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Sampling:
    """The frames of each clip.

    Attributes:
        indices: int64 (clips, frames): which frames of the video, in the order in which the clip has them.
        available: how many frames there were to choose from, at the rate that was asked for.
        looped: the video was too short for one clip, and is repeated.
    """

    indices: Indices
    available: int
    looped: bool = False


def exact(fps: float | Fraction) -> Fraction:
    """A rate as a fraction."""
    return fps if isinstance(fps, Fraction) else Fraction(fps).limit_denominator(1_000_000)


def resample(timeline: Timeline, fps: float | Literal["native"]) -> Indices:
    """The frame on screen at each of the times 0, 1/fps, 2/fps, ... after the first frame.

    At a constant rate that is frame floor(j * rate / fps), as `VideoClips` of torchvision takes it
    (pytorch/vision@v0.28.0:torchvision/datasets/video_utils.py). A frame that is shown for long is taken more than
    once, one that is shown between two of the times never.

    Args:
        timeline: of at least one frame.
        fps: the wanted rate; `native` for every frame once.

    Returns:
        int64 (M,), not falling.
    """
    if fps == "native":
        return np.arange(len(timeline), dtype=np.int64)
    step = 1 / (exact(fps) * timeline.tick)  # ticks from one sample to the next
    first = int(timeline.ticks[0])
    count = -((first - timeline.end) // step)  # those before the end
    if count * max(step.numerator, step.denominator) >= 1 << 62 or count > _MOST_SAMPLES:
        raise InputError(f"the video says that it is {timeline.seconds:.3g} seconds long; its timestamps are damaged")
    wanted = first + np.arange(max(count, 1), dtype=np.int64) * step.numerator // step.denominator
    return np.searchsorted(timeline.ticks, wanted, side="right").astype(np.int64) - 1


def clip_starts(available: int, span: int, clips: int) -> tuple[int, ...]:
    """Where clips that span `span` of `available` frames begin.

    One clip is in the middle. Several are spaced evenly from the first that fits to the last: floor(i * (available -
    span) / (clips - 1)), as VMZ has it (facebookresearch/VMZ@4cc542d5:ops/av_decoder.cc,
    `DecodeMultipleAVClipsFromVideo`) and `UniformClipSampler` of torchvision. Where there are fewer places than
    clips, some repeat.

    Args:
        available: at least `span`.
    """
    room = available - span
    if clips == 1:
        return (room // 2,)
    return tuple(i * room // (clips - 1) for i in range(clips))


def sample(
    timeline: Timeline, preprocessing: Preprocessing, *, clips: int | None = None, frames: int | None = None
) -> Sampling:
    """The frames of each clip of a video, as a release samples it.

    Args:
        timeline: when the frames of the video are shown.
        preprocessing: the rate, the stride, and what becomes of short videos.
        clips: how many clips; those of the release if not given.
        frames: how many frames each; as many as the release was trained on if not given.

    Raises:
        UsageError: `clips` or `frames` is no positive number.
        InputError: the video has no frame, or too few for one clip of a release that repeats none.
    """
    clips = preprocessing.clips if clips is None else clips
    frames = preprocessing.frames if frames is None else frames
    for name, value in (("clips", clips), ("frames", frames)):
        check_count(name, value)
    if not len(timeline):
        raise InputError("the video has no frames")
    if clips * frames > _MOST_FRAMES:
        raise UsageError(f"{clips} clips of {frames} frames: expected at most {_MOST_FRAMES} frames in all")
    shown = resample(timeline, preprocessing.fps)
    offsets = _offsets(frames, preprocessing)
    span = frames * preprocessing.stride if preprocessing.spread else int(offsets[-1]) + 1
    looped = len(shown) < span
    if looped and preprocessing.short_videos == "refuse":
        raise InputError(_too_short(len(timeline), len(shown), preprocessing, frames, span))
    starts = (0,) * clips if looped else clip_starts(len(shown), span, clips)
    places = np.array(starts, np.int64)[:, None] + offsets
    return Sampling(shown[places % len(shown)], len(shown), looped)


def _offsets(frames: int, preprocessing: Preprocessing) -> Indices:
    """Which frames a clip takes, from its first on."""
    numbers = np.arange(frames, dtype=np.int64)
    if preprocessing.spread:
        return numbers * (frames * preprocessing.stride - 1) // max(frames - 1, 1)
    return numbers * preprocessing.stride


def _too_short(count: int, shown: int, preprocessing: Preprocessing, frames: int, span: int) -> str:
    stride = "" if span == frames else f", out of {span},"
    rate = "" if preprocessing.fps == "native" else f", {shown} at {preprocessing.fps:g} per second"
    fitting = shown // preprocessing.stride if preprocessing.spread else (shown - 1) // preprocessing.stride + 1
    return (
        f"the video is too short: it has {count} frames{rate}; a clip needs {frames}{stride} and the release repeats "
        f"none. Give a longer video, or ask for clips of at most {fitting} frames."
    )
