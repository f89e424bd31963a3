"""What a model card says of a report, of a port or of an inflation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vidweights.errors import FormatError
from vidweights.folder import VALIDATION, FolderConfig
from vidweights_converters import pictures
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


def read(validation: Mapping[str, Any]) -> Report | EqualityReport:
    """The report that a `validation.json` holds.

    Raises:
        FormatError: it is not one that vidweights wrote.
    """
    try:
        kind = EqualityReport if validation.get("kind") == KIND else Report
        return kind.from_json(validation)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{VALIDATION} lacks or misnames {error}. Run: vidweights validate FOLDER") from error


def render(config: FolderConfig, validation: Mapping[str, Any]) -> str:
    """The report of a `validation.json` as Markdown.

    Raises:
        FormatError: it is not one that vidweights wrote.
    """
    report = read(validation)
    lines = _equality(report) if isinstance(report, EqualityReport) else _comparison(report)
    end = _end(report.failures, "inflation" if isinstance(report, EqualityReport) else "validation")
    return "\n".join([*lines, *_pictures(config, report), *end])


def _comparison(report: Report) -> Iterator[str]:
    yield from _parity(report)
    yield "| reference | clip (T x H x W) | max difference | of the largest logit | tolerance |"
    yield "|---|---|---|---|---|"
    for one in report.references:
        for clip in one.clips:
            figures = f"{clip.max_abs:.1e} | {clip.max_relative:.1e} | {one.tolerance:.1e}"
            yield f"| {one.name} ({one.version}) | {clip.name} | {figures} |"
    yield ""
    if report.identity:
        yield f"- Identity of the source: {report.identity}."
    yield _covered(report.coverage, "logits")
    yield from _least_fault(report.faults, "logits")
    trip = report.round_trip
    yield f"- {trip.tensors - len(trip.differing)} of {trip.tensors} tensors come back to the source bit for bit."
    yield from (f"- Not compared with {name}: {reason}" for name, reason in report.absent.items())


def _parity(report: Report) -> Iterator[str]:
    """The one sentence that a reader takes away."""
    clips = [(one, clip) for one in report.references for clip in one.clips]
    if not clips:
        return
    worst, clip = max(clips, key=lambda pair: pair[1].max_relative)
    count = len({clip.name for _, clip in clips})
    yield (
        f"**Logits differ from those of the source by at most {clip.max_abs:.1e}**, {clip.max_relative:.1e} of the "
        f"largest ({worst.name}, {clip.name}), over {count} clips and {len(report.references)} independent "
        f"{'executions' if len(report.references) > 1 else 'execution'} of the source; run with {_versions(report)}."
    )
    yield ""


def _versions(report: Report | EqualityReport) -> str:
    return ", ".join(f"{name} {version}" for name, version in report.versions.items())


def _equality(report: EqualityReport) -> Iterator[str]:
    if report.references:
        names = ", ".join(f"{one.name} ({one.version})" for one in report.references)
        yield (
            f"Each clip against the 2D network in {names}; the worst of them is shown. Run in float64 with "
            f"{_versions(report)}."
        )
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


def _pictures(config: FolderConfig, report: Report | EqualityReport) -> Iterator[str]:
    for name, caption in pictures.captions(config, report).items():
        yield from ("", f"![{pictures.TITLES[name]}]({name})", "", f"*{caption}*")


def _end(failures: Sequence[str], page: str) -> Iterator[str]:
    yield from (f"- **Failed:** {failure}" for failure in failures)
    yield ""
    yield f"All figures are in `validation.json`. What each means: `docs/{page}.md` of vidweights."
