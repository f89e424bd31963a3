"""Which frames make the clips of a video."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidweights.errors import InputError, UsageError
from vidweights.preprocessing import Preprocessing
from vidweights.sampling import Timeline, clip_starts, resample, sample

NATIVE = Preprocessing(frames=8, fps="native")
RATES = st.sampled_from([Fraction(30000, 1001), Fraction(25), Fraction(24), Fraction(60), Fraction(15), Fraction(10)])


def varying(*times: int, end: int) -> Timeline:
    """A timeline in milliseconds."""
    return Timeline(np.array(times, np.int64), end, Fraction(1, 1000))


@given(st.integers(1, 900), RATES, st.sampled_from([25.0, 15.0, 30.0, 12.5, 5.0, 1.0]))
def test_the_frame_on_screen_is_taken_at_each_time(count: int, native: Fraction, fps: float) -> None:
    timeline = Timeline.constant(count, native)
    shown = resample(timeline, fps)
    times = [Fraction(j) / Fraction(fps) for j in range(len(shown))]
    assert all(index / native <= time < (index + 1) / native for index, time in zip(shown.tolist(), times))
    assert (len(shown)) / Fraction(fps) >= count / native > times[-1]  # up to the end, and not beyond


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.sampled_from([25.0, 15.0, 7.5]))
def test_a_variable_rate_is_followed_by_its_timestamps(gaps: list[int], fps: float) -> None:
    ticks = np.cumsum([0, *gaps[:-1]])
    shown = resample(varying(*ticks, end=sum(gaps)), fps)
    for j, index in enumerate(shown.tolist()):
        time = Fraction(1000 * j) / Fraction(fps)
        assert ticks[index] <= time
        assert index == len(ticks) - 1 or time < ticks[index + 1]


def test_a_frame_that_is_shown_for_long_is_taken_more_than_once() -> None:
    assert resample(varying(0, 40, 440, end=480), 10.0).tolist() == [0, 1, 1, 1, 1]
    assert resample(varying(0, 40, 440, end=480), "native").tolist() == [0, 1, 2]


def test_the_first_timestamp_need_not_be_0() -> None:
    timeline = Timeline(np.arange(6) * 3600 + 7200, 6 * 3600 + 7200, Fraction(1, 90000))
    assert resample(timeline, 12.5).tolist() == [0, 2, 4]


def test_a_damaged_timestamp_does_not_fill_the_memory() -> None:
    with pytest.raises(InputError, match="timestamps are damaged"):
        resample(Timeline(np.array([0, 1 << 60]), (1 << 60) + 1, Fraction(1, 1000)), 25.0)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 30))
def test_clips_are_evenly_spaced_from_the_first_to_the_last_that_fits(room: int, span: int, clips: int) -> None:
    starts = clip_starts(span + room, span, clips)
    assert len(starts) == clips
    if clips == 1:
        assert abs(starts[0] - (room - starts[0])) <= 1
        return
    assert (starts[0], starts[-1]) == (0, room)
    gaps = np.diff(starts)
    assert gaps.max() - gaps.min() <= 1
    assert all(start == int(i * Fraction(room, clips - 1)) for i, start in enumerate(starts))


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 12), st.integers(0, 300))
def test_every_clip_is_dense_at_its_stride_and_inside_the_video(
    frames: int, stride: int, clips: int, more: int
) -> None:
    count = (frames - 1) * stride + 1 + more
    release = Preprocessing(frames=frames, stride=stride, fps="native", clips=clips)
    sampling = sample(Timeline.constant(count, 25), release)
    assert sampling.indices.shape == (clips, frames)
    assert (sampling.available, sampling.looped) == (count, False)
    assert (np.diff(sampling.indices, axis=1) == stride).all()
    assert sampling.indices.min() >= 0
    assert sampling.indices.max() < count


def test_ten_clips_of_a_kinetics_video_as_the_paper_takes_them() -> None:
    sampling = sample(Timeline.constant(300, Fraction(30000, 1001)), NATIVE, clips=10)
    assert sampling.indices[:, 0].tolist() == [0, 32, 64, 97, 129, 162, 194, 227, 259, 292]


def test_one_clip_is_the_middle_of_the_video() -> None:
    assert sample(Timeline.constant(79, 25), Preprocessing()).indices[0, [0, -1]].tolist() == [7, 70]


def test_the_number_and_the_length_of_clips_can_be_chosen() -> None:
    assert sample(Timeline.constant(79, 25), Preprocessing(), clips=3, frames=16).indices.shape == (3, 16)


def test_spread_frames_are_those_of_pytorchvideo() -> None:
    torch = pytest.importorskip("torch")
    release = Preprocessing(frames=16, stride=4, spread=True, fps="native")
    sampling = sample(Timeline.constant(300, 30), release, clips=10)
    # pytorchvideo/transforms/functional.py, uniform_temporal_subsample, on the 64 frames of a clip.
    expected = torch.linspace(0, 63, 16).clamp(0, 63).long().numpy()
    assert (sampling.indices - sampling.indices[:, :1] == expected).all()
    assert (sampling.indices[0, 0], sampling.indices[-1, -1]) == (0, 299)
    with pytest.raises(InputError, match=r"out of 64, .* at most 15 frames"):
        sample(Timeline.constant(63, 30), release)
    assert sample(Timeline.constant(9, 30), release, frames=1).indices.tolist() == [[2]]


def test_a_video_that_is_too_short_is_refused_with_what_would_fit() -> None:
    with pytest.raises(InputError, match=r"has 20 frames, 10 at 15 per second; a clip needs 16 .* at most 10 frames"):
        sample(Timeline.constant(20, 30), Preprocessing(frames=16, fps=15.0))
    with pytest.raises(InputError, match=r"a clip needs 8, out of 15, .* at most 4 frames"):
        sample(Timeline.constant(8, 30), Preprocessing(frames=8, fps="native", stride=2))


@given(st.integers(1, 30), st.integers(31, 70))
def test_a_release_that_repeats_short_videos_does_so_from_the_start(count: int, frames: int) -> None:
    sampling = sample(Timeline.constant(count, 25), Preprocessing(short_videos="loop"), frames=frames, clips=2)
    assert sampling.looped
    assert sampling.indices.tolist() == 2 * [[i % count for i in range(frames)]]


@pytest.mark.parametrize(
    "wrong",
    [{"clips": 0}, {"frames": 0}, {"clips": 10**9}, {"frames": 10**9}, {"clips": 2.5}, {"frames": True}],
    ids=str,
)
def test_a_number_of_clips_or_frames_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected a whole number from 1 on|expected at most"):
        sample(Timeline.constant(79, 25), Preprocessing(), **wrong)


def test_a_video_without_frames_is_refused() -> None:
    with pytest.raises(InputError, match="no frames"):
        sample(Timeline.constant(0, 25), Preprocessing())


@pytest.mark.parametrize(
    ("count", "native", "frames"), [(300, 30.0, 16), (301, 29.97, 16), (250, 25.0, 8), (90, 24.0, 8)]
)
def test_torchvision_takes_the_same_frames(count: int, native: float, frames: int) -> None:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    import torch
    from torchvision_cpu import torchvision

    video_utils = pytest.importorskip("torchvision.datasets.video_utils")
    sampler = pytest.importorskip("torchvision.datasets.samplers").UniformClipSampler
    assert torchvision
    theirs = object.__new__(video_utils.VideoClips)
    pts = torch.arange(count)
    theirs.clips = [video_utils.VideoClips.compute_clips_for_video(pts, frames, 1, native, 15.0)[0]]
    expected = theirs.clips[0][torch.tensor(list(sampler(theirs, 5)))].numpy()
    ours = sample(Timeline.constant(count, native), Preprocessing(frames=frames, fps=15.0), clips=5).indices
    # At the very end torchvision leaves out a time that is still in the video, unless the rates divide each other.
    assert abs(ours - expected).max() <= np.ceil(native / 15)
    assert (ours[0] == expected[0]).all()
    if count * 15 / native % 1 == 0:
        assert (ours == expected).all()
