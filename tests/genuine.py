"""3D ResNets as the genuine code of each release ran them: their tensors, drawn again without that code, and logits.

Each network of `data/genuine` was built once by the code whose commit it names. Its weights were those of
`Network.tensors`: everything is drawn here but the statistics of the batch norms, which train-mode passes over noise
calibrated, and which were rounded to the stored float16 before the code computed the logits, in float64.

Caffe2 no longer runs. There the genuine model builders made the network, and torch carried out the operators that
they list, each with the strides, pads and epsilon that it names.

`NAME.json` has the names and shapes of the tensors, in the order of the code's state dict, and what the code said;
`NAME.npz` the statistics, one behind another, and the logits. A network without logits has names alone.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vidweights.clips import noise_clip
from vidweights.layout import Array, Shape
from vidweights.random_init import centred_kernel, uniform

_DATA = Path(__file__).parent / "data" / "genuine"


@dataclass(frozen=True)
class Network:
    """One recorded network; see the module."""

    name: str

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the JSON file says: `source`, `built`, `facts`, `wrapper`, `prefix`, `seed`, `clips`, `tensors`."""
        found: dict[str, Any] = json.loads((_DATA / f"{self.name}.json").read_text())
        return found

    @property
    def shapes(self) -> dict[str, Shape]:
        """{key: shape}, in the order of the code's state dict, under the keys that the released files have."""
        return {self._key(key): tuple(shape) for key, _, shape in self.record["tensors"]}

    def tensors(self) -> dict[str, Array]:
        """{key: values}: float32, and the counters of training steps, int64."""
        statistics = self._numbers["statistics"].astype(np.float32)
        found: dict[str, Array] = {}
        for key, role, shape in self.record["tensors"]:
            if role in ("mean", "variance"):
                found[self._key(key)], statistics = np.split(statistics, shape)
            else:
                found[self._key(key)] = draw(key, tuple(shape), role, self.record["seed"])
        return found

    @property
    def clips(self) -> list[Array]:
        """Two clips `(1, C, T, H, W)` of unrelated noise, float32."""
        return [noise_clip(*clip) for clip in self.record["clips"]]

    @property
    def logits(self) -> Array:
        """The logits `(clips, classes)` that the code computed, float64."""
        return self._numbers["logits"]

    def write(self, folder: Path) -> Path:
        """Write the tensors into a file as the release has it: a Caffe2 pickle, or torch's, wrapped or bare."""
        path = folder / f"{self.name}{'.pkl' if self.record['wrapper'] == 'blobs' else '.pth'}"
        if path.suffix == ".pkl":
            write_caffe2(path, self.tensors())
            return path
        import torch

        state: Any = {key: torch.from_numpy(np.array(value)) for key, value in self.tensors().items()}
        if wrapper := self.record["wrapper"]:
            state = {wrapper: state, "epoch": 200}
        torch.save(state, path)
        return path

    def _key(self, key: str) -> str:
        prefix: str = self.record["prefix"]
        return prefix + key

    @cached_property
    def _numbers(self) -> dict[str, Array]:
        with np.load(_DATA / f"{self.name}.npz") as file:
            return dict(file)


def networks(suffix: str) -> list[Network]:
    """The recorded networks, by name: those with `npz`, which have logits, or with `json`, which are all."""
    return [Network(path.stem) for path in sorted(_DATA.glob(f"*.{suffix}"))]


def draw(key: str, shape: Shape, role: str, seed: int) -> Array:
    """The values of a tensor that is no statistic, the same on every machine and under every numpy.

    Kernels are uniform as He et al. (arXiv 1502.01852) scale them, less each output's mean; the head is uniform
    within 1 / sqrt(inputs), the weights of batch norms in [0.5, 1.5], biases within 0.25.
    """
    match role:
        case "kernel":
            return centred_kernel(shape, math.sqrt(6 / math.prod(shape[1:])), seed, key)
        case "head":
            return uniform(shape, 1 / math.sqrt(shape[1]), seed, key)
        case "scale":
            return uniform(shape, 0.5, seed, key) + np.float32(1)
        case "bias":
            return uniform(shape, 0.25, seed, key)
        case "counter":
            return np.array(1)
    raise ValueError(f"{key}: no tensor has the role {role!r}")


def write_caffe2(path: Path, blobs: Mapping[str, Array]) -> None:
    """Write `{"blobs": {name: float32 array}}` as Python 2's cPickle did, protocol 2: text and bytes are `str`."""
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    dtype = b"cnumpy\ndtype\nU\2f4K\0K\1\x87R(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
    with path.open("wb") as file:
        file.write(b"\x80\x02}U\5blobs}(")
        for name, blob in blobs.items():
            file.write(struct.pack("<cB", b"U", len(name)) + name.encode() + new + b"(K\1(")
            file.writelines(struct.pack("<ci", b"J", size) for size in blob.shape)
            file.write(b"t" + dtype + struct.pack("<ci", b"T", blob.nbytes))
            file.write(np.ascontiguousarray(blob, "<f4").tobytes())
            file.write(b"tb")
        file.write(b"us.")
