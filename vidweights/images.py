"""The 2D ImageNet weights that `vidweights inflate` knows by name; the data are in catalog/images.toml."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from vidweights.catalog import merged, read_labels, read_toml
from vidweights.errors import UsageError

_BACKGROUND = "background"

# The files of a hub repository that hold its weights, the one to fetch first.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class PublishedFile:
    """One published file.

    Attributes:
        name: what it is called, also in the caches of the library that publishes it.
        url: where it is served; None if another file took its place there.
        sha256: the SHA-256, or the leading digits of it that are published.
        md5: the MD5, where that is what is published.
        mib: the size in MiB, as published.
        member: for a tar.gz, the checkpoint in it.
    """

    name: str
    url: str | None = None
    sha256: str | None = None
    md5: str | None = None
    mib: float | None = None
    member: str | None = None


@dataclass(frozen=True)
class ImageWeights:
    """One set of 2D ImageNet weights.

    Attributes:
        name: the name for `vidweights inflate` (`resnet18`).
        title: the name in words.
        family: `resnet`, of depth `depth`, or `inception`.
        dialect: the naming and layout of its tensors (`vidweights.dialects`).
        files: the published files, all of the same weights, the newest first.
        cache: whose cache folder keeps `files` (`torch`: the torch hub's, `keras`), if anybody's.
        hub: a repository of the Hugging Face hub with `HUB_FILES` of the same weights, if there is one.
        num_classes: 1000, or 1001 where a background class comes first.
        input: fields of `vidweights.clips.Preprocessing`, those of a single frame.
        resize: how the release resizes images.
        source: where the facts were read.
        accuracy: `top1`, `top5` in percent, `dataset`, `published_by`.
    """

    name: str
    title: str
    family: Literal["resnet", "inception"]
    dialect: str
    input: Mapping[str, Any]
    resize: str
    licence: Mapping[str, Any]
    accuracy: Mapping[str, Any]
    training: str
    source: str
    label_source: Mapping[str, str]
    depth: int | None = None
    files: tuple[PublishedFile, ...] = ()
    cache: Literal["torch", "keras"] | None = None
    hub: str | None = None
    num_classes: int = 1000

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        names = read_labels(self.label_source["file"])
        return (_BACKGROUND,) * (self.num_classes - len(names)) + names


@cache
def _read() -> dict[str, ImageWeights]:
    data = read_toml("images")
    found = [_weights(merged(group, own), data["labels"]) for group in data["group"] for own in group.pop("weights")]
    return {weights.name: weights for weights in found}


def _weights(values: dict[str, Any], labels: Mapping[str, str]) -> ImageWeights:
    files = tuple(PublishedFile(**file) for file in values.pop("files", ()))
    frame = {key: tuple(value) if isinstance(value, list) else value for key, value in values.pop("input").items()}
    return ImageWeights(files=files, input=frame, label_source=labels, **values)


def names() -> tuple[str, ...]:
    """The names of all 2D weights, in the order of the catalog: those of torchvision first, timm's last."""
    return tuple(_read())


def get(name: str) -> ImageWeights:
    """The 2D weights of that name, or those whose hub repository is called so.

    Raises:
        UsageError: there are none; the message has the names that come close, or the short ones.
    """
    if not isinstance(name, str):
        raise UsageError(f"{name!r} is no name of 2D weights; expected a string such as 'resnet18'")
    known = _read()
    found = known.get(name) or next((weights for weights in known.values() if weights.hub == name), None)
    if found is not None:
        return found
    close = difflib.get_close_matches(name, known, n=5)
    if close:
        raise UsageError(f"no 2D weights are called {name!r}; close to it are: {', '.join(close)}")
    short = [each for each in known if "/" not in each]
    raise UsageError(
        f"no 2D weights are called {name!r}; there are: {', '.join(short)}, and {len(known) - len(short)} of timm "
        "(timm/resnet50.a1_in1k, ...)"
    )
