"""A library's own torch module, run on the tensors of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vidweights_converters.references.images.base import ImageOutputs, Images, Precision
from vidweights_converters.references.images.source import Tensors, differing

if TYPE_CHECKING:
    from torch import Tensor, nn


def depths(tensors: Tensors) -> list[int]:
    """The number of blocks in each stage of a ResNet under torchvision's names."""
    heads = [{key.split(".")[1] for key in tensors if key.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    return [len(head) for head in heads]


def run_module(net: nn.Module, path: Path, tensors: Tensors, images: Images, precision: Precision) -> ImageOutputs:
    """The outputs of a module in evaluation mode, with the tensors in the places of those that it was made with.

    They may be of other shapes than the module's own, so that a network of any width runs, and one for other inputs.

    Args:
        net: a classifier `fc` over what is pooled; it may have been made on the meta device.
        path: the file that the tensors are from, for the message.
        tensors: all its parameters and statistics, and no others. Without `fc.weight` it runs without classifier.
        images: (N, C, H, W).
        precision: in which it computes.

    Raises:
        FormatError: a tensor is missing, or the module has no place for one.
    """
    import torch

    has_top = "fc.weight" in tensors
    if not has_top:
        net.fc = torch.nn.Identity()
    state = {key: torch.from_numpy(array).to(getattr(torch, precision)) for key, array in tensors.items()}
    for name, _ in net.named_buffers():
        if name.endswith("num_batches_tracked"):  # no part of evaluation, and absent from older files
            state[name] = torch.zeros((), dtype=torch.int64)
    differing(path, type(net).__name__, set(net.state_dict()), set(state))
    pooled: list[Tensor] = []
    net.get_submodule("fc").register_forward_pre_hook(lambda _module, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        x = torch.from_numpy(images).to(getattr(torch, precision))
        logits = torch.func.functional_call(net.eval(), state, (x,), strict=True)
    return ImageOutputs(pooled[0].numpy(), logits.numpy() if has_top else None)
