"""How a long job tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with (what is being done, done so far, in all).
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
