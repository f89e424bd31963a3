"""Mistakes that ports make, as data: put into a network on purpose to show that the check sees them, and tried on a
layer that departs to name what is wrong with it.

Which mistakes are real is told by published ports: an epsilon of 1e-5, padding that is not `SAME`, a kernel with its
axes rolled, the one kernel of Mixed_5b that has another name left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vidweights.models.i3d import I3D
from vidweights_converters.layers import Convolution, Dense, Layer, Norm, Pool, head_of, layers_of, replaced

Change = Callable[[Layer], Layer | None]

AXES = {"T": 2, "H": 3, "W": 4}


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        name: what is wrong with the layer.
        apply: the layer with the mistake; None for a kind of layer that cannot have it.
        undo: the layer as it was before the mistake; always None if that cannot be told.
        harmless_if: when it changes nothing; where it then does not, it is skipped for this reason.
    """

    name: str
    apply: Change
    undo: Change
    harmless_if: str = ""


def _involution(name: str, change: Change, harmless_if: str = "") -> Fault:
    """A mistake that undoes itself when it is made twice."""
    return Fault(name, change, change, harmless_if)


def _never(layer: Layer) -> None:
    return None


def _kernel(change: Callable[[Tensor], Tensor]) -> Change:
    def apply(layer: Layer) -> Layer | None:
        return replace(layer, kernel=change(layer.kernel)) if isinstance(layer, Convolution) else None

    return apply


def _norm(change: Callable[[Norm], Norm]) -> Change:
    def apply(layer: Layer) -> Layer | None:
        if not isinstance(layer, Convolution) or layer.norm is None:
            return None
        return replace(layer, norm=change(layer.norm))

    return apply


def _moved(axis: str, by: int) -> Change:

    def apply(layer: Layer) -> Layer | None:
        if isinstance(layer, Dense):
            return None
        t, h, w = (moved + by * (axis == name) for name, moved in zip(AXES, layer.padding.moved))
        return replace(layer, padding=replace(layer.padding, moved=(t, h, w)))

    return apply


def shifted(axis: str, by: int = 1) -> Fault:
    """The kernel rolled along one axis."""
    dim = AXES[axis]
    return Fault(
        f"kernel rolled by {by:+d} along {axis}",
        _kernel(lambda k: k.roll(by, dim)),
        _kernel(lambda k: k.roll(-by, dim)),
    )


def swapped(a: str, b: str) -> Fault:
    """Two axes of the kernel exchanged."""
    return _involution(f"{a} and {b} of the kernel swapped", _kernel(lambda k: k.transpose(AXES[a], AXES[b])))


def flipped(axis: str) -> Fault:
    """The kernel reversed along one axis."""
    name = {"T": "kernel reversed in time"}.get(axis, f"kernel reversed along {axis}")
    return _involution(name, _kernel(lambda k: k.flip(AXES[axis])))


def epsilon(factor: float) -> Fault:
    """Batch norm with a multiple of its epsilon."""

    def times(by: float) -> Change:
        return _norm(lambda n: replace(n, epsilon=n.epsilon * by))

    name = f"{factor:g} times too large" if factor > 1 else f"{1 / factor:g} times too small"
    return Fault(f"batch-norm epsilon {name}", times(factor), times(1 / factor))


def padding_moved(axis: str, by: int = 1) -> Fault:
    """Padding taken from behind and put before, or the other way for a negative number."""
    return Fault(f"padding moved by {by:+d} along {axis}", _moved(axis, by), _moved(axis, -by))


def _with_symmetric(value: bool) -> Change:
    def apply(layer: Layer) -> Layer | None:
        return None if isinstance(layer, Dense) else replace(layer, padding=replace(layer.padding, symmetric=value))

    return apply


def _with_relu(value: bool) -> Change:
    return lambda layer: replace(layer, relu=value) if isinstance(layer, Convolution) and layer.norm else None


def _with_fill(value: float) -> Change:
    return lambda layer: replace(layer, padding=replace(layer.padding, fill=value)) if isinstance(layer, Pool) else None


def _roll_statistics(by: int) -> Change:
    return _norm(lambda n: replace(n, mean=n.mean.roll(by), variance=n.variance.roll(by)))


def _without_bias(layer: Layer) -> Layer | None:
    return None if isinstance(layer, Pool) or layer.bias is None else replace(layer, bias=None)


SYMMETRIC = Fault("padding symmetric, not SAME", _with_symmetric(True), _with_symmetric(False))
NO_RELU = Fault("ReLU missing", _with_relu(False), _with_relu(True))
STATISTICS = Fault(
    "batch-norm statistics one channel off",
    _roll_statistics(1),
    _roll_statistics(-1),
    "there is only one channel",
)
MEAN_AND_SHIFT = _involution(
    "batch-norm mean and shift exchanged", _norm(lambda n: replace(n, mean=n.shift, shift=n.mean))
)
INPUTS_REVERSED = _involution(
    "input channels reversed (RGB as BGR)", _kernel(lambda k: k.flip(1)), "there is only one channel"
)
OUTPUTS_REVERSED = _involution("output channels reversed", _kernel(lambda k: k.flip(0)))
LEFT_OUT = Fault("kernel left out", _kernel(torch.zeros_like), _never)
NO_BIAS = Fault("bias left out", _without_bias, _never, "the bias is zero")
ZERO_FILL = Fault(
    "max-pool padded with zero",
    _with_fill(0.0),
    _with_fill(float("-inf")),
    "its input is never negative",
)

# Tried in this order on a layer that departs.
CAUSES: tuple[Fault, ...] = (
    *(epsilon(factor) for factor in (0.01, 10, 0.1, 100)),
    NO_RELU,
    *(swapped(a, b) for a, b in ("HW", "TH", "TW")),
    *(flipped(axis) for axis in AXES),
    *(shifted(axis, by) for axis in AXES for by in (1, -1)),
    INPUTS_REVERSED,
    OUTPUTS_REVERSED,
    STATISTICS,
    MEAN_AND_SHIFT,
    SYMMETRIC,
    *(padding_moved(axis, by) for axis in AXES for by in (1, -1)),
    ZERO_FILL,
    NO_BIAS,
)

EVERY_UNIT = "every unit"
_STEM = "Conv3d_1a_7x7"
_DEEP = "Mixed_4c.Branch_1.Conv3d_0b_3x3"

Deliberate = tuple[tuple[str, Fault], ...]

_OF_I3D: Deliberate = (
    *((_STEM, shifted(axis)) for axis in AXES),
    (_STEM, swapped("H", "W")),
    (_STEM, flipped("T")),
    (_STEM, INPUTS_REVERSED),
    (_STEM, padding_moved("T")),
    (_STEM, padding_moved("W")),
    ("MaxPool3d_2a_3x3", padding_moved("H")),
    ("MaxPool3d_2a_3x3", ZERO_FILL),
    ("Conv3d_2b_1x1", NO_RELU),
    ("Conv3d_2c_3x3", shifted("H")),
    ("Mixed_3b.Branch_1.Conv3d_0b_3x3", STATISTICS),
    (_DEEP, swapped("H", "W")),
    (_DEEP, flipped("T")),
    ("Mixed_5b.Branch_2.Conv3d_0b_3x3", LEFT_OUT),
    (EVERY_UNIT, epsilon(10)),
    ("Logits", NO_BIAS),
)


def deliberate(model: nn.Module) -> Deliberate:
    """What is put into a network to see whether the check notices: (layer, fault)."""
    return _OF_I3D if isinstance(model, I3D) else _of_resnet(layers_of(model), head_of(model))


def _of_resnet(layers: Mapping[str, Layer], head: str) -> Deliberate:
    """As for I3D, in the layers of a 3D ResNet that have the axis in question."""
    units = {name: layer.kernel.shape for name, layer in layers.items() if isinstance(layer, Convolution)}
    in_space = [name for name, shape in units.items() if shape[3] > 1]
    in_time = [name for name, shape in units.items() if shape[2] > 1]
    pools = [name for name, layer in layers.items() if isinstance(layer, Pool) and layer.kernel[1] > 1]
    inner = [name for name in units if name.endswith((".conv1", ".conv1.spatial"))]
    first, deep = in_space[0], in_space[len(in_space) * 2 // 3]
    return (
        *((first, shifted(axis)) for axis in "HW"),
        (first, swapped("H", "W")),
        (first, INPUTS_REVERSED),
        (first, padding_moved("W")),
        *((name, fault) for name in in_time[:1] for fault in (shifted("T"), flipped("T"), padding_moved("T"))),
        *((name, padding_moved("H")) for name in pools),
        *((name, ZERO_FILL) for name in pools),
        (inner[0], NO_RELU),
        (inner[-1], STATISTICS),
        (deep, swapped("H", "W")),
        *((name, flipped("T")) for name in in_time[len(in_time) * 2 // 3 :][:1]),
        (in_space[-1], LEFT_OUT),
        (EVERY_UNIT, epsilon(10)),
        (head, NO_BIAS),
    )


@torch.no_grad()
def inject(model: nn.Module, layer: str, fault: Fault, clip: Tensor) -> Tensor | None:
    """The logits (N, classes) of a network that has a fault in one layer, or in every unit.

    Returns:
        None for a fault that may be harmless and is: the layer puts out the same bits with it.
    """
    layers = layers_of(model)
    chosen = [name for name in layers if name != head_of(model)] if layer == EVERY_UNIT else [layer]
    changed = {name: new for name in chosen if (new := fault.apply(layers[name])) is not None}
    if fault.harmless_if and (only := changed.get(layer)) is not None and _same(model, layer, only, clip):
        return None
    with replaced(model, changed):
        logits: Tensor = model(clip)
    return logits


def _same(model: nn.Module, name: str, changed: Layer, clip: Tensor) -> bool:
    """Whether a layer puts out the same bits when it is changed, on the input that it has in the network."""
    original, equal = layers_of(model)[name], []

    def compare(x: Tensor) -> Tensor:
        y = original(x)
        equal.append(torch.equal(y, changed(x)))
        return y

    with replaced(model, {name: compare}):
        model(clip)
    return all(equal)
