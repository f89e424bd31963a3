"""What a reference is: an execution of the source checkpoint that shares nothing with the network it judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Precision = Literal["float32", "float64"]
Clip = NDArray[np.float32]
HEAD = "Logits"


class Reference(Protocol):
    """Runs the source in its own framework, or in an implementation by other people.

    It reads the source under the source's own names. Neither our tables of names nor our list of layers has a
    part in it, or a mistake in those would be on both sides of the comparison.
    """

    @property
    def name(self) -> str:
        """What runs, in a few words: `TensorFlow graph`."""
        ...

    @property
    def framework(self) -> str:
        """Whose operators it runs: `tensorflow`, `flax` or `torch`."""
        ...

    @property
    def version(self) -> str:
        """The libraries that run it, with their versions; imports them."""
        ...

    def endpoints(self, clip: Clip, precision: Precision) -> Mapping[str, NDArray[Any]]:
        """The output of every endpoint, from the stem to the head, in order.

        Args:
            clip: (N, C, T, H, W) float32 in [-1, 1].
            precision: in which the whole network computes.

        Returns:
            Arrays (N, C', T', H', W') by the endpoint's released name, and `Logits` (N, classes).
        """
        ...


@dataclass(frozen=True)
class Absent:
    """A reference that cannot judge this source, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The references that can judge a source, and those that cannot."""

    references: tuple[Reference, ...]
    absent: tuple[Absent, ...]
