"""What a network says of a video: its clips, their scores, the scores of one or two streams together, the labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidweights import folder, home, pretrained
from vidweights.clips import ClipTransform
from vidweights.errors import FormatError, UnavailableError, UsageError
from vidweights.folder import FolderConfig
from vidweights.footage import Source, open_footage
from vidweights.preprocessing import Preprocessing, check_count
from vidweights.progress import Progress, silent
from vidweights.sampling import Sampling, Timeline, sample

if TYPE_CHECKING:
    from torch import nn

    Network = str | Path | nn.Module
else:
    Network = Any

Scores = NDArray[np.float64]


class ShortVideoWarning(UserWarning):
    """A video was too short for one clip and was repeated, as its release does."""


class Prediction(NamedTuple):
    """A class and its share of the probability."""

    label: str
    score: float


@dataclass(frozen=True)
class Stream:
    """A network, and what its clips and its classes are.

    Attributes:
        name: what it is called.
        network: in evaluation mode; clips (N, C, T, H, W) to logits (N, classes).
        preprocessing: how its clips are made, and how their scores are combined.
        labels: the class names in the order of the logits; none if they are not known.
        state: `passed`, `failed` or `unvalidated`; None for a network that was given.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    state: str | None = None


@dataclass(frozen=True)
class View:
    """What a stream saw of its video.

    Attributes:
        source: what the video is: codec, size and rate.
        timeline: its frames.
        sampling: those that were taken.
        logits: float64 (clips, classes).
    """

    stream: Stream
    source: str
    timeline: Timeline
    sampling: Sampling
    logits: Scores

    def describe(self) -> str:
        """In one line what was sampled, and how it was made into clips."""
        made = self.stream.preprocessing
        clips, frames = self.sampling.indices.shape
        where = "from the middle" if clips == 1 else "evenly spaced"
        rate = "the video's own rate" if made.fps == "native" else f"{made.fps:g} per second"
        spread = f", spread over {frames * made.stride}" if made.spread else f", every {made.stride}th"
        every = spread if made.stride > 1 else ""
        size = f"{made.size[0]}x{made.size[1]}" if made.size else f"{made.short_side} on the shorter side"
        looped = f", repeated from {self.sampling.available}" if self.sampling.looped else ""
        return (
            f"{clips} clip{'s' * (clips > 1)} of {frames} frames{looped}, {where}, at {rate}{every}, resized to "
            f"{size}, centre {made.crop}x{made.crop}, of {len(self.timeline)} frames ({self.timeline.seconds:.1f} s, "
            f"{self.source})"
        )

    def to_json(self) -> dict[str, Any]:
        """What was sampled, as JSON values."""
        return {
            "weights": self.stream.name,
            "validation": self.stream.state,
            "source": self.source,
            "frames": len(self.timeline),
            "seconds": self.timeline.seconds,
            "clips": self.sampling.indices.tolist(),
            "looped": self.sampling.looped,
            "input": self.stream.preprocessing.to_json(),
        }


@dataclass(frozen=True)
class Verdict:
    """What one or two streams say of a video.

    Attributes:
        views: what each saw.
        scores: float64 (classes,): probabilities.
        logits: float64 (classes,) of which they are the softmax; None where probabilities were averaged.
        labels: the class names, or their numbers where they are not known.
    """

    views: tuple[View, ...]
    scores: Scores
    logits: Scores | None
    labels: tuple[str, ...] = field(repr=False)

    def order(self, topk: int) -> list[int]:
        """The numbers of the classes with the highest scores, the best first."""
        return [int(number) for number in np.argsort(-self.scores, kind="stable")[:topk]]

    def top(self, topk: int) -> tuple[Prediction, ...]:
        """The classes with the highest scores, the best first."""
        return tuple(Prediction(self.labels[i], float(self.scores[i])) for i in self.order(topk))


def predict(
    source: Network | tuple[Network, Network],
    video: Source | tuple[Source, Source],
    *,
    clips: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    topk: int = 5,
    device: str = "cpu",
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[Prediction, ...]:
    """What a network, or an RGB and a flow network together, say of a video.

    The scores of the clips, and those of two streams, are combined as the release does it
    (`vidweights.preprocessing.Preprocessing.scores`).

    Args:
        source: a release's name, that of a network that was inflated here, `org/name` on a hub, a finished folder, or a
            loaded network; or a pair of such for two streams.
        video: a video file, or all frames of one, as `vidweights.clips.ClipTransform.video` takes it; or a pair: the
            video and its flow.
        clips: how many, evenly spaced; as many as the release is measured with if not given.
        frames: how long each is; as the release was trained on if not given.
        fps: the rate of frames that come without one; the release's own if not given.
        topk: how many classes.
        device: where the network runs.
        preprocessing: for a network that was loaded already, and for a folder that states none.
        labels: the class names, likewise.

    Returns:
        (label, probability) of the best classes, the best first.

    Raises:
        UsageError: nothing is known by that name, a folder does not say how its clips are made, or two streams do not
            belong together.
        InputError: the frames do not fit, or are too few.
        FormatError: the video or the weights are damaged.
        UnavailableError: the weights, torch or PyAV cannot be had.
    """
    check_count("topk", topk)
    sources = source if isinstance(source, tuple) else (source,)
    videos = video if isinstance(video, tuple) else (video,)
    if len(sources) != len(videos) or len(sources) not in (1, 2):
        raise UsageError(
            f"{len(sources)} networks and {len(videos)} videos: expected one of each, or (rgb, flow) of each"
        )
    streams = [open_stream(one, device, preprocessing=preprocessing, labels=labels) for one in sources]
    verdict = judge(streams, videos, clips=clips, frames=frames, fps=fps, device=device)
    for view in verdict.views:
        if view.sampling.looped:
            warnings.warn(f"the video is short: {view.describe()}", ShortVideoWarning, stacklevel=2)
    return verdict.top(topk)


def open_stream(
    source: Network,
    device: str = "cpu",
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Stream:
    """The network of a name, a folder or a module, with what its clips and its classes are.

    Raises:
        UsageError: as for `predict`.
    """
    _check_device(device)
    if not isinstance(source, str | Path):
        if preprocessing is None:
            raise UsageError(
                "a loaded network does not say how its clips are made: give preprocessing=, such as "
                "vidweights.weights(NAME).transforms().preprocessing, or give its name instead"
            )
        return Stream(type(source).__name__, source.eval(), preprocessing, tuple(labels or ()))
    path = pretrained.finished_folder(source, progress)
    config = folder.read_config(path)
    made = preprocessing or _stated(path, config.input)
    names = tuple(labels) if labels is not None else _labels(path, config)
    network = pretrained.load(path, device=device)
    return Stream(config.name, network, made, names, folder.validation_state(path, config))


def _stated(path: Path, fields: Mapping[str, Any] | None) -> Preprocessing:
    """The preprocessing that a folder states; of an inflated network it says nothing of time."""
    if fields is None:
        raise UsageError(
            f"{path} does not say how its clips are made, since nobody said it of the file that it was made from. In "
            "Python: vidweights.predict(..., preprocessing=vidweights.clips.Preprocessing(...))"
        )
    usual = {k: v for k, v in Preprocessing().to_json().items() if k != "short_side" or "size" not in fields}
    return Preprocessing.from_json({**usual, **fields})


def _labels(path: Path, config: FolderConfig) -> tuple[str, ...]:
    """The class names of a folder, if they are known and are those that its `config.json` describes."""
    if config.labels is None:
        return ()
    file = path / folder.LABELS
    if not file.is_file():
        raise FormatError(f"{file} is missing, which {folder.CONFIG} lists. Make or fetch the folder again.")
    home.verify(file, config.labels["sha256"])
    return tuple(file.read_text(encoding="utf-8").splitlines())


def judge(
    streams: Sequence[Stream],
    videos: Sequence[Source],
    *,
    clips: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Verdict:
    """The scores that one or two streams give a video, and what they saw of it; see `predict`."""
    _check_pair(streams)
    views = []
    for stream, video in zip(streams, videos, strict=True):
        # Of a pair the rate is that of the flow.
        rate = None if len(streams) > 1 and _has_rate(video) else fps
        views.append(_view(stream, video, clips=clips, frames=frames, fps=rate, device=device, progress=progress))
    counts = {view.logits.shape[1] for view in views}
    if len(counts) > 1:
        raise UsageError(f"the two networks have {' and '.join(map(str, sorted(counts)))} classes; expected the same")
    scores, logits = combine([view.logits for view in views], streams[0].preprocessing.scores)
    (count,) = counts
    names = next((stream.labels for stream in streams if stream.labels), tuple(map(str, range(count))))
    if len(names) != count:
        raise FormatError(f"{streams[0].name} has {count} classes, and {len(names)} labels are known; expected as many")
    return Verdict(tuple(views), scores, logits, names)


def combine(logits: Sequence[Scores], rule: str) -> tuple[Scores, Scores | None]:
    """The scores of a video, from the logits (clips, classes) of its one or two streams.

    `logits`: averaged over clips, summed over streams, then the softmax (DeepMind's evaluate_sample.py sums the logits
    of both streams; the paper averages predictions over time). `softmax`: probabilities, averaged over clips and over
    streams (facebookresearch/VMZ@4cc542d5:c2/tools/test_net.py, c2/tools/dense_prediction_fusion.py).

    Returns:
        Probabilities (classes,), and the logits that they are the softmax of, if they are.
    """
    if rule == "softmax":
        return np.mean([_softmax(each).mean(axis=0) for each in logits], axis=0), None
    together: Scores = np.sum([each.mean(axis=0) for each in logits], axis=0)
    return _softmax(together), together


def _softmax(logits: Scores) -> Scores:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Scores = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _view(
    stream: Stream,
    video: Source,
    *,
    clips: int | None,
    frames: int | None,
    fps: float | None,
    device: str,
    progress: Progress,
) -> View:
    import torch

    transform = ClipTransform(stream.preprocessing)
    with open_footage(video, stream.preprocessing, fps) as footage:
        chosen = sample(footage.timeline, stream.preprocessing, clips=clips, frames=frames)
        batch = transform.clips(footage, chosen, progress)
    dtype = next((p.dtype for p in stream.network.parameters() if p.is_floating_point()), torch.float32)
    logits: list[Scores] = []
    with torch.inference_mode():
        for number, clip in enumerate(batch):
            if number and (chosen.indices[number] == chosen.indices[number - 1]).all():
                logits.append(logits[-1])
            else:
                (scores,) = stream.network(clip[None].to(device, dtype))
                logits.append(scores.double().cpu().numpy())
            progress("clips", number + 1, len(batch))
    return View(stream, footage.says, footage.timeline, chosen, np.stack(logits))


def _has_rate(video: Source) -> bool:
    """Whether it is a video file, which has timestamps."""
    return isinstance(video, str | Path) and home.expanded(video).is_file() and Path(video).suffix.lower() != ".npy"


def _check_pair(streams: Sequence[Stream]) -> None:
    for stream in streams:
        if getattr(getattr(stream.network, "config", None), "num_classes", None) == 0:
            raise UsageError(f"{stream.name} has no head, and so no classes; it gives features")
    if len(streams) == 1:
        return
    rgb, flow = streams
    if rgb.preprocessing.channels == "flow" or flow.preprocessing.channels != "flow":
        raise UsageError(
            f"{rgb.name} takes {rgb.preprocessing.channels} and {flow.name} {flow.preprocessing.channels}; expected "
            "the network of the frames first, that of the flow second"
        )
    if rgb.preprocessing.scores != flow.preprocessing.scores:
        raise UsageError(
            f"{rgb.name} combines {rgb.preprocessing.scores} and {flow.name} {flow.preprocessing.scores}; expected two "
            "networks of one release"
        )
    if rgb.labels and flow.labels and rgb.labels != flow.labels:
        raise UsageError(f"{rgb.name} and {flow.name} have other classes; expected two networks over the same ones")


def _check_device(device: str) -> None:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UnavailableError("running a network needs torch: pip install 'vidweights[torch]'") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
