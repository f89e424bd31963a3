"""What can go wrong, one exception type for each class of failure.

Every message says what was found, what was expected and what to do now. The command line prints the
message and leaves with `exit_code`; a traceback reaches a person only for a defect of our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class VidweightsError(Exception):
    """Base of every error that vidweights raises on purpose."""

    exit_code = 1


class UsageError(VidweightsError):
    """The request itself is wrong: an unknown name, an option that does not fit."""

    exit_code = 2


class UnavailableError(VidweightsError):
    """Weights, or a library that the job needs, cannot be had on this machine."""

    exit_code = 3


class FormatError(VidweightsError):
    """A file is not what it says, is damaged, or is hostile."""

    exit_code = 4


class IntegrityError(FormatError):
    """A file is readable, but its bytes are not the ones that were published (a hash differs)."""


class PlanError(VidweightsError):
    """Names or shapes of a checkpoint do not fit the dialect; found before any tensor is read.

    `lists` holds what was wrong under the headings that the message prints, for programs to read.
    """

    exit_code = 5

    def __init__(self, summary: str, lists: Mapping[str, Sequence[str]], advice: str = "") -> None:
        self.summary = summary
        self.lists = {heading: tuple(items) for heading, items in lists.items() if items}
        super().__init__("\n".join([summary, *self._body(), *([advice] if advice else [])]))

    def _body(self) -> list[str]:
        lines: list[str] = []
        for heading, items in self.lists.items():
            lines.append(f"  {heading} ({len(items)}):")
            lines += [f"    {item}" for item in items[:8]]
            if len(items) > 8:
                lines.append(f"    ... and {len(items) - 8} more")
        return lines


class OutputError(VidweightsError):
    """The result could not be written: it exists already, the disk is full, no permission."""

    exit_code = 6


class ValidationError(VidweightsError):
    """The written network does not compute what the release computes.

    `report` has the figures (`vidweights_converters.report.Report`).
    """

    exit_code = 1

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class InputError(VidweightsError, ValueError):
    """A clip does not fit the network: wrong dtype, range, number of channels, or too small."""

    exit_code = 2


class PublishError(VidweightsError):
    """A package was not published: it may not be, or the hub has changed or does not allow it."""

    exit_code = 7
