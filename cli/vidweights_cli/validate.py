"""`vidweights validate`."""

from __future__ import annotations

from pathlib import Path

import click

from vidweights_cli.output import json_option, print_json, progress_bar
from vidweights_converters import port as porting


@click.command("validate")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="The source that the folder was made from; looked for like in `port` if not given.",
)
@json_option
def command(folder: Path, weights: Path | None, as_json: bool) -> None:
    """Validate the finished FOLDER again, against its source, and renew its report and card.

    FOLDER may also be the name of a release that is on this machine.
    """
    with progress_bar() as progress:
        report = porting.validate_folder(folder, weights, progress)
    if as_json:
        print_json(report.to_json())
        return
    from rich.console import Console

    from vidweights_converters import report as reporting

    reporting.render(report, Console(highlight=False))
