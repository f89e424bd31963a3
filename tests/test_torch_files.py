"""Torch's two containers, read without torch and compared with torch, and written so that torch reads them."""

from __future__ import annotations

import gc
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.formats.base import TensorInfo
from vidweights.formats.pickles import integer, text
from vidweights.formats.sniff import TORCH_MAGIC
from vidweights.formats.torch_legacy import TorchLegacy
from vidweights.formats.torch_pickle import TorchCheckpoint
from vidweights.formats.torch_zip import TorchZip, TorchZipWriter
from vidweights.layout import Array

torch = pytest.importorskip("torch")

READERS = {"zip": TorchZip, "legacy": TorchLegacy}
both = pytest.mark.parametrize("kind", READERS)


def save(value: Any, path: Path, kind: str) -> TorchCheckpoint:
    """Save with torch and open with our reader."""
    torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    reader: type[TorchCheckpoint] = READERS[kind]  # type: ignore[type-abstract]
    return reader(path)  # type: ignore[call-arg]


def bits(tensor: Any) -> Array:
    """A tensor as `Checkpoint.read` gives it."""
    tensor = tensor.detach().contiguous()
    array: Array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array.view("<u2") if tensor.dtype == torch.bfloat16 else array


def assert_reads(checkpoint: TorchCheckpoint, expected: dict[str, Any]) -> None:
    assert list(checkpoint.tensors) == list(expected)
    for key, tensor in expected.items():
        info, array = checkpoint.tensors[key], checkpoint.read(key)
        assert (info.shape, info.dtype) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert (array.shape, array.dtype) == (info.shape, DTYPES[info.dtype].storage)
        assert array.flags.c_contiguous
        assert array.tobytes() == bits(tensor).tobytes()


def write(path: Path, arrays: dict[str, Array], dtypes: dict[str, str] | None = None) -> dict[str, str]:
    names = {key: array.dtype.name for key, array in arrays.items()} | (dtypes or {})
    writer = TorchZipWriter(path, [TensorInfo(key, a.shape, names[key]) for key, a in arrays.items()])
    for key, array in arrays.items():
        writer.write(key, array)
    return writer.finish()


@both
def test_a_network_in_a_training_checkpoint(tmp_path: Path, kind: str) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 3, (1, 2, 3)), torch.nn.BatchNorm3d(3))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    value = {"state_dict": network.state_dict(), "epoch": 3, "optimizer": optimiser.state_dict(), "best": np.float64(2)}
    checkpoint = save(value, tmp_path / "x.pt", kind)
    assert_reads(checkpoint, {f"state_dict.{key}": tensor for key, tensor in network.state_dict().items()})
    assert checkpoint.others["epoch"] == "3"
    assert checkpoint.others["best"] == "2.0"
    assert checkpoint.others["optimizer.param_groups.0.lr"] == "0.5"


@both
def test_every_view_of_a_storage(tmp_path: Path, kind: str) -> None:
    base = torch.arange(48.0).reshape(4, 3, 4)
    value = {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "offset": base[1:3, 2, 1::2],
        "scalar": base[3, 2, 1],
        "expanded": base[:1, :1, :1].expand(3, 2, 1),
        "empty": torch.zeros(0, 7),
        "parameter": torch.nn.Parameter(base.clone()),
        "part": torch.arange(10)[3:5],
    }
    assert_reads(save(value, tmp_path / "x.pt", kind), value)


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path: Path, kind: str, dtype: str) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype))
    assert_reads(save({"x": tensor}, tmp_path / "x.pt", kind), {"x": tensor})


@both
def test_what_is_not_a_weight_is_described(tmp_path: Path, kind: str) -> None:
    value = {"c": torch.zeros(2, dtype=torch.complex64), "device": torch.device("cpu"), "size": torch.Size([1, 2])}
    others = save(value, tmp_path / "x.pt", kind).others
    assert others == {"c": "a tensor of complex64, shape (2,)", "device": "a device", "size": "tuple of 2"}


@both
def test_contiguous_tensors_are_mapped_and_not_copied(tmp_path: Path, kind: str) -> None:
    checkpoint = save({"x": torch.arange(1000.0)}, tmp_path / "x.pt", kind)
    array = checkpoint.read("x")
    assert not array.flags.owndata
    assert not array.flags.writeable
    checkpoint.close()
    assert array[999] == 999


def test_a_torchscript_archive(tmp_path: Path) -> None:
    class Network(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.sizes = [1, 2]
            self.inner = torch.nn.Sequential(torch.nn.Linear(2, 3))

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    network = Network()
    torch.jit.trace(network, torch.zeros(1, 2)).save(str(tmp_path / "x.pt"))
    assert_reads(TorchZip(tmp_path / "x.pt"), dict(network.state_dict()))


class Parent(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)


@both
@pytest.mark.filterwarnings("ignore")
def test_a_whole_pickled_network_is_refused_by_its_class(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FormatError, match=r"class .*\.Parent, which.*save its state_dict"):
        save(Parent(), tmp_path / "x.pt", kind)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@both
def test_a_call_of_os_system_is_refused_and_nothing_runs(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FormatError, match=r"system.*nothing was run"):
        save({"w": torch.zeros(1), "x": Evil(tmp_path / "ran")}, tmp_path / "x.pt", kind)
    assert not (tmp_path / "ran").exists()


@both
@given(share=st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_a_cut_file_is_refused(tmp_path_factory: pytest.TempPathFactory, kind: str, share: float) -> None:
    path = tmp_path_factory.mktemp("torch") / "x.pt"
    save({"a": torch.arange(99.0), "b": torch.arange(5)}, path, kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(FormatError, match=r"x\.pt"):
        READERS[kind](path)


@both
@given(edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, edits: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("torch") / "x.pt"
    save({"a": torch.arange(9.0).reshape(3, 3).t(), "b": 2}, path, kind)
    data = bytearray(path.read_bytes())
    for share, value in edits:
        data[int(share * len(data))] = value
    path.write_bytes(data)
    try:
        checkpoint = READERS[kind](path)
        for key in checkpoint.tensors:
            checkpoint.read(key)
    except FormatError:
        pass


def tensor_pickle(
    shape: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, count: int = 4, key: str = "0"
) -> bytes:
    """A pickled dict of one float32 tensor with any claim."""

    def integers(values: tuple[int, ...]) -> bytes:
        return pickle.MARK + b"".join(map(integer, values)) + pickle.TUPLE

    place = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(count)
    args = pickle.MARK + place + pickle.TUPLE + pickle.BINPERSID + integer(offset) + integers(shape) + integers(stride)
    call = b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + args + pickle.NEWFALSE + pickle.NONE + pickle.TUPLE
    return b"\x80\x02}" + text("w") + call + pickle.REDUCE + pickle.SETITEM + pickle.STOP


def zip_of(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


FOUR = np.arange(4, dtype="<f4").tobytes()


def archive(path: Path, *claims: Any, **more: Any) -> Path:
    return zip_of(path, {"m/data.pkl": tensor_pickle(*claims, **more), "m/data/0": FOUR})


def test_the_handmade_archive_is_whole(tmp_path: Path) -> None:
    assert TorchZip(archive(tmp_path / "x.pt", (2, 2), (1, 2))).read("w").tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("shape", "stride", "more", "message"),
    [
        ((4,), (1,), {"offset": 1}, "reaches element 5 of a storage that has 4"),
        ((4,), (1,), {"offset": 1 << 59}, "reaches element"),
        ((4,), (1,), {"offset": 1 << 60}, "expected integers from 0"),
        ((4,), (1,), {"offset": -1}, "expected integers from 0"),
        ((2, 2), (4, 1), {}, "reaches element 6"),
        ((2,), (-1,), {}, "expected integers from 0"),
        ((1,), (1 << 62,), {}, "expected integers from 0"),
        ((0, 1 << 62), (1, 1), {}, "no tensor has"),
        ((1 << 21, 1 << 21), (1 << 21, 1), {}, "reaches element"),
        ((1 << 21, 1 << 21), (0, 0), {}, "17,592,186,044,416 bytes by its shape"),
        ((1 << 40,), (1,), {"count": 1 << 40}, "bytes by its shape"),
        ((1,) * 40, (1,) * 40, {}, "no tensor has"),
        ((4,), (1, 1), {}, "2 strides"),
    ],
)
def test_claims_beyond_the_storage_are_refused(
    tmp_path: Path, shape: Any, stride: Any, more: Any, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        TorchZip(archive(tmp_path / "x.pt", shape, stride, **more))


def test_a_storage_shorter_than_its_pickle_claims_is_refused(tmp_path: Path) -> None:
    checkpoint = TorchZip(archive(tmp_path / "x.pt", (5,), (1,), count=5))
    with pytest.raises(FormatError, match="has 16 bytes; its pickle claims 5 elements"):
        checkpoint.read("w")


def test_a_storage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    checkpoint = TorchZip(archive(tmp_path / "x.pt", (4,), (1,), key="../data/0"))
    with pytest.raises(FormatError, match="no record"):
        checkpoint.read("w")


def test_records_whose_names_lead_outside_touch_no_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pickled = tensor_pickle((4,), (1,))
    zip_of(tmp_path / "in" / "a.pt", {"../data.pkl": pickled, "../data/0": FOUR})
    with pytest.raises(FormatError, match="with 0 records"):
        TorchZip(tmp_path / "in" / "a.pt")
    zip_of(tmp_path / "in" / "b.pt", {"m/data.pkl": pickled, "m/data/0": FOUR, "../evil": b"x", "/etc/evil": b"x"})
    assert TorchZip(tmp_path / "in" / "b.pt").read("w").tolist() == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.pt", "b.pt", "in"]


def test_a_record_bigger_than_the_file_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", (4,), (1,), count=1 << 20)
    data = path.read_bytes()
    at = data.rindex(b"PK\1\2")  # the last entry of the directory is the storage
    path.write_bytes(data[: at + 20] + struct.pack("<II", 1 << 22, 1 << 22) + data[at + 28 :])
    with pytest.raises(FormatError, match="reaches beyond the end"):
        TorchZip(path).read("w")


def test_two_records_of_a_name_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", (4,), (1,))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("m/data/0", FOUR)
    with pytest.raises(FormatError, match="two records"):
        TorchZip(path)


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", (4,), (1,))
    path.write_bytes(path.read_bytes().replace(FOUR, FOUR[:-1] + b"\1"))
    checkpoint = TorchZip(path)
    with pytest.raises(FormatError, match="CRC-32"):
        checkpoint.read("w")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint = save({"x": torch.arange(3.0)}, tmp_path / "x.pt", "zip")
    finally:
        torch.serialization.set_crc32_options(True)
    assert checkpoint.read("x").tolist() == [0, 1, 2]


def test_a_compressed_pickle_is_read_and_a_compressed_storage_refused(tmp_path: Path) -> None:
    records = {"m/data.pkl": tensor_pickle((4,), (1,)), "m/data/0": FOUR}
    checkpoint = TorchZip(zip_of(tmp_path / "x.pt", records, zipfile.ZIP_DEFLATED))
    with pytest.raises(FormatError, match="is compressed"):
        checkpoint.read("w")


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    records = {"m/data.pkl": tensor_pickle((4,), (1,)), "m/data/0": FOUR, "m/byteorder": b"big"}
    with pytest.raises(FormatError, match="little-endian"):
        TorchZip(zip_of(tmp_path / "x.pt", records))


def test_other_archives_are_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a checkpoint of torch has one"):
        TorchZip(zip_of(tmp_path / "x.zip", {"readme.txt": b"hello"}))


class OldTensor:
    """Pickles as torch 0.1 pickled a tensor: `_rebuild_tensor(storage, offset, size, stride)`."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, self.args


class Place:
    """A storage, by its persistent id."""

    def __init__(self, *rest: Any) -> None:
        self.pid = ("storage", torch.FloatStorage, *rest)


class OldPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Place) else None


def old_file(path: Path, value: Any, *, count: int = 6, little: bool = True, version: int = 1001) -> Path:
    """A file as torch before 1.6 wrote it, with one storage `k` of six numbers."""
    buffer = io.BytesIO()
    for head in (TORCH_MAGIC, version, {"protocol_version": 1001, "little_endian": little}):
        pickle.dump(head, buffer, 2)
    OldPickler(buffer, 2).dump(value)
    pickle.dump(["k"], buffer, 2)
    path.write_bytes(buffer.getvalue() + struct.pack("<q", count) + np.arange(6, dtype="<f4").tobytes())
    return path


def test_tensors_of_the_first_torch_and_views_of_storages(tmp_path: Path) -> None:
    whole, part = Place("k", "cpu", 6, None), Place("k", "cpu", 6, ("view", 2, 3))
    value = {"a": OldTensor(whole, 1, (2, 2), (1, 2)), "b": OldTensor(part, 1, (2,), (1,))}
    path = old_file(tmp_path / "x.pth", value)
    checkpoint = TorchLegacy(path)
    assert checkpoint.read("a").tolist() == [[1, 3], [2, 4]]
    assert checkpoint.read("b").tolist() == [3, 4]
    theirs = torch.load(path, weights_only=False)
    assert theirs["b"].tolist() == [3, 4]


def test_a_view_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    beyond = Place("k", "cpu", 6, ("view", 4, 3))
    with pytest.raises(FormatError, match="expected a storage"):
        TorchLegacy(old_file(tmp_path / "a.pth", {"a": OldTensor(beyond, 0, (3,), (1,))}))
    part = Place("k", "cpu", 6, ("view", 2, 3))
    with pytest.raises(FormatError, match="reaches element 4 of a storage that has 3"):
        TorchLegacy(old_file(tmp_path / "b.pth", {"a": OldTensor(part, 2, (2,), (1,))}))


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"count": 7}, "it says 7"),
        ({"count": 1 << 60}, "it says 1,152"),
        ({"little": False}, "little-endian"),
        ({"version": 1002}, "expected protocol 1001"),
    ],
)
def test_legacy_heads_and_counts_are_checked(tmp_path: Path, claims: Any, message: str) -> None:
    tensor = OldTensor(Place("k", "cpu", 6, None), 0, (6,), (1,))
    with pytest.raises(FormatError, match=message):
        TorchLegacy(old_file(tmp_path / "x.pth", {"a": tensor}, **claims))


def test_the_tar_files_of_the_first_torch_are_named_as_such(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.pth", "w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(FormatError, match="is a tar archive"):
        TorchLegacy(tmp_path / "x.pth")


@given(
    shapes=st.dictionaries(
        st.text("ab.é", min_size=1, max_size=6),
        st.lists(st.integers(0, 4), max_size=5).map(tuple),
        min_size=1,
        max_size=5,
    ),
    dtype=st.sampled_from(list(DTYPES)),
)
@settings(max_examples=60, deadline=None)
def test_torch_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, ...]], dtype: str
) -> None:
    path = tmp_path_factory.mktemp("torch") / "model.pt"
    rng = np.random.default_rng(0)
    arrays = {key: rng.integers(0, 2, size=shape).astype(DTYPES[dtype].storage) for key, shape in shapes.items()}
    write(path, arrays, dict.fromkeys(arrays, dtype))
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert list(loaded) == list(arrays)
        assert_reads(TorchZip(path), loaded)
        for key, array in arrays.items():
            assert loaded[key].is_contiguous()
            assert bits(loaded[key]).tobytes() == array.tobytes()


def test_a_written_network_loads_and_its_storages_are_aligned(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 3, (1, 2, 3)), torch.nn.BatchNorm3d(3))
    write(tmp_path / "model.pt", {key: tensor.numpy() for key, tensor in network.state_dict().items()})
    fresh = torch.nn.Sequential(torch.nn.Conv3d(2, 3, (1, 2, 3)), torch.nn.BatchNorm3d(3))
    loaded = torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)
    fresh.load_state_dict(loaded)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), network.state_dict().values()))
    assert {tensor.data_ptr() % 64 for tensor in loaded.values()} == {0}


def test_the_written_bytes_are_the_same_and_hashed(tmp_path: Path) -> None:
    import hashlib

    arrays = {"a": np.arange(100, dtype="<f4"), "b": np.array(2)}
    hashes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        hashes.append(write(tmp_path / name / "model.pt", arrays))
    assert hashes[0] == hashes[1]
    data = (tmp_path / "one" / "model.pt").read_bytes()
    assert hashes[0] == {"model.pt": hashlib.sha256(data).hexdigest()}


def test_a_tensor_that_was_not_announced_is_not_written(tmp_path: Path) -> None:
    writer = TorchZipWriter(tmp_path / "model.pt", [TensorInfo("a", (2, 3), "float32")])
    with pytest.raises(ValueError, match="is due"):
        writer.write("a", np.zeros((3, 2), "<f4"))


@pytest.mark.parametrize(("shape", "stride"), [((1,), ((1 << 60) - 1,)), ((0, (1 << 60) - 1), (1, 1))])
def test_the_largest_claims_about_little_are_read(tmp_path: Path, shape: Any, stride: Any) -> None:
    checkpoint = archive(tmp_path / "x.pt", shape, stride)
    assert TorchZip(checkpoint).read("w").shape == shape


def test_an_aborted_file_is_left_as_it_is(tmp_path: Path) -> None:
    writer = TorchZipWriter(tmp_path / "model.pt", [TensorInfo(key, (2,), "float32") for key in "ab"])
    writer.write("a", np.zeros(2, "<f4"))
    writer.abort()
    size = (tmp_path / "model.pt").stat().st_size
    raised: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", raised.append)
        del writer
        gc.collect()
    assert raised == []
    assert (tmp_path / "model.pt").stat().st_size == size


@pytest.mark.slow
def test_a_tensor_beyond_four_gigabytes(tmp_path: Path) -> None:
    count = (1 << 32) + 5
    array = np.zeros(count, "|u1")
    array[-1] = 7
    write(tmp_path / "model.pt", {"big": array, "small": np.arange(3, dtype="<f4")})
    del array
    loaded = torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)
    checkpoint = TorchZip(tmp_path / "model.pt")
    (tmp_path / "model.pt").unlink()  # pytest keeps the folder
    assert loaded["big"].shape == checkpoint.tensors["big"].shape == (count,)
    assert loaded["big"][-1] == checkpoint.read("big")[-1] == 7
    assert loaded["small"].tolist() == checkpoint.read("small").tolist() == [0, 1, 2]
