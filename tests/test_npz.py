"""`.npz` archives: read array by array, never unpickled, never extracted."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from vidweights import formats
from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError, IntegrityError
from vidweights.formats.npz import NpzFile
from vidweights.layout import Array

NUMPY_DTYPES = sorted(set(DTYPES) - {"bfloat16"})


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = DTYPES[draw(st.sampled_from(NUMPY_DTYPES))].storage.newbyteorder(draw(st.sampled_from("<>")))
    shape = draw(arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array: Array = draw(arrays_of.arrays(dtype, shape))
    return np.asfortranarray(array) if draw(st.booleans()) else array


@given(content=st.dictionaries(st.from_regex(r"[a-z][a-z/.]{0,10}", fullmatch=True), arrays()), packed=st.booleans())
@settings(max_examples=80, deadline=None)
def test_what_numpy_saved_is_read(content: dict[str, Array], packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        with path.open("wb") as file:
            (np.savez_compressed if packed else np.savez)(file, **content)  # type: ignore[arg-type]
        with NpzFile(path) as npz:
            assert set(npz.tensors) == set(content)
            for key, array in content.items():
                found = npz.read(key)
                assert found.flags.c_contiguous
                assert found.dtype == DTYPES[npz.tensors[key].dtype].storage
                assert found.shape == npz.tensors[key].shape == array.shape
                assert found.tobytes() == np.ascontiguousarray(array, found.dtype).tobytes()


def save(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: str) -> bytes:
    padded = text.encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(padded).to_bytes(2, "little") + padded


def test_an_array_is_found_by_its_bytes_and_read_lazily(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.bin", {"a.npy": npy(np.arange(3.0)), "b.npy": npy(np.eye(2))})
    with formats.open_checkpoint(path) as npz:
        assert npz.format == "npz"
        assert npz.read("b").tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_an_array_of_objects_is_listed_and_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (tmp_path / "executed").touch, ()

    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    with NpzFile(save(tmp_path / "x", {"bomb.npy": npy(bomb), "w.npy": npy(np.ones(2))})) as npz:
        assert list(npz.tensors) == ["w"]
        assert "never unpickled" in npz.others["bomb"]
        with pytest.raises(KeyError):
            npz.read("bomb")
    assert not (tmp_path / "executed").exists()
    np.load(tmp_path / "x", allow_pickle=True)["bomb"]
    assert (tmp_path / "executed").exists()  # the bomb was a real one


def test_names_that_leave_the_folder_are_only_keys(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"../../evil.npy": npy(np.ones(1)), "/etc/evil.npy": npy(np.zeros(1))})
    with NpzFile(path) as npz:
        assert list(npz.tensors) == ["../../evil", "/etc/evil"]
        assert npz.read("../../evil").tolist() == [1.0]


def test_members_that_are_no_weights_are_listed_with_words(tmp_path: Path) -> None:
    members = {
        "notes.txt": b"hello",
        "s.npy": npy(np.array(["a"])),
        "z.npy": npy(np.array([1j])),
        "w.npy": npy(np.ones(1)),
    }
    with NpzFile(save(tmp_path / "x", members)) as npz:
        assert list(npz.tensors) == ["w"]
        assert set(npz.others) == {"notes.txt", "s", "z"}
        assert "complex128" in npz.others["z"]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,), }") + bytes(8), "4,000,000"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }") + bytes(8),
            "12 bytes|bytes with its header",
        ),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }") + bytes(8), "no tensor has"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }") + bytes(8), "no tensor has"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (2," + "1," * 99 + "), }") + bytes(8),
            "no tensor has",
        ),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': 2, }") + bytes(8), "not a whole .npy"),
        (header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (2,), }"), "not a whole .npy"),
        (header("__import__('os')"), "not a whole .npy"),
        (header("(" * 5000), "not a whole .npy"),
        (header("0" * 20_000), "not a whole .npy"),
        (b"\x93NUMPY\3\0" + bytes(20), "not a whole .npy"),
        (b"\x93NUMPY\1\0\xff\xff", "not a whole .npy"),
        (b"plain text", "not a whole .npy"),
        (b"", "not a whole .npy"),
    ],
)
def test_a_member_that_is_no_array_is_refused(tmp_path: Path, member: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        NpzFile(save(tmp_path / "x", {"a.npy": member}))


def _spoil_directory(path: Path, offset: int, value: bytes) -> None:
    """Overwrite a field of the first entry of the central directory (APPNOTE.TXT 4.3.12)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


def test_a_member_that_claims_more_than_deflate_can_hold_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a.npy": npy(np.zeros(4))})
    _spoil_directory(path, 24, (1 << 31).to_bytes(4, "little"))
    with pytest.raises(FormatError, match="made to harm"):
        NpzFile(path)


def test_a_member_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a.npy": npy(np.zeros(4))}, zipfile.ZIP_STORED)
    _spoil_directory(path, 20, (1 << 31).to_bytes(4, "little") * 2)
    with pytest.raises(FormatError, match="made to harm"):
        NpzFile(path)


def test_zeros_that_compress_as_well_as_anything_can_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(4_000_000, np.float32))
    assert not NpzFile(tmp_path / "x.npz").read("a").any()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(FormatError, match="compressed in a way"):
        NpzFile(save(tmp_path / "x", {"a.npy": npy(np.zeros(400))}, method))


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a.npy": npy(np.zeros(4))})
    _spoil_directory(path, 8, b"\1\0")
    with pytest.raises(FormatError, match="encrypted"):
        NpzFile(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(1)))
        archive.writestr("a.npy", npy(np.ones(1)))
    with pytest.raises(FormatError, match="there twice"):
        NpzFile(tmp_path / "x")


def test_a_flipped_byte_fails_the_checksum_and_names_the_array(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a.npy": npy(np.zeros(9000)), "b.npy": npy(np.ones(9000))}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(np.ones(1).tobytes()) + 8000] ^= 1
    path.write_bytes(data)
    with NpzFile(path) as npz:
        assert not npz.read("a").any()
        with pytest.raises(IntegrityError, match="b is damaged"):
            npz.read("b")


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_to_an_archive_makes_anything_but_a_format_error(tmp_path: Path, data: st.DataObject) -> None:
    path = save(tmp_path / "x", {"a.npy": npy(np.zeros(9)), "b.npy": npy(np.ones((2, 3)))})
    spoiled = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(spoiled) - 1), min_size=1, max_size=4)):
        spoiled[at] = data.draw(st.integers(0, 255))
    path.write_bytes(spoiled[: data.draw(st.sampled_from([len(spoiled), len(spoiled) - 7]))])
    try:
        with NpzFile(path) as npz:
            for key in npz.tensors:
                npz.read(key)
    except FormatError:
        pass


def test_a_refused_archive_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[zipfile.ZipFile] = []

    class Recorded(zipfile.ZipFile):
        def __init__(self, path: Path) -> None:
            opened.append(self)
            super().__init__(path)

    path = save(tmp_path / "x.npz", {"w.npy": b"no array"})
    monkeypatch.setattr(zipfile, "ZipFile", Recorded)
    with pytest.raises(FormatError):
        NpzFile(path)
    assert [archive.fp for archive in opened] == [None]
