"""How far the outputs of each layer are from a reference's, both networks run from the clip on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vidweights_converters.difference import finite, relative_difference
from vidweights_converters.references.base import HEAD


@torch.no_grad()
def layer_errors(model: nn.Module, clip: Tensor, endpoints: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of each endpoint, relative to the reference's largest value there.

    Args:
        model: the network, in evaluation mode.
        clip: (N, C, T, H, W).
        endpoints: what the reference computes for the clip, by the names of the network's modules, and `Logits`.
    """
    errors: dict[str, float] = {}

    def compare(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            errors[name] = finite(relative_difference(output, endpoints[name]))

        return hook

    modules = dict(model.named_modules())
    handles = [modules[n].register_forward_hook(compare(n)) for n in endpoints if n != HEAD and n in modules]
    try:
        logits = model(clip)
    finally:
        for handle in handles:
            handle.remove()
    errors[HEAD] = finite(relative_difference(logits, endpoints[HEAD]))
    return {name: errors[name] for name in endpoints if name in errors}
