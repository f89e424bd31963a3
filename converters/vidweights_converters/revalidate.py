"""A finished folder checked and validated again, whatever made it, and its report, pictures and card renewed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidweights.errors import OutputError, UnavailableError, UsageError, ValidationError
from vidweights.folder import VALIDATION, FolderConfig, named, read_config, read_validation
from vidweights.progress import Progress, silent
from vidweights_converters import card_checks, inflate, package, port

if TYPE_CHECKING:
    from vidweights_converters.equality_report import EqualityReport
    from vidweights_converters.report import Report


@dataclass(frozen=True)
class Revalidation:
    """What became of a folder that was validated again.

    Attributes:
        report: the new report, or the folder's own where the comparison could not be run again.
        not_compared: why it could not; None if it was.
        notes: what else there is to tell.
    """

    report: Report | EqualityReport
    not_compared: str | None
    notes: tuple[str, ...]


def validate_folder(
    folder: Path,
    weights: Path | None = None,
    clip: Path | None = None,
    progress: Progress = silent,
    *,
    overwrite_card: bool = False,
) -> Revalidation:
    """Check every file of a finished folder, run the comparison with its source again, and renew report and card.

    Where the source or every reference is missing on this machine, the folder's own report stands, if it is about
    these very weights.

    Args:
        folder: the folder, or the name of a release or of an inflated network that is on this machine.
        weights: the source; looked for as `port` and `inflate` do if not given.
        clip: for a port, a real clip to use beside the seeded ones; see `vidweights.clips.read_clip`.
        overwrite_card: whether a card that a person edited is replaced too.

    Raises:
        IntegrityError: a file is not what `config.json` describes.
        ValidationError: the weights do not compute what their source computes.
        UnavailableError: the comparison cannot be run here, and the folder has no report of these weights.
        UsageError: `folder` is not there, or was made from a person's own file, which must then be given.
    """
    folder = named(folder)
    config = read_config(folder)
    notes = package.check(folder, config)
    recorded = read_validation(folder, config)
    if recorded is None and (folder / VALIDATION).is_file():
        notes += (f"{VALIDATION} was about other weights",)
    not_compared = None
    try:
        report = _prove(folder, config, weights, clip, progress)
    except ValidationError as error:
        with suppress(OutputError):  # the failure itself is what has to be told
            package.finish(folder, config, error.report, overwrite_card=overwrite_card)
        raise
    except UnavailableError as error:
        if recorded is None:
            raise
        report, not_compared = _passed(folder, recorded, error), str(error)
    notes += package.finish(folder, config, report, overwrite_card=overwrite_card)
    return Revalidation(report, not_compared, notes)


def _passed(folder: Path, recorded: Mapping[str, Any], why: UnavailableError) -> Report | EqualityReport:
    """The report that a folder has, if its weights passed."""
    report = card_checks.read(recorded)
    if not report.passed:
        raise ValidationError(f"{folder} failed its validation, and it cannot be run again: {why}", report) from why
    return report


def _prove(
    folder: Path, config: FolderConfig, weights: Path | None, clip: Path | None, progress: Progress
) -> Report | EqualityReport:
    if config.inflation is not None:
        if clip is not None:
            raise UsageError("--clip is for ports; an inflated network is proved on images of its own.")
        return inflate.prove_again(folder, config, weights, progress)
    return port.prove_again(folder, config, weights, clip, progress)
