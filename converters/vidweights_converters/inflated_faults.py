"""Mistakes that people make when they inflate a network, made on purpose in its modules and taken back.

The first two are published ones: gluoncv's inflation does not divide by N, and timm_3d's repeats along the last axis
of the kernel instead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vidweights.models.units import BatchNorm, Conv


@dataclass(frozen=True)
class Edit:
    """An attribute of a module, and what it is while a mistake is made."""

    module: nn.Module
    attribute: str
    value: Any


@dataclass(frozen=True)
class InflatedFault:
    """One mistake.

    Attributes:
        name: what is wrong.
        edits: from a network, the layer to name and what to change; nothing where it would change nothing.
        harmless_if: when that is.
        only: the method that can have it; any for None.
        seen_on: `still` clips or `noise`, whose frames differ.
        fine: whether it moves the output by no more than the rounding of a 16-bit batch norm may.
    """

    name: str
    edits: Callable[[nn.Module], tuple[str, Sequence[Edit]]]
    harmless_if: str
    only: Literal["mean", "center"] | None = None
    seen_on: Literal["still", "noise"] = "still"
    fine: bool = False


@contextmanager
def edited(edits: Sequence[Edit]) -> Iterator[None]:
    """The modules with other attributes while the block runs."""
    before = [getattr(edit.module, edit.attribute) for edit in edits]
    try:
        for edit in edits:
            setattr(edit.module, edit.attribute, edit.value)
        yield
    finally:
        for edit, value in zip(edits, before):
            setattr(edit.module, edit.attribute, value)


def time_padding(network: nn.Module, *, replicate: bool) -> list[Edit]:
    """The network with its first and last frames repeated, or with zeros, where convolutions pad in time."""
    return [
        Edit(conv, "rule", replace(conv.rule, replicate=replicate))
        for _, conv in _convs(network)
        if conv.rule.replicate != replicate and conv.kernel_size[0] > 1
    ]


def _convs(network: nn.Module) -> list[tuple[str, Conv]]:
    """The convolutions by the names of their units."""
    found = ((name, module) for name, module in network.named_modules() if isinstance(module, Conv))
    return [(name.removesuffix(".conv"), module) for name, module in found]


def _long(network: nn.Module) -> list[tuple[str, Conv]]:
    return [(name, conv) for name, conv in _convs(network) if conv.kernel_size[0] > 1]


def _weight(conv: Conv, change: Callable[[Tensor], Tensor]) -> list[Edit]:
    """The kernel changed; nothing if that leaves it as it is."""
    changed = change(conv.weight.detach())
    same = changed.shape == conv.weight.shape and torch.equal(changed, conv.weight)
    return [] if same else [Edit(conv, "weight", nn.Parameter(changed.contiguous(), requires_grad=False))]


def _every_long(change: Callable[[Tensor], Tensor], *, cubes: bool = False) -> Any:
    def edits(network: nn.Module) -> tuple[str, list[Edit]]:
        chosen = [conv for _, conv in _long(network) if not cubes or len(set(conv.kernel_size)) == 1]
        return "every kernel in time", [edit for conv in chosen for edit in _weight(conv, change)]

    return edits


def _stem(change: Callable[[Tensor], Tensor]) -> Any:
    def edits(network: nn.Module) -> tuple[str, list[Edit]]:
        name, conv = _convs(network)[0]
        return name, _weight(conv, change)

    return edits


def _left_out(network: nn.Module) -> tuple[str, list[Edit]]:
    wide = [(name, conv) for name, conv in _convs(network) if conv.kernel_size[2] > 1]
    name, conv = wide[len(wide) * 3 // 4]
    return name, _weight(conv, torch.zeros_like)


def _tap_moved(network: nn.Module) -> tuple[str, list[Edit]]:
    long = _long(network)
    if not long:
        return "every kernel in time", []
    name, conv = long[len(long) // 2]
    return name, _weight(conv, lambda kernel: kernel.roll(1, 2))


def _norms(network: nn.Module) -> list[tuple[str, BatchNorm]]:
    found = ((name, module) for name, module in network.named_modules() if isinstance(module, BatchNorm))
    return [(name.removesuffix(".bn"), module) for name, module in found]


def _epsilon(network: nn.Module) -> tuple[str, list[Edit]]:
    return "every unit", [Edit(norm, "eps", norm.eps * 10) for _, norm in _norms(network)]


def _statistics(network: nn.Module) -> tuple[str, list[Edit]]:
    found = []
    for name, norm in _norms(network):
        edits = [Edit(norm, field, getattr(norm, field).roll(1)) for field in ("running_mean", "running_var")]
        if not all(torch.equal(edit.value, getattr(norm, edit.attribute)) for edit in edits):
            found.append((name, edits))
    return found[len(found) // 2] if found else ("every unit", [])


def _head_bias(network: nn.Module) -> tuple[str, list[Edit]]:
    heads = [(name, getattr(network, name, None)) for name in ("fc", "Logits")]
    name, head = next((name, head) for name, head in heads if head is not None)
    assert head is not None
    bias = head.bias.detach()
    zero = nn.Parameter(torch.zeros_like(bias), requires_grad=False)
    return name, [Edit(head, "bias", zero)] if bias.any() else []


HEAD_BIAS = InflatedFault("head bias left out", _head_bias, "the bias is zero")

DELIBERATE: tuple[InflatedFault, ...] = (
    InflatedFault(
        "not divided by N", _every_long(lambda kernel: kernel * kernel.shape[2]), "no kernel is long in time", "mean"
    ),
    InflatedFault(
        "repeated along W, not T",
        _every_long(lambda kernel: kernel.permute(0, 1, 3, 4, 2), cubes=True),
        "no kernel is as long in time as it is wide",
    ),
    InflatedFault("kernel rolled along H", _stem(lambda kernel: kernel.roll(1, 3)), "the kernel is flat"),
    InflatedFault("H and W swapped", _stem(lambda kernel: kernel.transpose(3, 4)), "the kernel is symmetric"),
    InflatedFault("input channels reversed", _stem(lambda kernel: kernel.flip(1)), "all have the same kernel"),
    InflatedFault("batch-norm epsilon ten times too large", _epsilon, "there is no batch norm", fine=True),
    InflatedFault("batch-norm statistics one channel off", _statistics, "all channels have the same"),
    InflatedFault("kernel left out", _left_out, "the kernel is zero"),
    InflatedFault("zeros in time", lambda n: ("every kernel in time", time_padding(n, replicate=False)),
                  "no kernel is long in time", "mean"),
    InflatedFault("one tap later", _tap_moved, "no kernel is long in time", "center", "noise"),
    HEAD_BIAS,
)  # fmt: skip
