"""What a file is, by its bytes: every format under a wrong name, and what people download by mistake."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vidweights import formats
from vidweights.errors import FormatError, UsageError
from vidweights.formats.base import TensorInfo, Writer

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(folder: Path, container: str, key: str = "w") -> Path:
    """One tensor in a format's own file; the file to open."""
    folder.mkdir(exist_ok=True)
    kind = formats.writer(container)
    writer = kind(folder / kind.file_name, [TensorInfo(key, WEIGHTS.shape, "float32")])
    writer.write(key, WEIGHTS)
    return folder / next(iter(writer.finish()))


@pytest.mark.parametrize("container", list(formats.WRITERS))
def test_every_format_that_is_written_is_recognised_under_any_name(tmp_path: Path, container: str) -> None:
    key = "layer/kernel" if container == "h5" else "w"
    path = write(tmp_path, container, key)
    if container != "tf":  # a bundle is two files that name each other
        path = path.rename(tmp_path / "weights.jpg")
    with formats.open_checkpoint(path) as checkpoint:
        # Flax, Caffe2 and others write pickles, and no byte tells whose one is.
        assert checkpoint.format == ("pickle" if container == "flax" else container)
        (found,) = checkpoint.tensors
        np.testing.assert_array_equal(checkpoint.read(found), WEIGHTS)


@pytest.mark.parametrize("container", list(formats.WRITERS))
def test_a_file_is_not_finished_before_its_last_tensor(tmp_path: Path, container: str) -> None:
    infos = [TensorInfo(key, WEIGHTS.shape, "float32") for key in ("l/a", "l/b")]
    writer = formats.writer(container)(tmp_path / "model", infos)
    writer.write("l/a", WEIGHTS)
    with pytest.raises(ValueError, match="l/b is due"):
        writer.finish()
    writer.abort()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_is_recognised(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "x").write_bytes(pickle.dumps({"w": WEIGHTS}, protocol))
    assert formats.sniff(tmp_path / "x") == "pickle"
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w"), WEIGHTS)


@pytest.mark.parametrize(("zipped", "kind"), [(True, "torch"), (False, "torch-legacy")])
def test_both_formats_of_torch_are_recognised(tmp_path: Path, zipped: bool, kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.from_numpy(WEIGHTS)}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.format == kind
        np.testing.assert_array_equal(checkpoint.read("w"), WEIGHTS)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_safetensors_file_is_no_pickle_though_its_first_bytes_may_be_those_of_one(
    tmp_path: Path, length: int
) -> None:
    bare = len((write(tmp_path / "bare", "safetensors", "w")).read_bytes()) - WEIGHTS.nbytes - 8
    path = write(tmp_path / "padded", "safetensors", "w" * (1 + length - bare))
    assert path.read_bytes()[0] == 0x80
    assert formats.sniff(path) == "safetensors"


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return stream.getvalue()


def _zip(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (
            b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>",
            "a web page: the download went wrong",
        ),
        (b"\xef\xbb\xbf\n <HTML>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (gzip.compress(b"x"), "gzip"),
        (bz2.compress(b"x"), "bzip2"),
        (lzma.compress(b"x"), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        (_tar(), "a tar archive"),
        (_zip("metadata.json", "config.json", "model.weights.h5"), r"\.keras archive.*model\.weights\.h5"),
        (_zip("readme.txt"), r"without a checkpoint.*readme\.txt"),
        (_zip(), "holds nothing"),
        (_zip("a/data.pkl")[:-10], "was cut or damaged"),
        (json.dumps({"a": 1}).encode(), "is JSON"),
        (b"Not Found", "is text.*Not Found"),
        ("größe: 3\n".encode(), "is text"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF89a", "GIF"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"\x1a\x45\xdf\xa3", "a video"),
        (b"RIFF\0\0\0\0AVI ", "AVI"),
        (b"\x08\x01\x12\x80\x10", r"SavedModel.*variables/variables"),
        (b"\x93NUMPY\1\0", "one numpy array"),
        (bytes(range(200, 256)), "no checkpoint that is read here.*c8 c9 ca"),
    ],
)
def test_what_is_no_checkpoint_is_named_for_what_it_is(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.ckpt").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        formats.open_checkpoint(tmp_path / "model.ckpt")


def test_a_cut_index_is_told_from_an_unknown_file(tmp_path: Path) -> None:
    index = write(tmp_path, "tf")
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(FormatError, match="its end is missing"):
        formats.open_checkpoint(index)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file or folder"):
        formats.open_checkpoint(tmp_path / "nothing")


def test_a_path_may_be_text(tmp_path: Path) -> None:
    assert formats.open_checkpoint(str(write(tmp_path, "safetensors"))).path == tmp_path / "model.safetensors"


@pytest.mark.parametrize("container", ["safetensors", "tf"])
def test_a_folder_with_one_checkpoint_opens_it(tmp_path: Path, container: str) -> None:
    path = write(tmp_path, container)
    for name in ("config.json", "README.md", ".hidden"):
        (tmp_path / name).write_text("{}")
    assert formats.open_checkpoint(tmp_path).path == path


def test_a_folder_with_several_checkpoints_lists_them(tmp_path: Path) -> None:
    write(tmp_path, "safetensors")
    write(tmp_path, "tf")
    with pytest.raises(FormatError, match=r"holds 2 checkpoints; name one: model\.ckpt\.index, model\.safetensors"):
        formats.open_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_lists_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "run1").mkdir()
    with pytest.raises(FormatError, match=r"holds no checkpoint; it holds notes\.txt, run1/"):
        formats.open_checkpoint(tmp_path)


def test_a_saved_model_names_the_weights_inside(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    write(tmp_path / "variables", "tf")
    with pytest.raises(FormatError, match="variables/variables"):
        formats.open_checkpoint(tmp_path)


def test_an_unknown_format_to_write_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="safetensors, tf, torch, h5, flax"):
        formats.writer("onnx")


@pytest.mark.parametrize("container", list(formats.WRITERS))
def test_every_writer_is_found_by_its_name(container: str) -> None:
    assert issubclass(formats.writer(container), Writer)


@pytest.mark.parametrize("special", ["device", "pipe"])
def test_what_is_no_file_is_refused_without_reading_it(tmp_path: Path, special: str) -> None:
    path = Path("/dev/zero")
    if special == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    with pytest.raises(FormatError, match="expected a file"):
        formats.sniff(path)
