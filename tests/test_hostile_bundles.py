"""TensorFlow bundles that are cut, damaged or made to harm: one clear error each, at once, and never a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidweights.errors import FormatError, IntegrityError
from vidweights.formats import protobuf, table
from vidweights.formats.tf_bundle import TFBundle

TWELVE = np.arange(12, dtype=np.float32).reshape(3, 4)


def header(shards: int = 1, endianness: int = 0) -> bytes:
    return protobuf.varint_field(1, shards) + protobuf.varint_field(2, endianness) + b"\x1a\x02\x08\x01"


def entry(shape: Any = (3, 4), dtype: int = 1, shard: int = 0, offset: int = 0, size: int = 48) -> bytes:
    """A BundleEntryProto of `TWELVE`, or of what is claimed instead."""
    dims = b"".join(protobuf.bytes_field(2, protobuf.varint_field(1, n % (1 << 64))) for n in shape)
    numbers = [protobuf.varint_field(1, dtype), protobuf.bytes_field(2, dims), protobuf.varint_field(3, shard)]
    numbers += [protobuf.varint_field(4, offset), protobuf.varint_field(5, size)]
    crc32c = table.mask(int(google_crc32c.value(TWELVE.tobytes())))
    return b"".join(numbers) + protobuf.fixed32_field(6, crc32c)


def bundle(folder: Path, pairs: dict[bytes, bytes], *, head: bytes | None = None) -> Path:
    entries = {b"": header() if head is None else head, **pairs}
    (folder / "m.index").write_bytes(b"".join(table.blocks(sorted(entries.items()))))
    (folder / "m.data-00000-of-00001").write_bytes(TWELVE.tobytes() * 2)
    return folder / "m"


def test_the_crafted_bundle_is_good_before_it_is_spoiled(tmp_path: Path) -> None:
    """Otherwise the refusals below could have another cause."""
    with TFBundle(bundle(tmp_path, {b"a": entry(), b"b": entry(offset=48)})) as good:
        np.testing.assert_array_equal(good.read("a"), TWELVE)
        np.testing.assert_array_equal(good.read("b"), TWELVE)


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ({"size": 44}, "a has the shape .* 48 bytes; the index gives it 44"),
        ({"shape": (3, 5)}, "60 bytes; the index gives it 48"),
        ({"dtype": 2}, "96 bytes; the index gives it 48"),
        ({"shape": (-3, -4)}, "no tensor has"),
        ({"shape": (1 << 40, 1 << 40)}, "no tensor has"),
        ({"shape": (1 << 62, 1 << 62, 0), "size": 0}, "no tensor has"),
        ({"shape": (1,) * 300}, "no tensor has"),
        ({"shape": (1 << 30,), "size": 4 << 30}, r"is cut.*needs 4,294,967,296"),
        ({"offset": 49}, "is cut.*has 96 bytes.*needs 97"),
        ({"offset": (1 << 63) - 1}, "is damaged"),
        ({"size": (1 << 64) - 1}, "is damaged"),
        ({"shard": 1}, "data file 1 of 1"),
        ({"shard": 1 << 40}, "data file 1099511627776 of 1"),
    ],
)
def test_an_entry_that_cannot_be_true_is_refused(tmp_path: Path, claimed: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        TFBundle(bundle(tmp_path, {b"a": entry(**claimed)}))


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a and b overlap"):
        TFBundle(bundle(tmp_path, {b"a": entry(), b"b": entry(offset=44)}))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (header(shards=1 << 40), "1099511627776 data files"),
        (header(endianness=1), "big-endian"),
        (b"\x08", "an integer is cut"),
        (b"\x08" + b"\xff" * 400, "more than ten bytes"),
        (b"\x08\x01\x1b", "wire type 3"),
        (b"\x08\x01\x1a\xff\xff\xff\xff\x0f", "a field is cut"),
        (b"\x0a\x00", "not the index of a TensorFlow V2 checkpoint"),
        (b"", "not the index of a TensorFlow V2 checkpoint"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path, head: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        TFBundle(bundle(tmp_path, {b"a": entry()}, head=head))


@pytest.mark.parametrize("value", [b"\x12\x03\x12\x01", b"\x12\x02\x10\x05", b"\x0b", b"\xff" * 30, b"\x35\x00"])
def test_an_entry_that_is_no_message_is_refused(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(FormatError, match="is damaged"):
        TFBundle(bundle(tmp_path, {b"a": value}))


def test_a_key_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="utf-8"):
        TFBundle(bundle(tmp_path, {b"\xff\xfe": entry()}))


def test_a_corrupt_block_of_the_index_fails_its_checksum(tmp_path: Path) -> None:
    prefix = bundle(tmp_path, {b"a": entry()})
    data = bytearray((tmp_path / "m.index").read_bytes())
    data[10] ^= 1
    (tmp_path / "m.index").write_bytes(data)
    with pytest.raises(IntegrityError, match="block at byte 0 fails its CRC32C"):
        TFBundle(prefix)


def _as_table(block: bytes, kind: int = 0) -> bytes:
    """A table of one data block with these bytes, and good checksums."""
    body = block + bytes([kind])
    chunk = body + table.mask(int(google_crc32c.value(body))).to_bytes(4, "little")
    handle = protobuf.encode_varint(0) + protobuf.encode_varint(len(block))
    return chunk + b"".join(table._tail([(b"z", handle)], len(chunk)))


RESTARTS = b"\0\0\0\0\1\0\0\0"


@pytest.mark.parametrize(
    ("block", "kind", "message"),
    [
        (b"\0\1\0a", 0, "a block is cut"),
        (b"", 0, "a block is cut"),
        (b"\x05\1\0a" + RESTARTS, 0, "beyond its block"),
        (b"\0\xff\xff\xff\xff\x0f\0a" + RESTARTS, 0, "beyond its block"),
        (b"\0\1\0b\0\1\0a" + RESTARTS, 0, "not in order"),
        (b"\0\1\0a\0\1\0a" + RESTARTS, 0, "not in order"),
        (b"\0\1\0a" + RESTARTS, 1, "snappy"),
    ],
)
def test_a_block_that_is_no_block_is_refused(tmp_path: Path, block: bytes, kind: int, message: str) -> None:
    (tmp_path / "m.index").write_bytes(_as_table(block, kind))
    with pytest.raises(FormatError, match=message):
        TFBundle(tmp_path / "m")


def test_keys_that_grow_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry shares the whole of a long key, so few bytes make many."""
    monkeypatch.setattr(table, "_MAX_KEYS", 1 << 20)
    long = b"k" * 5000
    many = {long + i.to_bytes(2, "big"): b"" for i in range(300)}
    with pytest.raises(FormatError, match="its keys have more than"):
        TFBundle(bundle(tmp_path, many))


def test_keys_that_grow_without_end_in_the_index_of_the_blocks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_MAX_KEYS", 1 << 20)
    handle = protobuf.encode_varint(0) * 2
    many = [(b"k" * 5000 + i.to_bytes(2, "big"), handle) for i in range(300)]
    (tmp_path / "m.index").write_bytes(b"".join(table._tail(many, 0)))
    with pytest.raises(FormatError, match="its keys have more than"):
        TFBundle(tmp_path / "m")


def test_a_block_beyond_the_end_is_refused(tmp_path: Path) -> None:
    handle = protobuf.encode_varint(1 << 40) + protobuf.encode_varint(1 << 40)
    (tmp_path / "m.index").write_bytes(b"".join(table._tail([(b"z", handle)], 0)))
    with pytest.raises(FormatError, match="reaches beyond the end"):
        TFBundle(tmp_path / "m")


def test_a_cut_data_file_is_found_when_it_is_opened(tmp_path: Path) -> None:
    prefix = bundle(tmp_path, {b"a": entry(), b"b": entry(offset=48)})
    with (tmp_path / "m.data-00000-of-00001").open("r+b") as file:
        file.truncate(95)
    with pytest.raises(FormatError, match=r"is cut.*has 95 bytes.*needs 96"):
        TFBundle(prefix)


def test_a_data_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    prefix = bundle(tmp_path, {b"a": entry()})
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    (tmp_path / "m.data-00000-of-00001").write_bytes(pointer)
    with pytest.raises(FormatError, match="git lfs pull"):
        TFBundle(prefix)


def test_an_index_alone_names_the_file_that_is_missing_and_its_size(tmp_path: Path) -> None:
    prefix = bundle(tmp_path, {b"a": entry(), b"b": entry(offset=48)})
    (tmp_path / "m.data-00000-of-00001").unlink()
    with pytest.raises(FormatError, match=r"m\.data-00000-of-00001 is missing.*96"):
        TFBundle(prefix)


def test_a_data_file_alone_names_the_index_that_is_missing(tmp_path: Path) -> None:
    bundle(tmp_path, {b"a": entry()})
    (tmp_path / "m.index").unlink()
    with pytest.raises(FormatError, match=r"m\.index is missing"):
        TFBundle(tmp_path / "m.data-00000-of-00001")


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_to_an_index_makes_anything_but_a_format_error(tmp_path: Path, data: st.DataObject) -> None:
    prefix = bundle(tmp_path, {b"a": entry(), b"b": entry(offset=48)})
    index = bytearray((tmp_path / "m.index").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(index) - 9), min_size=1, max_size=4)):
        index[at] = data.draw(st.integers(0, 255))
    (tmp_path / "m.index").write_bytes(index)
    _open_and_read(prefix)


@given(value=st.binary(max_size=60), head=st.one_of(st.none(), st.binary(max_size=20)))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_entry_makes_anything_but_a_format_error(tmp_path: Path, value: bytes, head: bytes | None) -> None:
    """With good checksums, so that the bytes reach the parser of messages."""
    _open_and_read(bundle(tmp_path, {b"a": value}, head=head))


@given(block=st.binary(max_size=80))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_block_makes_anything_but_a_format_error(tmp_path: Path, block: bytes) -> None:
    (tmp_path / "m.index").write_bytes(_as_table(block))
    _open_and_read(tmp_path / "m")


def _open_and_read(prefix: Path) -> None:
    try:
        opened = TFBundle(prefix)
        for key in opened.tensors:
            opened.read(key)
    except FormatError:
        pass
