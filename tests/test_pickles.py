"""Pickles are read as data: whatever else they ask for is refused and not run, and no claim of theirs is believed."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import tracemalloc
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.formats import opcodes, pickles
from vidweights.formats.pickle_tree import PickleTree
from vidweights.formats.pickles import describe, flatten, integer, text
from vidweights.layout import Array


def load(data: bytes) -> Any:
    return pickles.load(io.BytesIO(data), "x.pkl")


@contextmanager
def large(size: int) -> Iterator[None]:
    """Bytes of so many or more stay in the file."""
    with mock.patch.object(opcodes, "_LARGE", size):
        yield


SIZES = st.sampled_from([0, 1, 5, 1 << 12])


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_os_system_is_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    data = pickle.dumps({"weights": Calls(os.system, f"touch {marker}")}, protocol)
    with pytest.raises(FormatError, match=rf"asks to call {os.system.__module__}\.system.*nothing was run"):
        load(data)
    assert not marker.exists()
    pickle.loads(data)  # the same bytes do run where pickle is trusted
    assert marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "apply"),
        ("subprocess", "Popen"),
        ("numpy.testing._private.utils", "runstring"),
        ("torch.hub", "load"),
        ("collections", "OrderedDict.clear"),
        ("vidweights.formats.pickles", "load"),
    ],
)
def test_names_off_the_list_are_refused(module: str, name: str) -> None:
    data = pickle.PROTO + b"\x04" + text(module) + text(name) + pickle.STACK_GLOBAL + pickle.STOP
    with pytest.raises(FormatError, match="nothing was"):
        load(data)


def test_the_class_of_a_whole_network_is_named_with_advice() -> None:
    with pytest.raises(FormatError, match=r"class my\.models\.I3D.*save its state_dict"):
        load(b"\x80\x02cmy.models\nI3D\n)\x81.")


@pytest.mark.parametrize("instance", [b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n", b"cnumpy\nndarray\n"])
def test_a_pickle_cannot_alter_what_it_is_given(instance: bytes) -> None:
    state = pickle.NONE + pickle.EMPTY_DICT + text("__call__") + integer(1) + pickle.SETITEM + pickle.TUPLE2
    with pytest.raises(FormatError):
        load(b"\x80\x02" + instance + state + pickle.BUILD + pickle.STOP)
    assert load(pickle.dumps(OrderedDict(a=1))) == {"a": 1}


@pytest.mark.parametrize(
    "data",
    [
        pickle.BINBYTES8 + struct.pack("<Q", 1 << 40) + b"few",
        pickle.BINUNICODE8 + struct.pack("<Q", 1 << 62) + b"few",
        pickle.BYTEARRAY8 + struct.pack("<Q", 1 << 40) + b"few",
        pickle.BINBYTES + struct.pack("<I", 0xFFFFFFFF) + b"few",
        pickle.FRAME + struct.pack("<Q", 1 << 60) + pickle.NONE + pickle.STOP,
        pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 0x7FFFFFFF) + pickle.STOP,
        pickle.LONG4 + struct.pack("<i", 0x7FFFFFFF) + b"\1",
        pickle.LONG4 + struct.pack("<i", -1) + b"\1",
        pickle.BINSTRING + struct.pack("<i", -1) + b"few" + pickle.STOP,
        pickle.BINSTRING + struct.pack("<i", 1 << 30) + b"few" + pickle.STOP,
        pickle.NONE + pickle.PUT + b"9\n" + pickle.STOP,
        pickle.NONE + pickle.PUT + b"9" * 9999 + b"\n" + pickle.STOP,
        pickle.GLOBAL + b"numpy\ndtype",
        pickle.READONLY_BUFFER + pickle.STOP,
        b"\xff" + pickle.STOP,
        b"cbuiltins\nbytearray\n" + integer(1 << 40) + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP,
        pickle.EXT1 + b"\1" + pickle.STOP,
        pickle.NEXT_BUFFER + pickle.STOP,
        text("elsewhere") + pickle.BINPERSID + pickle.STOP,
        b"",
    ],
)
def test_claims_beyond_the_file_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        load(pickle.PROTO + b"\x05" + data)


def array_pickle(shape: tuple[int, ...], code: str = "f4", data: bytes = b"\0" * 16) -> bytes:
    """A pickled array with any claim."""
    head = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n" + pickle.NONE + pickle.TUPLE1 + pickle.REDUCE
    sizes = pickle.MARK + b"".join(integer(n) for n in shape) + pickle.TUPLE
    dtype = b"cnumpy\ndtype\n" + text(code) + pickle.TUPLE1 + pickle.REDUCE
    raw = pickle.BINBYTES + struct.pack("<I", len(data)) + data
    state = pickle.MARK + integer(1) + sizes + dtype + pickle.NEWFALSE + raw + pickle.TUPLE + pickle.BUILD
    return head + state + pickle.STOP


def test_the_handmade_array_is_one_that_numpy_reads_too() -> None:
    data = np.arange(4, dtype="<f4")
    assert np.array_equal(load(array_pickle((2, 2), data=data.tobytes())).read(), data.reshape(2, 2))


@pytest.mark.parametrize(
    "shape", [(1 << 20, 1 << 20), (1 << 62, 1 << 62), (5,), (-4,), (-2, -2), (1,) * 70, (1 << 70, 0)]
)
def test_an_array_whose_bytes_are_not_those_of_its_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        load(array_pickle(shape))


@pytest.mark.parametrize(
    "array",
    [np.array([{}], object), np.zeros(2, [("a", "f4"), ("b", "i4")]), np.zeros(2, "V8")],
    ids=["object", "structured", "void"],
)
def test_arrays_of_objects_and_structures_are_refused(array: Any) -> None:
    with pytest.raises(FormatError, match="expected numbers"):
        load(pickle.dumps(array))


@pytest.mark.parametrize("array", [np.array(["a", "bc"]), np.zeros(2, "c8"), np.array(["2020"], "M8[D]")])
def test_arrays_that_are_not_weights_are_described(array: Any) -> None:
    found = load(pickle.dumps(array))
    assert not found.is_tensor
    assert f"shape {array.shape}" in describe(found)


@given(
    array=hnp.arrays(
        st.sampled_from([d.storage for d in DTYPES.values()] + [np.dtype(">f4"), np.dtype(">i2")]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    protocol=st.integers(0, 5),
    order=st.sampled_from(["C", "F", "reversed", "strided"]),
    size=SIZES,
)
def test_arrays_of_every_protocol_and_order_are_read(array: Any, protocol: int, order: str, size: int) -> None:
    if order == "reversed":
        array = array.T
    elif order == "strided" and array.ndim:
        array = np.concatenate([array, array])[::2]
    elif order == "F":
        array = np.asfortranarray(array) if array.ndim else array
    with large(size):
        read = load(pickle.dumps(array, protocol)).read()
    assert read.dtype == array.dtype.newbyteorder("<")
    assert read.shape == array.shape
    assert read.flags.c_contiguous
    assert read.tobytes() == array.astype(read.dtype).tobytes()


def test_permuted_axes_are_kept() -> None:
    array = np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2)
    assert np.array_equal(load(pickle.dumps(array, 5)).read(), array)


def test_bfloat16_is_read_as_its_bits() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    found = load(pickle.dumps(np.array([1.0, -2.5], ml_dtypes.bfloat16)))
    assert found.dtype == "bfloat16"
    assert found.read().tolist() == [0x3F80, 0xC020]  # the upper halves of the float32 patterns


def test_jax_arrays_and_frozen_dicts_are_read() -> None:
    jax = pytest.importorskip("jax.numpy")
    flax = pytest.importorskip("flax.core")
    values = np.arange(6, dtype="f4").reshape(2, 3)
    tree = load(pickle.dumps(flax.FrozenDict({"params": {"kernel": jax.asarray(values)}})))
    assert np.array_equal(dict(flatten(tree))["params.kernel"].read(), values)


def test_a_pickle_of_python_2_is_read() -> None:
    values = np.array([-1.5, 3e9, 0.1], "<f8")
    data = b"\x80\x02}U\4caf\xe9" + python_2_array(values) + b"s."
    assert np.array_equal(load(data)["caf\xe9"].read(), values)
    genuine = pickle.loads(data, encoding="latin1")
    assert np.array_equal(genuine["caf\xe9"], values)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_those_of_pickle(protocol: int) -> None:
    value = {
        "epoch": 3,
        "best": np.float32(0.5),
        "names": ("a", b"b", 1 << 70, None, 2.5, 1j, True),
        "set": {1, 2},
        "counter": Counter("aab"),
        "ordered": OrderedDict([("x", [1, 2])]),
        "none": b"",
    }
    assert load(pickle.dumps(value, protocol)) == value


@given(cut=st.integers(0, 10_000), protocol=st.integers(0, 5), size=SIZES)
def test_a_cut_pickle_is_refused(cut: int, protocol: int, size: int) -> None:
    data = pickle.dumps({"a": np.arange(9.0), "b": ["text", 1.5, (None,)]}, protocol)
    with large(size), pytest.raises(FormatError, match=r"x\.pkl"):
        load(data[: cut % len(data)])


@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    protocol=st.integers(0, 5),
    size=SIZES,
)
@settings(max_examples=300)
def test_a_damaged_pickle_is_read_or_refused(edits: list[tuple[int, int]], protocol: int, size: int) -> None:
    data = bytearray(pickle.dumps({"a": np.arange(9.0), "b": ["text", 1.5, {1, 2}], "c": OrderedDict(x=1)}, protocol))
    for at, value in edits:
        data[at % len(data)] = value
    try:
        with large(size):
            for _, leaf in flatten(load(bytes(data))):
                describe(leaf)
    except FormatError:
        pass


# What pickle writes for them has every opcode that it still writes.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.builds(bytearray, st.binary()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(value=VALUES, protocol=st.integers(0, 5), size=SIZES, before=st.binary(), behind=st.binary())
def test_a_scan_ends_where_the_pickle_does_and_loses_nothing(
    value: Any, protocol: int, size: int, before: bytes, behind: bytes
) -> None:
    data = pickle.dumps(value, protocol)
    with large(size):
        program = opcodes.scan(before + data + behind, len(before))
    assert program.end == len(before) + len(data)
    assert (program.opcodes is None) == (not program.buffers)
    assert pickle.loads(program.opcodes or data, buffers=program.buffers) == value


def python_2_array(array: Array) -> bytes:
    """The opcodes of an array as Python 2 wrote them: its bytes are a str, since protocol 2 had no bytes."""
    head: bytes = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R(K\1"
    head += pickle.MARK + b"".join(integer(n) for n in array.shape) + pickle.TUPLE
    code = array.dtype.str[1:].encode()
    head += b"cnumpy\ndtype\nU\2" + code + b"K\0K\1\x87R(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
    return head + pickle.BINSTRING + struct.pack("<i", array.nbytes) + array.tobytes() + b"tb"


def test_large_arrays_of_python_2_stay_in_the_file(tmp_path: Path) -> None:
    kernel, note = np.arange(1 << 20, dtype="<f4").reshape(1024, 1024), b"caf\xe9" * 2000
    data = b"\x80\x02}U\5blobs}U\6conv_w" + python_2_array(kernel) + b"s"
    data += b"U\4noteT" + struct.pack("<i", len(note)) + note + b"ss."
    assert np.array_equal(pickle.loads(data, encoding="latin1")["blobs"]["conv_w"], kernel)
    (tmp_path / "x.pkl").write_bytes(data)
    tracemalloc.start()
    tree = PickleTree(tmp_path / "x.pkl")
    read = tree.read("blobs.conv_w")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < kernel.nbytes / 4
    assert np.array_equal(read, kernel)
    assert not read.flags.writeable
    assert tree.others == {"blobs.note": "bytes of 8000"}


@pytest.mark.parametrize(
    "use",
    [
        pickle.EMPTY_DICT + b"%s" + pickle.NONE + pickle.SETITEM,  # a name
        b"%s" + text("eval") + pickle.STACK_GLOBAL,  # a module
        b"%s" + pickle.BINPERSID,
    ],
)
def test_large_bytes_are_nothing_but_data(use: bytes) -> None:
    data = b"\x80\x04" + use.replace(b"%s", pickle.BINSTRING + struct.pack("<i", 5000) + b"x" * 5000) + pickle.STOP
    with pytest.raises(FormatError):
        list(flatten(load(data)))


def test_leaves_are_named_by_their_path() -> None:
    tree = {"a": {"b.c": [{"d": 1}, ()], 7: None}, ("x", "y"): 2, b"z": [1, 2]}
    assert list(flatten(tree)) == [("a.b.c.0.d", 1), ("a.b.c.1", ()), ("a.7", None), ("x.y", 2), ("z", [1, 2])]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value, {}]
    return value


def laughs(depth: int) -> Any:
    value: Any = {"a": 1}
    for _ in range(depth):
        value = {"l": value, "r": value}
    return value


def itself() -> Any:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


@pytest.mark.parametrize("tree", [nested(5000), laughs(60), itself(), {"k" * 5000: {"a": 1}}])
def test_trees_without_end_are_refused(tree: Any) -> None:
    with pytest.raises(FormatError, match="without end"):
        list(flatten(tree))


def test_two_entries_of_the_same_path_are_refused() -> None:
    with pytest.raises(FormatError, match=r"'a\.b'"):
        list(flatten({"a": {"b": 1}, "a.b": 2}))


def test_pickles_in_a_row_are_read_one_by_one() -> None:
    file = io.BytesIO(pickle.dumps([1, 2], 2) + pickle.dumps("next", 4) + b"rest")
    assert pickles.load(file, "x") == [1, 2]
    assert pickles.load(file, "x") == "next"
    assert file.read() == b"rest"


@given(value=st.integers(-(2**63), 2**64 - 1), words=st.text(st.characters(codec="utf-8")))
def test_what_the_opcode_helpers_push_is_what_pickle_reads(value: int, words: str) -> None:
    data = b"\x80\x02" + integer(value) + text(words) + pickle.TUPLE2 + pickle.STOP
    assert pickle.loads(data) == (value, words)
    pickletools.dis(data, io.StringIO())


def test_names_that_no_encoding_has_are_refused() -> None:
    tree = load(pickle.dumps({"layer": {"\ud800": 1}}))
    with pytest.raises(FormatError, match="which is not text"):
        list(flatten(tree))


def test_a_description_can_be_printed() -> None:
    assert describe(pickles.Opaque("a tensor of \ud800")).encode() == rb"a tensor of \ud800"


@pytest.mark.parametrize("shape", [(-1,), (1.0,), (0, 1 << 62), (1,) * 33, "ab"])
def test_an_array_of_a_shape_that_no_array_has_is_refused(shape: Any) -> None:
    with pytest.raises(FormatError, match="which no tensor has"):
        pickles.NumpyArray().fill(b"", pickles.NumpyDtype("f4"), shape, "C")
