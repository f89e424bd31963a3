"""The plan of a port: which stored tensor becomes which, decided from names and shapes alone.

Every key of the source is used, or left for a stated reason; every tensor of the target is produced exactly
once, in the right shape. All that can be wrong with names and shapes is found here, before a byte is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vidweights.dialects import Dialect, Recognition, Row, recognise
from vidweights.dialects.base import Constant, Stored
from vidweights.errors import PlanError
from vidweights.families.base import Tensor
from vidweights.formats.base import TensorInfo
from vidweights.layout import Shape

# The dtypes that weights have. A constant that is filled in takes the first that the network's tensors have.
_FLOATS = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Step:
    """One tensor of the port. A missing `source` is filled with `constant`; a missing `target` is checked
    against it and dropped.
    """

    tensor: Tensor
    dtype: str
    source: Stored | None
    target: Stored | None
    constant: float | None
    target_shape: Shape

    @property
    def nbytes(self) -> int:
        """The number of bytes of the tensor in memory."""
        return TensorInfo(self.tensor.name, self.tensor.shape, self.dtype).nbytes

    def to_json(self) -> dict[str, Any]:
        """The step as JSON values."""
        return {
            "tensor": self.tensor.name,
            "shape": list(self.tensor.shape),
            "dtype": self.dtype,
            "source": self.source and [self.source.key, self.source.layout],
            "target": self.target and [self.target.key, self.target.layout],
            "constant": self.constant,
        }


@dataclass(frozen=True)
class FactDifference:
    """A fact that the two released codes do not share; the weights are the same, the network around them is not."""

    fact: str
    source: Any
    target: Any


@dataclass(frozen=True)
class Plan:
    """A port between two dialects of one family, as pure data.

    Attributes:
        config: the configuration that both sides share.
        prefix: what stands before every key of the network in the source (`module.`), or nothing.
        steps: in the order in which the target is written.
        ignored: (stored key, reason) of what is left in the source.
        differences: facts of the source's code that the target's code does not share.
    """

    source: Dialect
    target: Dialect
    config: Any
    prefix: str
    steps: tuple[Step, ...]
    ignored: tuple[tuple[str, str], ...]
    differences: tuple[FactDifference, ...]

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that the port writes, in order."""
        return tuple(TensorInfo(step.target.key, step.target_shape, step.dtype) for step in self.steps if step.target)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "family": self.source.family.name,
            "config": self.config.to_json(),
            "source_dialect": self.source.name,
            "target_dialect": self.target.name,
            "steps": [step.to_json() for step in self.steps],
            "ignored": [list(pair) for pair in self.ignored],
            "fact_differences": [[d.fact, d.source, d.target] for d in self.differences],
        }

    @property
    def sha256(self) -> str:
        """The SHA-256 of the plan's JSON: two runs with the same hash did the same."""
        return digest(self.to_json())


def digest(plan: Mapping[str, Any]) -> str:
    """The SHA-256 of a plan's JSON."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def make(
    infos: Mapping[str, TensorInfo],
    target: Dialect,
    *,
    found: Recognition | None = None,
    config: Any = None,
    name: str = "the checkpoint",
) -> Plan:
    """Plan the port of a checkpoint into the dialect `target`.

    Args:
        infos: names, shapes and dtypes of the source.
        target: the dialect to write.
        found: what the source was recognised as, by a caller who had to know.
        config: the configuration that was declared; the file's own if not given.
        name: how messages call the source.

    Raises:
        PlanError: another family, another configuration, or tensors that are missing, unexpected or misshapen.
    """
    found = found or recognise(infos)
    _check_family(found, target, name)
    found = declared(found, config, name)
    _check_requires(found, target)
    rows = {row.tensor.name: row for row in found.dialect.table(found.config)}
    ignored = account(infos, found, rows, name)
    used = [infos[found.prefix + row.place.key].dtype for row in rows.values() if isinstance(row.place, Stored)]
    filled = next(dtype for dtype in _FLOATS if dtype in used)
    steps = tuple(_step(rows[row.tensor.name], row, found.prefix, infos, filled) for row in target.table(found.config))
    differences = fact_differences(found.dialect, target)
    return Plan(found.dialect, target, found.config, found.prefix, steps, ignored, differences)


def _check_family(found: Recognition, target: Dialect, name: str) -> None:
    if found.dialect.family is not target.family:
        raise PlanError(
            f"{name} holds a network of the family {found.dialect.family.name} ({found.dialect.name}); "
            f"{target.name} stores the family {target.family.name}",
            {},
            "Give a checkpoint of that family, or another target dialect.",
        )


def declared(found: Recognition, config: Any, name: str) -> Recognition:
    """The checkpoint with the configuration that was declared for it, which also says what no tensor tells.

    Raises:
        PlanError: the tensors are those of another configuration.
    """
    if config is None or config == found.config:
        return found
    tensors = found.dialect.family.tensors
    if type(config) is type(found.config) and tensors(config) == tensors(found.config):
        return replace(found, config=config)
    have, want = found.config.to_json(), config.to_json()
    values = {key: (have.get(key), want.get(key)) for key in {**have, **want}}
    differing = [f"{key}: found {a}, expected {b}" for key, (a, b) in values.items() if a != b]
    raise PlanError(
        f"{name} is not the network that was declared",
        {"differing": differing},
        "Give the checkpoint that was meant, or name the release (or the values) that this file has.",
    )


def _check_requires(found: Recognition, target: Dialect) -> None:
    differing = [
        f"{name}: found {have}, expected {' or '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, (have, value) in target.differing(found.config).items()
    ]
    if differing:
        raise PlanError(f"{target.name} cannot hold this network", {"differing": differing}, "Choose another dialect.")


def account(
    infos: Mapping[str, TensorInfo], found: Recognition, rows: Mapping[str, Row], name: str
) -> tuple[tuple[str, str], ...]:
    """Compare a file with its dialect's table; return what is left and why.

    Raises:
        PlanError: with the missing, the unexpected, the misshapen and the mistyped tensors.
    """
    table = {found.prefix + row.place.key: row for row in rows.values() if isinstance(row.place, Stored)}
    missing = [f"{key} {row.stored_shape}" for key, row in table.items() if key not in infos]
    misshapen = [
        f"{key}: found {infos[key].shape}, expected {row.stored_shape}"
        for key, row in table.items()
        if key in infos and infos[key].shape != row.stored_shape
    ]
    ignored, unexpected = [], []
    for key in infos:
        if key in table:
            continue
        reason = _reason(found, key)
        if reason is None:
            unexpected.append(f"{key} {infos[key].shape}")
        else:
            ignored.append((key, reason))
    mistyped = [
        f"{key}: found {infos[key].dtype}, expected one of {', '.join(_FLOATS)} (the scale of quantised weights, "
        "without which integers say nothing, is no part of this naming)"
        for key in table
        if key in infos and infos[key].dtype not in _FLOATS
    ]
    if missing or unexpected or misshapen or mistyped:
        raise PlanError(
            f"{name} is not a whole {found.dialect.name} checkpoint of {found.config}",
            {"missing": missing, "unexpected": unexpected, "misshapen": misshapen, "mistyped": mistyped},
            "Nothing was written. Give the released file, or the one that your own code saved, unchanged.",
        )
    return tuple(ignored)


def _reason(found: Recognition, key: str) -> str | None:
    if not key.startswith(found.prefix):
        return f"outside the network's prefix {found.prefix!r}"
    return found.dialect.reason_to_ignore(key.removeprefix(found.prefix))


def _step(source: Row, target: Row, prefix: str, infos: Mapping[str, TensorInfo], filled: str) -> Step:
    place = source.place
    stored = Stored(prefix + place.key, place.layout) if isinstance(place, Stored) else None
    constants = [p.value for p in (source.place, target.place) if isinstance(p, Constant)]
    return Step(
        tensor=target.tensor,
        dtype=infos[stored.key].dtype if stored else filled,
        source=stored,
        target=target.place if isinstance(target.place, Stored) else None,
        constant=constants[0] if constants else None,
        target_shape=target.stored_shape,
    )


def fact_differences(source: Dialect, target: Dialect) -> tuple[FactDifference, ...]:
    """The facts of two released codes that differ."""
    ours, theirs = source.all_facts, target.all_facts
    return tuple(
        FactDifference(fact, ours.get(fact), theirs.get(fact))
        for fact in {**ours, **theirs}
        if ours.get(fact) != theirs.get(fact)
    )
