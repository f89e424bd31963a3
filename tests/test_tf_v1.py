"""TensorFlow V1 checkpoints: read as TensorFlow wrote them, and refused at once where they are damaged or hostile."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidweights import formats
from vidweights.errors import FormatError, IntegrityError
from vidweights.formats import protobuf, snappy, table
from vidweights.formats.tf_v1 import TFV1File
from vidweights.layout import Array

# Written by tf.compat.v1.train.Saver(write_version=SaverDef.V1) of tensorflow 1.15.5.
GENUINE = Path(__file__).parent / "data" / "tf_v1.ckpt"
TWELVE = np.arange(12, dtype=np.float32).reshape(3, 4)
WHOLE = b"\x0a\0"


def saved_in_genuine() -> dict[str, Array]:
    """What the variables of `GENUINE` were when they were saved."""
    values: dict[str, Array] = {"global_step": np.array(12345)}
    for name in ("float16", "float32", "float64"):
        values[f"net/{name}"] = (np.arange(24).reshape(2, 3, 4) / 8 - 1).astype(name)
    for name in ("int8", "int16", "int32", "int64"):
        values[f"net/{name}"] = np.array([np.iinfo(name).min, -1, 0, 1, np.iinfo(name).max], name)
    for name in ("uint8", "uint16"):
        values[f"net/{name}"] = np.array([0, 1, np.iinfo(name).max], name)
    return values | {"net/bool": np.array([[True, False]]), "net/none": np.zeros((0, 3), np.float32)}


def same(checkpoint: formats.Checkpoint, values: Mapping[str, Array]) -> bool:
    assert checkpoint.tensors.keys() == values.keys()
    read = {key: checkpoint.read(key) for key in values}
    return all(read[key].dtype == a.dtype and np.array_equal(read[key], a) for key, a in values.items())


def test_every_type_is_read_as_it_was_saved() -> None:
    with formats.open_checkpoint(GENUINE) as checkpoint:
        assert checkpoint.format == "tf-v1"
        assert same(checkpoint, saved_in_genuine())


def test_what_is_no_whole_array_of_numbers_is_named_among_the_others() -> None:
    with TFV1File(GENUINE) as checkpoint:
        assert checkpoint.others.keys() == {"parts", "text"}
        assert "partitioned variable, of which 2 slices" in checkpoint.others["parts"]
        assert "string" in checkpoint.others["text"]


def test_a_tensor_that_was_read_outlives_the_checkpoint() -> None:
    with TFV1File(GENUINE) as checkpoint:
        read = checkpoint.read("net/float32")
    assert read.flags.aligned
    np.testing.assert_array_equal(read, saved_in_genuine()["net/float32"])


@pytest.mark.parametrize("container", ["float32", "float16", "bool", "int64", "uint8"])
@pytest.mark.slow
def test_what_todays_tensorflow_saves_is_read(tmp_path: Path, container: str) -> None:
    tf = pytest.importorskip("tensorflow")
    values = {"b/x": np.random.default_rng(0).integers(0, 2, (70, 3)).astype(container), "a\0é": np.ones((), container)}
    tf.raw_ops.Save(filename=str(tmp_path / "m"), tensor_names=list(values), data=list(values.values()))
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        assert same(checkpoint, values)


def meta(
    key: str = "a", shape: tuple[int, ...] = (3, 4), dtype: int = 1, slices: tuple[bytes, ...] | None = None
) -> bytes:
    """A SavedSliceMeta."""
    dims = b"".join(protobuf.bytes_field(2, protobuf.varint_field(1, n % (1 << 64))) for n in shape)
    fields = [protobuf.bytes_field(1, key.encode()), protobuf.bytes_field(2, dims), protobuf.varint_field(3, dtype)]
    given = (WHOLE * len(shape),) if slices is None else slices
    return b"".join([*fields, *(protobuf.bytes_field(4, extents) for extents in given)])


def listed(*metas: bytes) -> bytes:
    """The value of the first key: a SavedTensorSlices with a list."""
    return protobuf.bytes_field(1, b"".join(protobuf.bytes_field(1, one) for one in metas))


def saved(key: str = "a", number: int = 5, data: bytes = TWELVE.tobytes()) -> bytes:
    """The value of a tensor: a SavedTensorSlices with a SavedSlice, whose TensorProto has one field."""
    tensor = protobuf.bytes_field(number, data)
    inner = protobuf.bytes_field(1, key.encode()) + protobuf.bytes_field(3, tensor)
    return protobuf.bytes_field(2, inner)


def code(key: str = "a", rank: int = 2) -> bytes:
    """The key of a whole tensor in the table."""
    return b"\0" + key.encode() + b"\0\1" + (bytes([1, rank]) if rank else b"\0") + b"\x80\x7f" * rank


def write(folder: Path, pairs: dict[bytes, bytes]) -> Path:
    (folder / "m.ckpt").write_bytes(b"".join(table.blocks(sorted(pairs.items()))))
    return folder / "m.ckpt"


def crafted(folder: Path, first: bytes | None = None, value: bytes | None = None) -> Path:
    """A checkpoint with the tensor `a`, or with what is claimed instead."""
    first, value = listed(meta()) if first is None else first, saved() if value is None else value
    return write(folder, {b"": first, code(): value})


def test_the_crafted_checkpoint_is_good_before_it_is_spoiled(tmp_path: Path) -> None:
    """Otherwise the refusals below could have another cause."""
    assert same(formats.open_checkpoint(crafted(tmp_path)), {"a": TWELVE})


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_tensorflow_reads_the_crafted_checkpoint(tmp_path: Path, compressed: bool) -> None:
    tf = pytest.importorskip("tensorflow")
    path = crafted(tmp_path)
    if compressed:
        compress(path)
    read = tf.raw_ops.Restore(file_pattern=str(path), tensor_name="a", dt=tf.float32)
    np.testing.assert_array_equal(read.numpy(), TWELVE)


def compress(path: Path) -> None:
    """Compress every block of a table as one literal."""
    data = path.read_bytes()
    _, at = table._handle(memoryview(data), len(data) - 48)
    index, _ = table._handle(memoryview(data), at)
    handles, chunks = [], b""
    for key, value in table._pairs(memoryview(data)[index[0] : sum(index)]):
        offset, size = table._handle(value, 0)[0]
        chunk = _compressed(data[offset : offset + size])
        handles.append((key, protobuf.encode_varint(len(chunks)) + protobuf.encode_varint(len(chunk) - 5)))
        chunks += chunk
    path.write_bytes(chunks + b"".join(table._tail(handles, len(chunks))))


def _compressed(block: bytes) -> bytes:
    literal = b"\xfc" + (len(block) - 1).to_bytes(4, "little") + block
    body = protobuf.encode_varint(len(block)) + literal + b"\1"
    return body + table.mask(int(google_crc32c.value(body))).to_bytes(4, "little")


def test_blocks_that_are_compressed_are_read(tmp_path: Path) -> None:
    """As the first versions of TensorFlow wrote them."""
    shutil.copy(GENUINE, tmp_path / "m")
    compress(tmp_path / "m")
    assert (tmp_path / "m").read_bytes()[:40] != GENUINE.read_bytes()[:40]
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        assert same(checkpoint, saved_in_genuine())


def test_many_blocks_are_searched(tmp_path: Path) -> None:
    values = {f"layer{i}/weights": np.full((150, 150), i, np.float32) for i in range(30)}
    pairs = {code(key): saved(key, data=array.tobytes()) for key, array in values.items()}
    first = listed(*(meta(key, (150, 150)) for key in values))
    assert same(TFV1File(write(tmp_path, {b"": first, **pairs})), values)


@pytest.mark.parametrize("name", ["m.ckpt-00000-of-00002", "m.ckpt-00001-of-00002"])
def test_a_part_of_a_sharded_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    part = crafted(tmp_path).rename(tmp_path / name)
    with pytest.raises(FormatError, match="one of the 2 files of a sharded"):
        formats.open_checkpoint(part)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (listed(meta(), meta()), "lists a twice"),
        (listed(meta(), meta(slices=())), "lists a twice"),
        (listed(meta(shape=(-3, -4))), "no tensor has"),
        (listed(meta(shape=(1 << 40, 1 << 40))), "no tensor has"),
        (listed(meta(shape=(1,) * 300)), "no tensor has"),
        (listed(meta(shape=(1 << 30,))), "1,073,741,824 elements, in a file of"),
        (listed(meta(dtype=9, shape=(1 << 50,))), "elements, in a file of"),
        (listed(b"\x0a\x01\xff"), "utf-8"),
        (listed(b"\x12\x02\x12\x05"), "a field is cut"),
        (listed(b"\x12\x02\x10\x05"), "not a message"),
        (listed(b"\x0b"), "wire type 3"),
        (b"\x0a\x05\x0a", "a field is cut"),
        (b"\x0a\x00\x0a\x02\x0a\x00\x0a\x02\x0a\x00", "there twice"),
        (b"", "not a TensorFlow checkpoint"),
        (b"\x12\x00", "not a TensorFlow checkpoint"),
    ],
)
def test_a_list_that_cannot_be_true_is_refused(tmp_path: Path, first: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        formats.open_checkpoint(crafted(tmp_path, first))


def test_a_table_without_a_list_is_refused(tmp_path: Path) -> None:
    for pairs in ({}, {b"a": b"b"}):
        with pytest.raises(FormatError, match="not a TensorFlow checkpoint"):
            formats.open_checkpoint(write(tmp_path, pairs))


@pytest.mark.parametrize(
    ("slices", "count"),
    [((), 0), ((WHOLE,), 1), ((WHOLE * 2, WHOLE * 2), 2), ((WHOLE + b"\x0a\x04\x08\x00\x10\x02",), 1)],
)
def test_slices_are_no_tensor(tmp_path: Path, slices: tuple[bytes, ...], count: int) -> None:
    checkpoint = TFV1File(crafted(tmp_path, listed(meta(slices=slices))))
    assert not checkpoint.tensors
    assert f"of which {count} slices" in checkpoint.others["a"]


FIVE = protobuf.encode_varint(5)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (1, saved(data=TWELVE.tobytes()[:-4]), "48 bytes, and 44 are stored"),
        (1, saved(data=TWELVE.tobytes() + b"\0"), "48 bytes, and 49 are stored"),
        (1, saved(number=4), "48 bytes, and 0 are stored"),
        (1, saved("b"), "under the name a it holds another tensor"),
        (1, b"", "under the name a it holds another tensor"),
        (1, saved()[:-1], "a field is cut"),
        (1, b"\x10\x05", "is a number"),
        (1, saved() * 2, "there twice"),
        (2, saved(), "96 bytes, and 0 are stored"),
        (9, saved(number=10, data=FIVE * 11), "12 elements, and 11 are stored"),
        (9, saved(number=10, data=FIVE * 13), "12 elements, and 13 are stored"),
        (9, saved(number=10, data=FIVE * 12 + b"\x80"), "or is cut"),
        (9, saved(number=10, data=FIVE * 11 + b"\x80" * 10 + b"\1"), "more than ten bytes"),
        (4, saved(number=7, data=FIVE * 11 + protobuf.encode_varint(256)), "has elements that are not"),
        (10, saved(number=11, data=FIVE * 12), "has elements that are not"),
        (19, saved(number=13, data=FIVE * 11 + protobuf.encode_varint(1 << 16)), "has elements that are not"),
    ],
)
def test_elements_that_are_not_what_is_listed_are_refused(
    tmp_path: Path, dtype: int, value: bytes, message: str
) -> None:
    checkpoint = TFV1File(crafted(tmp_path, listed(meta(dtype=dtype)), value))
    with pytest.raises(FormatError, match=message):
        checkpoint.read("a")


@pytest.mark.parametrize("key", ["", "A", "b"])
def test_a_tensor_that_is_listed_but_not_there_is_named(tmp_path: Path, key: str) -> None:
    checkpoint = TFV1File(crafted(tmp_path, listed(meta(key))))
    with pytest.raises(FormatError, match=f"{key} is listed but not there"):
        checkpoint.read(key)


def test_a_flipped_bit_of_a_tensor_fails_the_checksum_of_its_block(tmp_path: Path) -> None:
    big = np.ones(100_000, np.float32)
    pairs = {code(key, 1): saved(key, data=big.tobytes()) for key in "ab"}
    path = write(tmp_path, {b"": listed(meta("a", big.shape), meta("b", big.shape)), **pairs})
    data = bytearray(path.read_bytes())
    data[600_000] ^= 1
    path.write_bytes(data)
    checkpoint = TFV1File(path)
    np.testing.assert_array_equal(checkpoint.read("a"), big)
    with pytest.raises(IntegrityError, match="fails its CRC32C"):
        checkpoint.read("b")


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_cut_file_is_told_from_an_unknown_one(tmp_path: Path, share: float) -> None:
    data = GENUINE.read_bytes()
    (tmp_path / "m.ckpt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FormatError, match="not a whole TensorFlow V1 checkpoint"):
        formats.open_checkpoint(tmp_path / "m.ckpt")


# What `cramjam.snappy.compress_raw` made of it: literals and copies of both usual kinds.
COMPRESSED = "b20134636f6e76312f7765696768747320090e106269617365090d0032321b0000322e1b00c636000061fe01000501"
EXPANDED = b"conv1/weights conv1/biases conv2/weights conv2/biases " * 2 + b"a" * 70


def test_what_snappy_compressed_is_expanded() -> None:
    assert snappy.expand(memoryview(bytes.fromhex(COMPRESSED))) == EXPANDED


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=300), st.tuples(st.integers(0), st.integers(4, 11)))))
def test_literals_and_copies_are_expanded_as_the_format_says(elements: list[bytes | tuple[int, int]]) -> None:
    """Every copy in each of the three forms in which it can be written."""
    plain, stream = b"", b""
    for element in elements:
        if isinstance(element, bytes):
            plain += element
            stream += b"\xf4" + (len(element) - 1).to_bytes(2, "little") + element
        elif plain:
            offset, length = 1 + element[0] % min(len(plain), 2047), element[1]
            for kind in (1, 2, 3):
                for _ in range(length):
                    plain += plain[-offset:][:1]
                low = [length - 4 << 2 | offset >> 8 << 5, length - 1 << 2, length - 1 << 2][kind - 1] | kind
                stream += bytes([low]) + (offset & 0xFF if kind == 1 else offset).to_bytes(
                    (1, 2, 4)[kind - 1], "little"
                )
    assert snappy.expand(memoryview(protobuf.encode_varint(len(plain)) + stream)) == plain


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an integer is cut"),
        (b"\xff\xff\xff\xff\x0f\0a", "7 bytes of snappy claim to hold 4294967295"),
        (b"\x05\x10ab", "a literal of snappy is cut"),
        (b"\x05\xfc\xff\xff", "a literal of snappy is cut"),
        (b"\x02\x00a", "claim to hold 2 hold 1"),
        (b"\x01\x04ab", "claim to hold 1 hold 2"),
        (b"\x05\x01\x01", "no source"),
        (b"\x05\x00a\x01\x00", "no source"),
        (b"\x05\x00a\x01\x02", "no source"),
        (b"\x05\x00a\x02\x01", "no source"),
    ],
)
def test_what_is_no_snappy_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        snappy.expand(memoryview(data))


@given(data=st.binary(max_size=60))
def test_no_bytes_expand_beyond_the_limit(data: bytes) -> None:
    with suppress(ValueError):
        assert len(snappy.expand(memoryview(data))) <= snappy.MAX_EXPANSION * len(data)


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_to_a_file_makes_anything_but_a_format_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(GENUINE.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 9), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    (tmp_path / "m").write_bytes(content)
    _open_and_read(tmp_path / "m")


@given(
    first=st.one_of(
        st.none(), st.binary(max_size=40).map(lambda b: b"\x0a" + b), st.builds(listed, st.binary(max_size=40))
    ),
    value=st.binary(max_size=60),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_message_makes_anything_but_a_format_error(tmp_path: Path, first: bytes | None, value: bytes) -> None:
    """With good checksums, so that the bytes reach the parser of messages."""
    _open_and_read(crafted(tmp_path, first, value))


def _open_and_read(path: Path) -> None:
    with suppress(FormatError):
        opened = formats.open_checkpoint(path)
        for key in opened.tensors:
            opened.read(key)
