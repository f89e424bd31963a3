"""The plan of an inflation: which 2D tensors become which 3D tensor and by what rule, from names and shapes alone.

Inflation is no dialect, since it cannot be undone. Every 2D tensor is used, or left for a stated reason; every 3D
tensor is made exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vidweights import dialects, plan
from vidweights.dialects import Recognition, recognise
from vidweights.dialects.base import Constant as Absent
from vidweights.dialects.base import Dialect, Stored
from vidweights.dtypes import DTYPES, narrowed, not_finite, widened
from vidweights.errors import PlanError, UsageError
from vidweights.families import FAMILIES, i3d, resnet
from vidweights.families.base import Family, Tensor
from vidweights.families.resnet3d import VARIANTS
from vidweights.formats.base import Checkpoint, TensorInfo
from vidweights.kernels import (
    Constant,
    Copy,
    Draw,
    Floats,
    Identity,
    Inflate,
    Method,
    PlaneMean,
    Planes,
    PlaneShift,
    Rule,
    ShiftedMean,
    SpatialKernel,
    Taps,
    TemporalKernel,
    identity_norm,
)
from vidweights.layout import Array, relayout
from vidweights.run import Scratch, ahead

# Variants that nothing is inflated into: the frames of R2D are channels; two are i3d-resnet-nl otherwise strided.
_RELEASED_ONLY = ("r2d", "i3d-resnet-mm", "slowonly")
# target: (3D family, fields of its configuration); the 2D family that each is made of.
TARGETS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{variant: ("resnet3d", {"variant": variant}) for variant in VARIANTS if variant not in _RELEASED_ONLY},
    "i3d": ("i3d", {"head_pool": "mean"}),
    "s3d": ("s3d", {"head_pool": "mean"}),
}
_FLAT = {"resnet3d": "resnet", "i3d": "inception", "s3d": "inception"}
DEFAULT_TARGETS = {"resnet": "i3d-resnet", "inception": "i3d"}
METHODS: tuple[Method, ...] = ("mean", "center", "exact")
# The dtypes in which rules compute; a tensor of another is widened, and rounded back.
_COMPUTED = ("float32", "float64")
HEADS = {f"{head}.{last}" for head in (i3d.HEAD, resnet.HEAD) for last in ("weight", "bias")}


@dataclass(frozen=True)
class Options:
    """What a person chooses of an inflation.

    Attributes:
        into: a key of `TARGETS`; None for `i3d-resnet` or, from an Inception v1, `i3d`.
        method: `mean`, `center` or, for factorised targets, `exact`.
        time_padding: what the 3D network puts before the first and behind the last frame.
        num_classes: None keeps the head, 0 drops it, another number makes a new one, drawn by `seed`.
        in_channels: of the first convolution; if not the source's own, each gets the mean of the source's.
        stem_pool: False for the released R3D line, which has no max-pool behind the stem.
        planes, stem_planes: the middle planes of a factorised ResNet; see `ResNet3DConfig`.
        seed: of a new head.
        allow_nan: whether tensors with elements that are not finite are inflated all the same.
    """

    into: str | None = None
    method: Method = "mean"
    time_padding: Literal["replicate", "zero"] = "replicate"
    num_classes: int | None = None
    in_channels: int | None = None
    stem_pool: bool = True
    planes: Literal["conv", "block"] = "conv"
    stem_planes: int | None = None
    seed: int = 0
    allow_nan: bool = False

    def __post_init__(self) -> None:
        if self.into is not None and self.into not in TARGETS:
            raise UsageError(f"nothing can be inflated into {self.into!r}; there are: {', '.join(TARGETS)}")
        if self.method not in METHODS:
            raise UsageError(f"no method is called {self.method!r}; there are: {', '.join(METHODS)}")


@dataclass(frozen=True)
class Step:
    """One 3D tensor: the 2D tensors that it is made of, and by which rule; all are of one dtype."""

    tensor: Tensor
    dtype: str
    sources: tuple[tuple[Stored, str], ...]  # where it is stored, and its canonical layout
    rule: Rule

    @property
    def info(self) -> TensorInfo:
        """The tensor as it is written."""
        return TensorInfo(self.tensor.name, self.tensor.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the tensor in memory."""
        return self.info.nbytes

    def to_json(self) -> dict[str, Any]:
        """The step as JSON values."""
        return {
            "tensor": self.tensor.name,
            "shape": list(self.tensor.shape),
            "dtype": self.dtype,
            "sources": [stored.key for stored, _ in self.sources],
            **self.rule.to_json(),
        }


@dataclass(frozen=True)
class Inflation:
    """A 2D checkpoint to be made a 3D network, as pure data.

    Attributes:
        source: the dialect, configuration and prefix of the 2D checkpoint.
        family: the 3D family, and `config` its configuration.
        left: (stored key, reason) of what is not used.
    """

    source: Recognition
    family: Family
    config: Any
    options: Options
    steps: tuple[Step, ...]
    left: tuple[tuple[str, str], ...]

    @property
    def target(self) -> Dialect:
        """The dialect that is written."""
        return dialects.native(self.family.name)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that are written, in order."""
        return tuple(step.info for step in self.steps)

    @property
    def parameters(self) -> int:
        """How many numbers of the 3D network are trained; the statistics of batch norm are not."""
        return sum(math.prod(step.tensor.shape) for step in self.steps if ".running_" not in step.tensor.name)

    @property
    def planes(self) -> dict[str, Planes]:
        """The (2+1)D units by name, and how their middle planes carry the outputs."""
        return {
            step.tensor.name.removesuffix(".spatial.conv.weight"): step.rule.planes
            for step in self.steps
            if isinstance(step.rule, SpatialKernel)
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "source_dialect": self.source.dialect.name,
            "source_config": self.source.config.to_json(),
            "family": self.family.name,
            "config": self.config.to_json(),
            "method": self.options.method,
            "steps": [step.to_json() for step in self.steps],
            "left": [list(pair) for pair in self.left],
        }

    @property
    def sha256(self) -> str:
        """The SHA-256 of the plan's JSON: two runs with the same hash did the same."""
        return plan.digest(self.to_json())


def make(
    infos: Mapping[str, TensorInfo],
    options: Options,
    *,
    found: Recognition | None = None,
    config: Any = None,
    name: str = "the checkpoint",
) -> Inflation:
    """Plan the inflation of a 2D checkpoint.

    Args:
        infos: names, shapes and dtypes of the source.
        options: what is wanted.
        found: what the source was recognised as, by a caller who had to know.
        config: the 2D configuration that was declared; the file's own if not given.
        name: how messages call the source.

    Raises:
        PlanError: no known 2D network, another one than was declared, or tensors missing, unexpected or misshapen.
        UsageError: options that this network cannot have.
    """
    found = found or recognise(infos)
    if found.dialect.family.name in _FLAT:
        raise PlanError(
            f"{name} is a 3D network already (family {found.dialect.family.name}, {found.dialect.name})",
            {},
            "Inflation starts from a 2D ImageNet network. To bring this one into our naming: vidweights port "
            f"{found.dialect.family.name} --weights FILE",
        )
    found = plan.declared(found, config, name)
    rows = {row.tensor.name: row for row in found.dialect.table(found.config)}
    ignored = plan.account(infos, found, rows, name)
    family, target = _target(found, options)
    kept = options.num_classes is None
    places = {
        row.tensor.name: (Stored(found.prefix + row.place.key, row.place.layout), row.tensor.layout)
        for row in rows.values()
        if isinstance(row.place, Stored)
    }
    maker = _Maker(found, family, target, options, places, infos)
    steps = tuple(maker.step(tensor) for tensor in maker.tensors.values())
    reason = "the head was dropped" if options.num_classes == 0 else "a new head was made"
    left = () if kept else tuple((stored.key, reason) for n, (stored, _) in places.items() if n in HEADS)
    _check_use(places, steps, left)
    return Inflation(found, family, target, options, steps, (*ignored, *left))


def _target(found: Recognition, options: Options) -> tuple[Family, Any]:
    """The 3D family and configuration: the 2D one's values, and what was asked for."""
    source = found.dialect.family.name
    into = options.into or DEFAULT_TARGETS[source]
    family, fields = TARGETS[into]
    if _FLAT[family] != source:
        able = [target for target, (name, _) in TARGETS.items() if _FLAT[name] == source]
        raise UsageError(
            f"a network of the family {source} cannot be inflated into {into}; it can into: {', '.join(able)}"
        )
    values = {**found.config.to_json(), **fields, "time_padding": options.time_padding}
    if options.num_classes is not None:
        values["num_classes"] = options.num_classes
    if options.in_channels is not None:
        values["in_channels"] = options.in_channels
    if into != "r2plus1d" and (options.stem_planes is not None or options.planes != "conv"):
        raise UsageError(f"{into} has no middle planes to choose; these options are for r2plus1d.")
    if family == "resnet3d":
        values |= {"stem_pool": options.stem_pool, "planes": options.planes, "stem_planes": options.stem_planes}
    elif not options.stem_pool:
        raise UsageError(f"{into} has no stem pool to choose; that option is for ResNets.")
    factorised = into in ("r2plus1d", "s3d")
    if options.method == "center" and factorised:
        raise UsageError(f"{into} is factorised; there the centre tap is the method 'exact'. Use --method exact.")
    if options.method == "exact" and not factorised:
        raise UsageError(
            f"the method 'exact' is for factorised targets (r2plus1d, s3d); in {into} the centre is exact: "
            "use --method center."
        )
    return FAMILIES[family], FAMILIES[family].configure(**values)


def _dtype(infos: Mapping[str, TensorInfo], keys: list[str]) -> str:
    """The one dtype of the weights, which the result has too."""
    found = {infos[key].dtype for key in keys}
    if len(found) > 1:
        raise PlanError(
            f"the weights are of several dtypes: {', '.join(sorted(found))}",
            {},
            "Nothing was written. Convert them to one dtype first (float32 loses nothing of float16 and bfloat16).",
        )
    return found.pop()


def _check_use(
    places: Mapping[str, tuple[Stored, str]], steps: tuple[Step, ...], left: tuple[tuple[str, str], ...]
) -> None:
    """Every 2D tensor is used, or left for a reason."""
    used = {stored.key for step in steps for stored, _ in step.sources} | {key for key, _ in left}
    unused = [stored.key for stored, _ in places.values() if stored.key not in used]
    if unused:
        raise PlanError("tensors of the source have no place in the target", {"unused": unused})


class _Maker:
    """Finds the rule and the sources of each 3D tensor by its name: those of the 2D unit of the same name."""

    def __init__(  # noqa: PLR0917
        self,
        found: Recognition,
        family: Family,
        config: Any,
        options: Options,
        places: Mapping[str, tuple[Stored, str]],
        infos: Mapping[str, TensorInfo],
    ) -> None:
        self.found, self.config, self.options, self.places, self.infos = found, config, options, places, infos
        self.dtype = _dtype(infos, [stored.key for stored, _ in places.values()])
        table = found.dialect.table(found.config)
        self.absent = {row.tensor.name: row.place for row in table if isinstance(row.place, Absent)}
        self.tensors = {tensor.name: tensor for tensor in family.tensors(config)}

    def step(self, tensor: Tensor) -> Step:
        unit, half, last = split(tensor.name)
        if tensor.name in HEADS:
            return self._head(tensor)
        if half == "":
            return self._whole(tensor, unit, last)
        separable = getattr(self.config, "separable", False)
        rule, needs = (self._separable if separable else self._pair)(tensor, unit, half, last)
        return self._make(tensor, rule, [f"{unit}.{need}" for need in needs])

    def _make(self, tensor: Tensor, rule: Rule, names: list[str]) -> Step:
        return Step(tensor, self.dtype, tuple(self.places[name] for name in names if name in self.places), rule)

    def _head(self, tensor: Tensor) -> Step:
        if self.options.num_classes is not None:
            fan_in = self.tensors[tensor.name.replace("bias", "weight")].shape[1]
            return Step(tensor, self.dtype, (), Draw(tensor.name, tensor.shape, fan_in**-0.5, self.options.seed))
        return self._make(tensor, Copy(3 if tensor.layout == "OIDHW" else 0), [tensor.name])

    def _whole(self, tensor: Tensor, unit: str, last: str) -> Step:
        name = f"{unit}.{last}"
        if last == "conv.weight":
            return self._make(tensor, Inflate(tensor.shape[2], self._taps, self._inputs(name, tensor)), [name])
        if name not in self.places:  # a batch norm without scale
            return Step(tensor, self.dtype, (), self._absent(tensor))
        return self._make(tensor, Copy(), [name])

    def _absent(self, tensor: Tensor) -> Rule:
        unit, _, last = split(tensor.name)
        return Constant(tensor.shape[0], self.absent[f"{unit}.{last}"].value)

    def _inputs(self, name: str, tensor: Tensor) -> int | None:
        """The input channels of a kernel if they are not those of the source."""
        stored, _ = self.places[name]
        sizes = dict(zip(stored.layout, self.infos[stored.key].shape))
        return None if sizes["I"] == tensor.shape[1] else tensor.shape[1]

    @property
    def _taps(self) -> Taps:
        return "mean" if self.options.method == "mean" else "center"

    def _norm(self, tensor: Tensor, last: str) -> Rule:
        """One vector of a batch norm that changes nothing."""
        weight, variance = identity_norm(self.config.batch_norm_epsilon, self.dtype)
        values = {"bn.weight": weight, "bn.bias": 0.0, "bn.running_mean": 0.0, "bn.running_var": variance}
        return Constant(tensor.shape[0], values[last])

    def _separable(self, tensor: Tensor, unit: str, half: str, last: str) -> tuple[Rule, tuple[str, ...]]:
        """Of S3D: the spatial half is the 2D unit, the temporal half changes nothing."""
        if half == "temporal":
            if last == "conv.weight":
                return Identity(tensor.shape[0], tensor.shape[2], self._taps, self.dtype), ()
            return self._norm(tensor, last), ()
        step = self._whole(tensor, unit, last)
        return step.rule, (last,) if step.sources else ()

    def _pair(self, tensor: Tensor, unit: str, half: str, last: str) -> tuple[Rule, tuple[str, ...]]:
        """Of R(2+1)D: the 2D batch norm stands behind the temporal half."""
        stored, _ = self.places[f"{unit}.conv.weight"]
        outputs = dict(zip(stored.layout, self.infos[stored.key].shape))["O"]
        spatial = self.tensors[f"{unit}.spatial.conv.weight"]
        planes = Planes(outputs, spatial.shape[0], self._inputs(f"{unit}.conv.weight", spatial))
        return (self._spatial if half == "spatial" else self._temporal)(tensor, unit, last, planes)

    def _spatial(self, tensor: Tensor, unit: str, last: str, planes: Planes) -> tuple[Rule, tuple[str, ...]]:
        if last == "conv.weight":
            return SpatialKernel(planes), (last,)
        if planes.promise == "exact" or last in ("bn.weight", "bn.running_var"):
            return self._norm(tensor, last), ()
        if last == "bn.running_mean":
            return PlaneMean(planes), ("conv.weight", "bn.running_mean", "conv.bias")
        return PlaneShift(planes), ("conv.weight", "bn.running_var")

    def _temporal(self, tensor: Tensor, unit: str, last: str, planes: Planes) -> tuple[Rule, tuple[str, ...]]:
        if last == "conv.weight":
            needs = (last,) if planes.promise == "approximate" else ()
            return TemporalKernel(planes, tensor.shape[2], self._taps, self.dtype), needs
        if last == "bn.running_mean" and planes.promise != "exact":
            return ShiftedMean(planes, self.dtype), ("conv.weight", "bn.running_var", "bn.running_mean", "conv.bias")
        return Copy(), (last,)


def split(name: str) -> tuple[str, str, str]:
    """`layer1.0.conv1.spatial.bn.bias` -> (`layer1.0.conv1`, `spatial`, `bn.bias`); whole units have no half."""
    for half in ("spatial", "temporal"):
        unit, found, last = name.partition(f".{half}.")
        if found:
            return unit, half, last
    *unit_parts, part, last = name.split(".")
    return ".".join(unit_parts), "", f"{part}.{last}"


def stream(
    planned: Inflation, source: Checkpoint, order: Iterable[str] | None = None, *, reuse: bool = False
) -> Iterator[tuple[str, Array]]:
    """(name, tensor) of the 3D network, one at a time; see `vidweights.run.ahead`.

    Args:
        planned: what becomes what.
        source: the checkpoint that the plan was made for.
        order: the names in the order in which they are wanted; that of the layers if not given.
        reuse: for a caller who is done with each array before asking for the next.

    Raises:
        FormatError: a tensor's bytes are damaged.
        PlanError: a tensor has elements that are not finite, and that was not allowed.
    """
    steps = {step.tensor.name: step for step in planned.steps}
    wanted = [steps[name] for name in (steps if order is None else order)]
    for step, array in ahead(wanted, lambda step, scratch: _made(step, source, planned.options, scratch), reuse=reuse):
        yield step.tensor.name, array


def _made(step: Step, source: Checkpoint, options: Options, scratch: Scratch | None) -> Array:
    arrays = []
    for stored, layout in step.sources:
        array = source.read(stored.key)
        bad = 0 if options.allow_nan else not_finite(array, step.dtype)
        if bad:
            raise PlanError(
                f"{stored.key} has {bad} of {array.size} elements that are not finite (NaN or infinite)",
                {},
                "Nothing was written. Such weights compute nothing; get the file again, or use --allow-nan.",
            )
        arrays.append(_floats(relayout(array, stored.layout, layout), step.dtype))
    out = None
    if scratch is not None and step.dtype in _COMPUTED:
        out = scratch.view(DTYPES[step.dtype].storage).reshape(step.tensor.shape)
    made = step.rule(*arrays, out=out) if isinstance(step.rule, Inflate) else step.rule(*arrays)
    made = narrowed(made, step.dtype)
    assert made.shape == step.tensor.shape, (step.tensor, made.shape)
    return np.ascontiguousarray(made)


def _floats(array: Array, dtype: str) -> Floats:
    """The values as rules compute with them: float64 as it is, all else in float32."""
    if dtype in _COMPUTED:
        return array
    return widened(array, dtype).astype(np.float32)
