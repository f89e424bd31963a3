"""2D Inception v1 (GoogLeNet) with batch norm, the network that I3D inflates.

Sources: Szegedy et al., "Going Deeper with Convolutions" (arXiv 1409.4842); tensorflow/models
research/slim/nets/inception_v1.py; torchvision/models/googlenet.py. Both have a 3x3 kernel where the paper has 5x5, as
I3D has. The layers are those of `vidweights.families.i3d`, without time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidweights.families import i3d
from vidweights.families.base import Family, ShapeOf, Tensor
from vidweights.families.i3d import ENDPOINTS, HEAD, InceptionConfig
from vidweights.families.units import without_time


def tensors(config: InceptionConfig) -> tuple[Tensor, ...]:
    """The canonical tensors of the 2D network: those of I3D, each without its time axis; the head is a matrix."""

    def as_matrix(tensor: Tensor) -> Tensor:
        return Tensor(tensor.name, tensor.shape[:2], "OI") if tensor.name == f"{HEAD}.weight" else tensor

    return tuple(map(as_matrix, without_time(i3d.tensors(config))))


STEM = f"{ENDPOINTS[0]}.conv.weight"


def infer(shape_of: ShapeOf, settings: Mapping[str, Any]) -> InceptionConfig | None:
    """The configuration of a checkpoint, read off the shapes of its stem and its head."""
    return i3d.infer_as(InceptionConfig, shape_of, settings, stem=STEM, kernel="OIHW", head="OI")


FACTS: dict[str, Any] = {
    "batch_norm_epsilon": InceptionConfig.batch_norm_epsilon,
    "convolution_bias": "none, except in the head",
    "head": "global average pool, 1x1 convolution",
    "axis_order": "NCHW",
}

INCEPTION = Family(
    name="inception",
    configure=InceptionConfig,
    tensors=tensors,
    infer=infer,
    facts=FACTS,
    stems=(STEM,),
)
