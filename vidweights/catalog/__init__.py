"""The catalog: what is known of each released checkpoint, its files, network, labels, input and licence.

A file of the catalog is a collection: what its releases share stands at the top, and each of the rows
`[[releases]]` adds to it or overrides it, table by table, or takes a table away with `false`. A file without rows is
one release.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vidweights import dialects
from vidweights.errors import UsageError
from vidweights.families import FAMILIES

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

_FOLDER = Path(__file__).parent
Verified = Literal["port", "code", "names only"]

_IMAGES = "images"  # the 2D weights beside the releases, which vidweights.images reads
_ROW = '[[releases]]\nname = "'  # how a row begins


@dataclass(frozen=True)
class SourceFile:
    """One published file.

    Attributes:
        name: what it is called.
        size: bytes, if they are published.
        git_blob: the id that git gives its bytes, where it lies in a repository.
        sha256: its SHA-256, if that is published.
        sha256_begins: the digits that a SHA-256 begins with, where a file's name ends in them.
        url: where it is served, if that is not `release.url/name`.
        mib: the size in MiB, where that is what is published.
    """

    name: str
    size: int | None = None
    git_blob: str | None = None
    sha256: str | None = None
    sha256_begins: str | None = None
    url: str | None = None
    mib: float | None = None


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
        url: the folder that serves `files`; where each has its own url, the page or the folder that links to them.
        manual: why a program cannot fetch the files, and what a person can do; None if it can.
        copies: other places where the same tensors are published.
        input: the fields of `vidweights.clips.Preprocessing`, and `input_source` where they were read.
        label_source: `file` in `labels/`, its `sha256`, and the `source` of the order; no `file` where no order is
            published, and then `source` says so.
        licence: that of the weights: `id` (of SPDX), `source`, `note`, and the `copyright` line that its text needs;
            `code`, the licence of the code that they were released with, has the same fields. Without `id` the
            publisher makes no statement.
        training: `data`; `by`, who trained, and the `source` that says so; `datasets`, their names for the metadata of
            a card; `licence`, the terms of the data, with the fields of a licence.
        verified: how far the entry was held to its release: its real file was ported and validated here (`port`), its
            tables to the logits of the released code on weights drawn by a seed (`code`), or neither: names and shapes
            were read, and no file was seen.
        verified_by: what stands behind `verified`, where there is more to say.
        weights_sha256: of the `model.safetensors` that a port writes, on any machine; None where nobody has ported
            the release's own file yet.
        accuracy: `top1` and `top5` in percent, `dataset`, the `protocol` if stated, and `published_by`.
        crc32c: for each stored key the CRC32C of the tensor's bytes, in the release's layout; empty if none is known.
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
    verified_by: str | None = None
    manual: str | None = None
    copies: tuple[Copy, ...] = ()
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the logits; none if no order is published."""
        return read_labels(self.label_source["file"]) if "file" in self.label_source else ()

    @property
    def size(self) -> int | None:
        """Bytes of all published files; None if those of one are not published."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    @property
    def shown_size(self) -> str:
        """The size for a person to read: `50.8 MB`, or `-` if it is not published."""
        if self.size is not None:
            return f"{self.size / 1e6:.1f} MB"
        mib = [file.mib for file in self.files if file.mib is not None]
        return f"{sum(mib) * 2**20 / 1e6:.1f} MB" if len(mib) == len(self.files) else "-"

    def url_of(self, file: SourceFile) -> str:
        """Where a file is; the folder that a person opens, where a program cannot fetch it."""
        return file.url or (self.url if self.manual else f"{self.url}/{file.name}")


def read_toml(name: str) -> dict[str, Any]:
    """The values in `catalog/NAME.toml`."""
    return tomllib.loads(_text(name))


def _text(name: str) -> str:
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def read_labels(file: str) -> tuple[str, ...]:
    """The class names in `catalog/labels/FILE`, one a line, in the order of the logits."""
    return tuple((_FOLDER / "labels" / file).read_text(encoding="utf-8").splitlines())


def merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Shared values with one's own over them, table by table."""
    return {
        **shared,
        **{
            key: merged(shared[key], value) if isinstance(value, dict) and key in shared else value
            for key, value in own.items()
        },
    }


@cache
def _places() -> dict[str, str]:
    """{release: the file of the catalog that has it}. A file is parsed when one of its releases is asked for."""
    found = {}
    for path in _FOLDER.glob("*.toml"):
        if path.stem != _IMAGES:
            rows = _text(path.stem).split(_ROW)[1:]
            found.update(dict.fromkeys([row[: row.index('"')] for row in rows] or [path.stem], path.stem))
    return dict(sorted(found.items()))


@cache
def _collection(file: str) -> dict[str, Release]:
    shared = {"collection": file, **read_toml(file)}
    rows = shared.pop("releases", [{}])
    return {release.name: release for release in (_release(merged(shared, row)) for row in rows)}


def _release(data: dict[str, Any]) -> Release:
    source = data.pop("source")
    settings = dialects.get(data["dialect"]).settings
    return Release(
        config=FAMILIES[data["family"]].configure(**{**settings, **data.pop("config")}),
        repository=source["repository"],
        commit=source["commit"],
        url=source["url"],
        files=tuple(SourceFile(**file) for file in source["files"]),
        copies=tuple(Copy(**copy) for copy in data.pop("copies", ())),
        label_source=data.pop("labels", {}),
        crc32c={key: int(value, 16) for key, value in data.pop("crc32c", {}).items()},
        **{name: value for name, value in data.items() if value is not False},
    )


def names() -> tuple[str, ...]:
    """The names of all releases, in alphabetical order."""
    return tuple(_places())


def get(name: str) -> Release:
    """The release of that name.

    Raises:
        UsageError: there is none; the message has the names that come close.
    """
    if name not in _places():
        raise UsageError(f"no release is called {name!r}; {hint(name)}")
    return _collection(_places()[name])[name]


def hint(name: str) -> str:
    """The releases whose names come close to one, or what else is a way to them, for a message."""
    close = [each for each in names() if each.startswith(name)] or difflib.get_close_matches(name, names(), n=5)
    if close:
        return f"close to it are: {', '.join(close[:8])}{', ...' if len(close) > 8 else ''}"
    return f"the collections are: {', '.join(collections())}; `vidweights list` has their releases"


def releases() -> tuple[Release, ...]:
    """All releases, by name."""
    return tuple(get(name) for name in names())


def collections() -> tuple[str, ...]:
    """The names of all collections, in alphabetical order."""
    return tuple(sorted({release.collection for release in releases()}))


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
        raise UsageError(f"no release or collection is called {name!r}; {hint(name)}")
    if checkpoint is None:
        return chosen
    one = tuple(release for release in chosen if checkpoint in (release.checkpoint, release.name))
    if not one:
        raise UsageError(f"{name} has no checkpoint {checkpoint!r}; it has: {', '.join(r.checkpoint for r in chosen)}")
    return one
