"""A dialect: under which key, and in which axis order, one released naming stores each canonical tensor.

A dialect is a one-way function from a canonical tensor to its place. Because the list of canonical tensors is
finite, evaluating that function over it gives a table, and both directions are read off the table; no pattern
is ever inverted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from vidweights.families.base import Family, Tensor
from vidweights.layout import Shape, reshape


@dataclass(frozen=True)
class Stored:
    """The tensor is stored under `key`, its axes in the order `layout`."""

    key: str
    layout: str


@dataclass(frozen=True)
class Constant:
    """The tensor is not stored: every element has this value (a batch norm without scale has weight 1)."""

    value: float


Place = Stored | Constant


@dataclass(frozen=True)
class Row:
    """One line of a dialect's table."""

    tensor: Tensor
    place: Place

    @property
    def stored_shape(self) -> Shape:
        """The shape that the tensor has in the file; () for a constant."""
        if isinstance(self.place, Constant):
            return ()
        return reshape(self.tensor.shape, self.tensor.layout, self.place.layout)


@dataclass(frozen=True)
class Ignored:
    """Stored keys that are not weights of the network (`pattern` as in fnmatch), and why they are left."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Dialect:
    """One released naming and layout of a family.

    Attributes:
        name: `deepmind-rgb`, `piergiaj`, ...
        family: the family whose tensors it stores.
        framework: `tensorflow`, `torch`, `flax`, `keras`; chooses the container that `port` writes by default.
        bind: the place of a canonical tensor.
        source: repository, commit and file that the naming was read from.
        requires: values that the configuration must have (the `Flow` scope holds 2 channels).
        settings: values of the configuration that no tensor tells and the released code fixes (Keras strides on the
            1x1 kernel).
        facts: facts of the released code that differ from the family's, or that it adds.
        ignored: stored keys that are left, each with its reason.
        order: sorts the rows as the released code lays them out, where that order matters (Keras loads by
            position); None keeps the canonical order.
        separator: what ends a common prefix that keys may carry: a dot in torch's (`module.`, `state_dict.`); None
            where there is no such prefix.
    """

    name: str
    family: Family
    framework: str
    bind: Callable[[Tensor], Place]
    source: str
    requires: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[Ignored, ...] = ()
    order: Callable[[Tensor], Any] | None = None
    separator: str | None = None

    @property
    def all_facts(self) -> dict[str, Any]:
        """The facts of the released code: the family's, where the dialect has no other."""
        return {**self.family.facts, **self.facts}

    def table(self, config: Any) -> tuple[Row, ...]:
        """The place of every canonical tensor of a configuration."""
        tensors: Iterable[Tensor] = self.family.tensors(config)
        if self.order is not None:
            tensors = sorted(tensors, key=self.order)
        return tuple(Row(tensor, self.bind(tensor)) for tensor in tensors)

    def reason_to_ignore(self, key: str) -> str | None:
        """Why a stored key is left, or None if it is not one that this dialect leaves."""
        return next((rule.reason for rule in self.ignored if fnmatchcase(key, rule.pattern)), None)


# What TensorFlow and Keras call the vectors of a batch norm.
TF_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

MOMENTUM = Ignored("*/Momentum", "optimiser slot")
COUNTERS = Ignored("*num_batches_tracked", "a counter of training steps, not a weight")


def native(family: Family) -> Dialect:
    """The naming of our own torch model of a family: the canonical names."""
    return Dialect(
        f"vidweights-{family.name}",
        family,
        "torch",
        lambda tensor: Stored(tensor.name, tensor.layout),
        "vidweights/models",
        ignored=(COUNTERS,),
        separator=".",
    )
