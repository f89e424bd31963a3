"""What a model card says of a report, of a port or of an inflation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vidweights.errors import FormatError
from vidweights.folder import VALIDATION
from vidweights_converters.equality_report import (
    KIND,
    EqualityReport,
    kernels_line,
    percent,
    plane_lines,
    spread,
    tensors_line,
)
from vidweights_converters.report import FaultResult, Report


def render(validation: Mapping[str, Any]) -> str:
    """The report of a `validation.json` as Markdown.

    Raises:
        FormatError: it is not one that vidweights wrote.
    """
    try:
        if validation.get("kind") == KIND:
            return "\n".join(_equality(EqualityReport.from_json(validation)))
        return "\n".join(_comparison(Report.from_json(validation)))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{VALIDATION} lacks or misnames {error}. Run: vidweights validate FOLDER") from error


def _comparison(report: Report) -> Iterator[str]:
    yield "| reference | clip (T x H x W) | max difference / largest logit | tolerance |"
    yield "|---|---|---|---|"
    for one in report.references:
        for clip in one.clips:
            yield f"| {one.name} ({one.version}) | {clip.name} | {clip.max_relative:.1e} | {one.tolerance:.1e} |"
    yield ""
    yield _covered(report.coverage, "logits")
    yield from _least_fault(report.faults, "logits")
    trip = report.round_trip
    yield f"- {trip.tensors - len(trip.differing)} of {trip.tensors} tensors come back to the source bit for bit."
    yield from _end(report.failures, "validation")


def _equality(report: EqualityReport) -> Iterator[str]:
    if report.references:
        names = ", ".join(f"{one.name} ({one.version})" for one in report.references)
        yield f"Each clip against the 2D network in {names}; the worst of them is shown."
        yield ""
        yield f"| clip (T x H x W) | time padding | max difference / largest of {report.compared} | tolerance |"
        yield "|---|---|---|---|"
        for clips in zip(*(one.clips for one in report.references)):
            worst = max(clip.worst for clip in clips)
            yield f"| {clips[0].name} | {clips[0].padding} | {worst:.1e} | {report.tolerance:.1e} |"
        yield ""
    yield f"- Tensors: {tensors_line(report.kernels)}."
    yield f"- Kernels, {kernels_line(report)}."
    for zero in report.zero_padding:
        yield (
            f"- With zeros in time, {zero.name}: the {report.compared} are off those of the image by "
            f"{percent(zero.clip)}, the output frames by {spread(zero.frames)}."
        )
    yield from (f"- {line}." for line in plane_lines(report.planes))
    yield _covered(report.coverage, report.compared)
    yield from _least_fault(report.faults, report.compared)
    yield from (f"- **Note:** {remark}." for remark in report.remarks)
    yield from _end(report.failures, "inflation")


def _covered(coverage: Mapping[str, float], what: str) -> str:
    seen = sum(share > 0 for share in coverage.values())
    return f"- {seen} of {len(coverage)} tensors have an effect on the {what}."


def _least_fault(faults: Sequence[FaultResult], what: str) -> Iterator[str]:
    made = [fault for fault in faults if fault.ratio is not None]
    for fault in sorted(made, key=lambda fault: fault.ratio or 0)[:1]:
        yield (
            f"- {len(made)} deliberate faults were made; the one that shows least ({fault.layer}: {fault.fault}) moves "
            f"the {what} by {fault.ratio:,.0f} tolerances."
        )


def _end(failures: Sequence[str], page: str) -> Iterator[str]:
    yield from (f"- **Failed:** {failure}" for failure in failures)
    yield ""
    yield f"All figures are in `validation.json`. What each means: `docs/{page}.md` of vidweights."
