"""Small networks for tests: seeded tensors under the names of any dialect, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidweights import formats
from vidweights.dialects.base import Dialect, Stored
from vidweights.families import FAMILIES
from vidweights.families.i3d import I3DConfig, InceptionConfig, S3DConfig
from vidweights.families.resnet import ResNetConfig
from vidweights.families.resnet3d import ResNet3DConfig
from vidweights.formats.base import Checkpoint, TensorInfo
from vidweights.layout import Array, relayout

NARROW = I3DConfig(num_classes=7, depth_multiplier=1 / 32)
# A narrow network of every family.
NETWORKS: dict[str, Any] = {
    "i3d": NARROW,
    "s3d": S3DConfig(num_classes=7, depth_multiplier=1 / 32),
    "resnet3d": ResNet3DConfig(num_classes=7, width=4, variant="r2plus1d"),
    "inception": InceptionConfig(num_classes=7, depth_multiplier=1 / 32),
    "resnet": ResNetConfig(num_classes=7, width=4),
}


class InMemory(Checkpoint):
    """A checkpoint of arrays that are held already."""

    format = "memory"

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = dict(arrays)
        self.path = Path("memory")
        self.files = ()
        self.tensors = {key: TensorInfo(key, a.shape, a.dtype.name) for key, a in arrays.items()}
        self.others: dict[str, str] = {}

    def read(self, key: str) -> Array:
        return self.arrays[key]


def config_for(dialect: Dialect, **values: Any) -> Any:
    """A configuration that the dialect can hold, narrow but for the values that are given."""
    base = NETWORKS[dialect.family.name].to_json()
    required = {name: value[-1] if isinstance(value, tuple) else value for name, value in dialect.requires.items()}
    return dialect.family.configure(**{**base, **dialect.namings[-1].settings, **required, **values})


def canonical(config: Any, seed: int = 0) -> dict[str, Array]:
    """Seeded canonical tensors; batch-norm weights are 1 (so that every dialect holds them), variances positive."""
    rng = np.random.default_rng(seed)
    arrays = {}
    (family,) = (family for family in FAMILIES.values() if family.configure is type(config))
    for tensor in family.tensors(config):
        values = rng.standard_normal(tensor.shape, dtype=np.float32)
        if tensor.name.endswith("bn.weight"):
            values = np.ones_like(values)
        if tensor.name.endswith("running_var"):
            values = np.abs(values) + np.float32(0.5)
        arrays[tensor.name] = values
    return arrays


def stored(dialect: Dialect, config: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Canonical tensors under the dialect's keys and in its layouts."""
    return {
        row.place.key: relayout(arrays[row.tensor.name], row.tensor.layout, row.place.layout)
        for row in dialect.table(config)
        if isinstance(row.place, Stored)
    }


def write(path: Path, container: str, arrays: Mapping[str, Array]) -> Path:
    """Write arrays with our own writer into the folder `path`, and return the file to open."""
    path.mkdir(parents=True, exist_ok=True)
    writer_type = formats.writer(container)
    outputs = writer_type.order([TensorInfo(key, a.shape, a.dtype.name) for key, a in arrays.items()])
    writer = writer_type(path / writer_type.file_name, outputs)
    for info in outputs:
        writer.write(info.key, arrays[info.key])
    return path / next(iter(writer.finish()))
