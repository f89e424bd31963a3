"""The model card of a finished folder: `README.md`, rendered from its `config.json` and `validation.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from vidweights import dialects
from vidweights.errors import FormatError
from vidweights.folder import CARD, VALIDATION, FolderConfig, read_validation, shown_input
from vidweights_converters.report import Report

_STATUS = {
    None: "**Not validated.** Nobody has shown that these weights compute what their source computes.",
    False: "**Validation failed.** These weights do not compute what their source computes.",
    True: "**Validated**: it computes what its source computes; the figures are under *What was checked*.",
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
        title=release.get("title", config.name),
        example=_example(config),
        status=_STATUS[None if validation is None else bool(validation.get("passed"))],
        family=config.family,
        config=_pairs(config.config.to_json()),
        file=config.main,
        sha256=config.files[config.main],
        dialect=f"`{config.dialect}` ({config.format})",
        training=release.get("training", "unknown"),
        source=_source(config),
        licence=f"{licence['id']} ({licence['source']}; {licence['note']})"
        if licence
        else "unknown: ask whoever trained it",
        accuracy=_accuracy(release.get("accuracy") or {}),
        input=_input(config.input),
        checks=_checks(validation),
        facts="\n".join(f"- {fact.replace('_', ' ')}: {value}" for fact, value in config.facts.items()),
    )


def _example(config: FolderConfig) -> str:
    """How to load the folder; a release is loaded by its name, and knows its preprocessing."""
    if config.release is None or config.speaks is not dialects.native(config.family):
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
    if config.release:
        where = (
            f"{config.release['repository']} at commit `{config.release['commit']}`, `{config.release['checkpoint']}`: "
        )
    return f"{where}{files}"


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    if not accuracy:
        return "none published"
    return (
        f"top-1 {accuracy['top1']} %, top-5 {accuracy['top5']} % on {accuracy['dataset']}, "
        f"as published by {accuracy['published_by']}; not measured again here"
    )


def _input(fields: Mapping[str, Any] | None) -> str:
    if fields is None:
        return "Unknown: the checkpoint is not in the catalog."
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in shown_input(fields).items())


def _checks(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return "Nothing. Run `vidweights validate` on this folder."
    try:
        report = Report.from_json(validation)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{VALIDATION} lacks or misnames {error}. Run: vidweights validate FOLDER") from error
    lines = ["| reference | clip (T x H x W) | max difference / largest logit | tolerance |", "|---|---|---|---|"]
    lines += [
        f"| {one.name} ({one.version}) | {clip.name} | {clip.max_relative:.1e} | {one.tolerance:.1e} |"
        for one in report.references
        for clip in one.clips
    ]
    made = [fault for fault in report.faults if fault.ratio is not None]
    covered = sum(share > 0 for share in report.coverage.values())
    trip = report.round_trip
    lines += [
        "",
        f"- {covered} of {len(report.coverage)} tensors have an effect on the logits.",
        *(
            f"- {len(made)} deliberate faults were made; the one that shows least ({fault.layer}: {fault.fault}) moves "
            f"the logits by {fault.ratio:,.0f} tolerances."
            for fault in sorted(made, key=lambda fault: fault.ratio or 0)[:1]
        ),
        f"- {trip.tensors - len(trip.differing)} of {trip.tensors} tensors come back to the source bit for bit.",
        *(f"- **Failed:** {failure}" for failure in report.failures),
        "",
        "All figures are in `validation.json`. What each means: `docs/validation.md` of vidweights.",
    ]
    return "\n".join(lines)
