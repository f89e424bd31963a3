"""The error of each layer: both networks run from the clip on, so a fault shows from its layer on and not before."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

torch = pytest.importorskip("torch")

from standin import StandIn, calibrated, calibrated_arrays  # noqa: E402

from vidweights import clips, dialects  # noqa: E402
from vidweights.dialects.base import Stored  # noqa: E402
from vidweights.layout import Array, relayout  # noqa: E402
from vidweights_converters.endpoints import layer_errors  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP = clips.noise_clip(9, 193, 200, 3, seed=1)


@pytest.fixture(scope="module")
def expected() -> Mapping[str, Array]:
    """What the reference computes, from the stem to the logits."""
    arrays, variables = calibrated_arrays(), {}
    for row in dialects.get("deepmind-rgb").table(_config()):
        if isinstance(row.place, Stored):
            variables[row.place.key] = relayout(arrays[row.tensor.name], row.tensor.layout, row.place.layout)
    return StandIn(variables).endpoints(CLIP, "float32")


def _config() -> object:
    from standin import NARROW

    return NARROW


def test_every_endpoint_of_a_sound_network_is_near_the_reference(expected: Mapping[str, Array]) -> None:
    errors = layer_errors(calibrated(), torch.from_numpy(CLIP), expected)
    assert list(errors) == list(expected)
    assert max(errors.values()) < 3e-5, errors
    assert errors["Logits"] > 0


def test_a_fault_shows_from_its_layer_on(expected: Mapping[str, Array]) -> None:
    model = calibrated()
    with torch.no_grad():
        kernel = model.Mixed_4c.Branch_1.Conv3d_0b_3x3.conv.weight
        kernel.copy_(kernel.flip(2))
    errors = layer_errors(model, torch.from_numpy(CLIP), expected)
    names = list(errors)
    place = names.index("Mixed_4c")
    assert max(errors[name] for name in names[:place]) < 3e-5
    assert min(errors[name] for name in names[place:]) > 1e-3


def test_the_network_is_left_as_it_was_and_unknown_endpoints_are_left_out(expected: Mapping[str, Array]) -> None:
    model = calibrated()
    errors = layer_errors(model, torch.from_numpy(CLIP), {"no such layer": expected["Mixed_3b"], **expected})
    assert list(errors) == list(expected)
    assert not any(module._forward_hooks for module in model.modules())
