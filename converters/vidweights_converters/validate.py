"""Validation: the file on disk, loaded again, against independent executions of its source.

What is required is fixed here, before a run: see `CRITERION`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from vidweights import formats, plan
from vidweights.errors import ValidationError
from vidweights.files import sha256_of
from vidweights.folder import FolderConfig
from vidweights.formats.base import Checkpoint
from vidweights.plan import Plan
from vidweights.progress import Progress, silent
from vidweights.run import stream
from vidweights_converters.examine import (
    EXACT_TOLERANCE,
    GAPS,
    LEAST_RATIO,
    LEAST_RESPONSE,
    LEAST_TOLERANCE,
    Findings,
    NamedClip,
    default_clips,
    examine,
)
from vidweights_converters.references.base import Clip, Selection
from vidweights_converters.report import ReferenceResult, Report, RoundTrip
from vidweights_converters.written import network, tensors

CRITERION = (
    f"max |ours - reference| <= tolerance * max |reference| for every clip and reference, with tolerance = "
    f"{EXACT_TOLERANCE:g} in float64 where all references are of torch, else in float32 "
    f"max({LEAST_TOLERANCE:g}, {GAPS} x the reference's own float32-to-float64 gap); two unrelated clips differ by "
    f"{LEAST_RESPONSE:.0%} of the largest logit; every tensor has a gradient; every deliberate fault exceeds "
    f"{LEAST_RATIO} tolerances; the round trip to the source is bit-identical"
)


def validate(
    folder: Path,
    config: FolderConfig,
    selection: Selection,
    source: Checkpoint,
    planned: Plan,
    *,
    progress: Progress = silent,
    clip: Clip | None = None,
    identity: str = "",
) -> Report:
    """Check the weights of a folder, as they lie on disk.

    Args:
        folder: a finished (or staged) folder, and `config` its configuration.
        selection: the references that judge.
        source: the checkpoint that the weights were made from, by the plan `planned`.
        identity: how the source is known to be the release.
        clip: a real clip (1, C, T, H, W), float32 in [-1, 1], to use beside the seeded ones.

    Returns:
        The report of weights that passed.

    Raises:
        ValidationError: something did not hold; its `report` has the figures.
    """
    clips = default_clips(config.config)
    clips += (NamedClip("given clip", clip),) if clip is not None else ()
    with formats.open_checkpoint(folder / config.main) as written:
        round_trip = compare_back(written, source, planned)
        exact = all(reference.framework == "torch" for reference in selection.references)
        network = load(written, config, torch.float64 if exact else torch.float32)
    findings = examine(network, selection.references, clips, progress)
    report = Report(
        weights_sha256=dict(config.files),
        identity=identity,
        source_sha256={path.name: sha256_of(path) for path in source.files},
        versions={name: version(name) for name in ("vidweights", "torch", "numpy")},
        criterion=CRITERION,
        references=findings.references,
        absent={one.name: one.reason for one in selection.absent},
        response=findings.response,
        coverage=findings.coverage,
        faults=findings.faults,
        round_trip=round_trip,
        fact_differences=tuple((d.fact, d.source, d.target) for d in planned.differences),
        failures=(*failures(findings), *_failures_of_round_trip(round_trip)),
    )
    if not report.passed:
        lines = "".join(f"\n  {failure}" for failure in report.failures)
        raise ValidationError(f"{config.name} failed its validation, so it is not to be used:{lines}", report)
    return report


def compare_back(written: Checkpoint, source: Checkpoint, planned: Plan) -> RoundTrip:
    """Port the written tensors back into the source's dialect, and compare the bytes."""
    keys = {step.tensor.name: step.source.key for step in planned.steps if step.source}
    back = plan.make(written.tensors, planned.source, config=planned.config, name=str(written.path))
    differing = [
        keys[step.tensor.name]
        for step, array in stream(back, written)
        if array.tobytes() != source.read(keys[step.tensor.name]).tobytes()
    ]
    return RoundTrip(len(keys), tuple(differing))


def load(written: Checkpoint, config: FolderConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with exactly the tensors of a file, in evaluation mode."""
    return network(config, tensors(written, config), dtype)


def failures(findings: Findings) -> Iterator[str]:
    """What did not hold, in sentences."""
    for reference in findings.references:
        yield from _failures_of(reference)
    if findings.response < LEAST_RESPONSE:
        yield (
            f"the network is blind: two unrelated clips differ by {findings.response:.1%} of the largest logit, "
            f"expected at least {LEAST_RESPONSE:.0%}. A match then says little."
        )
    uncovered = [name for name, share in findings.coverage.items() if share == 0]
    if uncovered:
        yield f"no logit changes with {len(uncovered)} of the tensors, so they are not checked: {_some(uncovered)}"
    for fault in findings.faults:
        if not fault.skipped and (fault.ratio or 0) <= LEAST_RATIO:
            yield (
                f"the check does not see a deliberate fault: {fault.layer}, {fault.fault}, moves the logits by "
                f"{fault.ratio or 0:.1f} tolerances, expected over {LEAST_RATIO}"
            )


def _failures_of(reference: ReferenceResult) -> Iterator[str]:
    for clip in reference.clips:
        if clip.max_relative > reference.tolerance:
            yield (
                f"{clip.name}: the logits differ from those of {reference.name} by {clip.max_relative:.1e} of the "
                f"largest, expected at most {reference.tolerance:.1e}"
            )
    if reference.departure is not None:
        yield str(reference.departure)
    elif not reference.passed:
        yield (
            f"no single layer departs from {reference.name} on its own input: look at the input, at what stands "
            "between the layers, or at rounding"
        )


def _failures_of_round_trip(trip: RoundTrip) -> Iterator[str]:
    if trip.differing:
        yield (
            f"{len(trip.differing)} of {trip.tensors} tensors do not come back to the source bit for bit: "
            f"{_some(trip.differing)}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
