"""Keep `model_cards/` current: a folder for each release of the catalog, with its card.

    python -m vidweights_converters.cards            write the cards that are not as they should be
    python -m vidweights_converters.cards --check    name them, write nothing, and leave with 1 if there are any
    python -m vidweights_converters.cards --from weights/i3d-rgb-scratch-k400
                                                     take over what was proved of a finished folder, then write

A release that was ported and validated here has `config.json`, `validation.json` and the pictures of its finished
folder beside its card, which is then the card of that folder. Of its `config.json` only the hashes were measured; the
rest follows from the catalog, and is renewed with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import click

from vidweights import catalog
from vidweights.catalog import Release
from vidweights.errors import UsageError, VidweightsError
from vidweights.files import replace_text
from vidweights.folder import CARD, CONFIG, VALIDATION, json_text, read_config, read_validation, validation_state
from vidweights_converters import card


def home() -> Path:
    """`model_cards/` of the checkout that is installed."""
    return Path(str(resources.files("vidweights_cards")))


def texts_of(release: Release, folder: Path) -> dict[str, str]:
    """{file name: text} of what should be there for a release.

    Raises:
        UsageError: what is kept of its validation is not about the weights that `config.json` describes.
    """
    if not (folder / CONFIG).is_file():
        return {CARD: card.of_release(release)}
    kept = read_config(folder)
    config = replace(card.planned(release), main=kept.main, files=kept.files, source=kept.source)
    validation = read_validation(folder, config)
    if validation is None:
        raise UsageError(f"{folder / VALIDATION} is missing or is about other weights. Run this with --from FOLDER.")
    return {CONFIG: json_text(config.to_json()), CARD: card.render(config, validation)}


def stale(cards: Path) -> Iterator[tuple[Path, str]]:
    """The files that are not as they should be, and how they should be."""
    for release in catalog.releases():
        for name, text in texts_of(release, cards / release.name).items():
            path = cards / release.name / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                yield path, text


def left_over(cards: Path) -> list[Path]:
    """The folders of releases that the catalog does not have."""
    return sorted(path.parent for path in cards.glob(f"*/{CARD}") if path.parent.name not in catalog.names())


def record(made: Path, cards: Path) -> None:
    """Take over everything but the weights of a finished folder that passed its validation.

    Raises:
        UsageError: it is not of a release, or has not passed.
    """
    config = read_config(made)
    if config.name not in catalog.names() or config.inflation is not None:
        raise UsageError(f"{made} is not the folder of a release; {catalog.hint(config.name)}.")
    if validation_state(made, config) != "passed":
        raise UsageError(f"{made} has not passed its validation; run: vidweights validate {made}")
    (cards / config.name).mkdir(exist_ok=True)
    for file in (made / CONFIG, made / VALIDATION, *made.glob("*.png")):
        shutil.copyfile(file, cards / config.name / file.name)


@click.command(help="Keep model_cards/ current: a card for each release of the catalog.")
@click.option("--check", is_flag=True, help="Write nothing; leave with 1 if a card is not as it should be.")
@click.option(
    "--from",
    "made",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="A finished folder whose validation is to be kept with its card.",
)
@click.option("--overwrite", is_flag=True, help="Write the cards that a person edited too.")
@click.option("--cards", type=click.Path(path_type=Path), help="The folder of the cards; model_cards/ if not given.")
def main(check: bool, made: tuple[Path, ...], overwrite: bool, cards: Path | None) -> None:
    """Run the command."""
    cards = cards or home()
    try:
        for folder in made:
            record(folder, cards)
        problems = list(renew(cards, check=check, overwrite=overwrite))
    except VidweightsError as error:
        raise click.ClickException(str(error)) from error
    for problem in problems:
        click.echo(problem)
    raise SystemExit(1 if problems else 0)


def renew(cards: Path, *, check: bool = False, overwrite: bool = False) -> Iterator[str]:
    """Write every card that is not as it should be; yields what a person has to see to.

    Args:
        cards: the folder of the cards.
        check: write nothing, and yield what would be written.
        overwrite: whether a card that a person edited is written too.
    """
    yield from (f"{path}: the catalog has no such release; remove it" for path in left_over(cards))
    for path, text in stale(cards):
        if check:
            yield f"{path} is not current; run: python -m vidweights_converters.cards"
        elif path.name == CARD and card.renewed(path.parent, text, overwrite=overwrite) is None:
            yield f"{path} was edited by hand and is kept; --overwrite writes a new one"
        else:
            path.parent.mkdir(exist_ok=True)
            replace_text(path, text)


if __name__ == "__main__":
    main()
