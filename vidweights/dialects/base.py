"""A dialect: under which key, and in which axis order, one released naming stores each canonical tensor.

A dialect is a one-way function from a canonical tensor to its place. Because the list of canonical tensors is
finite, evaluating that function over it gives a table, and both directions are read off the table; no pattern
is ever inverted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
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
Bind = Callable[[Tensor], Place]


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
class Naming:
    """The place of a canonical tensor, in the networks that have these values in their configuration.

    For a release that numbers its blocks through, or whose code does something else at another depth.
    """

    settings: Mapping[str, Any]
    bind: Bind


@dataclass(frozen=True)
class Dialect:
    """One released naming and layout of a family.

    Attributes:
        name: `deepmind-rgb`, `piergiaj`, ...
        family: the family whose tensors it stores.
        framework: `tensorflow`, `torch`, `flax`, `keras`; chooses the container that `port` writes by default.
        bind: the place of a canonical tensor; of a tensor whose shape is not known yet (it is empty) a pattern as in
            fnmatch, where the key depends on it. Or several namings, of which the first that fits is meant.
        source: repository, commit and file that the naming was read from.
        requires: values that the configuration must have (the `Flow` scope holds 2 channels); of a tuple, one.
        settings: values of the configuration that the released code fixes, and that no tensor tells as a rule (Keras
            strides on the 1x1 kernel).
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
    bind: Bind | tuple[Naming, ...]
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

    @property
    def namings(self) -> tuple[Naming, ...]:
        """The namings, each with all values of the configuration that are fixed."""
        namings = self.bind if isinstance(self.bind, tuple) else (Naming({}, self.bind),)
        return tuple(Naming({**self.settings, **naming.settings}, naming.bind) for naming in namings)

    def differing(self, config: Any) -> dict[str, tuple[Any, Any]]:
        """What keeps the dialect from holding a network: {field: (its value, the value, or values, expected)}."""
        required = {name: value for name, value in self.requires.items() if not _meets(config, name, value)}
        unmet = [required | _unmet(config, naming) for naming in self.namings]
        return {name: (getattr(config, name), value) for name, value in min(unmet, key=len).items()}

    def table(self, config: Any) -> tuple[Row, ...]:
        """The place of every canonical tensor of a configuration."""
        # One that the code would not build is still read by its names, to say what is wrong with it.
        bind = min(self.namings, key=lambda naming: len(_unmet(config, naming))).bind
        tensors: Iterable[Tensor] = self.family.tensors(config)
        if self.order is not None:
            tensors = sorted(tensors, key=self.order)
        return tuple(Row(tensor, bind(tensor)) for tensor in tensors)

    def reason_to_ignore(self, key: str) -> str | None:
        """Why a stored key is left, or None if it is not one that this dialect leaves."""
        return next((rule.reason for rule in self.ignored if fnmatchcase(key, rule.pattern)), None)


def _meets(config: Any, name: str, value: Any) -> bool:
    have = getattr(config, name)
    return have == value or (isinstance(value, tuple) and have in value)


def _unmet(config: Any, naming: Naming) -> dict[str, Any]:
    """The values of a naming that a configuration does not have, once what means nothing in it is left out."""
    settled = replace(config, **naming.settings)
    return {name: value for name, value in naming.settings.items() if getattr(settled, name) != getattr(config, name)}


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
