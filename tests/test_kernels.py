"""The rules by which a 2D tensor becomes one of a 3D network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vidweights.dtypes import narrowed, not_finite, widened
from vidweights.errors import UsageError
from vidweights.kernels import (
    Identity,
    Inflate,
    PlaneMean,
    Planes,
    PlaneShift,
    ShiftedMean,
    SpatialKernel,
    TemporalKernel,
    identity_norm,
    over_inputs,
    time_taps,
)

EPSILONS = (1e-5, 1.001e-5, 1e-3)
DTYPES = ("float64", "float32", "float16", "bfloat16")


def kernel(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(
    weights=hnp.arrays(np.float32, (3, 2, 3, 3), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)),
    length=st.integers(1, 9),
)
@settings(deadline=None)
def test_the_mean_rule_gives_steps_that_sum_to_the_kernel(weights: Any, length: int) -> None:
    inflated = Inflate(length)(weights)
    assert inflated.shape == (3, 2, length, 3, 3)
    assert (inflated == inflated[:, :, :1]).all()
    total = inflated.astype(np.float64).sum(axis=2)
    # gluoncv 0.10.5 repeats the kernel without dividing: its sum is N times too large.
    assert (np.abs(total - weights) <= length * np.spacing(np.abs(weights))).all()


@pytest.mark.parametrize("length", [1, 3, 5, 7])
def test_the_centre_rule_puts_the_kernel_in_the_middle_alone(length: int) -> None:
    weights = kernel(4, 3, 5, 5)
    inflated = Inflate(length, "center")(weights)
    np.testing.assert_array_equal(inflated[:, :, length // 2], weights)
    assert np.count_nonzero(inflated) == np.count_nonzero(weights)


@pytest.mark.parametrize(("length", "taps"), [(0, "mean"), (0, "center"), (2, "center"), (-1, "mean")])
def test_a_length_that_the_rule_cannot_have_is_refused(length: int, taps: Any) -> None:
    with pytest.raises(UsageError, match=f"{length} long in time"):
        Inflate(length, taps)


def test_time_is_the_third_axis_and_not_the_last() -> None:
    # timm_3d 1.0.1 repeats along the last axis, which only a kernel with T unlike W tells.
    assert Inflate(5)(kernel(4, 3, 7, 6)).shape == (4, 3, 5, 7, 6)


@pytest.mark.parametrize("channels", [2, 10])
def test_another_number_of_inputs_gets_the_mean_over_the_sources(channels: int) -> None:
    weights = kernel(4, 3, 7, 7)
    stem = Inflate(3, "center", channels)(weights)
    assert stem.shape == (4, channels, 3, 7, 7)
    for channel in range(channels):
        np.testing.assert_allclose(stem[:, channel, 1], weights.mean(axis=1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_array_equal(over_inputs(weights, None), weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 3, 5, 7])
def test_time_taps_sum_to_one_exactly_as_they_are_stored(length: int, dtype: str) -> None:
    taps = time_taps(length, "mean", dtype)
    stored = widened(narrowed(taps, dtype), dtype)
    np.testing.assert_array_equal(stored, taps)
    assert stored.sum() == 1
    np.testing.assert_allclose(taps, 1 / length, rtol=0.03)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(
    ("dtype", "error"), [("float64", 1e-15), ("float32", 1e-12), ("float16", 1e-6), ("bfloat16", 2e-5)]
)
def test_the_identity_batch_norm_changes_nothing_and_can_be_trained(epsilon: float, dtype: str, error: float) -> None:
    weight, variance = identity_norm(epsilon, dtype)
    assert abs(weight / np.sqrt(variance + epsilon) - 1) < error
    assert 0.9 < weight < 1.1
    assert 0.9 < variance < 1.1
    for value in (weight, variance):
        assert widened(narrowed(np.array([value]), dtype), dtype)[0] == value


def factorised(planes: Planes, taps: Any, weights: Any, variance: Any, mean: Any, x: Any) -> Any:
    """A still input (I * k * k,) through both halves of a unit and the running mean behind, in float64."""
    spatial = SpatialKernel(planes)(weights).astype(np.float64).reshape(planes.middle, -1)
    centre, shift = np.zeros(planes.middle), np.zeros(planes.middle)
    if planes.promise != "exact":
        centre = PlaneMean(planes)(weights, mean).astype(np.float32).astype(np.float64)
        shift = PlaneShift(planes)(weights, variance).astype(np.float32).astype(np.float64)
    middle = np.maximum(spatial @ x - centre + shift, 0)
    temporal = TemporalKernel(planes, 3, taps, "float32")(weights).astype(np.float64).sum(axis=2)[..., 0, 0]
    behind = mean if planes.promise == "exact" else ShiftedMean(planes, "float32")(weights, variance, mean)
    return temporal @ middle - behind


@pytest.mark.parametrize("taps", ["mean", "center"])
@pytest.mark.parametrize(
    ("middle", "promise"), [(8, "bounded"), (11, "bounded"), (15, "bounded"), (16, "exact"), (23, "exact")]
)
def test_pairs_and_shifted_planes_carry_every_output_through_the_relu(taps: Any, middle: int, promise: str) -> None:
    planes = Planes(8, middle)
    assert planes.promise == promise
    weights, rng = kernel(8, 3, 3, 3), np.random.default_rng(1)
    mean, variance = rng.standard_normal(8).astype(np.float32), rng.uniform(0.5, 2, 8).astype(np.float32)
    for x in rng.standard_normal((5, 27)):
        wanted = weights.astype(np.float64).reshape(8, -1) @ x - mean
        np.testing.assert_allclose(factorised(planes, taps, weights, variance, mean, x), wanted, atol=1e-12)


def test_without_the_second_plane_or_the_shift_the_relu_would_cut() -> None:
    weights, x = kernel(4, 3, 3, 3), np.random.default_rng(2).standard_normal(27)
    wanted = weights.reshape(4, -1) @ x
    assert (wanted < 0).any()
    assert np.abs(np.maximum(wanted, 0) - wanted).max() > 0.1


def test_too_few_planes_give_the_best_fit_of_low_rank() -> None:
    planes, weights, rng = Planes(8, 5), kernel(8, 3, 3, 3), np.random.default_rng(3)
    assert planes.promise == "approximate"
    mean, variance = rng.standard_normal(8).astype(np.float32), rng.uniform(0.5, 2, 8).astype(np.float32)
    matrix = weights.reshape(8, -1).astype(np.float64)
    left = np.linalg.svd(matrix)[0][:, :5]
    for x in rng.standard_normal((5, 27)):
        wanted = left @ left.T @ (matrix @ x - mean)
        np.testing.assert_allclose(factorised(planes, "center", weights, variance, mean, x), wanted, atol=1e-3)


def test_a_fit_of_a_convolution_with_a_bias_leaves_it_out_of_the_mean_and_in_the_sum() -> None:
    planes, weights, rng = Planes(8, 5), kernel(8, 3, 3, 3), np.random.default_rng(3)
    mean, bias = (rng.standard_normal(8).astype(np.float32) for _ in range(2))
    variance = np.ones(8, np.float32)
    left = np.linalg.svd(weights.reshape(8, -1).astype(np.float64))[0][:, :5]
    np.testing.assert_allclose(
        np.abs(PlaneMean(planes)(weights, mean, bias)), np.abs(left.T @ (mean - bias)), rtol=1e-4, atol=1e-5
    )
    without = ShiftedMean(planes, "float32")(weights, variance, mean)
    np.testing.assert_allclose(ShiftedMean(planes, "float32")(weights, variance, mean, bias), without + bias)


@pytest.mark.parametrize("middle", [5, 12, 16])
def test_all_rules_of_a_unit_see_the_kernel_over_its_own_input_channels(middle: int) -> None:
    planes, weights = Planes(8, middle, 2), kernel(8, 3, 3, 3)
    spatial = SpatialKernel(planes)(weights).reshape(middle, -1)
    temporal = TemporalKernel(planes, 1, "center", "float32")(weights)[..., 0, 0, 0]
    positive = temporal * (temporal > 0) if middle >= 8 else temporal  # the pairs are there twice
    wanted = over_inputs(weights, 2).reshape(8, -1).astype(np.float64)
    left = np.linalg.svd(wanted)[0][:, :middle]
    np.testing.assert_allclose(positive @ spatial, left @ left.T @ wanted, atol=1e-5)


def test_a_shifted_plane_is_lifted_by_64_standard_deviations() -> None:
    variance = np.array([1, 4, 0.25, 9], np.float32)
    shift = PlaneShift(Planes(4, 6))(kernel(4, 3, 3, 3), variance)
    np.testing.assert_array_equal(shift, [0, 0, 32, 192, 0, 0])


def test_the_identity_over_channels_passes_each_through() -> None:
    temporal = Identity(5, 3, "mean", "float32")()
    assert temporal.shape == (5, 5, 3, 1, 1)
    np.testing.assert_array_equal(temporal.sum(axis=2, dtype=np.float64)[..., 0, 0], np.eye(5))


@given(hnp.arrays(np.float32, 7, elements=st.floats(width=32)))
@settings(deadline=None)
def test_rounding_to_bfloat16_is_that_of_torch(values: Any) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    ours = torch.from_numpy(narrowed(values, "bfloat16")).view(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(0).view(torch.int16), theirs.nan_to_num(0).view(torch.int16))
    assert not_finite(narrowed(values, "bfloat16"), "bfloat16") == int((~theirs.isfinite()).sum())
