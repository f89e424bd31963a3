"""A network family: its canonical tensors for a given configuration, and the facts that are not tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vidweights.layout import Shape


@dataclass(frozen=True)
class Tensor:
    """One canonical tensor. Its name is the key in the `state_dict` of our torch model.

    `layout` names the axes (`OIDHW` for a 3D kernel, `C` for a vector); see `vidweights.layout`.
    """

    name: str
    shape: Shape
    layout: str


class Config(Protocol):
    """The numbers that choose one network of a family; a frozen dataclass."""

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values, in the order of its fields."""
        ...


# The shape that a checkpoint has for the canonical tensor of (name, layout), or None if it is not there.
ShapeOf = Callable[[str, str], Shape | None]


@dataclass(frozen=True)
class Family:
    """A finite list of canonical tensors for each configuration, and the facts that hold beside them.

    Attributes:
        name: `i3d`, ...
        configure: builds a configuration from keyword values (`to_json` of one, read back).
        tensors: the canonical tensors of a configuration, in canonical order.
        infer: reads the configuration off the shapes of a checkpoint, with the values that its dialect settles; None
            if the checkpoint lacks what it needs.
        facts: what a port must carry beside the tensors (padding rule, batch-norm epsilon, ...), as JSON values.
        stems: the names that the first kernel may have.
    """

    name: str
    configure: Callable[..., Any]
    tensors: Callable[[Any], tuple[Tensor, ...]]
    infer: Callable[[ShapeOf, Mapping[str, Any]], Any | None]
    facts: Mapping[str, Any]
    stems: tuple[str, ...]
