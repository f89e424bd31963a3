"""Where two networks part, and why: each layer is replayed on the reference's own input.

So one fault does not paint everything behind it. On the first layer that departs the known mistakes are tried; the one
whose undoing makes it match is the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from vidweights.layout import Array
from vidweights_converters.difference import finite, relative_difference
from vidweights_converters.faults import CAUSES, EVERY_UNIT, Change
from vidweights_converters.layers import Convolution, Layer, head_of, layers_of, replaced
from vidweights_converters.references.base import HEAD
from vidweights_converters.report import Departure

_ELSEWHERE = "none of the known mistakes; compare the tensors of this layer with the source's"
_CODE = "padding, epsilon or ReLU"


@torch.no_grad()
def localise(model: nn.Module, clip: Tensor, endpoints: Mapping[str, Array], tolerance: float) -> Departure | None:
    """The first layer that departs from a reference, and the likely cause.

    Args:
        model: the network, in evaluation mode.
        clip: (N, C, T, H, W).
        endpoints: what the reference computes for the clip, endpoint by endpoint in order, ending with `Logits`.
        tolerance: the largest relative difference that counts as a match.

    Returns:
        None if each layer matches on the reference's own input.
    """
    replay = _Replay(model, clip, endpoints)
    ratios = {name: relative_difference(replay(name), replay.expected[name]) for name in endpoints}
    departing = [name for name, ratio in ratios.items() if ratio > tolerance]
    if not departing:
        return None
    first = departing[0]
    layer, cause = _diagnose(replay, first, tolerance) or (first, _ELSEWHERE)
    return Departure(layer, finite(ratios[first]), cause, len(departing), len(endpoints))


class _Replay:
    """Runs one endpoint of the network on the reference's output of the endpoint before it."""

    def __init__(self, model: nn.Module, clip: Tensor, endpoints: Mapping[str, Array]) -> None:
        self.model, self.clip = model, clip
        self.expected = {name: torch.from_numpy(np.array(value)).to(clip.dtype) for name, value in endpoints.items()}
        names = list(endpoints)
        self.inputs = dict(zip(names, [clip, *(self.expected[name] for name in names)]))

    def __call__(self, name: str, changed: Mapping[str, Layer] = MappingProxyType({})) -> Tensor:
        """The endpoint's output, with some layers changed."""
        if name == HEAD:
            return self._head(changed)
        with replaced(self.model, changed):
            output: Tensor = self.model.get_submodule(name)(self.inputs[name])
        return output

    def _head(self, changed: Mapping[str, Layer]) -> Tensor:
        given = {name: _constant(value) for name, value in self.expected.items() if name != HEAD}
        with replaced(self.model, {**given, **changed}):
            logits: Tensor = self.model(self.clip)
        return logits


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: value


def _diagnose(replay: _Replay, name: str, tolerance: float) -> tuple[str, str] | None:
    """(layer, cause) for an endpoint that departs."""
    expected, own = replay.expected[name], replay(name)

    def matches(changed: Mapping[str, Layer] | None, output: Tensor) -> bool:
        return changed is not None and relative_difference(replay(name, changed), output) <= tolerance

    for label, layers in _suspects(replay.model, name):
        if matches(layers, expected):
            # The tensors are right: the module does something else with them than the release does.
            guilty = (fault.name for fault in CAUSES if matches(_change(layers, fault.apply), own))
            return label, f"in the code of the network: {next(guilty, _CODE)}"
        for fault in CAUSES:
            if matches(_change(layers, fault.undo), expected):
                return label, fault.name
    return None


def _change(layers: Mapping[str, Layer], change: Change) -> dict[str, Layer] | None:
    """Every one of the layers changed; None if the change is not for one of them."""
    changed = {name: change(layer) for name, layer in layers.items()}
    whole = {name: layer for name, layer in changed.items() if layer is not None}
    return whole if len(whole) == len(layers) else None


def _suspects(model: nn.Module, endpoint: str) -> Iterator[tuple[str, dict[str, Layer]]]:
    """What may be wrong at an endpoint: each of its layers alone, then all its units at once."""
    module = head_of(model) if endpoint == HEAD else endpoint
    layers = {n: layer for n, layer in layers_of(model).items() if f"{n}.".startswith(f"{module}.")}
    yield from ((name, {name: layer}) for name, layer in layers.items())
    units: dict[str, Layer] = {name: layer for name, layer in layers.items() if isinstance(layer, Convolution)}
    if len(units) > 1:
        yield f"{endpoint} ({EVERY_UNIT})", units
