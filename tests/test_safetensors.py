"""safetensors files: the bytes of the genuine library, and refusals of what it would not have written."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from vidweights import formats
from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.formats.base import TensorInfo
from vidweights.formats.safetensors import SafetensorsFile, SafetensorsWriter
from vidweights.layout import Array

NUMPY_DTYPES = sorted(set(DTYPES) - {"bfloat16"})
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda key: key != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Array]:
    found = {}
    for key in draw(st.sets(KEYS, max_size=12)):
        dtype = DTYPES[draw(st.sampled_from(NUMPY_DTYPES))].storage
        shape = draw(arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
        found[key] = draw(arrays_of.arrays(dtype, shape))
    return found


def write(path: Path, infos: list[TensorInfo], content: dict[str, Array]) -> dict[str, str]:
    writer = SafetensorsWriter(path, SafetensorsWriter.order(infos))
    for info in writer.tensors:
        writer.write(info.key, content[info.key])
    return writer.finish()


def infos_of(content: dict[str, Array]) -> list[TensorInfo]:
    return [TensorInfo(key, array.shape, array.dtype.name) for key, array in content.items()]


@given(content=tensors())
@settings(max_examples=80, deadline=None)
def test_the_bytes_are_those_of_the_genuine_library(content: dict[str, Array]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        files = write(path, infos_of(content), content)
        genuine = safetensors.numpy.save(content, metadata={"format": "pt"})
        assert path.read_bytes() == genuine
        assert files == {"model.safetensors": hashlib.sha256(genuine).hexdigest()}


@given(content=tensors(), metadata=st.one_of(st.none(), st.just({"a": "1", "b": "2"})))
@settings(max_examples=60, deadline=None)
def test_what_the_genuine_library_wrote_is_read(content: dict[str, Array], metadata: dict[str, str] | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(safetensors.numpy.save(content, metadata=metadata))
        with formats.open_checkpoint(path) as file:
            assert isinstance(file, SafetensorsFile)
            assert file.metadata == (metadata or {})
            assert set(file.tensors) == set(content)
            for key, array in content.items():
                found = file.read(key)
                assert (found.shape, found.dtype) == (array.shape, array.dtype)
                assert found.tobytes() == array.tobytes()


def test_torch_loads_every_dtype_that_was_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    rng = np.random.default_rng(0)
    content = {
        name: rng.integers(0, 2, 24 * dtype.storage.itemsize).astype(np.uint8).view(dtype.storage).reshape(2, 3, 4)
        for name, dtype in DTYPES.items()
    }
    write(tmp_path / "m.safetensors", [TensorInfo(n, (2, 3, 4), n) for n in DTYPES], content)
    loaded = load_file(tmp_path / "m.safetensors")
    assert list(loaded) == [info.key for info in SafetensorsWriter.order(TensorInfo(n, (), n) for n in DTYPES)]
    for name, tensor in loaded.items():
        assert tensor.dtype == getattr(torch, name)
        assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == content[name].tobytes()


def test_what_torch_wrote_in_bfloat16_is_read_as_bit_patterns(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"w": torch.tensor([1.0, -2.0], dtype=torch.bfloat16)}, tmp_path / "m")
    file = SafetensorsFile(tmp_path / "m")
    assert file.tensors["w"] == TensorInfo("w", (2,), "bfloat16")
    assert file.read("w").tolist() == [0x3F80, 0xC000]  # the upper halves of the float32 patterns


def test_tensors_are_read_only_views_and_are_listed_as_they_lie_in_the_file(tmp_path: Path) -> None:
    content: dict[str, Array] = {"a": np.arange(3, dtype=np.float32), "b": np.arange(4, dtype=np.float64)}
    write(tmp_path / "m", infos_of(content), content)
    file = SafetensorsFile(tmp_path / "m")
    assert list(file.tensors) == ["b", "a"]
    assert not file.read("a").flags.writeable
    assert not file.read("a").flags.owndata


def test_a_dtype_that_no_weight_here_has_is_listed_with_words(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"q": torch.zeros(4, dtype=torch.float8_e4m3fn), "w": torch.ones(2)}, tmp_path / "m")
    file = SafetensorsFile(tmp_path / "m")
    assert file.read("w").tolist() == [1.0, 1.0]
    assert "F8_E4M3" in file.others["q"]


def test_the_writer_refuses_another_order_and_another_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="order"):
        SafetensorsWriter(tmp_path / "m", [TensorInfo("b", (), "float32"), TensorInfo("a", (), "float32")])
    writer = SafetensorsWriter(tmp_path / "m", [TensorInfo("a", (2,), "float32")])
    with pytest.raises(ValueError, match="is due"):
        writer.write("a", np.zeros((1, 2), np.float32))
    writer.abort()


# --- hostile files ---


def tensor(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def craft(path: Path, header: Any, data: bytes = bytes(16), size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


GOOD = {"a": tensor(0, 8), "b": tensor(8, 16)}


def test_the_crafted_file_is_good_before_it_is_spoiled(tmp_path: Path) -> None:
    """Otherwise the refusals below could have another cause."""
    assert list(SafetensorsFile(craft(tmp_path / "m", GOOD)).tensors) == ["a", "b"]
    assert set(safetensors.numpy.load((tmp_path / "m").read_bytes())) == {"a", "b"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 16, (3,))}, "a and b overlap"),
        ({"a": tensor(0, 8), "b": tensor(12, 16, (1,))}, "have 4 bytes between"),
        ({"b": tensor(8, 16)}, "the header and b have 8 bytes between"),
        ({"a": tensor(0, 8)}, "has more bytes"),
        ({"a": tensor(0, 24, (6,))}, "is cut"),
        ({"a": tensor(0, 16)}, "8 bytes; the header gives it 16"),
        ({"a": tensor(0, 16, (2, 2), "F64")}, "32 bytes; the header gives it 16"),
        ({"a": tensor(0, 16, (-2, -2))}, "no tensor has"),
        ({"a": tensor(0, 16, (4.0,))}, "no tensor has"),
        ({"a": tensor(0, 16, (1 << 40, 1 << 40))}, "no tensor has"),
        ({"a": tensor(0, 16, (True, 4))}, "no tensor has"),
        ({"a": tensor(0, 16, (1,) * 100)}, "no tensor has"),
        ({"a": tensor(0, 16, 4)}, "a list is expected"),
        ({"a": tensor(16, 0, (4,))}, "no tensor has"),
        ({"a": tensor(-8, 16, (6,))}, "no tensor has"),
        ({"a": tensor(0.0, 16.0, (4,))}, "no tensor has"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "a list is expected"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}, "no tensor has"),
        ({"a": [0, 16]}, "a JSON object is expected"),
        ({"__metadata__": {"x": 1}, **GOOD}, "__metadata__"),
        ({"__metadata__": [], **GOOD}, "__metadata__"),
        (b"{" + b'"a":{' * 100_000, "damaged header"),
        (b'{"a":1,"a":1}', "'a' is there twice"),
        (b'{"a":{"dtype":"F32","dtype":"F64"}}', "'dtype' is there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged header"),
        (b'{"a"', "damaged header"),
        (b'{"\xff": 1}', "damaged header"),
        (b"[1]", "no JSON object"),
        ({"\ud800": tensor(0, 16, (4,))}, r"named '.ud800', which is not text"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        SafetensorsFile(craft(tmp_path / "m", header))


def test_an_unknown_type_is_described_in_text(tmp_path: Path) -> None:
    file = SafetensorsFile(craft(tmp_path / "m", {"a": tensor(0, 16, (4,), "\ud800")}))
    assert "16 bytes" in file.others["a"].encode().decode()


@pytest.mark.parametrize(("size", "message"), [(1 << 63, "not a safetensors file"), (90_000_000, "is cut")])
def test_a_header_longer_than_the_file_or_the_limit_is_refused(tmp_path: Path, size: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        SafetensorsFile(craft(tmp_path / "m", GOOD, size=size))


@pytest.mark.parametrize("length", range(0, 30, 5))
def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    whole = craft(tmp_path / "m", GOOD).read_bytes()
    for kept in (length, len(whole) - 1 - length):
        (tmp_path / "m").write_bytes(whole[:kept])
        with pytest.raises(FormatError):
            SafetensorsFile(tmp_path / "m")


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_accepted_the_genuine_library_accepts(tmp_path: Path, data: st.DataObject) -> None:
    """No change to a header makes anything but a FormatError, or a file that the library reads alike."""
    spoiled = bytearray(craft(tmp_path / "m", GOOD).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(spoiled) - 17), min_size=1, max_size=3)):
        spoiled[at] = data.draw(st.one_of(st.sampled_from(list(b'0123456789"{}[],:abFIU \0')), st.integers(0, 255)))
    (tmp_path / "m").write_bytes(spoiled)
    try:
        file = SafetensorsFile(tmp_path / "m")
    except FormatError:
        return
    if not file.others:
        theirs = safetensors.numpy.load(bytes(spoiled))
        assert {k: a.tobytes() for k, a in theirs.items()} == {k: file.read(k).tobytes() for k in file.tensors}
