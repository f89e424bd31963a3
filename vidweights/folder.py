"""A finished folder: weights, `config.json`, `labels.txt`, `validation.json` and the card, and how to read it back.

`config.json` and `labels.txt` are the same on every machine for the same input. What was proved of the weights stands
in `validation.json`, which names their SHA-256; without it, or with another hash, they count as unvalidated.
docs/package.md says what each file holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidweights import dialects, home
from vidweights.catalog import Release
from vidweights.dialects.base import Dialect
from vidweights.errors import FormatError, UsageError, VidweightsError
from vidweights.families import FAMILIES

CONFIG = "config.json"
LABELS = "labels.txt"
VALIDATION = "validation.json"
CARD = "README.md"
LICENCE = "LICENSE"
NOTICE = "NOTICE"
# The package in the order in which it is shown and fetched: a hub counts a download when config.json is asked for.
_BEFORE, _AFTER = (CONFIG,), (LABELS, VALIDATION, CARD, LICENCE, NOTICE)
_PICTURES = ".png"
# 2: `labels` binds labels.txt, and `training` says who trained.
_VERSION = 2
_OBJECTS = ("input", "labels", "release", "inflation")  # of `config.json`, where they are there


@dataclass(frozen=True)
class SourceRecord:
    """What the weights were made from."""

    dialect: str
    format: str
    files: Mapping[str, str]  # name: SHA-256
    plan_sha256: str


@dataclass(frozen=True)
class FolderConfig:
    """The contents of `config.json`.

    Attributes:
        name: the catalog name, or the name that a person gave.
        files: {file name: SHA-256} of the weights.
        main: the file among them (for a TensorFlow bundle its `.index`) that is opened.
        labels: the label order: how many lines `labels.txt` has, its SHA-256, and where the order was read; None
            where no order is known, and there is no such file.
        release: provenance, licence, training data and published accuracy; None outside the catalog.
        inflation: for a network made of a 2D one: what it was made of, and how; None for a port.
    """

    name: str
    family: str
    config: Any
    dialect: str
    format: str
    main: str
    files: Mapping[str, str]
    facts: Mapping[str, Any]
    source: SourceRecord
    input: Mapping[str, Any] | None = None
    labels: Mapping[str, Any] | None = None
    release: Mapping[str, Any] | None = None
    inflation: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, in a fixed order."""
        body = {**asdict(self), "config": self.config.to_json()}
        return {"vidweights": _VERSION, **body}

    @property
    def speaks(self) -> Dialect:
        """The dialect of the weights file."""
        return dialects.get(self.dialect)

    @property
    def native(self) -> bool:
        """Whether the weights file has the names of our own torch model."""
        return self.speaks is dialects.native(self.family)

    @property
    def drawn(self) -> bool:
        """Whether the network was made of weights that a seed drew: it is not pretrained."""
        return (self.inflation or {}).get("random_init") is not None


def provenance(release: Release) -> dict[str, Any]:
    """What `config.json` says of where a release comes from."""
    return {
        "title": release.title,
        "collection": release.collection,
        "checkpoint": release.checkpoint,
        "repository": release.repository,
        "commit": release.commit,
        "paper": release.paper,
        "licence": dict(release.licence),
        "training": dict(release.training),
        "accuracy": dict(release.accuracy),
        "input_source": release.input_source,
        **({} if release.labels else {"label_source": dict(release.label_source)}),
    }


def label_bytes(labels: Sequence[str]) -> bytes:
    """`labels.txt`: a class name a line, in the order of the logits."""
    return "".join(f"{label}\n" for label in labels).encode()


def label_record(labels: Sequence[str], source: str) -> dict[str, Any]:
    """What `config.json` says of `labels.txt`."""
    return {"count": len(labels), "sha256": hashlib.sha256(label_bytes(labels)).hexdigest(), "source": source}


def write_labels(folder: Path, labels: Sequence[str], source: str) -> dict[str, Any]:
    """Write `labels.txt`; returns what `config.json` says of it."""
    (folder / LABELS).write_bytes(label_bytes(labels))
    return label_record(labels, source)


def shown_input(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preprocessing that say something of its kind of input, for a person to read."""
    unclamped = fields["channels"] == "flow" and "flow_clamp" not in fields
    idle = "value_range" if unclamped else "flow_clamp" if fields["channels"] != "flow" else None
    return {name: value for name, value in fields.items() if name != idle}


def json_text(value: Any) -> str:
    """JSON with a fixed layout, so that equal values are equal bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `json_text` into a new file."""
    path.write_bytes(json_text(value).encode())  # the same line ends on every system


def read_config(folder: Path) -> FolderConfig:
    """The `config.json` of a finished folder.

    Raises:
        FormatError: it is missing, is not JSON, is not ours, or is of another version.
    """
    data = _read_object(folder / CONFIG)
    version = data.pop("vidweights", None)
    if version != _VERSION:
        raise FormatError(f"{folder / CONFIG} {_other_version(version)}")
    try:
        config = FAMILIES[data["family"]].configure(**data.pop("config"))
        source = SourceRecord(**data.pop("source"))
        if wrong := [name for name in _OBJECTS if not isinstance(data.get(name) or {}, dict)]:
            raise TypeError(f"{', '.join(wrong)}: expected an object")
        read = FolderConfig(config=config, source=source, **data)
        names = [str(name) for name in (read.main, *read.files, *dict(read.files).values())]
        sound = read.speaks.family is FAMILIES[read.family] and isinstance(read.main, str) and read.main in read.files
    except (KeyError, TypeError, ValueError, AttributeError, VidweightsError) as error:
        raise FormatError(f"{folder / CONFIG} lacks or misnames {error}. Make the folder again.") from error
    if not sound or any(Path(name).name != name for name in names):
        raise FormatError(
            f"{folder / CONFIG} does not list its weights with their SHA-256, or names a file outside its folder. "
            "It is not from a source to trust."
        )
    return read


def _other_version(version: Any) -> str:
    if type(version) is not int:
        return f"was not written by vidweights (no 'vidweights': {_VERSION})."
    advice = "Make the folder again, with --overwrite" if version < _VERSION else "Upgrade vidweights"
    return f"is of version {version}, and this vidweights reads version {_VERSION}. {advice}."


def named(path: Path) -> Path:
    """The finished folder that a person means: the path, or the one of that name on this machine.

    Raises:
        UsageError: there is neither.
    """
    if not (path / CONFIG).is_file() and (home.weights_folder(str(path)) / CONFIG).is_file():
        return home.weights_folder(str(path))
    if not path.is_dir():
        raise UsageError(f"{path} is no folder; expected one that `vidweights port` or `inflate` wrote, or its name.")
    return path


def folder_of(path: Path) -> Path | None:
    """The finished folder that a path is, or whose weights file it is: its `config.json` has what no tensor tells."""
    if (path / CONFIG).is_file():
        return path
    with suppress(FormatError):  # another program's config.json
        if path.is_file() and read_config(path.parent).main == path.name:
            return path.parent
    return None


def package(names: Iterable[str], weights: Iterable[str]) -> tuple[str, ...]:
    """Those of the names in a folder or a repository that belong to the package, `config.json` first, pictures last.

    `weights` are the files that `config.json` lists.
    """
    there = set(names)
    listed = [name for name in (*_BEFORE, *weights, *_AFTER) if name in there]
    return (*listed, *sorted(name for name in there if name.endswith(_PICTURES) and "/" not in name))


def package_files(folder: Path, config: FolderConfig) -> tuple[str, ...]:
    """The package of a finished folder: what is published, and nothing else that lies there.

    Of pictures only those count that the card shows.

    Raises:
        FormatError: the card, or a file that `config.json` lists, is missing.
    """
    there = [path.name for path in folder.iterdir() if path.is_file()]
    missing = [name for name in (CARD, *config.files) if name not in there]
    if missing:
        raise FormatError(f"{folder} has no {' and no '.join(missing)}. Make the folder again.")
    card = (folder / CARD).read_text(encoding="utf-8")
    return tuple(name for name in package(there, config.files) if not name.endswith(_PICTURES) or name in card)


def verify_files(folder: Path, config: FolderConfig) -> None:
    """Check that the weights are there, and that they are the ones that `config.json` describes.

    Raises:
        FormatError: a file is missing.
        IntegrityError: a file has another SHA-256.
    """
    for name, sha256 in config.files.items():
        if not (folder / name).is_file():
            raise FormatError(f"{folder / name} is missing, which {CONFIG} lists. Make or fetch the folder again.")
        home.verify(folder / name, sha256)


def read_validation(folder: Path, config: FolderConfig) -> Mapping[str, Any] | None:
    """The report of a folder, if there is one and it is about these very weights."""
    if not (folder / VALIDATION).is_file():
        return None
    report = _read_object(folder / VALIDATION)
    return report if report.get("weights_sha256") == dict(config.files) else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing; expected the folder that `vidweights port` wrote.") from error
    except (ValueError, OSError) as error:
        raise FormatError(f"{path} cannot be read as JSON ({error}). Make the folder again.") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds no JSON object. Make the folder again.")
    return data


def validation_state(folder: Path, config: FolderConfig) -> str:
    """`passed`, `failed` or `unvalidated`."""
    report = read_validation(folder, config)
    if report is None:
        return "unvalidated"
    return "passed" if report.get("passed") is True and not report.get("failures") else "failed"
