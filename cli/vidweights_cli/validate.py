"""`vidweights validate`."""

from __future__ import annotations

from pathlib import Path

import click

from vidweights.errors import ValidationError
from vidweights_cli.output import clip_option, console, json_option, print_json, progress_bar
from vidweights_converters import equality_report, report, revalidate
from vidweights_converters.equality_report import EqualityReport
from vidweights_converters.report import Report


@click.command("validate")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="The source that the folder was made from; looked for like in `port` if not given.",
)
@clip_option
@json_option
def command(folder: Path, weights: Path | None, clip: Path | None, as_json: bool) -> None:
    """Validate the finished FOLDER again, against its source, and renew its report and card.

    FOLDER may also be the name of a release, or of an inflated network, that is on this machine.
    """
    try:
        with progress_bar() as progress:
            found = revalidate.validate_folder(folder, weights, clip, progress)
    except ValidationError as error:
        _show(error.report, as_json)
        raise
    _show(found, as_json)


def _show(found: Report | EqualityReport, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    elif isinstance(found, EqualityReport):
        equality_report.render(found, console())
    else:
        report.render(found, console())
