"""What was compared, with which numbers: the `validation.json` beside the weights, and how a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

VERSION = 1


@dataclass(frozen=True)
class ClipResult:
    """Our logits against a reference's for one clip. A difference that is not a number counts as the largest float.

    Attributes:
        name: kind and size (T x H x W).
        sha256: of the clip's float32 bytes, NCTHW.
        max_abs: the largest difference of two logits.
        max_relative: that, relative to the reference's largest logit; the criterion.
        relative_l2: the norm of the difference, relative to the reference's norm.
        cosine: of the angle between both.
        top5: how many of the reference's five best classes are among ours.
    """

    name: str
    sha256: str
    max_abs: float
    max_relative: float
    relative_l2: float
    cosine: float
    top5: int


@dataclass(frozen=True)
class Departure:
    """The first layer that differs when each is run on the reference's own input.

    Attributes:
        layer: its name in the `state_dict`.
        max_relative: by how much it differs.
        cause: the known mistake whose undoing makes it match.
        departing, endpoints: how many endpoints differ, of how many.
    """

    layer: str
    max_relative: float
    cause: str
    departing: int
    endpoints: int

    def __str__(self) -> str:
        others = f"; {self.departing} of {self.endpoints} endpoints depart" if self.departing > 1 else ""
        return f"{self.layer} is the first layer that departs (by {self.max_relative:.1e}): {self.cause}{others}"


@dataclass(frozen=True)
class ReferenceResult:
    """The comparison with one reference.

    Attributes:
        gap: the reference's own float32 from its float64 result, relative to the largest logit, for the first clip.
        tolerance: what `max_relative` may be.
        departure: where the networks part, if a clip fails and a single layer shows it.
        layers: {endpoint: largest difference of its outputs for the first clip, relative to the reference's largest},
            both networks run from the clip on.
    """

    name: str
    version: str
    gap: float
    tolerance: float
    clips: tuple[ClipResult, ...]
    departure: Departure | None = None
    layers: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every clip is within the tolerance."""
        return all(clip.max_relative <= self.tolerance for clip in self.clips)


@dataclass(frozen=True)
class FaultResult:
    """A mistake made on purpose. `ratio` is the difference that it makes over the tolerance, in the clip that shows it.

    A fault that changes nothing in this network has a `skipped` reason instead.
    """

    layer: str
    fault: str
    clip: str = ""
    ratio: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class RoundTrip:
    """The written tensors, ported back and compared with the source bit for bit."""

    tensors: int
    differing: tuple[str, ...]  # keys of the source


@dataclass(frozen=True)
class Report:
    """All that was checked of one file of weights.

    Attributes:
        weights_sha256: {file: SHA-256} of what was checked.
        source_sha256: {file: SHA-256} of what it was made from.
        identity: how that is known to be the release; nothing for a person's own checkpoint.
        versions: of the libraries on our side.
        criterion: what was required, fixed before the run.
        references: those that judged; `absent` ones are names with reasons.
        response: by how much the logits of two unrelated clips differ, relative to the largest.
        coverage: {tensor: share of its elements that the logits change with}.
        fact_differences: (fact, in the source's code, in the target's code).
        failures: what did not hold, in sentences; empty if the weights passed.
    """

    weights_sha256: Mapping[str, str]
    source_sha256: Mapping[str, str]
    versions: Mapping[str, str]
    criterion: str
    references: tuple[ReferenceResult, ...]
    absent: Mapping[str, str]
    response: float
    coverage: Mapping[str, float]
    faults: tuple[FaultResult, ...]
    round_trip: RoundTrip
    fact_differences: tuple[tuple[str, Any, Any], ...]
    failures: tuple[str, ...]
    identity: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """JSON values, in a fixed order."""
        body = {name: listed(value) for name, value in asdict(self).items()}
        return {"validation": VERSION, "passed": self.passed, **body}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Read back what `to_json` gave."""
        fields = {name: value for name, value in data.items() if name not in ("validation", "passed")}
        trip = fields["round_trip"]
        fields |= {
            "references": tuple(_reference(one) for one in fields["references"]),
            "faults": tuple(FaultResult(**one) for one in fields["faults"]),
            "round_trip": RoundTrip(trip["tensors"], tuple(trip["differing"])),
            "fact_differences": tuple(tuple(one) for one in fields["fact_differences"]),
            "failures": tuple(fields["failures"]),
        }
        return cls(**fields)


def listed(value: Any) -> Any:
    """Tuples as lists, all the way down, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def _reference(data: Mapping[str, Any]) -> ReferenceResult:
    clips = tuple(ClipResult(**clip) for clip in data["clips"])
    departure = Departure(**data["departure"]) if data["departure"] else None
    return ReferenceResult(**{**data, "clips": clips, "departure": departure})


def render(report: Report, console: Console) -> None:
    """Print a report for a person; tables as narrow as 80 columns."""
    for reference in report.references:
        console.print(f"\n[bold]{reference.name}[/] ({reference.version})")
        console.print(
            f"float32 to float64 gap {reference.gap:.1e}, tolerance {reference.tolerance:.1e} of the largest logit"
        )
        console.print(_clips(reference))
        if reference.departure:
            console.print(str(reference.departure), style="red", markup=False)
    for name, reason in report.absent.items():
        console.print(f"\n{name} was not used: {reason}", markup=False)
    console.print("\n[bold]Mistakes made on purpose[/], and by how many tolerances each moves the logits")
    console.print(faults_table(report.faults))
    console.print(_summary(report))
    for failure in report.failures:
        console.print(f"- {failure}", style="red", markup=False)


def table(*headings: str, left: int) -> Table:
    """An empty table whose first `left` columns are text, and the others numbers."""
    from rich import box
    from rich.table import Table

    empty = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for index, heading in enumerate(headings):
        empty.add_column(heading, justify="left" if index < left else "right", overflow="fold")
    return empty


def _clips(reference: ReferenceResult) -> Table:
    rows = table("clip", "max diff", "relative", "of tol.", "rel. L2", "1 - cos", "top 5", left=1)
    for clip in reference.clips:
        numbers = (clip.max_abs, clip.max_relative)
        used = f"{clip.max_relative / reference.tolerance:.2g}"
        style = "" if clip.max_relative <= reference.tolerance else "red"
        cells = [f"{n:.1e}" for n in numbers] + [used, f"{clip.relative_l2:.1e}", f"{1 - clip.cosine:.0e}"]
        rows.add_row(clip.name, *cells, f"{clip.top5}/5", style=style)
    return rows


def faults_table(faults: Sequence[FaultResult]) -> Table:
    """Faults with their ratios."""
    rows = table("layer", "fault", "tolerances", left=2)
    for fault in faults:
        shown = "skipped" if fault.ratio is None else f"{fault.ratio:,.0f}"
        name = f"{fault.fault}: {fault.skipped}" if fault.skipped else fault.fault
        rows.add_row(fault.layer, name, shown)
    return rows


def _summary(report: Report) -> Table:
    from rich.table import Table

    grid = Table.grid("what", "found", padding=(0, 2))
    for row in _lines(report):
        grid.add_row(*row)
    grid.add_row(
        "verdict", "passed" if report.passed else "FAILED", style="bold green" if report.passed else "bold red"
    )
    return grid


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    if report.identity:
        yield "source", report.identity
    shares = report.coverage
    whole = sum(share == 1 for share in shares.values())
    least = min(shares, key=lambda name: shares[name], default="")
    rest = f"; least {least}, {shares[least]:.1%}" if whole < len(shares) else ""
    seen = sum(share > 0 for share in shares.values())
    yield "coverage", f"{seen} of {len(shares)} tensors move the logits, {whole} with every element{rest}"
    yield "response", f"unrelated clips differ by {report.response:.0%} of the largest logit"
    trip = report.round_trip
    yield "round trip", f"{trip.tensors - len(trip.differing)} of {trip.tensors} source tensors come back bit for bit"
    for file, sha256 in report.weights_sha256.items():
        yield "weights", f"{file}, SHA-256 {sha256[:16]}..."
