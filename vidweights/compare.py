"""The difference between two checkpoints of one family, tensor by tensor, whatever dialects they speak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vidweights.dialects import Recognition, recognise
from vidweights.dialects.base import Constant, Row, Stored
from vidweights.dtypes import widened
from vidweights.errors import PlanError
from vidweights.formats.base import Checkpoint
from vidweights.layout import Array, Shape, relayout, reshape
from vidweights.plan import FactDifference, fact_differences
from vidweights.progress import Progress, silent
from vidweights.run import constant


@dataclass(frozen=True)
class TensorDifference:
    """One canonical tensor on both sides; a shape of None means that a side lacks it.

    `max_abs` and `relative_l2` (of A - B, relative to B) are None where the shapes differ.
    """

    name: str
    shape_a: Shape | None
    shape_b: Shape | None
    equal: bool  # the same bits
    max_abs: float | None = None
    relative_l2: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints: their dialects, the facts that these do not share, and every canonical tensor.

    `only_a` and `only_b` are keys that are no tensor of the network, nor one that the dialect leaves for a reason.
    """

    a: str
    b: str
    facts: tuple[FactDifference, ...]
    tensors: tuple[TensorDifference, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both hold the same bits, and nothing else."""
        return not self.only_a and not self.only_b and all(tensor.equal for tensor in self.tensors)


def checkpoints(a: Checkpoint, b: Checkpoint, progress: Progress = silent) -> Comparison:
    """Compare two checkpoints; `progress` is told of every tensor.

    Raises:
        PlanError: one is not a known network, or they are of different families.
        FormatError: a tensor is damaged.
    """
    left, right = _Side(a), _Side(b)
    if left.found.dialect.family is not right.found.dialect.family:
        raise PlanError(
            f"A is a network of the family {left.found.dialect.family.name} and B one of "
            f"{right.found.dialect.family.name}",
            {},
            "Only checkpoints of one family have tensors in common.",
        )
    names = dict.fromkeys([*left.rows, *right.rows])
    differences = []
    for done, name in enumerate(names):
        progress("comparing", done, len(names))
        differences.append(_compare(left, right, name))
    ours, theirs = left.found.dialect, right.found.dialect
    return Comparison(
        ours.name, theirs.name, fact_differences(ours, theirs), tuple(differences), left.others, right.others
    )


class _Side:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.found: Recognition = recognise(checkpoint.tensors)
        self.rows = {row.tensor.name: row for row in self.found.dialect.table(self.found.config)}

    @property
    def others(self) -> tuple[str, ...]:
        """The keys that the dialect knows nothing of."""
        places = {self.found.prefix + r.place.key for r in self.rows.values() if isinstance(r.place, Stored)}
        known = self.found.dialect.reason_to_ignore
        return tuple(
            key
            for key in self.checkpoint.tensors
            if key not in places and known(key.removeprefix(self.found.prefix)) is None
        )

    def shape(self, name: str) -> Shape | None:
        """The canonical shape of a tensor as the file has it."""
        row = self.rows.get(name)
        if row is None:
            return None
        if isinstance(row.place, Constant):
            return row.tensor.shape
        info = self.checkpoint.tensors.get(self.found.prefix + row.place.key)
        if info is None:
            return None
        try:
            return reshape(info.shape, row.place.layout, row.tensor.layout)
        except ValueError:
            return info.shape

    def read(self, row: Row, dtype: str) -> Array:
        if isinstance(row.place, Constant):
            return np.full(row.tensor.shape, constant(row.place.value, dtype))
        stored = self.checkpoint.read(self.found.prefix + row.place.key)
        return relayout(stored, row.place.layout, row.tensor.layout)

    def dtype(self, row: Row) -> str | None:
        """The dtype of a tensor; None for a constant, which has whatever the other side has."""
        if isinstance(row.place, Constant):
            return None
        return self.checkpoint.tensors[self.found.prefix + row.place.key].dtype


def _compare(left: _Side, right: _Side, name: str) -> TensorDifference:
    shape_a, shape_b = left.shape(name), right.shape(name)
    if shape_a is None or shape_a != shape_b:
        return TensorDifference(name, shape_a, shape_b, equal=False)
    dtype_a, dtype_b = left.dtype(left.rows[name]), right.dtype(right.rows[name])
    dtype_a, dtype_b = dtype_a or dtype_b or "float32", dtype_b or dtype_a or "float32"
    a, b = left.read(left.rows[name], dtype_a), right.read(right.rows[name], dtype_b)
    equal = dtype_a == dtype_b and a.tobytes() == b.tobytes()
    max_abs, relative = (0.0, 0.0) if equal else _distance(widened(a, dtype_a), widened(b, dtype_b))
    return TensorDifference(name, shape_a, shape_b, equal, max_abs, relative)


def _distance(a: Array, b: Array) -> tuple[float, float]:
    """(max |a - b|, ||a - b|| / ||b||); not a number where an element is not one."""
    norm = float(np.linalg.norm(b))
    distance = float(np.linalg.norm(a - b))
    return float(np.abs(a - b).max(initial=0.0)), distance / norm if norm else distance
