"""Validation: the file on disk, loaded again, against independent executions of its source.

What is required is fixed here, before a run: see `CRITERION`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidweights import dialects, formats, models, plan
from vidweights.clips import moving_clip, noise_clip
from vidweights.errors import ValidationError
from vidweights.folder import FolderConfig
from vidweights.formats.base import Checkpoint
from vidweights.layout import Array
from vidweights.plan import Plan
from vidweights.run import stream
from vidweights_converters.references.base import HEAD, Clip, Reference, Selection
from vidweights_converters.report import ClipResult, FaultResult, ReferenceResult, Report, RoundTrip

if TYPE_CHECKING:
    from torch import nn

    from vidweights_converters.faults import Fault

LEAST_TOLERANCE = 1e-5
GAPS = 4  # tolerances are at least this many float32-to-float64 gaps of the reference
LEAST_RESPONSE = 0.1
LEAST_RATIO = 10

CRITERION = (
    f"max |ours - reference| <= tolerance * max |reference| for every clip and reference, with tolerance = "
    f"max({LEAST_TOLERANCE:g}, {GAPS} x the reference's own float32-to-float64 gap); two unrelated clips differ by "
    f"{LEAST_RESPONSE:.0%} of the largest logit; every tensor has a gradient; every deliberate fault exceeds "
    f"{LEAST_RATIO} tolerances; the round trip to the source is bit-identical"
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class NamedClip:
    """A clip (1, C, T, H, W), float32 in [-1, 1], and what it is."""

    name: str
    array: Clip

    @property
    def sha256(self) -> str:
        """The SHA-256 of its bytes."""
        return hashlib.sha256(np.ascontiguousarray(self.array)).hexdigest()


def default_clips(channels: int) -> tuple[NamedClip, ...]:
    """Noise and a moving texture: T, H and W all differ, T is odd and even, H and W at both ends of 193 to 224.

    The smallest comes first: what takes one clip takes it.
    """
    sizes = ((9, 200, 224), (16, 224, 199), (17, 210, 224))
    makers = ((noise_clip, "noise"), (noise_clip, "noise"), (moving_clip, "moving"))
    return tuple(
        NamedClip(f"{kind} {t}x{h}x{w}", make(t, h, w, channels, seed))
        for seed, ((t, h, w), (make, kind)) in enumerate(zip(sizes, makers))
    )


def validate(
    folder: Path,
    config: FolderConfig,
    selection: Selection,
    source: Checkpoint,
    planned: Plan,
    progress: Progress,
    *,
    clip: Clip | None = None,
) -> Report:
    """Check the weights of a folder, as they lie on disk.

    Args:
        folder: a finished (or staged) folder, and `config` its configuration.
        selection: the references that judge.
        source: the checkpoint that the weights were made from, by the plan `planned`.
        clip: a real clip (1, C, T, H, W), float32 in [-1, 1], to use beside the seeded ones.

    Returns:
        The report of weights that passed.

    Raises:
        ValidationError: something did not hold; its `report` has the figures.
        UnavailableError: torch is not installed.
    """
    clips = default_clips(config.config.in_channels)
    clips += (NamedClip("given clip", clip),) if clip is not None else ()
    with formats.open_checkpoint(folder / config.main) as written:
        round_trip = compare_back(written, source, planned)
        network = load(written, config)
    report = examine(network, selection, clips, progress, round_trip, config)
    if not report.passed:
        raise ValidationError(
            f"{config.name} failed its validation:\n" + "\n".join(f"  {failure}" for failure in report.failures), report
        )
    return report


def compare_back(written: Checkpoint, source: Checkpoint, planned: Plan) -> RoundTrip:
    """Port the written tensors back into the source's dialect, and compare the bytes."""
    back = plan.make(written.tensors, planned.source, name=str(written.path))
    prefixed = {step.tensor.name: step.source.key for step in planned.steps if step.source}
    total, differing = 0, []
    for step, array in stream(back, written):
        key = prefixed[step.tensor.name]
        total += 1
        if array.tobytes() != source.read(key).tobytes():
            differing.append(key)
    return RoundTrip(total, tuple(differing))


def load(written: Checkpoint, config: FolderConfig) -> nn.Module:
    """The network with exactly the tensors of a file, in float32 and evaluation mode."""
    network = models.build(config.family, config.config)
    import torch

    planned = plan.make(written.tensors, dialects.get(f"vidweights-{config.family}"), config=config.config)
    tensors = {
        step.target.key: torch.from_numpy(np.array(array, np.float32))
        for step, array in stream(planned, written)
        if step.target
    }
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()
