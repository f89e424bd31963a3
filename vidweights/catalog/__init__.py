"""The catalog: one TOML file for each released checkpoint, with its hashes, labels, input and licence."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vidweights.errors import UsageError
from vidweights.families import FAMILIES

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

_FOLDER = Path(__file__).parent
Verified = Literal["port", "code", "names only"]

_IMAGES = "images"  # the 2D weights beside the releases, which vidweights.images reads


@dataclass(frozen=True)
class SourceFile:
    """One published file, and what was published of its bytes.

    Attributes:
        size: in bytes.
        git_blob: the id that git gives the bytes.
        sha256: their SHA-256, or `sha256_begins` its first hexadecimal digits, which some publishers put into names.
        url: where it is, if not under its name in the release's `url`.
    """

    name: str
    size: int | None = None
    git_blob: str | None = None
    sha256: str | None = None
    sha256_begins: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Copy:
    """The same tensors inside an installed Python package."""

    package: str
    module: str
    version: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """One released checkpoint.

    Attributes:
        name: the catalog name (`i3d-rgb-scratch-k400`).
        collection: the short name of all checkpoints that were released together (`i3d-tf`).
        checkpoint: what the release itself calls it (`rgb_scratch`).
        family: the network family, and `config` its configuration there.
        dialect: the naming in which the release stores its tensors.
        url: the folder that serves `files`.
        copies: other places where the same tensors are published.
        label_source: `file` in `catalog/labels`, `source` and `sha256`; empty where no order of classes was published.
        input: the fields of `vidweights.clips.Preprocessing`, and `input_source` where they were read.
        licence: that of the weights: `id` (of SPDX), `source`, `note`, and the `copyright` line that its text needs;
            `code`, the licence of the code that they were released with, has the same fields. Empty if the publisher
            makes no statement.
        training: `data`; `by`, who trained, and the `source` that says so; `datasets`, their names for the metadata of
            a card; `licence`, the terms of the data, with the fields of a licence.
        verified: how far the entry was held to its release: its real file was ported and validated here (`port`), its
            tables to the logits of the released code on weights drawn by a seed (`code`), or neither: names and shapes
            were read, and no file was seen.
        manual: why no program can fetch the files; None if one can.
        crc32c: for each stored key the CRC32C of the tensor's bytes, in the release's layout.
        weights_sha256: of the `model.safetensors` that a port writes, on any machine; None where nobody has ported
            the release's own file yet.
    """

    name: str
    title: str
    collection: str
    checkpoint: str
    family: str
    dialect: str
    paper: str
    input_source: str
    config: Any
    repository: str
    commit: str
    url: str
    files: tuple[SourceFile, ...]
    input: Mapping[str, Any]
    label_source: Mapping[str, str]
    training: Mapping[str, Any]
    licence: Mapping[str, Any] = field(default_factory=dict)
    crc32c: Mapping[str, int] = field(default_factory=dict)
    verified: Verified = "names only"
    copies: tuple[Copy, ...] = ()
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    manual: str | None = None
    weights_sha256: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the logits; none where no order was published."""
        return read_labels(self.label_source["file"]) if self.label_source else ()

    @property
    def size(self) -> int | None:
        """Bytes of all published files; None if it was not published."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def url_of(self, file: SourceFile) -> str:
        """Where a file is."""
        return file.url or f"{self.url}/{file.name}"


def read_toml(name: str) -> dict[str, Any]:
    """The values in `catalog/NAME.toml`."""
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def read_labels(file: str) -> tuple[str, ...]:
    """The class names in `catalog/labels/FILE`, one a line, in the order of the logits."""
    return tuple((_FOLDER / "labels" / file).read_text(encoding="utf-8").splitlines())


def _read(name: str) -> Release:
    data = read_toml(name)
    source = data.pop("source")
    return Release(
        config=FAMILIES[data["family"]].configure(**data.pop("config")),
        repository=source["repository"],
        commit=source["commit"],
        url=source["url"],
        files=tuple(SourceFile(**file) for file in source["files"]),
        copies=tuple(Copy(**copy) for copy in data.pop("copies", ())),
        label_source=data.pop("labels", {}),
        crc32c={key: int(value, 16) for key, value in data.pop("crc32c", {}).items()},
        **data,
    )


def names() -> tuple[str, ...]:
    """The names of all releases, in alphabetical order."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml") if path.stem != _IMAGES))


@cache
def get(name: str) -> Release:
    """The release of that name.

    Raises:
        UsageError: there is none; the message lists those that there are.
    """
    if name not in names():
        raise UsageError(f"no release is called {name!r}; there are: {', '.join(names())}")
    return _read(name)


def releases() -> tuple[Release, ...]:
    """All releases."""
    return tuple(get(name) for name in names())


def select(name: str, checkpoint: str | None = None) -> tuple[Release, ...]:
    """The releases that a short name (`i3d-tf`) or a catalog name means.

    Args:
        name: a collection or a release.
        checkpoint: one checkpoint of the collection, by its own name or its catalog name.

    Raises:
        UsageError: there is no such collection, release or checkpoint.
    """
    if name in names():
        chosen: tuple[Release, ...] = (get(name),)
    else:
        chosen = tuple(release for release in releases() if release.collection == name)
    if not chosen:
        known = sorted({release.collection for release in releases()})
        raise UsageError(
            f"no release is called {name!r}; there are the collections {', '.join(known)} and the "
            f"checkpoints {', '.join(names())}"
        )
    if checkpoint is None:
        return chosen
    one = tuple(release for release in chosen if checkpoint in (release.checkpoint, release.name))
    if not one:
        raise UsageError(f"{name} has no checkpoint {checkpoint!r}; it has: {', '.join(r.checkpoint for r in chosen)}")
    return one
