"""What the networks of the R(2+1)D paper cost, beside the figures of the paper, of VMZ and of torchvision."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from networks import canonical
from torch import nn

from vidweights import models
from vidweights.errors import UsageError
from vidweights.families.cost import cost
from vidweights.families.resnet3d import PAPER, VARIANTS, ResNet3DConfig, named, paper, tensors
from vidweights_cli.main import group

pytestmark = pytest.mark.usefixtures("one_thread")

# arXiv 1711.11248, table 2: parameters in millions for 18 layers.
TABLE_2 = {
    "r2d": 11.4,
    "f-r2d": 11.4,
    "r3d": 33.4,
    "mc2": 11.4,
    "mc3": 11.7,
    "mc4": 12.7,
    "mc5": 16.9,
    "rmc2": 33.3,
    "rmc3": 33.0,
    "rmc4": 32.0,
    "rmc5": 27.9,
    "r2plus1d": 33.3,
}
# facebookresearch/VMZ@4cc542d5:c2/tutorials/models.md: GFLOPs of 18 layers and 8 frames; its R(2+1)D has a stem of 45.
MODELS_MD = {
    "r2d": 1.9,
    "f-r2d": 13.8,
    "r3d": 20.3,
    "mc2": 14.3,
    "mc3": 21.7,
    "mc4": 20.0,
    "mc5": 20.0,
    "rmc2": 19.9,
    "rmc3": 12.5,
    "rmc4": 14.5,
    "rmc5": 15.4,
}


def without_norms(config: ResNet3DConfig) -> int:
    return sum(math.prod(t.shape) for t in tensors(config) if ".bn." not in t.name)


def test_the_variants_are_those_of_table_2() -> None:
    assert list(PAPER) == list(TABLE_2)


@pytest.mark.parametrize("variant", TABLE_2)
def test_parameters_are_those_of_table_2(variant: str) -> None:
    """The paper counts no batch norms, and its R(2+1)D has the stem of 45 planes that was released.

    MC5 has 16.85 million; the release's own table (models.md) rounds them to 16.8, the paper to 16.9.
    """
    config = paper(variant, 18, 8)
    if variant == "r2plus1d":
        config = ResNet3DConfig(**{**config.to_json(), "stem_planes": 45})
    assert without_norms(config) / 1e6 == pytest.approx(TABLE_2[variant], abs=0.054)
    assert cost(config, (8, 112, 112)).parameters / 1e6 == pytest.approx(TABLE_2[variant], abs=0.08)


def test_r3d_and_r2plus1d_have_the_same_number_of_parameters_as_the_paper_claims() -> None:
    r3d, r2plus1d = (cost(paper(variant, 18, 16), (16, 112, 112)).parameters for variant in ("r3d", "r2plus1d"))
    assert r3d == 33_371_472
    assert abs(r2plus1d / r3d - 1) < 0.001


@pytest.mark.parametrize("variant", MODELS_MD)
def test_operations_are_those_that_the_release_counts(variant: str) -> None:
    assert cost(paper(variant, 18, 8), (8, 112, 112)).multiply_adds / 1e9 == pytest.approx(
        MODELS_MD[variant], abs=0.051
    )


@pytest.mark.parametrize(
    ("values", "parameters", "operations"),
    [
        ({"variant": "r3d"}, 33_371_472, 40.697),
        ({"variant": "mc3"}, 11_695_440, 43.343),
        ({"variant": "r2plus1d", "planes": "block", "stem_planes": 45}, 31_505_325, 40.519),
    ],
)
def test_parameters_and_operations_are_those_that_torchvision_states(
    values: dict[str, Any], parameters: int, operations: float
) -> None:
    found = cost(ResNet3DConfig(18, num_classes=400, stem_pool=False, **values), (16, 112, 112))
    assert found.parameters == parameters
    assert found.multiply_adds / 1e9 == pytest.approx(operations, abs=0.0005)


@pytest.mark.parametrize(
    ("variant", "frames"),
    [
        *(("f-r2d", 16), ("r2d", 1), ("r3d", 2), ("r2plus1d", 2)),
        *(("mc2", 16), ("mc3", 16), ("mc4", 8), ("mc5", 4)),
        *(("rmc2", 2), ("rmc3", 2), ("rmc4", 4), ("rmc5", 8)),
    ],
)
def test_a_group_that_is_2d_keeps_the_time_and_every_group_from_conv3_halves_the_space(
    variant: str, frames: int
) -> None:
    assert cost(paper(variant, 18, 16), (16, 112, 112)).output == (frames, 7, 7)
    assert cost(paper(variant, 18, 16), (16, 224, 224)).output == (frames, 14, 14)


RELEASED: list[dict[str, Any]] = [
    {"variant": variant, "depth": depth} for variant in VARIANTS for depth in (10, 26, 50)
] + [
    {"variant": "r2plus1d", "depth": 18, "stem_pool": True, "shortcut": "factorised", "time_padding": "zero"},
    {"variant": "r2plus1d", "depth": 18, "pool_time": True, "stem_frames": 7},
    {"variant": "r3d", "depth": 18, "pool_time": True, "stem_frames": 7, "shortcut": "zeros"},
    {
        "variant": "r2plus1d",
        "planes": "width",
        "time_first": True,
        "stem_frames": 1,
        "stem_pool": False,
        "space_strides": (2, 2, 2, 2),
        "time_strides": (1, 1, 2, 2),
    },
]


@pytest.mark.parametrize("values", RELEASED, ids=lambda v: "-".join(map(str, v.values())))
def test_the_table_counts_what_the_network_runs(values: dict[str, Any]) -> None:
    config = ResNet3DConfig(**{"num_classes": 3, "width": 4, **values})
    clip = (config.frames or 9, 46, 35)
    network = models.build("resnet3d", config).eval()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in canonical(config).items()})
    counted = []

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv3d | nn.Linear)
        counted.append(module.weight[0].numel() * output.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.register_forward_hook(count)
    x = torch.zeros(1, 3, *clip)
    with torch.inference_mode():
        network(x)
        assert tuple(network.features(x).shape[2:]) == cost(config, clip).output  # type: ignore[operator]
    found = cost(config, clip)
    assert found.multiply_adds == sum(counted[: (len(counted) + 1) // 2])  # `features` counted the convolutions again
    assert found.parameters == sum(p.numel() for p in network.parameters())


def test_r2d_takes_clips_of_one_length_only() -> None:
    with pytest.raises(UsageError, match="R2D of 16 frames takes no clip of 8"):
        cost(paper("r2d", 18, 16), (8, 112, 112))


def test_a_clip_that_is_too_short_is_refused() -> None:
    with pytest.raises(UsageError, match="1 frames are left where i3d-resnet-nl takes 2"):
        cost(ResNet3DConfig(18, variant="i3d-resnet-nl"), (1, 112, 112))


@pytest.mark.parametrize("name", ["r2plus1d_17", "r4d", "resnet18", "r3d_", "r3d_18_x"])
def test_other_names_are_not_those_of_networks(name: str) -> None:
    assert named(name) in (None, {"variant": "r3d"})


def test_info_prints_the_networks_of_the_paper() -> None:
    result = CliRunner().invoke(group, ["info", "resnet3d", "--json"])
    rows = {row["name"]: row for row in json.loads(result.output)}
    assert list(rows) == [f"{variant}_18" for variant in PAPER]
    assert rows["r3d_18"]["frames"]["16"] == {
        "multiply_adds": 40_696_553_472,
        "output": [2, 7, 7],
        "parameters": 33_371_472,
    }
    assert rows["r2d_18"]["frames"]["8"]["parameters"] == 11_447_568
    assert rows["r2d_18"]["frames"]["16"]["parameters"] == 11_522_832
    shown = CliRunner().invoke(group, ["info", "r2plus1d_34"])
    assert "63,710,133" in shown.output
