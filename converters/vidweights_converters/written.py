"""The network that a finished folder's file holds, as the proofs load it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vidweights import dialects, models, plan
from vidweights.dtypes import widened
from vidweights.folder import FolderConfig
from vidweights.formats.base import Checkpoint
from vidweights.layout import Array
from vidweights.run import stream


def tensors(written: Checkpoint, config: FolderConfig) -> dict[str, Array]:
    """The tensors of a file by their canonical names, in float64."""
    native = dialects.native(config.family)
    planned = plan.make(written.tensors, native, config=config.config, name=str(written.path))
    return {step.target.key: widened(array, step.dtype) for step, array in stream(planned, written) if step.target}


def network(config: FolderConfig, arrays: Mapping[str, Array], dtype: torch.dtype) -> nn.Module:
    """The network with exactly these tensors, in evaluation mode."""
    with torch.device("meta"):
        made = models.build(config.family, config.config)
    made.load_state_dict(
        {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}, strict=True, assign=True
    )
    return made.eval()
