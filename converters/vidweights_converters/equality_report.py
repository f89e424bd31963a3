"""What was shown of an inflated network: the `validation.json` beside its weights, and how a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from vidweights_converters.report import VERSION, FaultResult, faults_table, listed, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

KIND = "inflation"

Promise = Literal[
    "equal on still clips",
    "equal with ends repeated",
    "equal on any clip",
    "exact",
    "exact (bounded)",
    "approximate",
    "initialisation only",
]


@dataclass(frozen=True)
class ClipEquality:
    """A clip in the 3D network against its image, or its frames, in the 2D one.

    Attributes:
        name: kind and size (T x H x W).
        sha256: of the image's or the clip's float64 bytes.
        padding: in time: `replicate` or `zero`.
        frames: the largest difference in any output frame, relative to the largest of the 2D network's values.
        clip: that of what the network gives for the clip; None for a clip whose frames differ.
        inputs: the input frame that each output frame stands for; None for a still clip.
        each: the difference in each output frame, on the same scale.
    """

    name: str
    sha256: str
    padding: str
    frames: float
    clip: float | None
    inputs: tuple[int, ...] | None
    each: tuple[float, ...] = ()

    @property
    def worst(self) -> float:
        """The larger of both."""
        return max(self.frames, self.clip or 0.0)


@dataclass(frozen=True)
class ReferenceEquality:
    """The comparison with one execution of the 2D source.

    Attributes:
        clips: in float64, against the network of the adjusted weights.
        unadjusted: the difference of the first still clip from the network that holds no rounding and no low-rank fit.
        float32: that of the first still clip with both networks in float32.
        gap: of the reference's own float32 from its float64 result.
    """

    name: str
    version: str
    clips: tuple[ClipEquality, ...]
    unadjusted: float
    float32: float
    gap: float


@dataclass(frozen=True)
class ZeroPadding:
    """A still clip with zeros before its first and behind its last frame: how far each output frame is off, and all."""

    name: str
    frames: tuple[float, ...]
    clip: float


@dataclass(frozen=True)
class KernelResult:
    """The tensors on disk against those of the source.

    Attributes:
        made: tensors of the 3D network, and `used` those of the 2D one.
        inflated: kernels that are longer in time than the source's.
        factorised: kernels that are a spatial and a temporal one.
        identical: tensors that are the source's bit for bit.
        constant: tensors of one value, and `drawn` those of a new head.
        left: {reason: how many tensors of the source were left for it}.
        worst_ulp: how far a kernel, summed over time, is off the source's at most.
        adjusted_ulp: how far a kernel of the 2D network was moved at most for the comparison.
        identity_norms: how many batch norms are to change nothing, and `identity_error` by how much one does.
        differing: what is not as it should be, in words; empty if nothing is.
    """

    made: int
    used: int
    inflated: int
    factorised: int
    identical: int
    constant: int
    drawn: int
    left: Mapping[str, int]
    worst_ulp: float
    identity_norms: int
    identity_error: float
    differing: tuple[str, ...]
    adjusted_ulp: float = 0.0


@dataclass(frozen=True)
class PlaneResult:
    """A (2+1)D unit: how its middle planes carry the 2D network's outputs through the ReLU between its halves.

    Attributes:
        promise: `exact`, `bounded` or `approximate`.
        outputs, middle: how many there are, and `lifted` how many planes are shifted above zero.
        shift: the smallest and the largest shift.
        error: of a low-rank fit, relative to the norm of the kernel.
        clipped: how many values of lifted planes were below zero, over all clips.
    """

    layer: str
    promise: str
    outputs: int
    middle: int
    lifted: int
    shift: tuple[float, float] | None
    error: float
    clipped: int


@dataclass(frozen=True)
class EqualityReport:
    """All that was checked of one inflated network.

    Attributes:
        weights_sha256: {file: SHA-256} of what was checked.
        source_sha256: {file: SHA-256} of what it was made from.
        versions: of the libraries on our side.
        criterion: what was required, fixed before the run.
        promise: what is claimed of the network.
        method: how kernels were inflated.
        compared: `logits` or `features`.
        tolerance: what a difference may be, relative to the 2D network's largest value.
        references: those that judged; `absent` ones are names with reasons.
        zero_padding: what zeros in time do to a still clip.
        planes: the units of a (2+1)D network.
        response: by how much two unrelated images differ in the 2D network, relative to the largest value.
        coverage: {tensor: share of its elements that the output changes with}.
        remarks: what a reader has to know beside the figures.
        failures: what did not hold, in sentences; empty if the weights passed.
    """

    weights_sha256: Mapping[str, str]
    source_sha256: Mapping[str, str]
    versions: Mapping[str, str]
    criterion: str
    promise: Promise
    method: str
    compared: str
    tolerance: float
    references: tuple[ReferenceEquality, ...]
    absent: Mapping[str, str]
    zero_padding: tuple[ZeroPadding, ...]
    kernels: KernelResult
    planes: tuple[PlaneResult, ...]
    response: float
    coverage: Mapping[str, float]
    faults: tuple[FaultResult, ...]
    remarks: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; of what the promise does not claim, nothing was required."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """JSON values, in a fixed order."""
        body = {name: listed(value) for name, value in asdict(self).items()}
        return {"validation": VERSION, "kind": KIND, "passed": self.passed, **body}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EqualityReport:
        """Read back what `to_json` gave."""
        fields = {name: value for name, value in data.items() if name not in ("validation", "kind", "passed")}
        kernels = fields["kernels"]
        fields |= {
            "references": tuple(_reference(one) for one in fields["references"]),
            "zero_padding": tuple(ZeroPadding(**{**z, "frames": tuple(z["frames"])}) for z in fields["zero_padding"]),
            "kernels": KernelResult(**{**kernels, "differing": tuple(kernels["differing"])}),
            "planes": tuple(PlaneResult(**{**one, "shift": _pair(one["shift"])}) for one in fields["planes"]),
            "faults": tuple(FaultResult(**one) for one in fields["faults"]),
            "remarks": tuple(fields["remarks"]),
            "failures": tuple(fields["failures"]),
        }
        return cls(**fields)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _reference(data: Mapping[str, Any]) -> ReferenceEquality:
    def clip(one: Mapping[str, Any]) -> ClipEquality:
        lists = {name: tuple(one[name]) for name in ("inputs", "each") if one.get(name) is not None}
        return ClipEquality(**{**one, **lists})

    return ReferenceEquality(**{**data, "clips": tuple(map(clip, data["clips"]))})


def render(report: EqualityReport, console: Console) -> None:
    """Print a report for a person; tables as narrow as 80 columns."""
    for reference in report.references:
        console.print(f"\n[bold]{reference.name}[/] ({reference.version})")
        for line in reference_lines(report, reference):
            console.print(line, markup=False)
        if reference.clips:
            console.print(_clips(report, reference))
        for text in _maps(reference):
            console.print(text, markup=False)
    for name, reason in report.absent.items():
        console.print(f"\n{name} was not used: {reason}", markup=False)
    _render_zero_padding(report, console)
    if report.planes:
        console.print("\n[bold](2+1)D units[/], and how their middle planes carry the outputs")
        console.print(_planes(report.planes))
    if report.faults:
        console.print("\n[bold]Mistakes made on purpose[/], and by how many tolerances each moves the output")
        console.print(faults_table(report.faults))
    console.print(_summary(report))
    for remark in report.remarks:
        console.print(f"- {remark}", style="yellow", markup=False)
    for failure in report.failures:
        console.print(f"- {failure}", style="red", markup=False)


def reference_lines(report: EqualityReport, reference: ReferenceEquality) -> Iterator[str]:
    """What is said of a reference above its figures."""
    yield (
        f"float64, tolerance {report.tolerance:.1e} of the largest of the {report.compared}; in float32 the "
        f"difference is {reference.float32:.1e}, the reference's own gap {reference.gap:.1e}"
    )
    if report.promise == "approximate":
        yield (
            "against the 2D network that holds the low-rank fit; against the source itself the difference is "
            f"{reference.unadjusted:.1%}"
        )
    elif report.kernels.adjusted_ulp:
        yield (
            f"against the 2D network that holds N * fl(W / N); without that {reference.unadjusted:.1e}, the rounding "
            "of the division"
        )


def _clips(report: EqualityReport, reference: ReferenceEquality) -> Table:
    grid = table("clip", "time padding", "worst frame", "clip", "of tol.", left=2)
    for one in reference.clips:
        whole = "-" if one.clip is None else f"{one.clip:.1e}"
        style = "" if one.worst <= report.tolerance else "red"
        used = f"{one.worst / report.tolerance:.2g}"
        grid.add_row(one.name, one.padding, f"{one.frames:.1e}", whole, used, style=style)
    return grid


def _maps(reference: ReferenceEquality) -> Iterator[str]:
    """f(j), once for each length of clip."""
    said: set[str] = set()
    for one in reference.clips:
        if one.inputs is not None and one.name not in said:
            said.add(one.name)
            yield f"{one.name}: output frames stand for the input frames {', '.join(map(str, one.inputs))}"


def _render_zero_padding(report: EqualityReport, console: Console) -> None:
    if not report.zero_padding:
        return
    console.print("\n[bold]Zeros in time[/]: how far a still clip is then off the image, relative to the largest value")
    for one in report.zero_padding:
        console.print(f"{one.name}: {report.compared} {percent(one.clip)}; output frames {spread(one.frames)}")


def percent(share: float) -> str:
    """A share that may be next to nothing."""
    return f"{share:.1%}" if share >= 1e-3 else f"{share:.0e}"


def spread(shares: Sequence[float]) -> str:
    """Shares one by one."""
    return ", ".join(percent(share) for share in shares)


def _planes(planes: Sequence[PlaneResult]) -> Table:
    grid = table("layer", "promise", "outputs", "planes", "shift", "clipped", "error", left=2)
    for one in planes:
        shift = "-" if one.shift is None else f"{one.shift[0]:.3g} to {one.shift[1]:.3g}"
        error = f"{one.error:.1%}" if one.promise == "approximate" else "-"
        clipped = str(one.clipped) if one.lifted else "-"
        grid.add_row(one.layer, one.promise, str(one.outputs), str(one.middle), shift, clipped, error)
    return grid


def plane_lines(planes: Sequence[PlaneResult]) -> Iterator[str]:
    """What is said of the (2+1)D units that are not exact whatever their input is, one line each."""
    for one in planes:
        if one.promise == "exact":
            continue
        fit = f" low-rank fit, off the kernel by {one.error:.1%} of its norm;" if one.promise == "approximate" else ""
        low, high = one.shift or (0.0, 0.0)
        yield (
            f"`{one.layer}` ({one.promise}): {one.middle} planes for {one.outputs} outputs;{fit} {one.lifted} lifted "
            f"by {low:.3g} to {high:.3g}, of which {one.clipped} values were cut"
        )


def _summary(report: EqualityReport) -> Table:
    from rich.table import Table

    grid = Table.grid("what", "found", padding=(0, 2))
    for row in _lines(report):
        grid.add_row(*row)
    verdict = f"passed: {report.promise}" if report.passed else "FAILED"
    grid.add_row("verdict", verdict, style="bold green" if report.passed else "bold red")
    return grid


def _lines(report: EqualityReport) -> Iterator[tuple[str, str]]:
    yield "tensors", tensors_line(report.kernels)
    yield "kernels", kernels_line(report)
    seen, whole = (sum(test(share) for share in report.coverage.values()) for test in (bool, lambda share: share == 1))
    yield "coverage", f"{seen} of {len(report.coverage)} tensors move the output, {whole} with every element"
    yield "response", f"unrelated images differ by {report.response:.0%} of the largest of the {report.compared}"
    for file, sha256 in report.weights_sha256.items():
        yield "weights", f"{file}, SHA-256 {sha256[:16]}..."


def tensors_line(kernels: KernelResult) -> str:
    """Where the tensors came from."""
    parts = {
        "inflated": kernels.inflated,
        "factorised in two": kernels.factorised,
        "the source's bit for bit": kernels.identical,
        "constant": kernels.constant,
        "newly drawn": kernels.drawn,
    }
    made = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    left = "".join(f"; {count} left: {reason}" for reason, count in kernels.left.items())
    return f"{kernels.made} made of {kernels.used} of the source ({made}){left}"


def kernels_line(report: EqualityReport) -> str:
    """How near the kernels are to the source's."""
    kernels = report.kernels
    if kernels.differing:
        return f"{len(kernels.differing)} are not as they should be"
    text = f"summed over time within {kernels.worst_ulp:.2g} ulp of the source's"
    if kernels.identity_norms:
        text += f"; {kernels.identity_norms} batch norms change nothing by more than {kernels.identity_error:.0e}"
    return text
