"""What lies beside the weights of a finished folder: written once they are proved, and checked again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vidweights import dialects, formats, plan
from vidweights.errors import IntegrityError
from vidweights.files import replace_text, sha256_of
from vidweights.folder import CARD, CONFIG, LABELS, LICENCE, NOTICE, VALIDATION, FolderConfig, json_text
from vidweights_converters import card, licence

if TYPE_CHECKING:
    from vidweights_converters.equality_report import EqualityReport
    from vidweights_converters.report import Report

CARD_KEPT = f"{CARD} was edited by hand and is kept as it is; vidweights validate --overwrite-card writes a new one"


def finish(
    folder: Path,
    config: FolderConfig,
    report: Report | EqualityReport | None,
    *,
    before: Path | None = None,
    overwrite_card: bool = False,
) -> tuple[str, ...]:
    """Write everything but weights, `config.json` and `labels.txt`; each file is replaced in one step.

    Args:
        folder: a staged or a finished folder.
        config: its configuration.
        report: what was proved of it, if it was validated.
        before: the folder that a staged one is going to replace.
        overwrite_card: whether a card that a person edited is replaced.

    Returns:
        What a person has to be told.
    """
    validation = report.to_json() if report is not None else None
    if report is not None:
        from vidweights_converters import pictures

        replace_text(folder / VALIDATION, json_text(validation))
        pictures.write(folder, config, report)
    for name, text in licence.texts(config).items():
        if not (folder / name).exists():
            replace_text(folder / name, text)
    old = before or folder
    new = card.renewed(old, card.render(config, validation), overwrite=overwrite_card)
    replace_text(folder / CARD, (old / CARD).read_text(encoding="utf-8") if new is None else new)
    return (CARD_KEPT,) if new is None else ()


def check(folder: Path, config: FolderConfig) -> tuple[str, ...]:
    """Compare a finished folder with its `config.json`: every hash, the labels, and the tensors with their family.

    Returns:
        What is to be told: files that do not matter to the numbers, and that are missing or another's.

    Raises:
        IntegrityError: a file is missing, or has another hash.
        FormatError: the weights file is damaged.
        PlanError: its tensors are not those of the network that `config.json` describes.
    """
    wrong = [*_wrong_weights(folder, config), *_wrong_labels(folder, config)]
    if wrong:
        lines = "".join(f"\n  {one}" for one in wrong)
        raise IntegrityError(f"{folder} is not what its {CONFIG} describes:{lines}\nMake or fetch the folder again.")
    check_tensors(folder, config)
    return tuple(_remarks(folder, config))


def check_tensors(folder: Path, config: FolderConfig) -> None:
    """Compare names and shapes of the weights with the network that `config.json` describes; no byte is hashed.

    Raises:
        FormatError: the weights file is damaged.
        PlanError: its tensors are not those of that network.
    """
    with formats.open_checkpoint(folder / config.main) as written:
        native = dialects.native(config.family)
        plan.make(written.tensors, native, config=config.config, name=str(written.path))


def _wrong_weights(folder: Path, config: FolderConfig) -> Iterator[str]:
    for name, sha256 in config.files.items():
        yield from _wrong(folder / name, sha256)


def _wrong(path: Path, sha256: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
    elif (found := sha256_of(path)) != sha256:
        yield f"{path.name}: found SHA-256 {found}, expected {sha256}"


def _wrong_labels(folder: Path, config: FolderConfig) -> Iterator[str]:
    path, record = folder / LABELS, config.labels
    if record is None:
        if path.exists():
            yield f"{LABELS} is there, and {CONFIG} knows no label order"
        return
    yield from _wrong(path, record["sha256"])
    classes = getattr(config.config, "num_classes", record["count"])
    if record["count"] != classes:
        yield f"{CONFIG} has {record['count']} labels for {classes} classes"


def _remarks(folder: Path, config: FolderConfig) -> Iterator[str]:
    expected = licence.texts(config)
    if not (folder / CARD).is_file():
        yield f"{CARD} was missing and is written again"
    for name in (LICENCE, NOTICE):
        if name in expected and not (folder / name).is_file():
            yield f"{name} was missing and is written again"
        elif name in expected and (folder / name).read_text(encoding="utf-8") != expected[name]:
            yield f"{name} is not the one that vidweights wrote; it is kept as it is"
