"""The dialects of all families, and the recognition of one from a checkpoint's names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vidweights.dialects import i3d, inception, resnet, resnet3d
from vidweights.dialects.base import Constant, Dialect, Naming, Place, Row, Stored
from vidweights.errors import PlanError, UsageError
from vidweights.families.base import Tensor
from vidweights.formats.base import TensorInfo
from vidweights.layout import Shape, reshape

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (*i3d.DIALECTS, *resnet.DIALECTS, *resnet3d.DIALECTS, *inception.DIALECTS)
}

# Below this share of its keys a dialect is not what the file speaks.
_RECOGNISED = 0.5


def get(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        UsageError: there is none; the message lists those that there are.
    """
    if name not in DIALECTS:
        raise UsageError(f"no dialect is called {name!r}; there are: {', '.join(DIALECTS)}")
    return DIALECTS[name]


def native(family: str) -> Dialect:
    """The naming of our own torch model of a family.

    Raises:
        PlanError: it is a family of 2D networks, which have no such model.
    """
    if f"vidweights-{family}" not in DIALECTS:
        raise PlanError(
            f"this is a 2D network (family {family}), and vidweights has models of video networks only",
            {},
            f"To make a 3D network of it: vidweights inflate {family} --weights FILE",
        )
    return get(f"vidweights-{family}")


@dataclass(frozen=True)
class Recognition:
    """What a checkpoint turned out to be: its dialect, its configuration and the prefix of its keys."""

    dialect: Dialect
    config: Any
    prefix: str
    found: int  # keys of the dialect's table that the file has
    expected: int  # keys in that table
    fitting: int  # of those found, in the shape of the table


def recognise(infos: Mapping[str, TensorInfo]) -> Recognition:
    """The dialect that fits the names of a checkpoint best, and the configuration read off its shapes.

    Raises:
        PlanError: no known dialect has half of its keys there, or one has them under several prefixes.
    """
    candidates = [r for dialect in DIALECTS.values() for r in _recognise_as(dialect, infos)]
    best = max(candidates, key=lambda r: (r.found / r.expected, r.fitting, r.found), default=None)
    rivals = {r.prefix for r in candidates if best and r.dialect is best.dialect and r.found == best.found}
    if len(rivals) > 1:
        raise PlanError(
            "this file holds several networks of the same kind",
            {"prefixes": [f"{prefix!r}" for prefix in sorted(rivals)]},
            "Save the state dict of the one that is meant into a file of its own.",
        )
    if best is None or best.found < _RECOGNISED * best.expected:
        raise PlanError(
            f"the names in this file ({len(infos)} tensors) are not those of a known network",
            {"it begins with": [f"{info.key} {info.shape}" for info in list(infos.values())[:5]]},
            f"Known dialects: {', '.join(DIALECTS)}.",
        )
    return best


def _recognise_as(dialect: Dialect, infos: Mapping[str, TensorInfo]) -> list[Recognition]:
    """How well the keys fit each naming of one dialect, for each prefix under which they might stand."""
    found = []
    for naming in dialect.namings:
        for prefix in _prefixes(dialect, naming, infos):
            config = _infer(dialect, naming, prefix, infos)
            if config is None:
                continue
            stored = ((row.place, row.stored_shape) for row in dialect.table(config))
            shapes = {prefix + place.key: shape for place, shape in stored if isinstance(place, Stored)}
            there = [key for key in shapes if key in infos]
            fitting = sum(infos[key].shape == shapes[key] for key in there)
            found.append(Recognition(dialect, config, prefix, len(there), len(shapes), fitting))
    return found


def _prefixes(dialect: Dialect, naming: Naming, infos: Mapping[str, TensorInfo]) -> list[str]:
    """The prefixes under which the first key of the dialect stands; usually just the empty one."""
    if dialect.separator is None:
        return [""]
    firsts = [naming.bind(Tensor(name, (), "")) for name in dialect.family.stems]
    keys = [first.key for first in firsts if isinstance(first, Stored)]
    ends = (key.removesuffix(first) for first in keys for key in infos if key.endswith(first))
    return sorted({end for end in ends if not end or end.endswith(dialect.separator)}, key=len)


def _infer(dialect: Dialect, naming: Naming, prefix: str, infos: Mapping[str, TensorInfo]) -> Any | None:
    def shape_of(name: str, layout: str) -> Shape | None:
        return _canonical_shape(naming.bind(Tensor(name, (), layout)), layout, prefix, infos)

    return dialect.family.infer(shape_of, naming.settings)


def _canonical_shape(place: Place, layout: str, prefix: str, infos: Mapping[str, TensorInfo]) -> Shape | None:
    if isinstance(place, Constant):
        return None
    key = prefix + place.key
    if "*" in place.key:
        key = next((stored for stored in infos if fnmatchcase(stored, key)), key)
    try:
        return reshape(infos[key].shape, place.layout, layout) if key in infos else None
    except ValueError:
        return None


__all__ = ["DIALECTS", "Constant", "Dialect", "Recognition", "Row", "Stored", "get", "native", "recognise"]
