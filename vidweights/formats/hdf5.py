"""HDF5 files: the weights of Keras 1, 2 and 3, and any other file of datasets.

Format: keras/src/legacy/saving/legacy_h5_format.py (Keras 1 and 2, and `.h5` of Keras 3),
keras/src/saving/saving_lib.py (`*.weights.h5` of Keras 3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError, UsageError
from vidweights.files import sha256_of
from vidweights.formats.base import Checkpoint, TensorInfo, Writer, checked_key
from vidweights.layout import Array

# A dataset may claim this much more than the file stores for it: deflate reaches a factor of 1032.
_MAX_EXPANSION = 1100
_SMALL = 64 << 20
_MAX_OBJECTS = 1_000_000
# keras/src/legacy/saving/legacy_h5_format.py: what an attribute may hold.
_MAX_ATTRIBUTE = 64512

_TOP = "top_level_model_weights"
_KERNEL = {1: ("kernel",), 2: ("kernel", "bias")}
_STATISTICS = ("moving_mean", "moving_variance")
_CONVOLUTIONS = tuple(f"conv{n}d{kind}" for n in (1, 2, 3) for kind in ("", "_transpose"))
# `save_own_variables` of Keras 3: the variables that a layer stores as vars/0, vars/1, ..., by their number.
_VARIABLES = {
    **dict.fromkeys((*_CONVOLUTIONS, "dense"), _KERNEL),
    "batch_normalization": {2: _STATISTICS, 3: ("beta", *_STATISTICS), 4: ("gamma", "beta", *_STATISTICS)},
}
_KERAS3_STATE = re.compile(r"optimizer/(.+/)?vars/\d+|(.+/)?seed_generator(_\d+)?/vars/\d+")


class Hdf5File(Checkpoint):
    """An HDF5 file; datasets are read one at a time.

    Keys, by what the file turns out to be:

    - Keras 1 and 2 (`save_weights`, or a whole model), and `.h5` of Keras 3: the weight's own name without `:0`,
      preceded by its layer's name unless it begins with that: `Conv3d_1a_7x7_conv/kernel`.
    - Keras 3, `*.weights.h5`: the same, for convolutions, dense layers and batch norms of a file that keeps the names
      of its layers; `layers/<...>/vars/<n>` for the rest. Three variables of a batch norm are read as
      those of `scale=False`; the file does not tell them from `center=False`.
    - Anything else: the path of the dataset.

    Elements of two opaque bytes are bfloat16, as Keras 3 writes them.

    Raises:
        FormatError: it is no HDF5 file, is damaged, or refers to data outside of its own datasets (soft and external
            links, virtual and external storage are refused).
    """

    format = "h5"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise FormatError(f"{path} is not a whole HDF5 file ({error}); download it again.") from error
        try:
            self._list()
        except BaseException as error:
            self._file.close()
            if isinstance(error, FormatError) or not isinstance(error, Exception):
                raise
            # h5py reports a damaged structure in many ways.
            raise FormatError(f"{path} is a damaged HDF5 file ({error}); download it again.") from error

    def _list(self) -> None:
        infos, self.others = _datasets(self._file, self.path)
        names = _keras_names(self._file, self.path)
        if names is None:
            names = _keras3_names(self._file, infos)
        self.others |= {path: _unlisted(path) for path in infos if path not in names}
        absent = [path for path in names if path not in infos and path not in self.others]
        if absent:
            raise FormatError(f"{self.path} lists the weight {absent[0]} and has no such dataset; it was cut.")
        self._paths = {key: path for path, key in names.items() if path in infos}
        if len(self._paths) != sum(path in infos for path in names):
            raise FormatError(f"{self.path} has two weights of the same name; it cannot be known which one is meant.")
        self.tensors = {key: TensorInfo(key, *infos[path]) for key, path in self._paths.items()}
        for key in (*self.tensors, *self.others):
            checked_key(key, str(self.path))

    def read(self, key: str) -> Array:
        """The tensor, read from the file at each call."""
        info, path = self.tensors[key], self._paths[key]
        storage = DTYPES[info.dtype].storage
        try:
            data = np.asarray(self._file[path][()])
        except (OSError, ValueError, RuntimeError) as error:
            raise FormatError(f"{self.path}: {path} cannot be read ({error}); download the file again.") from error
        return np.asarray(data.view(storage) if info.dtype == "bfloat16" else data, storage, order="C")

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        self._file.close()


_Infos = dict[str, tuple[tuple[int, ...], str]]


def _datasets(file: Any, path: Path) -> tuple[_Infos, dict[str, str]]:
    """{path: (shape, dtype)} of the datasets of numbers, in the order of their paths, and the others."""
    infos: _Infos = {}
    others: dict[str, str] = {}
    groups, seen = [("", file)], {_address(file)}
    while groups:
        prefix, group = groups.pop()
        inner = []
        for name in group:
            at = f"{prefix}{name}"
            item = _follow(group, name, f"{path}: {at}")
            if isinstance(item, h5py.Group):
                if _address(item) in seen or len(seen) > _MAX_OBJECTS:
                    raise FormatError(f"{path}: the group {at} is there twice, or the groups never end.")
                seen.add(_address(item))
                inner.append((f"{at}/", item))
            elif isinstance(item, h5py.Dataset):
                dtype = _dtype(item)
                if dtype is None:
                    others[at] = f"elements of {item.dtype}, shape {item.shape}"
                else:
                    _check_storage(item, f"{path}: {at}")
                    infos[at] = (item.shape, dtype)
        groups += reversed(inner)
    return infos, others


def _address(item: Any) -> int:
    return int(h5py.h5o.get_info(item.id).addr)


def _follow(group: Any, name: str, where: str) -> Any:
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise FormatError(
            f"{where} is a link ({type(link).__name__}) to another place; links are not followed. "
            "Copy the file with its data in it (h5repack, or h5copy -f ext,soft)."
        )
    return group[name]


def _dtype(dataset: Any) -> str | None:
    """The element type as a key of DTYPES, or None for strings, objects, structures and empty dataspaces."""
    dtype = dataset.dtype
    if dataset.shape is None:
        return None
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None:
        return "bfloat16"
    return dtype.name if dtype.name in DTYPES else None


def _check_storage(dataset: Any, where: str) -> None:
    if dataset.external or dataset.is_virtual:
        raise FormatError(f"{where} keeps its data in other files, which are not opened. Copy it with h5repack.")
    chunk = math.prod(dataset.chunks or ())
    claimed = max(math.prod(dataset.shape), chunk) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if claimed > max(_SMALL, _MAX_EXPANSION * stored):
        raise FormatError(f"{where} claims {claimed:,} bytes, and the file stores {stored:,} for it; it was not read.")


def _strings(group: Any, name: str) -> list[str] | None:
    """An attribute that is a list of names; Keras cuts a long one into `name0`, `name1`, ..."""
    if name in group.attrs:
        parts = [group.attrs[name]]
    else:
        parts = []
        while f"{name}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{name}{len(parts)}"])
        if not parts:
            return None
    values = [value for part in parts for value in np.ravel(part).tolist()]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _keras_names(file: Any, path: Path) -> dict[str, str] | None:
    """{path of the dataset: key} by the lists that Keras 1 and 2 keep, or None if there are none."""
    root = "model_weights" if isinstance(file.get("model_weights"), h5py.Group) else ""
    group = file[root] if root else file
    layers = _strings(group, "layer_names")
    if layers is None:
        return None
    names = {}
    for layer in [*layers, *([_TOP] if _TOP in group else [])]:
        if not isinstance(group.get(layer), h5py.Group):
            raise FormatError(f"{path} lists the layer {layer!r} and has no such group; it was cut.")
        for weight in _strings(group[layer], "weight_names") or []:
            name = weight.removesuffix(":0")
            own = name.startswith((f"{layer}/", f"{layer}_"))
            names["/".join(filter(None, (root, layer, weight)))] = name if own else f"{layer}/{name}"
    return names


def _unlisted(path: str) -> str:
    if path.startswith(("optimizer_weights/", "optimizer/")):
        return "optimiser state"
    return "state of a random generator" if _KERAS3_STATE.fullmatch(path) else "not listed as the weight of a layer"


def _keras3_names(file: Any, infos: Mapping[str, Any]) -> dict[str, str]:
    """{path of the dataset: key}; only what Keras 3 names is renamed, and what it needs to go on training is left."""
    names = {path: path for path in infos if not _KERAS3_STATE.fullmatch(path)}
    groups: dict[str, int] = {}
    for path in infos:
        if found := re.fullmatch(r"((?:layers/[^/]+/)+)vars/\d+", path):
            groups[found[1]] = groups.get(found[1], 0) + 1
    for group, count in groups.items():
        levels = group.split("/")[1::2]
        kind = re.sub(r"_\d+$", "", levels[-1])
        owner = _layer_names(file, levels)
        for index, variable in enumerate(_VARIABLES.get(kind, {}).get(count, ()) if owner else ()):
            if f"{group}vars/{index}" in names:
                names[f"{group}vars/{index}"] = f"{owner}/{variable}"
    return names


def _layer_names(file: Any, levels: list[str]) -> str | None:
    """The names of the nested layers, joined; None if the file does not keep all of them."""
    paths = ["".join(f"layers/{level}/" for level in levels[: depth + 1]) + "vars" for depth in range(len(levels))]
    names = [file[path].attrs.get("name") for path in paths if path in file]
    whole = len(names) == len(levels) and all(isinstance(name, str) for name in names)
    return "/".join(map(str, names)) if whole else None


class Hdf5Writer(Writer):
    """Writes the `save_weights` layout of Keras 2, which every later Keras loads, by position, in the order announced.

    A key is `<layer>/<weight>`. If keys have no such form, the datasets are written under their keys, without
    Keras's lists.

    Raises:
        UsageError: a tensor is bfloat16, which HDF5 does not have.
    """

    file_name = "model.h5"

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        super().__init__(path, tensors)
        if any(info.dtype == "bfloat16" for info in self.tensors):
            raise UsageError("HDF5 has no bfloat16; choose another format, such as safetensors.")
        self._keras = all("/" in info.key for info in self.tensors)
        # The bounds of the library's file format are fixed so that the bytes depend on nothing else.
        self._file = h5py.File(path, "x", libver=("earliest", "v110"))
        if self._keras:
            self._list()

    def _list(self) -> None:
        layers: dict[str, list[str]] = {}
        for info in self.tensors:
            layer, _, weight = info.key.rpartition("/")
            layers.setdefault(layer, []).append(f"{layer}/{weight}:0")
        _put_strings(self._file, "layer_names", list(layers))
        self._file.attrs["backend"] = np.bytes_(b"tensorflow")
        self._file.attrs["keras_version"] = np.bytes_(b"2.4.0")
        for layer, weights in layers.items():
            _put_strings(self._file.create_group(layer), "weight_names", weights)

    def write(self, key: str, array: Array) -> None:
        """Append a tensor."""
        self._take(key, array)
        layer, _, _ = key.rpartition("/")
        self._file.create_dataset(f"{layer}/{key}:0" if self._keras else key, data=array, track_times=False)

    def _finish(self) -> dict[str, str]:
        """Close the file, and hash it by reading it again, since HDF5 does not write in one pass."""
        self._file.close()
        return {self.path.name: sha256_of(self.path)}

    def abort(self) -> None:
        """Close the file."""
        self._file.close()


def _put_strings(group: Any, name: str, values: list[str]) -> None:
    """Store a list of names as an attribute, in the fewest parts that HDF5's limit allows, as Keras does."""
    array = np.array([value.encode() for value in values])
    count = 1
    while any(part.nbytes > _MAX_ATTRIBUTE for part in np.array_split(array, count)):
        count += 1
    for index, part in enumerate(np.array_split(array, count)):
        group.attrs[f"{name}{index}" if count > 1 else name] = part
