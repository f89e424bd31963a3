"""What the tensors of an inflated network are of those of its source, read from both files.

The arithmetic is written apart from `vidweights.kernels`, which made the tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import DTYPES, narrowed, widened
from vidweights.formats.base import Checkpoint
from vidweights.inflation import HEADS, Inflation, Step, split
from vidweights.layout import relayout
from vidweights_converters.equality_report import KernelResult, PlaneResult

Values = NDArray[np.float64]

_KERNEL = "conv.weight"
_NORMS = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
# By how much of the kernel's norm a low-rank fit may be worse than the best, since its halves are rounded.
_FIT_SLACK = 0.01
# By how many ulp of what lifts its planes its mean may be off, for the same reason.
_LIFT_ULPS = 8


Found = tuple[KernelResult, tuple[PlaneResult, ...], dict[str, Values]]


def check(planned: Inflation, source: Checkpoint, written: Mapping[str, Values], epsilon: float) -> Found:
    """Compare every tensor on disk with those of the source.

    Args:
        planned: what was to be made of what.
        source: the 2D checkpoint.
        written: the tensors of the 3D file by name, in float64.
        epsilon: of the 3D network's batch norms.

    Returns:
        Counts and what differs, the (2+1)D units, and what stands for low-rank fits in an `Adjustment`.
    """
    return _Check(planned, source, written, epsilon).run()


def ulp(values: Values, dtype: str) -> Values:
    """The distance of a value from the next number of a dtype."""
    if dtype == "bfloat16":  # a float32 without its lower 16 bits
        return ulp(values, "float32") * 2.0**16
    spacing: Values = np.spacing(np.abs(values).astype(DTYPES[dtype].storage)).astype(np.float64)
    return spacing


def rounded(values: Values, dtype: str) -> Values:
    """The nearest numbers of a dtype."""
    return widened(narrowed(values, dtype), dtype)


class Adjustment:
    """What makes the 2D network's tensors the ones that the 3D network holds.

    A kernel that was divided is N * fl(W / N), which has the rounding that its N steps have; a kernel of other input
    channels is the mean over its own, repeated; `fits` stand for kernels (and the means behind them) of which the 3D
    network has a low-rank fit. All other tensors are as they are.

    Args:
        planned: what was made of what.
        fits: {stored key without the prefix: the tensor in the source's layout}.
        divide: whether kernels are rounded as the division by N rounds them.

    Attributes:
        worst: by how many ulp a kernel moved by that, at most; `excess` has the keys of those that moved by over N.
    """

    def __init__(
        self, planned: Inflation, fits: Mapping[str, Values] = MappingProxyType({}), *, divide: bool = True
    ) -> None:
        self.worst = 0.0
        self.excess: set[str] = set()
        self._fits, self._divide = fits, divide
        self._kernels = dict(_adjusted(planned))

    def __call__(self, key: str, array: Values) -> Values:
        """The tensor of a stored key (without the prefix), in the source's layout."""
        if key in self._fits:
            return self._fits[key]
        change = self._kernels.get(key)
        if change is None:
            return array
        if change.inputs is not None:
            axis = change.layout.index("I")
            array = np.repeat(_mean(array, axis, change.dtype), change.inputs, axis)
        if change.length == 1 or not self._divide:
            return rounded(array, change.dtype)
        divided = change.length * rounded(_working(array / change.length, change.dtype), change.dtype)
        moved = float((np.abs(divided - array) / ulp(array, change.dtype)).max())
        self.worst = max(self.worst, moved)
        if not moved <= change.length:
            self.excess.add(key)
        return divided


@dataclass(frozen=True)
class _Change:
    length: int
    inputs: int | None
    layout: str
    dtype: str


def _adjusted(planned: Inflation) -> Iterator[tuple[str, _Change]]:
    """Keys of kernels that the 3D network does not hold as they are."""
    mean, before = planned.options.method == "mean", planned.source.config.in_channels
    for step in planned.steps:
        unit, half, last = split(step.tensor.name)
        if last != _KERNEL or half == "temporal":
            continue
        stored, _ = step.sources[0]
        length = step.tensor.shape[2] if mean else 1
        first = unit == split(planned.steps[0].tensor.name)[0]
        inputs = step.tensor.shape[1] if first and step.tensor.shape[1] != before else None
        if length > 1 or inputs is not None:
            yield stored.key.removeprefix(planned.source.prefix), _Change(length, inputs, stored.layout, step.dtype)


def _working(values: Values, dtype: str) -> Values:
    """Values as they are computed with before they are stored: in float32, unless they are float64."""
    return values if dtype == "float64" else values.astype(np.float32).astype(np.float64)


def _mean(kernel: Values, axis: int, dtype: str) -> Values:
    return _working(kernel.mean(axis=axis, keepdims=True), dtype)


class _Check:
    """One comparison of two files, and what it has found so far."""

    def __init__(self, planned: Inflation, source: Checkpoint, written: Mapping[str, Values], epsilon: float) -> None:
        self.planned, self.source, self.written, self.epsilon = planned, source, written, epsilon
        self.steps = {step.tensor.name: step for step in planned.steps}
        self.mean = planned.options.method == "mean"
        self.dtype = planned.steps[0].dtype
        self.worst = self.identity = 0.0
        self.differing: list[str] = []
        self.planes: list[PlaneResult] = []
        self.fits: dict[str, Values] = {}
        self.counts: Counter[str] = Counter()

    def run(self) -> Found:
        self._names()
        for name, step in self.steps.items():
            unit, half, last = split(name)
            if name not in self.written or self.written[name].shape != step.tensor.shape:
                continue
            if half == "":
                self._whole(step, last)
            elif half == "spatial" and last == _KERNEL:
                (self._separable if getattr(self.planned.config, "separable", False) else self._pair)(unit)
        left = Counter(reason for _, reason in self.planned.left)
        result = KernelResult(
            made=len(self.written),
            used=len({stored.key for step in self.planned.steps for stored, _ in step.sources}),
            inflated=self.counts["inflated"],
            factorised=self.counts["factorised"],
            identical=self.counts["identical"],
            constant=self.counts["constant"],
            drawn=self.counts["drawn"],
            left=dict(left),
            worst_ulp=self.worst,
            identity_norms=self.counts["identity"],
            identity_error=self.identity,
            differing=tuple(self.differing),
        )
        return result, tuple(self.planes), self.fits

    def _names(self) -> None:
        """Nothing is missing or left over on either side, and nothing whole is used twice."""
        for name in sorted(set(self.steps) ^ set(self.written)):
            self.differing.append(f"{name} is {'not in the file' if name in self.steps else 'not in the plan'}")
        for name in set(self.steps) & set(self.written):
            found, wanted = self.written[name].shape, self.steps[name].tensor.shape
            if found != wanted:
                self.differing.append(f"{name} has the shape {found}, expected {wanted}")
        uses = Counter(step.sources[0][0].key for step in self.planned.steps if _takes_whole(step))
        self.differing += [f"{key} was used {count} times" for key, count in uses.items() if count > 1]
        used = {stored.key for step in self.planned.steps for stored, _ in step.sources}
        left = {key for key, _ in self.planned.left}
        self.differing += [f"{key} of the source was not used" for key in self.source.tensors if key not in used | left]

    def _flat(self, step: Step, index: int = 0) -> Values:
        """A 2D tensor that a step is made of."""
        stored, layout = step.sources[index]
        return widened(relayout(self.source.read(stored.key), stored.layout, layout), step.dtype)

    def _wrong(self, name: str, what: str) -> None:
        self.differing.append(f"{name}: {what}")

    def _same(self, name: str) -> None:
        """The vector or matrix of the source, bit for bit."""
        flat = self._flat(self.steps[name])
        if self.written[name].reshape(flat.shape).tobytes() != flat.tobytes():
            self._wrong(name, "not the bits of the source")
        self.counts["identical"] += 1

    def _whole(self, step: Step, last: str) -> None:
        name = step.tensor.name
        if not step.sources:
            if name in HEADS:
                self.counts["drawn"] += 1
            else:
                self._constant(name, 1.0)  # a scale that the source does not have
        elif last == _KERNEL and name not in HEADS:
            self._inflated(name, step)
            self.counts["inflated" if step.tensor.shape[2] > 1 else "identical"] += 1
        else:
            self._same(name)

    def _constant(self, name: str, value: float) -> None:
        if not bool((self.written[name] == value).all()):
            self._wrong(name, f"expected {value} in every element")
        self.counts["constant"] += 1

    def _kernel(self, step: Step) -> tuple[Values, bool]:
        """The 2D kernel, over the 3D network's input channels, and whether those are others."""
        flat, inputs = self._flat(step), step.tensor.shape[1]
        if flat.shape[1] == inputs:
            return flat, False
        return np.repeat(_mean(flat, 1, step.dtype), inputs, 1), True

    def _inflated(self, name: str, step: Step) -> None:
        """Its steps sum to the 2D kernel; they are all the same, or all but the middle one are zero."""
        kernel, (flat, averaged) = self.written[name], self._kernel(step)
        length = kernel.shape[2]
        self._steps(name, kernel, 0)
        self._near(name, kernel.sum(axis=2), flat, length if (self.mean and length > 1) or averaged else 0)

    def _steps(self, name: str, kernel: Values, slack: int) -> None:
        """All steps in time are alike to within `slack` ulp, or all but the middle one are zero."""
        if self.mean:
            first = kernel[:, :, :1]
            if not bool((np.abs(kernel - first) <= slack * ulp(first, self.dtype)).all()):
                self._wrong(name, "its steps in time are not all the same")
        elif np.delete(kernel, kernel.shape[2] // 2, axis=2).any():
            self._wrong(name, "its steps in time are not zero beside the middle one")

    def _near(self, name: str, found: Values, wanted: Values, allowed: int) -> None:
        """What the steps sum to is what was wanted, within `allowed` ulp."""
        off = np.abs(found - wanted) / ulp(wanted, self.dtype)
        worst = float(off.max()) if np.isfinite(off).all() else float("inf")
        if worst > allowed:
            ratio = float(np.sum(found * wanted) / np.sum(wanted * wanted))
            self._wrong(
                name,
                f"summed over time it is off the 2D kernel by {worst:.2g} ulp, expected at most {allowed} "
                f"(it is {ratio:.3g} times the kernel, by least squares)",
            )
        else:
            self.worst = max(self.worst, worst)

    def _identity_norm(self, unit: str) -> None:
        """A batch norm that changes nothing, to within the ulp of 1."""
        scale = self.written[f"{unit}.bn.weight"] / np.sqrt(self.written[f"{unit}.bn.running_var"] + self.epsilon)
        error = float(np.abs(scale - 1).max())
        if not error <= ulp(np.ones(1), self.dtype)[0]:
            self._wrong(f"{unit}.bn", f"it should change nothing, and scales by what is off 1 by {error:.1g}")
        self.identity = max(self.identity, error)
        self.counts["identity"] += 1

    def _separable(self, unit: str) -> None:
        """S3D: the spatial half is the 2D unit; the temporal half is the identity."""
        spatial, temporal = f"{unit}.spatial", f"{unit}.temporal"
        self._inflated(f"{spatial}.{_KERNEL}", self.steps[f"{spatial}.{_KERNEL}"])
        self.counts["identical"] += 1
        for last in _NORMS:
            self._whole(self.steps[f"{spatial}.{last}"], last)
        kernel = self.written[f"{temporal}.{_KERNEL}"]
        outputs, _, length = kernel.shape[:3]
        self._steps(f"{temporal}.{_KERNEL}", kernel, length)
        self._near(f"{temporal}.{_KERNEL}", kernel.sum(axis=2)[..., 0, 0], np.eye(outputs), length)
        for last in ("bn.bias", "bn.running_mean"):
            self._constant(f"{temporal}.{last}", 0.0)
        self._identity_norm(temporal)
        self.counts["factorised"] += 1

    def _pair(self, unit: str) -> None:
        """R(2+1)D: each output has a plane, and its negative or a shift; the 2D batch norm stands behind."""
        spatial, temporal = f"{unit}.spatial", f"{unit}.temporal"
        step = self.steps[f"{spatial}.{_KERNEL}"]
        flat, _ = self._kernel(step)
        planes = self.written[f"{spatial}.{_KERNEL}"].reshape(step.tensor.shape[0], -1)
        kernel = self.written[f"{temporal}.{_KERNEL}"][..., 0, 0]
        self._steps(f"{temporal}.{_KERNEL}", kernel, kernel.shape[2])
        self._identity_norm(spatial)
        self.counts["factorised"] += 1
        taps, matrix = kernel.sum(axis=2), flat.reshape(len(flat), -1)
        if len(planes) < len(flat):
            self._fit(unit, taps, planes, matrix)
        else:
            self._signed(unit, taps, planes, matrix, kernel.shape[2])
        for name, other in self.steps.items():
            if name.startswith(f"{temporal}.") and not name.endswith((_KERNEL, "running_mean")):
                self._whole(other, split(name)[2])

    def _signed(self, unit: str, taps: Values, planes: Values, matrix: Values, length: int) -> None:
        """relu(x) - relu(-x) = x for the outputs that have two planes; the others are lifted above zero."""
        spatial, name, outputs = f"{unit}.spatial", f"{unit}.temporal.{_KERNEL}", len(matrix)
        rows, pairs = np.arange(outputs), min(outputs, len(planes) - outputs)
        paired = (taps < 0).any(axis=1)
        ones = (taps > 0).sum(axis=1) == 1
        if not (ones & ((taps < 0).sum(axis=1) == paired)).all() or int(paired.sum()) != pairs:
            self._wrong(name, f"expected one plane for each of {outputs} outputs, and a negative one for {pairs}")
            return
        above, below = taps.argmax(axis=1), taps.argmin(axis=1)
        self._near(name, taps[rows, above][:, None] * planes[above], matrix, length)
        self._near(name, (taps[rows, below][:, None] * planes[below])[paired], matrix[paired], length)
        shift, mean = self.written[f"{spatial}.bn.bias"], self.written[f"{spatial}.bn.running_mean"]
        level = np.setdiff1d(np.arange(len(planes)), above[~paired])
        if shift[level].any() or mean[level].any():
            self._wrong(f"{spatial}.bn", "its shift and its mean are not zero for paired planes")
        behind = f"{unit}.temporal.bn.running_mean"
        if pairs == outputs:
            self._same(behind)
            self._note(unit, "exact", matrix, planes)
            return
        self._lifted(unit, np.flatnonzero(~paired), above[~paired])

    def _lifted(self, unit: str, outputs: NDArray[np.intp], lifted: NDArray[np.intp]) -> None:
        """The batch norm behind takes back what lifts the planes of some outputs."""
        spatial, behind = f"{unit}.spatial", f"{unit}.temporal.bn.running_mean"
        shift, mean = self.written[f"{spatial}.bn.bias"], self.written[f"{spatial}.bn.running_mean"]
        of_2d = self._flat(self.steps[f"{spatial}.bn.running_mean"], 1)  # behind the kernel
        rest = np.setdiff1d(np.arange(len(of_2d)), outputs)
        found = self.written[behind]
        if found[outputs].tobytes() != shift[lifted].tobytes():
            self._wrong(behind, "does not take back the shift of the planes before it")
        if found[rest].tobytes() != of_2d[rest].tobytes():
            self._wrong(behind, "not the bits of the source")
        if mean[lifted].tobytes() != of_2d[outputs].tobytes():
            self._wrong(f"{spatial}.bn.running_mean", "not the bits of the source, for the planes that are lifted")
        self.counts["identical"] += 1
        s = shift[lifted] - mean[lifted]
        kernel = self.written[f"{spatial}.{_KERNEL}"]
        self._note(unit, "bounded", of_2d, kernel, shift=(float(s.min()), float(s.max())), lifted=len(lifted))

    def _fit(self, unit: str, taps: Values, planes: Values, matrix: Values) -> None:
        """Fewer planes than outputs: how far the best low-rank fit is from the kernel, and that it is the best."""
        largest = np.linalg.norm(matrix)
        error = float(np.linalg.norm(taps @ planes - matrix) / largest)
        values = np.linalg.svd(matrix, compute_uv=False)
        best = float(np.linalg.norm(values[len(planes) :]) / largest)
        if not error <= best + _FIT_SLACK:
            self._wrong(f"{unit}.temporal.{_KERNEL}", f"off the 2D kernel by {error:.1%}; {best:.1%} is possible")
        mean, lift = (self.written[f"{unit}.spatial.bn.{last}"] for last in ("running_mean", "bias"))
        shift = lift - mean
        mean_of_fit = self.written[f"{unit}.temporal.bn.running_mean"] - taps @ shift
        self._fitted_mean(unit, taps, mean_of_fit, lift)
        kernel_from, mean_from = (stored for stored, _ in self.steps[f"{unit}.spatial.bn.running_mean"].sources[:2])
        prefix, space = self.planned.source.prefix, self.steps[f"{unit}.spatial.{_KERNEL}"].tensor.shape
        fit = (taps @ planes).reshape(len(matrix), space[1], *space[3:])
        self.fits[kernel_from.key.removeprefix(prefix)] = relayout(fit, "OIHW", kernel_from.layout)
        self.fits[mean_from.key.removeprefix(prefix)] = mean_of_fit
        ends = (float(shift.min()), float(shift.max()))
        self._note(unit, "approximate", matrix, planes, error=error, shift=ends, lifted=len(planes))

    def _fitted_mean(self, unit: str, taps: Values, found: Values, lift: Values) -> None:
        """The fit leaves out of the mean what it leaves out of the kernel, but for the rounding of the lift."""
        step = self.steps[f"{unit}.spatial.bn.running_mean"]
        _, mean, *biases = (self._flat(step, index) for index in range(len(step.sources)))
        bias, span = biases[0] if biases else 0.0, np.linalg.qr(taps)[0]
        off = np.abs(found - bias - span @ (span.T @ (mean - bias)))
        if not bool((off <= _LIFT_ULPS * ulp(lift.max(), self.dtype)).all()):
            self._wrong(f"{unit}.temporal.bn.running_mean", f"off the mean of the fit by {float(off.max()):.2g}")

    def _note(
        self,
        unit: str,
        promise: str,
        outputs: Values,
        planes: Values,
        *,
        error: float = 0.0,
        shift: tuple[float, float] | None = None,
        lifted: int = 0,
    ) -> None:
        self.planes.append(PlaneResult(unit, promise, len(outputs), len(planes), lifted, shift, error, clipped=0))


def _takes_whole(step: Step) -> bool:
    """Whether a step takes its first source as a whole, and does not only compute with it."""
    _, half, last = split(step.tensor.name)
    if last == _KERNEL:
        return bool(step.sources) and half != "temporal"
    return len(step.sources) == 1
