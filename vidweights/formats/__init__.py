"""Containers of tensors: found by their bytes, read lazily, written in one pass.

No format executes code from a file, and none is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from vidweights.errors import FormatError, UsageError
from vidweights.formats.base import Checkpoint, TensorInfo, Writer
from vidweights.formats.sniff import sniff
from vidweights.formats.tf_bundle import DATA_FILE, index_path

__all__ = [
    "READERS",
    "WRITERS",
    "Checkpoint",
    "TensorInfo",
    "Writer",
    "checkpoints",
    "open_checkpoint",
    "sniff",
    "writer",
]

# Where each class is; imported when it is asked for.
READERS: Mapping[str, str] = {
    "safetensors": "safetensors:SafetensorsFile",
    "tf": "tf_bundle:TFBundle",
    "tf-v1": "tf_v1:TFV1File",
    "torch": "torch_zip:TorchZip",
    "torch-legacy": "torch_legacy:TorchLegacy",
    "h5": "hdf5:Hdf5File",
    "pickle": "pickle_tree:PickleTree",
    "npz": "npz:NpzFile",
}
WRITERS: Mapping[str, str] = {
    "safetensors": "safetensors:SafetensorsWriter",
    "tf": "tf_bundle:TFBundleWriter",
    "torch": "torch_zip:TorchZipWriter",
    "h5": "hdf5:Hdf5Writer",
    "flax": "pickle_tree:FlaxPickleWriter",
}


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"vidweights.formats.{module}"), name)


def writer(name: str) -> type[Writer]:
    """The writer of a format.

    Raises:
        UsageError: there is no such format; the message lists them.
    """
    if name not in WRITERS:
        raise UsageError(f"{name!r} is not a format that is written; choose one of {', '.join(WRITERS)}.")
    found: type[Writer] = _load(WRITERS[name])
    return found


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a checkpoint of any format that is read here.

    Args:
        path: a file; the prefix, index or data file of a TensorFlow bundle; or a folder that holds one checkpoint.

    Raises:
        FormatError: there is none, it is damaged, or it is something else; the message says what.
    """
    path = _resolve(Path(path))
    checkpoint: Checkpoint = _load(READERS[sniff(path)])(path)
    return checkpoint


def _resolve(path: Path) -> Path:
    """The file to open: the index for any part of a TensorFlow bundle, the one checkpoint of a folder."""
    if path.is_dir():
        return _only_checkpoint(path)
    if DATA_FILE.fullmatch(path.name) or not path.exists():
        return index_path(path)
    return path


def _only_checkpoint(folder: Path) -> Path:
    found = checkpoints(folder)
    if len(found) == 1:
        return found[0]
    if (folder / "saved_model.pb").is_file() and (folder / "variables").is_dir():
        raise FormatError(f"{folder} is a TensorFlow SavedModel; give its weights: {folder}/variables/variables")
    if found:
        raise FormatError(f"{folder} holds {len(found)} checkpoints; name one: {_some([p.name for p in found])}.")
    held = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    raise FormatError(f"{folder} holds no checkpoint; it holds {_some(held) or 'nothing'}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder; a bundle counts once, by its index."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return [entry for entry in files if not DATA_FILE.fullmatch(entry.name) and _is_checkpoint(entry)]


def _is_checkpoint(path: Path) -> bool:
    try:
        sniff(path)
    except FormatError:
        return False
    return True
