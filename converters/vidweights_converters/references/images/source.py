"""The tensors of a source file, read by the source's own library under the source's own names.

Where TensorFlow is not installed, its checkpoints are read by `vidweights.formats`, whose checksums are the file's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights import formats
from vidweights.errors import FormatError
from vidweights_converters.references.images.base import Adjust
from vidweights_converters.references.tf_i3d import tensorflow

Tensors = dict[str, NDArray[np.float64]]

# What slim's layers store; the rest of a checkpoint is the optimiser's.
_SLIM_LEAVES = {"weights", "biases", "beta", "gamma", "moving_mean", "moving_variance"}

# keras/src/saving/saving_lib.py stores the variables of a layer by their numbers.
_KERAS3_LEAVES = {2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}


class SourceNet:
    """A network that runs on the tensors of a source file, in torch; they are read when they are first needed."""

    framework = "torch"

    def __init__(self, path: Path, dialect: str, prefix: str) -> None:
        self.path, self.dialect, self.prefix = path, dialect, prefix

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors of the file, in float64."""
        return read(self.path, self.dialect, self.prefix)


def read(path: Path, dialect: str, prefix: str, adjust: Adjust | None = None) -> Tensors:
    """Every tensor of real numbers whose key begins with the prefix, by its key without it, as float64.

    Keys are those of the file: nested dicts of torch are joined by dots (`state_dict.conv1.weight`), a weight of
    Keras is its layer's name and its own (`conv1_conv/kernel`), a variable of TensorFlow is its name.

    Args:
        path: a checkpoint of PyTorch, a safetensors or Keras `.h5` file, or a TensorFlow checkpoint of either version
            (its `.index`, or the one file).
        dialect: the source's dialect; it tells the library.
        prefix: what stands before every key (`module.`), or nothing.
        adjust: see `ImageReference.outputs`.

    Raises:
        FormatError: the library cannot read the file, or no key begins with the prefix.
    """
    libraries = {"keras": ("h5py", _keras), "slim": ("TensorFlow", _slim), "vmz-caffe2": ("vidweights", _pickle)}
    kind = dialect if dialect in libraries else dialect.split("-", maxsplit=1)[0]
    library, reader = libraries.get(kind, ("PyTorch", _torch))
    try:
        found = {key.removeprefix(prefix): array for key, array in reader(path) if key.startswith(prefix)}
    except FormatError:
        raise
    except Exception as error:  # each library has its own for a file that it refuses
        reason = str(error).strip().partition("\n")[0]
        raise FormatError(
            f"{path} cannot be read with {library}, which the check against an independent network does ({reason}). "
            "Save the state dict alone in a new file, or use --no-validate."
        ) from error
    if not found:
        raise FormatError(f"{path} has no tensor whose name begins with {prefix!r}; give the file as it was released.")
    return found if adjust is None else {key: adjust(key, array) for key, array in found.items()}


def differing(path: Path, network: str, expected: set[str], found: set[str]) -> None:
    """Nothing, if a file has the tensors of a network.

    Raises:
        FormatError: it lacks one, or has one that the network has no place for.
    """
    for what, keys in (("lacks", expected - found), ("has, beside the network's,", found - expected)):
        if keys:
            some = ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise FormatError(f"{path} cannot be run as {network}: it {what} {some}. Give the file as it was released.")


def _torch(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    import torch

    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # the header's length, then the header
    if is_safetensors:
        from safetensors.torch import load_file

        tree = load_file(path)
    else:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    for key, tensor in _flat(tree):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            yield key, tensor.detach().to(torch.float64).numpy()


def _pickle(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """A pickle of numpy arrays: the library that wrote it would run what it says, so it is read as data."""
    with formats.open_checkpoint(path) as checkpoint:
        for key in checkpoint.tensors:
            yield key, checkpoint.read(key).astype(np.float64)


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _keras(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The layers' weights of a `.h5` file; in the file of a whole model they lie under `model_weights`."""
    import h5py

    with h5py.File(path, "r") as file:
        if "layers" in file:
            yield from _keras3(file["layers"])
            return
        root = file.get("model_weights", file)
        for layer, group in root.items():
            for name in group.attrs.get("weight_names", ()):
                text = name.decode() if isinstance(name, bytes) else name
                leaf = text.rpartition("/")[2].removesuffix(":0")
                yield f"{layer}/{leaf}", _widened(group[text][()])


def _keras3(layers: Any) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The layers of a `.weights.h5` file, whose variables are numbered."""
    for group in layers.values():
        variables = group["vars"]
        for number, leaf in enumerate(_KERAS3_LEAVES.get(len(variables), ())):
            yield f"{variables.attrs['name']}/{leaf}", _widened(variables[str(number)][()])


def _widened(array: NDArray[Any]) -> NDArray[np.float64]:
    if array.dtype.kind == "V":  # two opaque bytes: bfloat16, the upper half of a float32
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def _slim(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    if find_spec("tensorflow") is None:
        with formats.open_checkpoint(path) as checkpoint:
            for key in checkpoint.tensors:
                if key.rpartition("/")[2] in _SLIM_LEAVES:
                    yield key, checkpoint.read(key).astype(np.float64)
        return
    bundle = path.with_suffix("") if path.suffix == ".index" else path
    reader = tensorflow().train.load_checkpoint(str(bundle))
    for key in reader.get_variable_to_shape_map():
        if key.rpartition("/")[2] in _SLIM_LEAVES:
            yield key, np.asarray(reader.get_tensor(key), np.float64)
