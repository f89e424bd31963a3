"""A finished folder validated again, whatever made it, and its report and card renewed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vidweights import home
from vidweights.errors import OutputError, UsageError, ValidationError
from vidweights.files import replace_text
from vidweights.folder import CARD, CONFIG, VALIDATION, FolderConfig, json_text, read_config, verify_files
from vidweights.progress import Progress, silent
from vidweights_converters import card, inflate, port

if TYPE_CHECKING:
    from vidweights_converters.equality_report import EqualityReport
    from vidweights_converters.report import Report


def validate_folder(
    folder: Path, weights: Path | None = None, clip: Path | None = None, progress: Progress = silent
) -> Report | EqualityReport:
    """Validate a finished folder again, and renew its report and its card, whatever the outcome.

    Args:
        folder: the folder, or the name of a release or of an inflated network that is on this machine.
        weights: the source; looked for as `port` and `inflate` do if not given.
        clip: for a port, a real clip to use beside the seeded ones; see `vidweights.clips.read_clip`.

    Raises:
        ValidationError: the weights do not compute what their source computes.
        UsageError: `folder` is not there, or was made from a person's own file, which must then be given.
    """
    if not folder.is_dir() and (home.weights_folder(str(folder)) / CONFIG).is_file():
        folder = home.weights_folder(str(folder))
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; expected one that `vidweights port` wrote, or a release's name.")
    config = read_config(folder)
    verify_files(folder, config)
    if config.inflation is not None and clip is not None:
        raise UsageError("--clip is for ports; an inflated network is proved on images of its own.")
    try:
        report: Report | EqualityReport
        if config.inflation is not None:
            report = inflate.prove_again(folder, config, weights, progress)
        else:
            report = port.prove_again(folder, config, weights, clip, progress)
    except ValidationError as error:
        with suppress(OutputError):  # the failure itself is what has to be told
            _record(folder, config, error.report)
        raise
    _record(folder, config, report)
    return report


def _record(folder: Path, config: FolderConfig, report: Report | EqualityReport) -> None:
    """Put a report and the card that tells of it into a finished folder; each file is replaced in one step."""
    renewed = {VALIDATION: json_text(report.to_json()), CARD: card.render(config, report.to_json())}
    for name, text in renewed.items():
        replace_text(folder / name, text)
