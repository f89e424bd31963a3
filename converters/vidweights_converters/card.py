"""The model card of a finished folder: `README.md`, rendered from its `config.json` and `validation.json` alone.

A card ends with the SHA-256 of what vidweights wrote above that line. Where it does not fit any more, a person edited
the card, and it is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from vidweights import catalog, dialects
from vidweights.catalog import Release, SourceFile
from vidweights.folder import (
    CARD,
    LABELS,
    FolderConfig,
    SourceRecord,
    label_record,
    provenance,
    shown_input,
)
from vidweights_converters import metadata
from vidweights_converters.citation import shown

_STATUS = {
    None: "**Not validated.** Nobody has shown that these weights compute what their source computes.",
    False: "**Validation failed.** These weights do not compute what their source computes.",
    True: "**Validated**: it computes what its source computes; the figures are under *What was checked*.",
}
_NOT_PRETRAINED = "**Not pretrained.** It was made of random weights, to try the job; it knows nothing."
_UNSEEN: Mapping[catalog.Verified, str] = {
    "names only": "**Not yet seen: names and shapes only.** They were read in what the publisher shows; the released "
    "file itself was not at hand when this was written.",
    "code": "**Not yet seen.** The port was held to the logits of the released code on weights drawn by a seed; the "
    "released file itself was not at hand when this was written.",
    "port": "**Ported and validated here**; the report is not kept with this card.",
}

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

_STAMP = "<!-- Written by vidweights; a card that was edited is kept. SHA-256 of the text above: {sha256} -->\n"


def renewed(folder: Path, text: str, *, overwrite: bool = False) -> str | None:
    """What the card of a folder is to become: the text, or None if a person edited the card that is there.

    Args:
        folder: where the card is, or will be.
        text: a card as `render` gives it.
        overwrite: whether an edited card is replaced too.
    """
    path = folder / CARD
    return None if not overwrite and path.is_file() and edited(path.read_text(encoding="utf-8")) else text


def edited(text: str) -> bool:
    """Whether a card is not, to the letter, one that vidweights wrote."""
    body, mark, _ = text.rpartition(_STAMP.split("{", maxsplit=1)[0])
    return not mark or text != _stamped(body)


def _stamped(body: str) -> str:
    return body + _STAMP.format(sha256=hashlib.sha256(body.encode()).hexdigest())


def render(config: FolderConfig, validation: Mapping[str, Any] | None) -> str:
    """The card as Markdown with the hub's metadata block before it."""
    return _render(config, _status(config, validation), _weights(config), _checks(config, validation))


def of_release(release: Release) -> str:
    """The card of a catalogued release that nobody has packed here."""
    command = f"vidweights port {release.name} --weights FILE"
    unseen = _UNSEEN[release.verified]
    if release.verified_by:
        unseen += f" What stands behind this: {shown(release.verified_by)}."
    status = f"{unseen} `{command}` ports and proves the one that you have."
    files = ", ".join(f"[{file.name}]({release.url_of(file)})" for file in release.files)
    files += f" ({release.manual})" if release.manual else ""
    return _render(planned(release), status, f"not packed here; `{command}` makes them of {files}", "Nothing yet.")


def planned(release: Release) -> FolderConfig:
    """What `config.json` will say of a release, as far as that is known before its file is there."""
    native = dialects.native(release.family)
    return FolderConfig(
        name=release.name,
        family=release.family,
        config=release.config,
        dialect=native.name,
        format="safetensors",
        main="",
        files={},
        facts=native.all_facts,
        source=SourceRecord(release.dialect, "", {file.name: _published(file) for file in release.files}, ""),
        input=dict(release.input),
        labels=label_record(release.labels, release.label_source["source"]) if release.labels else None,
        release=provenance(release),
    )


def _published(file: SourceFile) -> str:
    """The SHA-256 of a published file, or what is known of it."""
    return file.sha256 or (f"{file.sha256_begins}..." if file.sha256_begins else "")


def _render(config: FolderConfig, status: str, weights: str, checks: str) -> str:
    release = config.release or {}
    licence, training = release.get("licence") or {}, release.get("training") or {}
    # The title of a release is its own; an inflated network is not the 2D one whose title is known.
    title = config.name if config.inflation is not None else release.get("title", config.name)
    body = Template(resources.files("vidweights_cards").joinpath("template.md").read_text(encoding="utf-8"))
    text = body.substitute(
        title=title,
        status=status,
        example=_example(config),
        alone=_alone(config),
        network=_network(config),
        weights=weights,
        dialect=f"`{config.dialect}` ({config.format})",
        training=_training(config),
        trainer=_trainer(config, training),
        source=_source(config),
        paper=release.get("paper") or "-",
        licence=_stated(config, licence),
        code_licence=_stated(config, licence.get("code")),
        data_licence=_stated(config, training.get("licence")),
        input=_input(config),
        labels=_labels(config),
        accuracy=_accuracy(config, release.get("accuracy") or {}),
        checks=checks,
        facts="\n".join(f"- {fact.replace('_', ' ')}: {value}" for fact, value in config.facts.items()),
    )
    return _stamped(f"{metadata.block(config, title)}\n{text}\n")


def _status(config: FolderConfig, validation: Mapping[str, Any] | None) -> str:
    passed = None if validation is None else bool(validation.get("passed"))
    status = _STATUS[passed]
    if passed and validation is not None and "promise" in validation:
        promise = str(validation["promise"])
        status = f"**Validated, {promise}**: {_PROMISES.get(promise, '')}; the figures are under *What was checked*."
    return f"{_NOT_PRETRAINED}\n\n{status}" if config.drawn else status


def _weights(config: FolderConfig) -> str:
    return f"`{config.main}`, SHA-256 `{config.files[config.main]}`"


def _example(config: FolderConfig) -> str:
    """How to load and run the network; a release knows its preprocessing and its labels."""
    head = ["import numpy as np", "import torch", "import vidweights", ""]
    # The name of a release means its folder in our own naming.
    where = config.name if config.native else f"./{config.name}"
    load = f'model = vidweights.load("{where}")  # or the path of the folder'
    run = "with torch.no_grad():"
    known = config.release and config.input and not config.inflation
    if known and config.native:
        weights = f'weights = vidweights.weights("{config.name}")'
        top = _TOP if config.labels else [line.replace("weights.labels[index]", "index") for line in _TOP]
        return "\n".join([*head, load, weights, *_frames(config), run, *top])
    channels = getattr(config.config, "in_channels", 3)
    clip = f"clip = torch.rand(1, {channels}, 16, 224, 224)  # (N, C, T, H, W), in place of yours"
    return "\n".join([*head[1:], load, clip, run, "    outputs = model(clip)", "print(outputs.shape)"])


_TOP = (
    "    logits = model(weights.transforms()(frames)[None])[0]",
    "for index in logits.topk(5).indices:",
    '    print(f"{logits[index]:8.3f}  {weights.labels[index]}")',
)


def _frames(config: FolderConfig) -> tuple[str, str]:
    """Frames that stand for a person's own."""
    fields = config.input or {}
    flow = fields.get("channels") == "flow"
    height, width = fields.get("size") or (fields.get("short_side", 256), fields.get("short_side", 256) * 4 // 3)
    shape = f"({fields.get('frames', 16)}, {height}, {width}, {2 if flow else 3})"
    what = "the optical flow of your video" if flow else "the frames of your video"
    axes = "(T, H, W, 2), x and y in pixels" if flow else "(T, H, W, 3), RGB"
    drawn = f"normal(0, 5, {shape}).astype(np.float32)" if flow else f"integers(0, 256, {shape}, np.uint8)"
    return (
        f"# In place of noise, {what}{_rate(fields)}: {axes}.",
        f"frames = np.random.default_rng(0).{drawn}",
    )


def _rate(fields: Mapping[str, Any]) -> str:
    fps, stride = fields.get("fps"), fields.get("stride", 1)
    rate = f" at {fps:g} frames per second" if isinstance(fps, int | float) else ""
    return f"{rate}, one in {stride}" if stride > 1 else rate


def _alone(config: FolderConfig) -> str:
    """What to say below the code."""
    lines = []
    if config.release and not config.inflation and (config.input or {}).get("channels") in ("rgb", "bgr"):
        lines.append(f"Of a video file: `vidweights predict {config.name} video.mp4`.")
    if config.format == "safetensors":
        plain = "`config.json` is plain JSON"
        if config.labels:
            plain = "`config.json` and `labels.txt` are plain JSON and plain text"
        names = "the network's modules" if config.native else f"`{config.dialect}`"
        lines.append(
            "It needs no vidweights to be read: `safetensors.torch.load_file` gives the tensors of `model.safetensors` "
            f"under the names of {names}, and {plain}."
        )
    return "\n\n".join(lines)


def _network(config: FolderConfig) -> str:
    values = ", ".join(f"{key}={value}" for key, value in config.config.to_json().items() if value is not None)
    return f"`{config.family}`: `{values}`"


def _source(config: FolderConfig) -> str:
    files = "; ".join(
        f"`{name}`" + (f" SHA-256 `{sha256}`" if sha256 else " (no SHA-256 is published)")
        for name, sha256 in config.source.files.items()
    )
    where = ""
    if config.inflation is not None:
        family, method = config.inflation["source_family"], config.inflation["method"]
        title = f" ({config.release['title']})" if config.release else ""
        drawn = f" of random weights (seed {config.inflation['random_init']})" if config.drawn else ""
        where = f"2D {family}{title}{drawn}, inflated by the method `{method}`; " + (files or "no file")
        return f"{where}; {shown(config.release['source'])}" if config.release and not config.drawn else where
    if config.release:
        where = (
            f"{config.release['repository']} at commit `{config.release['commit']}`, `{config.release['checkpoint']}`: "
        )
    return f"{where}{files}"


def _training(config: FolderConfig) -> str:
    if config.drawn:
        return "nothing: random weights"
    training = ((config.release or {}).get("training") or {}).get("data", "unknown")
    return f"{training} (the 2D network)" if config.release and config.inflation is not None else training


def _trainer(config: FolderConfig, training: Mapping[str, Any]) -> str:
    if config.drawn:
        return "nobody"
    if not training:
        return "unknown"
    by = training.get("by", "not recorded")
    return f"{by} ({shown(training['source'])})" if training.get("source") else by


def _stated(config: FolderConfig, licence: Mapping[str, Any] | None) -> str:
    """Two cells: a licence, and where it is stated."""
    if licence:
        note = f"; {licence['note']}" if licence.get("note") else ""
        return f"{licence['id']} | {shown(licence['source'])}{note}"
    if config.drawn:
        return "none: the numbers were drawn by a seed | -"
    return f"{'no statement by the publisher' if config.release else 'unknown: ask whoever trained it'} | -"


_RATES = {
    "top1": "top-1",
    "top5": "top-5",
    "clip_top1": "top-1 of single clips",
    "mean_of_top1_and_top5": "mean of top-1 and top-5",
}


def _accuracy(config: FolderConfig, accuracy: Mapping[str, Any]) -> str:
    if not accuracy or config.drawn:
        return "None published."
    of = ", of the 2D network" if config.inflation is not None else ""
    rates = ", ".join(f"{name} {accuracy[key]} %" for key, name in _RATES.items() if key in accuracy)
    how = f" ({accuracy['protocol']})" if "protocol" in accuracy else ""
    return (
        f"Published by {shown(accuracy['published_by'])}: {rates} on {accuracy['dataset']}{of}{how}. It was not "
        "measured again here: what vidweights shows is that the weights compute what their source computes, not how "
        "often that is right."
    )


_INPUT_NAMES = {
    "channels": "channel order",
    "value_range": "values",
    "crop": "centre crop",
    "fps": "frames per second",
    "size": "height, width",
    "scores": "averaged over clips",
    "short_videos": "too short videos",
}


def _input(config: FolderConfig) -> str:
    if not config.input:
        return "No statement by the publisher." if config.release else "Unknown: the checkpoint is not in the catalog."
    fields = shown_input(config.input)
    if fields.get("size"):
        fields.pop("short_side", None)  # frames are resized to a size of their own
    rows = [
        f"| {_INPUT_NAMES.get(name, name.replace('_', ' '))} | {_value(name, value)} |"
        for name, value in fields.items()
    ]
    source = (config.release or {}).get("input_source")
    rows += [f"| source | {shown(source)} |"] if source else []
    return "\n".join(["| | |", "|---|---|", *rows])


def _value(name: str, value: Any) -> str:
    if name == "channels":
        return str(value).upper() if value in ("rgb", "bgr") else f"{value}: x, then y"
    if name == "value_range":
        return " to ".join(f"{one:g}" for one in value)
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"{one:.9g}" if isinstance(one, float) else str(one) for one in values)


def _labels(config: FolderConfig) -> str:
    if config.labels is None:
        told = (config.release or {}).get("label_source")
        if told:
            return f"The order of the classes: {shown(told['source'])}; {shown(told['note'])}."
        return "No statement by the publisher." if config.release else "No label order is known."
    return (
        f"{config.labels['count']} classes, in the order of `{LABELS}` (SHA-256 `{config.labels['sha256']}`), which "
        f"was read in {shown(config.labels['source'])}."
    )


def _checks(config: FolderConfig, validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return "Nothing. Run `vidweights validate` on this folder."
    from vidweights_converters import card_checks  # a report's classes cost more time than a card without one

    return card_checks.render(config, validation)
