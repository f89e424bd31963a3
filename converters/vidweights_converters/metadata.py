"""The metadata block that the hub reads at the head of a card.

Specification: huggingface/hub-docs, modelcard.md. Written here, since importing `huggingface_hub` takes longer than
writing a card; the tests read it back with that library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vidweights.folder import FolderConfig
from vidweights_converters.citation import link

TASK = "video-classification"

# Licences that the hub knows, by their SPDX ids; any other is `other`, with a name and a link.
_HUB_LICENCES = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0")


def block(config: FolderConfig, title: str) -> str:
    """The block of a folder's card, between its lines of dashes."""
    return "\n".join(["---", *_yaml(_fields(config, title)), "---", ""])


def _fields(config: FolderConfig, title: str) -> dict[str, Any]:
    release, made = config.release or {}, config.inflation
    training = release.get("training") or {}
    fields: dict[str, Any] = {
        **({} if config.drawn else _licence(release.get("licence") or {})),
        "library_name": "vidweights",
        "pipeline_tag": TASK,
        "tags": [config.family, *([str(config.input["channels"])] if config.input else []), "video"],
    }
    if training.get("datasets") and not config.drawn:
        fields["datasets"] = list(training["datasets"])
    if made is not None and "/" in str(made.get("source")) and not config.drawn:
        fields["base_model"] = made["source"]
    accuracy = release.get("accuracy") or {}
    if "top1" in accuracy and made is None:  # that of a 2D network is not that of the 3D network made of it
        fields["model-index"] = [{"name": title, "results": [_result(accuracy)]}]
    return fields


def _licence(licence: Mapping[str, Any]) -> dict[str, str]:
    if not licence:
        return {}
    if licence["id"] in _HUB_LICENCES:
        return {"license": licence["id"].lower()}
    return {"license": "other", "license_name": _slug(licence["id"]), "license_link": link(licence["source"])}


def _result(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """What was published, by whom; `published_by` is the source."""
    dataset, _, split = accuracy["dataset"].partition(" ")
    metrics = [
        {"type": "accuracy", "name": f"Top-{n}", "value": accuracy[f"top{n}"]} for n in (1, 5) if f"top{n}" in accuracy
    ]
    of = {"type": _slug(dataset), "name": dataset, **({"split": split} if split else {})}
    source = {"name": f"published in {accuracy['published_by']}", "url": link(accuracy["published_by"])}
    return {"task": {"type": TASK}, "dataset": of, "metrics": metrics, "source": source}


def _slug(words: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in words.lower()).split())


def _yaml(value: Mapping[str, Any] | list[Any], indent: str = "") -> Iterator[str]:
    """Mappings and lists in YAML, in block style; a scalar as JSON writes it, which YAML reads."""
    items = value.items() if isinstance(value, Mapping) else [(None, item) for item in value]
    for key, item in items:
        head = f"{indent}{key}:" if key is not None else f"{indent}-"
        if isinstance(item, Mapping | list):
            lines = list(_yaml(item, f"{indent}  "))
            if key is None:  # the first line of an item stands behind its dash
                yield f"{head} {lines[0].strip()}"
                yield from lines[1:]
            else:
                yield head
                yield from lines
        else:
            yield f"{head} {_scalar(item)}"


def _scalar(item: Any) -> str:
    plain = isinstance(item, str) and item[:1].isalpha() and all(c.isalnum() or c in "-." for c in item)
    reserved = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return item if plain and item.lower() not in reserved else json.dumps(item, ensure_ascii=False)
