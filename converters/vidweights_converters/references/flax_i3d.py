"""i3d-jax, the Flax implementation of I3D by other people, fed with the tensors of the source.

Package `i3d-jax` 0.0.1, repository wilson1yan/i3d-jax: its network runs unmodified. Its variables come from
its own kind of pickle as they are, or from a TensorFlow checkpoint under the names that its `convert.py` gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights import formats
from vidweights.formats.base import Checkpoint
from vidweights_converters.references.base import HEAD, Clip, Precision

STEM_WIDTH = 64  # the channel table of i3d-jax is fixed

_LEAVES = {
    "conv_3d/w": ("params", "Conv_0", "kernel"),
    "conv_3d/b": ("params", "Conv_0", "bias"),
    "batch_norm/beta": ("params", "BatchNorm_0", "bias"),
    "batch_norm/moving_mean": ("batch_stats", "BatchNorm_0", "mean"),
    "batch_norm/moving_variance": ("batch_stats", "BatchNorm_0", "var"),
}

Tree = dict[str, Any]


class FlaxI3D:
    """i3d-jax on a pickle of its own kind, or on a TensorFlow bundle. JAX is imported on first use."""

    name = "i3d-jax"
    framework = "flax"

    def __init__(self, source: Path) -> None:
        self.source = source
        self._variables: Tree | None = None

    @property
    def version(self) -> str:
        """The versions of i3d-jax and of what it runs on."""
        from importlib.metadata import version

        return ", ".join(f"{name} {version(name)}" for name in ("i3d-jax", "flax", "jax"))

    def endpoints(self, clip: Clip, precision: Precision) -> Mapping[str, NDArray[Any]]:
        """See `Reference.endpoints`."""
        import jax
        from i3d_jax.i3d import VALID_ENDPOINTS, InceptionI3d

        if self._variables is None:
            self._variables = read_variables(self.source)
        classes = self._variables["params"][f"{HEAD}/Conv3d_0c_1x1"]["Conv_0"]["bias"].size
        # Newer versions of jax moved it.
        enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
        with enable_x64(precision == "float64"):
            variables, x = jax.tree_util.tree_map(
                lambda array: jax.numpy.asarray(array, precision), (self._variables, np.moveaxis(clip, 1, -1))
            )
            _, ends = jax.jit(InceptionI3d(num_classes=classes).apply)(variables, x)
            # A compiled function returns the endpoints in alphabetical order.
            arrays = {name: np.asarray(ends[name]) for name in VALID_ENDPOINTS if name in ends}
        return {name: np.moveaxis(array, -1, 1) for name, array in arrays.items()}


def read_variables(source: Path) -> Tree:
    """The variables of InceptionI3d: nested dicts of arrays."""
    tree: Tree = {}
    with formats.open_checkpoint(source) as checkpoint:
        leaves = _of_pickle(checkpoint) if checkpoint.format == "pickle" else _of_tensorflow(checkpoint)
        for path, array in leaves:
            branch = tree
            for level in path[:-1]:
                branch = branch.setdefault(level, {})
            # Flax before 0.7 took statistics as (1, 1, 1, 1, C); it wants (C,) since.
            branch[path[-1]] = array if path[-1] == "kernel" else array.reshape(-1)
    return tree


def _of_pickle(checkpoint: Checkpoint) -> Iterator[tuple[tuple[str, ...], NDArray[Any]]]:
    for key in checkpoint.tensors:
        yield tuple(key.split(".")), checkpoint.read(key)


def _of_tensorflow(checkpoint: Checkpoint) -> Iterator[tuple[tuple[str, ...], NDArray[Any]]]:
    """The variables of DeepMind's graph at their places in the tree of i3d-jax."""
    for key in checkpoint.tensors:
        leaf = "/".join(key.split("/")[-2:])
        if leaf not in _LEAVES:
            continue  # optimiser slots and counters
        unit = key.removesuffix(f"/{leaf}").rpartition("inception_i3d/")[2]
        # DeepMind's graph calls this one kernel 0a; i3d-jax calls it 0b like its siblings.
        unit = unit.replace("Mixed_5b/Branch_2/Conv3d_0a_3x3", "Mixed_5b/Branch_2/Conv3d_0b_3x3")
        modules = tuple(unit.split("/", 1)) if unit.startswith("Mixed") else (unit,)
        collection, *rest = _LEAVES[leaf]
        yield (collection, *modules, *rest), checkpoint.read(key)
