"""The proof that an inflated network, loaded again from disk, computes what its 2D source computes.

What is required is fixed here, before a run: see `CRITERION`. The 2D side is an independent execution of the source
file. The 3D side is the network in float64, holding exactly the stored values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vidweights import formats
from vidweights.errors import ValidationError
from vidweights.files import sha256_of
from vidweights.folder import FolderConfig
from vidweights.formats.base import Checkpoint
from vidweights.inflation import Inflation
from vidweights.models.units import BatchNorm
from vidweights.progress import Progress, silent
from vidweights_converters import kernel_check, stills, written
from vidweights_converters.coverage import coverage
from vidweights_converters.equality_report import EqualityReport, Promise, ReferenceEquality
from vidweights_converters.equality_run import Runner, clipped
from vidweights_converters.examine import LEAST_RATIO, LEAST_RESPONSE
from vidweights_converters.frames import mixes_frames, pools_over_time
from vidweights_converters.inflated_faults import DELIBERATE
from vidweights_converters.references.base import Absent
from vidweights_converters.references.images.base import ImageReference
from vidweights_converters.report import FaultResult
from vidweights_converters.stills import Values

TOLERANCE = 1e-9
IDENTITIES = 4  # a tolerance is at least this many times what the batch norms that change nothing may add up to

CRITERION = (
    "in float64, max |3D - 2D| <= tolerance * max |2D| for every output frame and for the whole of every still clip, "
    "its ends repeated in time, and, where the method promises any clip, for output frame j and input frame f(j) of "
    f"noise under either padding; tolerance = max({TOLERANCE:g}, {IDENTITIES} x the number of batch norms that are to "
    "change nothing x the most that one changes by the rounding of the dtype). The 2D network holds N * fl(W / N) "
    "where kernels W were divided by N, and the mean over the inputs where their number changed. Kernels sum over time "
    "to the source's within N ulp of the stored dtype, all other tensors are the source's bit for bit, and each is "
    f"used once; two unrelated images differ by {LEAST_RESPONSE:.0%} of the largest value; every tensor has a "
    f"gradient; every deliberate fault exceeds {LEAST_RATIO} tolerances. Where a kernel is a low-rank fit, the 2D "
    "network holds that fit, and how far it is off the source is reported. Where the network lacks a layer of the "
    "source, no equality is claimed and none required"
)


def prove(  # noqa: PLR0917
    folder: Path,
    config: FolderConfig,
    planned: Inflation,
    source: Checkpoint,
    references: Sequence[ImageReference],
    absents: Sequence[Absent],
    *,
    progress: Progress = silent,
) -> EqualityReport:
    """Check the weights of an inflated folder, as they lie on disk.

    Args:
        folder: a finished (or staged) folder, and `config` its configuration.
        planned: the inflation that made it.
        source: the 2D checkpoint that it was made from.
        references: the executions of the source that judge, at least one; `absents` those that cannot.

    Returns:
        The report of weights of which the promise holds.

    Raises:
        ValidationError: something did not hold; its `report` has the figures.
    """
    report = _Proof(folder, config, planned, source, progress).run(references, absents)
    report = replace(report, remarks=tuple(_remarks(report, config, planned)))
    report = replace(report, failures=tuple(_failures(report, config, planned)))
    if not report.passed:
        lines = "".join(f"\n  {failure}" for failure in report.failures)
        raise ValidationError(f"{config.name} failed its validation, so it is not to be used:{lines}", report)
    return report


def promise_of(planned: Inflation) -> Promise:
    """What is claimed of a network that was inflated by a plan."""
    units = {planes.promise for planes in planned.planes.values()}
    if not getattr(planned.config, "stem_pool", True):
        return "initialisation only"
    if "approximate" in units:
        return "approximate"
    if planned.config.time_padding == "zero" and _mixes(planned):
        return "equal with ends repeated"
    if not _takes_any_clip(planned):
        return "equal on still clips"
    if planned.options.method != "exact":
        return "equal on any clip"
    return "exact (bounded)" if "bounded" in units else "exact"


def _mixes(planned: Inflation) -> bool:
    """Whether a kernel has more than one step in time that counts."""
    return planned.options.method == "mean" and mixes_frames(planned.config)


def _takes_any_clip(planned: Inflation) -> bool:
    """Whether each output frame depends on one input frame, so that the frames of a clip may differ."""
    return not _mixes(planned) and not pools_over_time(planned.config)


class _Proof:
    """One file of weights, and what is found of it."""

    def __init__(
        self, folder: Path, config: FolderConfig, planned: Inflation, source: Checkpoint, progress: Progress
    ) -> None:
        self.config, self.planned, self.source = config, planned, source
        self.progress, self.done, self.total = progress, 0, 1
        with formats.open_checkpoint(folder / config.main) as file:
            self.written = written.tensors(file, config)
        self.promise = promise_of(planned)
        self.kind = planned.config.in_channels, planned.source.dialect.name

    def _next(self, what: str) -> None:
        self.progress(what, min(self.done, self.total), self.total)
        self.done += 1

    def run(self, references: Sequence[ImageReference], absents: Sequence[Absent]) -> EqualityReport:
        """Everything that is measured; remarks and failures are still to come."""
        self._next("kernels")
        network, short = (written.network(self.config, self.written, dtype) for dtype in (torch.float64, torch.float32))
        epsilon = next(module.eps for module in network.modules() if isinstance(module, BatchNorm))
        kernels, planes, fits = kernel_check.check(self.planned, self.source, self.written, epsilon)
        tolerance = max(TOLERANCE, IDENTITIES * kernels.identity_norms * kernels.identity_error)
        runner, claimed = self._runner(network, fits), self.promise != "initialisation only"
        self.total = 3 + len(references) + (len(runner.images) + 2 * len(runner.noise) + len(DELIBERATE)) * claimed
        with clipped(network, planes) as counts:
            ours = runner.ours(self._next) if claimed else {}
        found: list[ReferenceEquality] = []
        first: dict[str, Values] = {}
        for reference in references:
            self._next(reference.name)
            wanted = runner.wanted(reference)
            first = first or wanted
            if claimed:
                found.append(runner.compare(reference, wanted, ours, short))
        self._next("coverage")
        shares = coverage(short, [torch.from_numpy(stills.noise(*self.kind)[0].array).float()])
        return EqualityReport(
            weights_sha256=dict(self.config.files),
            source_sha256={path.name: sha256_of(path) for path in self.source.files},
            versions={name: version(name) for name in ("vidweights", "torch", "numpy")},
            criterion=CRITERION,
            promise=self.promise,
            method=self.planned.options.method,
            compared=runner.compared,
            tolerance=tolerance,
            references=tuple(found),
            absent={one.name: one.reason for one in absents},
            zero_padding=runner.zero_padding(first) if claimed else (),
            kernels=replace(
                kernels,
                adjusted_ulp=runner.adjust.worst,
                differing=(*kernels.differing, *(f"{key}: moved by more than N ulp" for key in runner.adjust.excess)),
            ),
            planes=tuple(replace(one, clipped=counts[one.layer]) for one in planes),
            response=_response([first[image.name] for image in runner.images]),
            coverage=shares,
            faults=self._faults(runner, first, tolerance) if claimed else (),
            remarks=(),
            failures=(),
        )

    def _runner(self, network: nn.Module, fits: Mapping[str, Values]) -> Runner:
        planned = self.planned
        kept = planned.options.num_classes is None and planned.source.config.num_classes > 0
        noise = stills.noise(*self.kind) if _takes_any_clip(planned) else ()
        compared = "logits" if kept else "features"
        return Runner(network, planned, compared, stills.images(*self.kind), noise, fits)

    def _faults(self, runner: Runner, wanted: Mapping[str, Values], tolerance: float) -> tuple[FaultResult, ...]:
        results = []
        for fault in DELIBERATE:
            self._next(fault.name)
            if fault.fine and tolerance > TOLERANCE:
                dtype = self.planned.steps[0].dtype
                results.append(FaultResult("every unit", fault.name, skipped=f"as small as rounding to {dtype}"))
            else:
                results.append(runner.fault(fault, wanted, tolerance))
        return tuple(results)


def _response(values: Sequence[Values]) -> float:
    """By how much two images differ at most, relative to the largest value; 0 for a network that is blind."""
    largest = max(float(np.abs(one).max()) for one in values)
    most = max(float(np.abs(a - b).max()) for a, b in combinations(values, 2))
    return most / largest if 0 < largest < np.inf else 0.0


def _remarks(report: EqualityReport, config: FolderConfig, planned: Inflation) -> Iterator[str]:
    if config.drawn:
        yield "the source is seeded random weights: this network is not pretrained"
        if report.response < LEAST_RESPONSE:
            yield f"unrelated images differ by {report.response:.1%} only; random weights need not tell them apart"
    if report.promise == "initialisation only":
        yield (
            "the source's pool behind the stem is left out, so the network computes something else: its weights are an "
            "initialisation only, and no equality with the source is claimed"
        )
    if report.promise == "approximate":
        layers = [one.layer for one in report.planes if one.promise == "approximate"]
        off = max(reference.unadjusted for reference in report.references)
        yield (
            f"{', '.join(layers)}: a low-rank fit, so the network is near the source, not equal to it; the "
            f"{report.compared} of a still clip are off by {off:.1%}. It is equal to the 2D network that holds the fit"
        )
    options = planned.options
    if options.in_channels not in (None, planned.source.config.in_channels):
        yield (
            f"the first kernel is the source's mean over {planned.source.config.in_channels} channels, "
            f"{options.in_channels} times; equality is with the 2D network that holds it, not with the source itself"
        )
    if options.num_classes is not None:
        yield "the head is not the source's, so features before it are compared"
    if _mixes(planned) and config.config.time_padding == "zero" and report.zero_padding:
        yield (
            "this folder pads with zeros in time, and so does not preserve a still clip: the "
            f"{report.compared} of 16 frames are off by {report.zero_padding[0].clip:.1%}. What was shown of its "
            "kernels was shown with the ends repeated"
        )


def _failures(report: EqualityReport, config: FolderConfig, planned: Inflation) -> Iterator[str]:
    """What did not hold, in sentences."""
    wanted, found = planned.config.to_json(), config.config.to_json()
    for field in sorted(field for field in wanted.keys() | found.keys() if wanted.get(field) != found.get(field)):
        yield f"config.json says {field} {found.get(field)!r}, the plan {wanted.get(field)!r}"
    kernels = report.kernels
    if kernels.differing:
        more = len(kernels.differing) - 5
        yield (
            f"{len(kernels.differing)} tensors are not what they should be: "
            + "; ".join(kernels.differing[:5])
            + (f"; and {more} more" if more > 0 else "")
        )
    if report.promise != "initialisation only":
        yield from _failures_of_equality(report, planned)
    for unit in report.planes:
        if unit.clipped:
            yield (
                f"{unit.layer}: {unit.clipped} values of its lifted planes were below zero and cut, expected none; "
                f"with {2 * unit.outputs} planes none are lifted"
            )
    if report.response < LEAST_RESPONSE and not config.drawn:
        yield (
            f"the 2D network is blind: unrelated images differ by {report.response:.1%} of the largest of the "
            f"{report.compared}, expected at least {LEAST_RESPONSE:.0%}. A match then says little."
        )
    uncovered = [name for name, share in report.coverage.items() if share == 0]
    if uncovered:
        yield f"the output changes with none of {len(uncovered)} tensors, so they are not checked: {uncovered[:5]}"
    for fault in report.faults:
        if fault.ratio is not None and fault.ratio <= LEAST_RATIO:
            yield (
                f"the check does not see a deliberate fault: {fault.layer}, {fault.fault}, moves the output by "
                f"{fault.ratio:.1f} tolerances, expected over {LEAST_RATIO}"
            )


def _failures_of_equality(report: EqualityReport, planned: Inflation) -> Iterator[str]:
    failed = False
    for reference in report.references:
        for clip in reference.clips:
            if clip.worst > report.tolerance:
                failed = True
                kind = "still clip" if clip.inputs is None else "clip"
                yield (
                    f"{kind} {clip.name}, time padding {clip.padding}: the {report.compared} differ from those of "
                    f"{reference.name} by {clip.worst:.1e} of the largest, expected at most {report.tolerance:.1e}"
                )
    if not _mixes(planned):
        for one in report.zero_padding:
            if one.clip > report.tolerance:
                yield (
                    f"still clip {one.name}, time padding zero: the {report.compared} differ by {one.clip:.1e} of the "
                    f"largest; only the centre of each kernel should count, so expected at most {report.tolerance:.1e}"
                )
    if failed and not report.kernels.differing and not any(unit.clipped for unit in report.planes):
        yield (
            "every tensor is the source's, so the cause is a fact: compare padding, stride, pools and batch-norm "
            "epsilon in config.json with those of the source"
        )
