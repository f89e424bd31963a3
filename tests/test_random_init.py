"""Seeded weights: the same bits everywhere, and networks that see their input."""

from __future__ import annotations

import hashlib
import importlib.util
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidweights.clips import moving_clip, noise_clip
from vidweights.dialects import DIALECTS
from vidweights.dialects.base import Constant, Row, Stored
from vidweights.errors import UsageError
from vidweights.families.base import Tensor
from vidweights.families.i3d import InceptionConfig
from vidweights.families.resnet import ResNetConfig
from vidweights.layout import relayout
from vidweights.random_init import RandomCheckpoint, centred_kernel, uniform

# The first outputs of PCG64 seeded with the first 16 bytes of the SHA-256 of "7/stem.conv.weight", as one integer.
ENTROPY = 0x682B4E472844A3404B1237A4DCCCB335
RAW = (0xCF0CE90B298DB9DA, 0x5A1E1A21BD49E897, 0x4BA3842CE3F70E3E, 0xB8D81613884CDBB2)
# What is made of the upper 24 bits of each: an odd number between plus and minus 2**24.
ODD = tuple(2 * (raw >> 40) + 1 - 2**24 for raw in RAW)


def rows(name: str, **config: Any) -> tuple[Row, ...]:
    dialect = DIALECTS[name]
    family = InceptionConfig if dialect.family.name == "inception" else ResNetConfig
    return dialect.table(family(**config, **dialect.settings))


def test_the_integers_are_the_recorded_ones() -> None:
    assert hashlib.sha256(b"7/stem.conv.weight").hexdigest()[:32] == f"{ENTROPY:032x}"
    assert tuple(np.random.PCG64(ENTROPY).random_raw(4).tolist()) == RAW


def test_uniform_numbers_are_the_integers_scaled() -> None:
    drawn = uniform((2, 2), 0.5, 7, "stem.conv.weight")
    assert drawn.dtype == np.float32
    assert [Fraction(x) for x in drawn.ravel().tolist()] == [Fraction(odd, 2**25) for odd in ODD]
    assert [x.hex() for x in drawn.ravel().tolist()] == [
        "0x1.3c33a60000000p-2",
        "-0x1.2f0f2c0000000p-3",
        "-0x1.a2e3dc0000000p-3",
        "0x1.c6c0b40000000p-3",
    ]


def test_a_kernel_is_the_integers_less_their_mean_scaled() -> None:
    drawn = centred_kernel((2, 2), 1.5, 7, "stem.conv.weight").ravel().tolist()
    for index, value in enumerate(drawn):
        pair = ODD[:2] if index < 2 else ODD[2:]
        exact = Fraction(3, 2) * (ODD[index] - Fraction(sum(pair), 2)) / 2**24
        assert value == float(np.float32(float(exact)))
    assert [x.hex() for x in drawn] == [
        "0x1.5ecc6c0000000p-1",
        "-0x1.5ecc6c0000000p-1",
        "-0x1.479db60000000p-1",
        "0x1.479db60000000p-1",
    ]


@given(st.integers(0, 2**64), st.floats(0.01, 10), st.integers(1, 40), st.integers(2, 40))
def test_each_output_of_a_kernel_has_no_mean(seed: int, bound: float, outputs: int, inputs: int) -> None:
    drawn = centred_kernel((outputs, inputs, 1, 1), bound, seed, "x").astype(np.float64)
    assert abs(drawn.sum(axis=(1, 2, 3))).max() <= inputs * bound * 2**-23
    assert abs(drawn).max() < 2 * bound


def test_numbers_are_uniform_within_the_bound() -> None:
    drawn = uniform((200, 100), 0.25, 0, "x").astype(np.float64)
    assert abs(drawn).max() < 0.25
    counts, _ = np.histogram(drawn, bins=10, range=(-0.25, 0.25))
    assert abs(counts - 2000).max() < 5 * 2000**0.5
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(("seed", "name"), [(1, "x"), (0, "y")])
def test_another_seed_or_name_gives_other_numbers(seed: int, name: str) -> None:
    first, other = uniform((1000,), 1, 0, "x"), uniform((1000,), 1, seed, name)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("torchvision-resnet", {"depth": 18, "width": 8}),
        ("keras-resnet", {"depth": 50, "width": 8}),
        ("slim-resnet", {"depth": 50, "width": 8}),
        ("torchvision-googlenet", {"depth_multiplier": 0.125}),
        ("slim-inception", {"depth_multiplier": 0.125}),
    ],
)
def test_every_stored_tensor_of_a_dialect_is_there_in_its_shape(name: str, config: dict[str, Any]) -> None:
    table = rows(name, **config)
    checkpoint = RandomCheckpoint(table, 0)
    stored = {row.place.key: row for row in table if isinstance(row.place, Stored)}
    assert list(checkpoint.tensors) == list(stored)
    assert (checkpoint.format, checkpoint.files, checkpoint.others) == ("random", (), {})
    for key, info in checkpoint.tensors.items():
        array = checkpoint.read(key)
        assert array.shape == info.shape == stored[key].stored_shape
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        if key.endswith(("running_var", "moving_variance")):
            assert array.min() >= 0.5
            assert array.max() <= 1.5


def test_a_constant_that_a_dialect_does_not_store_is_not_drawn() -> None:
    table = rows("slim-inception", depth_multiplier=0.125)
    assert any(isinstance(row.place, Constant) for row in table)
    assert not any("gamma" in key for key in RandomCheckpoint(table, 0).tensors)


def test_dialects_hold_the_same_network_and_the_order_does_not_matter() -> None:
    torch_rows = {row.tensor.name: row for row in rows("torchvision-resnet", depth=50, width=8)}
    slim_rows = {row.tensor.name: row for row in reversed(rows("slim-resnet", depth=50, width=8))}
    torch_like, slim_like = RandomCheckpoint(torch_rows.values(), 3), RandomCheckpoint(slim_rows.values(), 3)
    for name, row in slim_rows.items():
        here, there = row.place, torch_rows[name].place
        assert isinstance(here, Stored)
        assert isinstance(there, Stored)
        back = relayout(slim_like.read(here.key), here.layout, there.layout)
        np.testing.assert_array_equal(back, torch_like.read(there.key))


def test_a_residual_branch_ends_damped() -> None:
    for depth, last in ((18, "bn2"), (50, "bn3")):
        checkpoint = RandomCheckpoint(rows("torchvision-resnet", depth=depth), 0)
        tops = {key: checkpoint.read(key).max() for key in checkpoint.tensors if "bn" in key and key.endswith("weight")}
        assert {key.split(".")[-2] for key, top in tops.items() if top <= 0.375} == {last}
        assert min(top for key, top in tops.items() if last not in key) > 1


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="the seed is -1; expected an integer from 0 on"):
        RandomCheckpoint([Row(Tensor("x", (1,), "C"), Stored("x", "C"))], -1)


def network(name: str) -> Any:
    """torchvision's own network with the seeded weights."""
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    import torch
    from torchvision_cpu import torchvision

    if name == "googlenet":
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
        table = rows("torchvision-googlenet", num_classes=1000)
    else:
        options, table = {}, rows("torchvision-resnet", depth=int(name.removeprefix("resnet")))
    model = getattr(torchvision.models, name)(weights=None, **options)
    checkpoint = RandomCheckpoint(table, 0)
    model.load_state_dict({key: torch.from_numpy(checkpoint.read(key)) for key in checkpoint.tensors})
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "googlenet",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("resnet152", marks=pytest.mark.slow),
    ],
)
def test_unrelated_images_are_told_apart(name: str) -> None:
    torch = pytest.importorskip("torch")
    model = network(name)
    noise, faint = noise_clip(1, 72, 64, 3, seed=1)[:, :, 0], noise_clip(1, 72, 64, 3, seed=2)[:, :, 0] / 4
    ramp = np.broadcast_to(np.linspace(-2, 2, 64, dtype=np.float32), (1, 3, 72, 64)).copy()
    images = [2 * noise, faint, ramp, moving_clip(1, 72, 64, 3, seed=0)[:, :, 0]]
    with torch.no_grad():
        logits = [model(torch.from_numpy(image)) for image in images]
        exact = model.double()(torch.from_numpy(images[0]).double())
    for one, other in combinations(logits, 2):
        largest = max(float(one.abs().max()), float(other.abs().max()))
        assert np.isfinite(largest)
        assert float((one - other).abs().max()) > 0.1 * largest
    assert float((logits[0] - exact).abs().max()) < 1e-4 * float(exact.abs().max())
