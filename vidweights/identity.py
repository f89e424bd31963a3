"""Which release a checkpoint is, bit for bit, whatever framework it comes from.

The catalog knows the CRC32C of every tensor in the layout of the release. A checkpoint in another dialect is
brought into that layout tensor by tensor, and the sums are compared; the names take no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import google_crc32c
import numpy as np

from vidweights import catalog, dialects
from vidweights.catalog import Release
from vidweights.dialects import Recognition
from vidweights.dialects.base import Constant, Row, Stored
from vidweights.formats.base import Checkpoint
from vidweights.layout import Array, letters, relayout
from vidweights.run import constant

# Fewer equal tensors than this share say nothing about where a checkpoint comes from.
_RELATED = 0.05


@dataclass(frozen=True)
class Match:
    """How many tensors of a release a checkpoint has, bit for bit."""

    release: Release
    equal: int
    differing: tuple[str, ...]  # canonical names

    @property
    def total(self) -> int:
        """The number of tensors that were compared."""
        return self.equal + len(self.differing)

    @property
    def whole(self) -> bool:
        """Whether the checkpoint is the release."""
        return not self.differing

    @property
    def some(self) -> str:
        """The first of the tensors that differ, for a message."""
        return ", ".join(self.differing[:3]) + (", ..." if len(self.differing) > 3 else "")


def crc32c(array: Array) -> int:
    """The CRC32C of an array's bytes."""
    return int(google_crc32c.value(np.ascontiguousarray(array)))


def identify(checkpoint: Checkpoint, found: Recognition) -> tuple[Match, ...]:
    """The releases of the same family that share tensors with a checkpoint, the closest first."""
    comparison = _Comparison(checkpoint, found)
    family = found.dialect.family.name
    matches = [comparison.with_release(r) for r in catalog.releases() if r.family == family and r.crc32c]
    related = [m for m in matches if m.total and m.equal >= _RELATED * m.total]
    return tuple(sorted(related, key=lambda m: (-m.equal / m.total, m.release.name)))


def compare(checkpoint: Checkpoint, found: Recognition, release: Release, *, recorded: bool = False) -> Match:
    """How a checkpoint differs from one release.

    With `recorded`, sums that the file itself records stand for its bytes; for a caller who reads every tensor
    anyway, and so has each sum checked.
    """
    return _Comparison(checkpoint, found, recorded).with_release(release)


class _Comparison:
    """The sums of a checkpoint's tensors, each computed once for each axis order that is asked for."""

    def __init__(self, checkpoint: Checkpoint, found: Recognition, recorded: bool = False) -> None:
        self.checkpoint = checkpoint
        self.recorded = recorded
        self.prefix = found.prefix
        self.rows = {row.tensor.name: row for row in found.dialect.table(found.config)}
        self.sums: dict[tuple[str, str], int] = {}

    def with_release(self, release: Release) -> Match:
        table = dialects.get(release.dialect).table(release.config)
        differing = tuple(row.tensor.name for row in table if not self._equal(row, release))
        return Match(release, len(table) - len(differing), differing)

    def _equal(self, theirs: Row, release: Release) -> bool:
        ours = self.rows.get(theirs.tensor.name)
        if ours is None or ours.tensor.shape != theirs.tensor.shape or not self._is_whole(ours):
            return False
        if isinstance(theirs.place, Constant):
            return self._is_constant(ours, theirs.place.value)
        if isinstance(ours.place, Constant):
            return False
        return self._sum(ours, ours.place, letters(theirs.place.layout)) == release.crc32c[theirs.place.key]

    def _is_whole(self, ours: Row) -> bool:
        """Whether the file has the tensor, in the shape that its dialect gives it."""
        if isinstance(ours.place, Constant):
            return True
        info = self.checkpoint.tensors.get(self.prefix + ours.place.key)
        return info is not None and info.shape == ours.stored_shape

    def _is_constant(self, ours: Row, value: float) -> bool:
        if isinstance(ours.place, Constant):
            return ours.place.value == value
        key = self.prefix + ours.place.key
        return bool((self.checkpoint.read(key) == constant(value, self.checkpoint.tensors[key].dtype)).all())

    def _sum(self, ours: Row, place: Stored, layout: str) -> int:
        wanted, key = (ours.tensor.name, layout), self.prefix + place.key
        if self.recorded and letters(place.layout) == layout:
            known = self.checkpoint.recorded_crc32c(key)
            if known is not None:
                return known
        if wanted not in self.sums:
            array = self.checkpoint.read(key)
            self.sums[wanted] = crc32c(relayout(array, place.layout, layout))
        return self.sums[wanted]
