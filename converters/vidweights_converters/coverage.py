"""Which elements of which tensors a check can see: those that the logits change with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from vidweights.models.units import BatchNorm
from vidweights_converters.layers import Norm, replaced


def coverage(model: nn.Module, clips: Iterable[Tensor]) -> dict[str, float]:
    """For each tensor, the share of its elements with a gradient in at least one clip.

    A random projection of the logits is differentiated with respect to every tensor, batch norm being written out so
    that its statistics count too. Clips are taken until every element is covered.

    Args:
        model: a network in evaluation mode.
        clips: (N, C, T, H, W) each, of the dtype of the weights.

    Returns:
        {name in the `state_dict`: share, 0 to 1}.
    """
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    before = {name: tensor.requires_grad for name, tensor in tensors.items()}
    seen = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    try:
        for clip in clips:
            for name, gradient in _gradients(model, tensors, clip).items():
                seen[name] |= gradient != 0
            if all(bool(mask.all()) for mask in seen.values()):
                break
    finally:
        for name, tensor in tensors.items():
            tensor.requires_grad_(before[name])
    return {name: float(mask.float().mean()) for name, mask in seen.items()}


def _gradients(model: nn.Module, tensors: dict[str, Tensor], clip: Tensor) -> dict[str, Tensor]:
    with replaced(model, _norms(model)):
        logits: Tensor = model(clip)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    gradients = torch.autograd.grad((logits * direction).sum(), list(tensors.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(tensors, gradients) if gradient is not None}


def _norms(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """The batch norms of a network, written out."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            found[name] = Norm(module.weight, module.bias, module.running_mean, module.running_var, module.eps)
    return found
