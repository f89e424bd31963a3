"""What a plan finds from names and shapes, before a byte is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import NARROW, InMemory, canonical, stored

from vidweights import dialects, plan, run
from vidweights.errors import PlanError
from vidweights.families.i3d import I3DConfig
from vidweights.layout import Array
from vidweights.run import stream

DEEPMIND = dialects.get("deepmind-rgb")
NATIVE = dialects.get("vidweights-i3d")
PIERGIAJ = dialects.get("piergiaj")
KERNEL = "RGB/inception_i3d/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv_3d/w"

Arrays = dict[str, Array]


def checkpoint() -> Arrays:
    return stored(DEEPMIND, NARROW, canonical(NARROW))


def _drop(arrays: Arrays) -> None:
    del arrays[KERNEL]


def _add(arrays: Arrays) -> None:
    arrays["RGB/inception_i3d/extra"] = np.zeros(3, np.float32)


def _reshape(arrays: Arrays) -> None:
    arrays[KERNEL] = arrays[KERNEL][..., :-1]


@pytest.mark.parametrize(
    ("damage", "heading", "item"),
    [
        (_drop, "missing", KERNEL),
        (_add, "unexpected", "RGB/inception_i3d/extra"),
        (_reshape, "misshapen", KERNEL),
    ],
)
def test_a_tensor_too_few_too_many_or_misshapen_is_named(
    damage: Callable[[Arrays], None], heading: str, item: str
) -> None:
    arrays = checkpoint()
    damage(arrays)
    with pytest.raises(PlanError) as caught:
        plan.make(InMemory(arrays).tensors, NATIVE)
    assert list(caught.value.lists) == [heading]
    assert caught.value.lists[heading][0].startswith(item)
    assert item in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    arrays = checkpoint()
    _reshape(arrays)
    _add(arrays)
    del arrays["RGB/inception_i3d/Conv3d_2c_3x3/batch_norm/beta"]
    with pytest.raises(PlanError) as caught:
        plan.make(InMemory(arrays).tensors, NATIVE)
    assert set(caught.value.lists) == {"missing", "unexpected", "misshapen"}


def test_another_number_of_classes_than_declared_is_refused_with_both_numbers() -> None:
    declared = I3DConfig(num_classes=400, depth_multiplier=NARROW.depth_multiplier)
    with pytest.raises(PlanError, match="num_classes: found 7, expected 400"):
        plan.make(InMemory(checkpoint()).tensors, NATIVE, config=declared)


def test_a_flow_network_given_as_rgb_is_refused() -> None:
    flow = I3DConfig(in_channels=2, num_classes=7, depth_multiplier=NARROW.depth_multiplier)
    arrays = stored(dialects.get("deepmind-flow"), flow, canonical(flow))
    with pytest.raises(PlanError, match="in_channels: found 2, expected 3"):
        plan.make(InMemory(arrays).tensors, NATIVE, config=NARROW)
    with pytest.raises(PlanError, match="deepmind-rgb cannot hold"):
        plan.make(InMemory(arrays).tensors, DEEPMIND)


def test_optimiser_slots_are_left_with_a_reason() -> None:
    arrays = checkpoint()
    arrays[f"{KERNEL}/Momentum"] = np.zeros(3, np.float32)
    planned = plan.make(InMemory(arrays).tensors, NATIVE)
    assert planned.ignored == ((f"{KERNEL}/Momentum", "optimiser slot"),)


def test_a_missing_scale_is_filled_with_ones() -> None:
    source = InMemory(checkpoint())
    tensors = {s.tensor.name: a for s, a in stream(plan.make(source.tensors, NATIVE), source)}
    scale = tensors["Mixed_3b.Branch_1.Conv3d_0b_3x3.bn.weight"]
    assert scale.dtype == np.float32
    assert (scale == 1).all()


def test_a_scale_that_is_not_one_is_not_dropped_in_silence() -> None:
    arrays = stored(PIERGIAJ, NARROW, canonical(NARROW))
    arrays["Mixed_5c.b3b.bn.weight"][1] = 1.25
    source = InMemory(arrays)
    planned = plan.make(source.tensors, DEEPMIND)
    with pytest.raises(PlanError, match=r"Mixed_5c\.b3b\.bn\.weight has 1 of 4 elements that are not 1\.0"):
        list(stream(planned, source))


def test_half_precision_stays_half_precision() -> None:
    source = InMemory({key: a.astype(np.float16) for key, a in checkpoint().items()})
    planned = plan.make(source.tensors, NATIVE)
    assert {info.dtype for info in planned.outputs} == {"float16"}
    assert {a.dtype for _, a in stream(planned, source)} == {np.dtype(np.float16)}


def test_the_facts_that_two_codes_do_not_share_are_listed() -> None:
    differing = {d.fact for d in plan.make(InMemory(checkpoint()).tensors, PIERGIAJ).differences}
    assert differing == {"batch_norm_momentum", "padding", "head"}
    assert plan.make(InMemory(checkpoint()).tensors, NATIVE).differences == ()


def test_equal_plans_have_equal_hashes_and_different_ones_have_not() -> None:
    infos = InMemory(checkpoint()).tensors
    assert plan.make(infos, NATIVE).sha256 == plan.make(dict(infos), NATIVE).sha256
    assert plan.make(infos, NATIVE).sha256 != plan.make(infos, PIERGIAJ).sha256


def test_a_filled_constant_has_the_dtype_of_the_network_and_not_of_an_optimiser_slot() -> None:
    arrays = checkpoint()
    arrays[f"{KERNEL}/Momentum"] = np.zeros(3, np.float64)
    planned = plan.make(InMemory(arrays).tensors, NATIVE)
    assert {info.dtype for info in planned.outputs} == {"float32"}


def test_integers_are_no_weights() -> None:
    arrays = {**checkpoint(), KERNEL: checkpoint()[KERNEL].astype(np.int32)}
    with pytest.raises(PlanError, match="found int32, expected one of float64"):
        plan.make(InMemory(arrays).tensors, NATIVE)


def test_two_networks_in_one_file_are_refused_with_both_prefixes() -> None:
    arrays = stored(PIERGIAJ, NARROW, canonical(NARROW))
    both = {f"{prefix}.{key}": a for prefix in ("model", "ema") for key, a in arrays.items()}
    with pytest.raises(PlanError, match="several networks") as caught:
        plan.make(InMemory(both).tensors, NATIVE)
    assert set(caught.value.lists["prefixes"]) == {"'model.'", "'ema.'"}


def test_tensors_that_share_their_memory_are_each_right_while_they_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_AHEAD", 1000)
    source, expected = InMemory(checkpoint()), canonical(NARROW)
    seen = {}
    for step, array in stream(plan.make(source.tensors, NATIVE), source, reuse=True):
        seen[step.tensor.name] = bool((array == expected[step.tensor.name]).all())
    assert seen.keys() == expected.keys()
    assert all(seen.values())


@given(st.lists(st.integers(0, 3000), min_size=1), st.integers(1, 2000), st.randoms())
def test_places_that_are_held_at_once_never_overlap_and_one_is_always_found(
    sizes: list[int], beside: int, random: Random
) -> None:
    ring, waiting = run._Ring(max(sizes) + beside), deque(sizes)
    held: deque[slice] = deque()
    while waiting or held:
        while waiting and (place := ring.take(waiting[0])):
            assert (place.stop - place.start, place.stop <= ring.size) == (waiting.popleft(), True)
            assert all(place.stop <= other.start or other.stop <= place.start for other in held)
            held.append(place)
            if random.random() < 0.2:
                break
        held.popleft()  # there is one, or nothing would ever fit
        ring.give()
