"""The model card of a finished folder: `README.md`, rendered from its `config.json` and `validation.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from vidweights import dialects
from vidweights.folder import CARD, FolderConfig, read_validation, shown_input

_STATUS = {
    None: "**Not validated.** Nobody has shown that these weights compute what their source computes.",
    False: "**Validation failed.** These weights do not compute what their source computes.",
    True: "**Validated**: it computes what its source computes; the figures are under *What was checked*.",
}
_NOT_PRETRAINED = "**Not pretrained.** It was made of random weights, to try the job; it knows nothing."


# What a promise says of an inflated network, in one sentence.
_PROMISES = {
    "equal on still clips": "on a still clip, its ends repeated in time, it computes what its 2D source computes",
    "equal with ends repeated": "on a still clip it would compute what its 2D source computes if its ends were "
    "repeated in time; it pads with zeros, and does not",
    "equal on any clip": "each output frame is what its 2D source computes from one input frame, on any clip",
    "exact": "each output frame is what its 2D source computes from one input frame, on any clip",
    "exact (bounded)": "each output frame is what its 2D source computes from one input frame, on any clip, as long as "
    "no lifted plane is cut",
    "approximate": "it is near its 2D source, not equal to it, since a kernel is a low-rank fit",
    "initialisation only": "its tensors are those of its 2D source, but it computes something else: an initialisation",
}


def write(folder: Path, config: FolderConfig) -> None:
    """Write the card of a folder."""
    (folder / CARD).write_text(render(config, read_validation(folder, config)), encoding="utf-8")


def render(config: FolderConfig, validation: Mapping[str, Any] | None) -> str:
    """The card as Markdown with the hub's metadata block before it."""
    release = config.release or {}
    licence = release.get("licence", {})
    body = Template(resources.files("vidweights_cards").joinpath("template.md").read_text(encoding="utf-8"))
    return _metadata(config, licence) + body.substitute(
        # That of a release is its own; an inflated network is not the 2D one whose title is known.
        title=config.name if config.inflation is not None else release.get("title", config.name),
        example=_example(config),
        status=_status(config, validation),
        family=config.family,
        config=_pairs(config.config.to_json()),
        file=config.main,
        sha256=config.files[config.main],
        dialect=f"`{config.dialect}` ({config.format})",
        training=_training(config),
        source=_source(config),
        licence=_licence(config, licence),
        accuracy=_accuracy(config, release.get("accuracy") or {}),
        input=_input(config.input),
        checks=_checks(validation),
        facts="\n".join(f"- {fact.replace('_', ' ')}: {value}" for fact, value in config.facts.items()),
    )


def _status(config: FolderConfig, validation: Mapping[str, Any] | None) -> str:
    passed = None if validation is None else bool(validation.get("passed"))
    status = _STATUS[passed]
    if passed and validation is not None and "promise" in validation:
        promise = str(validation["promise"])
        status = f"**Validated, {promise}**: {_PROMISES.get(promise, '')}; the figures are under *What was checked*."
    return f"{_NOT_PRETRAINED}\n\n{status}" if _random(config) else status


def _random(config: FolderConfig) -> bool:
    return (config.inflation or {}).get("random_init") is not None


def _example(config: FolderConfig) -> str:
    """How to load the folder; a release is loaded by its name, and knows its preprocessing."""
    if config.release is None or config.inflation or config.speaks is not dialects.native(config.family):
        return 'import vidweights\n\nmodel = vidweights.load("path/to/this/folder")'
    return (
        f'import vidweights\n\nmodel = vidweights.load("{config.name}")\n'
        f'transform = vidweights.weights("{config.name}").transforms()\n'
        "logits = model(transform(frames)[None])"
    )


def _metadata(config: FolderConfig, licence: Mapping[str, str]) -> str:
    lines = ["library_name: vidweights", "pipeline_tag: video-classification", f"tags: [{config.family}]"]
    if licence:
        lines.insert(0, f"license: {licence['id'].lower()}")
    return "\n".join(["---", *lines, "---", "", ""])


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _source(config: FolderConfig) -> str:
    files = "; ".join(f"`{name}` SHA-256 `{sha256}`" for name, sha256 in config.source.files.items())
    where = ""
    if config.inflation is not None:
        family, method = config.inflation["source_family"], config.inflation["method"]
        title = f" ({config.release['title']})" if config.release else ""
        drawn = f" of random weights (seed {config.inflation['random_init']})" if _random(config) else ""
        where = f"2D {family}{title}{drawn}, inflated by the method `{method}`; " + (files or "no file")
        return f"{where}; {config.release['source']}" if config.release and not _random(config) else where
    if config.release:
        where = (
            f"{config.release['repository']} at commit `{config.release['commit']}`, `{config.release['checkpoint']}`: "
        )
    return f"{where}{files}"


def _training(config: FolderConfig) -> str:
    if _random(config):
        return "nothing: random weights"
    training = str((config.release or {}).get("training", "unknown"))
    return f"{training} (the 2D network)" if config.release and config.inflation is not None else training


def _licence(config: FolderConfig, licence: Mapping[str, str]) -> str:
    if licence:
        return f"{licence['id']} ({licence['source']}; {licence['note']})"
    return "none: the numbers were drawn by a seed" if _random(config) else "unknown: ask whoever trained it"


def _accuracy(config: FolderConfig, accuracy: Mapping[str, Any]) -> str:
    if not accuracy or _random(config):
        return "none published"
    of = "of the 2D network: " if config.inflation is not None else ""
    return (
        f"{of}top-1 {accuracy['top1']} %, top-5 {accuracy['top5']} % on {accuracy['dataset']}, "
        f"as published by {accuracy['published_by']}; not measured again here"
    )


def _input(fields: Mapping[str, Any] | None) -> str:
    if fields is None:
        return "Unknown: the checkpoint is not in the catalog."
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in shown_input(fields).items())


def _checks(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return "Nothing. Run `vidweights validate` on this folder."
    from vidweights_converters import card_checks  # a report's classes cost more time than a card without one

    return card_checks.render(validation)
