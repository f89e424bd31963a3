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
@click.option("--overwrite-card", is_flag=True, help="Write a new card even if a person edited the one that is there.")
@clip_option
@json_option
def command(folder: Path, weights: Path | None, overwrite_card: bool, clip: Path | None, as_json: bool) -> None:
    """Check the finished FOLDER, run it against its source again, and renew its report and card.

    FOLDER may also be the name of a release, or of an inflated network, that is on this machine. Every file is hashed,
    and the tensors, the labels and the report are held to config.json. Where the source or what runs it is not
    installed, that is said, and the report that the folder has stands.
    """
    try:
        with progress_bar() as progress:
            found = revalidate.validate_folder(folder, weights, clip, progress, overwrite_card=overwrite_card)
    except ValidationError as error:
        _show(error.report, as_json)
        raise
    if as_json:
        told = {"compared": found.not_compared is None, "not_compared": found.not_compared, "notes": list(found.notes)}
        print_json({**found.report.to_json(), **told})
        return
    _show(found.report, as_json)
    click.echo(f"\n{folder}: every file is what config.json says, and the report is about these weights.")
    for note in found.notes:
        click.echo(note)
    if found.not_compared is not None:
        click.echo(
            f"The comparison was not run again, and the figures above are those of the report: {found.not_compared}"
        )


def _show(found: Report | EqualityReport, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    elif isinstance(found, EqualityReport):
        equality_report.render(found, console())
    else:
        report.render(found, console())
