"""Bad input at the command line: one clear message, a documented exit code, nothing executed, nothing left behind."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from networks import NARROW, canonical, stored, write

import vidweights
from vidweights import dialects
from vidweights.errors import FormatError, PlanError
from vidweights.families.i3d import I3DConfig
from vidweights.layout import Array

DATA = "model.ckpt.data-00000-of-00001"
KERNEL = "RGB/inception_i3d/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv_3d/w"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vidweights_command: Run) -> Run:
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))
    return vidweights_command


def deepmind(config: I3DConfig = NARROW, dialect: str = "deepmind-rgb") -> dict[str, Array]:
    return stored(dialects.get(dialect), config, canonical(config))


def bundle(path: Path, arrays: dict[str, Array] | None = None) -> Path:
    return write(path, "tf", deepmind() if arrays is None else arrays)


# Each makes one bad file in a folder and returns it.


def truncated_data(path: Path) -> Path:
    index = bundle(path)
    data = (path / DATA).read_bytes()
    (path / DATA).write_bytes(data[: len(data) // 2])
    return index


def flipped_byte(path: Path) -> Path:
    index = bundle(path)
    data = bytearray((path / DATA).read_bytes())
    data[len(data) // 2] ^= 1
    (path / DATA).write_bytes(data)
    return index


def index_alone(path: Path) -> Path:
    index = bundle(path)
    (path / DATA).unlink()
    return index


def data_alone(path: Path) -> Path:
    bundle(path).unlink()
    return path / DATA


def web_page(path: Path) -> Path:
    file = path / "model.ckpt"
    file.write_bytes(b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>")
    return file


def lfs_pointer(path: Path) -> Path:
    file = path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 50830672\n")
    return file


def gzip_named_pkl(path: Path) -> Path:
    file = path / "model.pkl"
    file.write_bytes(gzip.compress(pickle.dumps({"a": np.zeros(3)})))
    return file


def tar_named_pkl(path: Path) -> Path:
    file = path / "model.pkl"
    with tarfile.open(file, "w") as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return file


class _Malice:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def malicious_pickle(path: Path) -> Path:
    file = path / "model.pkl"
    file.write_bytes(pickle.dumps({"params": _Malice(path / "executed")}))
    return file


def malicious_torch_file(path: Path) -> Path:
    file = path / "model.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": _Malice(path / "executed")}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return file


def zip_bomb(path: Path) -> Path:
    file = path / "model.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (3,)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header.getvalue() + b"\0" * (200 << 20))
    return file


def archive_that_leaves_its_folder(path: Path) -> Path:
    file = path / "model.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../executed", "x")
        archive.writestr("archive/version", "3\n")
    return file


def header_of_terabytes(path: Path) -> Path:
    file = path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    return file


def header_length_of_terabytes(path: Path) -> Path:
    file = path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 42) + b"{" + b" " * 100)
    return file


def overlapping_offsets(path: Path) -> Path:
    file = path / "model.safetensors"
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": entry, "b": {**entry, "data_offsets": [8, 24]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    return file


def empty_file(path: Path) -> Path:
    file = path / "model.pt"
    file.touch()
    return file


FILES = [
    (truncated_data, 4, "bytes"),
    (flipped_byte, 4, "CRC32C"),
    (index_alone, 4, DATA),
    (data_alone, 4, ".index"),
    (web_page, 4, "web page"),
    (lfs_pointer, 4, "git lfs pull"),
    (gzip_named_pkl, 4, "gzip"),
    (tar_named_pkl, 4, "tar"),
    (malicious_pickle, 4, "system"),
    (malicious_torch_file, 4, "system"),
    (zip_bomb, 4, "209,715,328"),
    (archive_that_leaves_its_folder, 4, "zip"),
    (header_of_terabytes, 4, "bytes"),
    (header_length_of_terabytes, 4, "header"),
    (overlapping_offsets, 4, "overlap"),
    (empty_file, 4, "empty"),
]


@pytest.mark.parametrize("command", ["port", "inspect"])
@pytest.mark.parametrize(("make", "code", "word"), FILES, ids=lambda value: getattr(value, "__name__", None))
def test_a_file_that_is_not_a_sound_checkpoint(
    tmp_path: Path, cli: Run, make: Callable[[Path], Path], code: int, word: str, command: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    file, out = make(source), tmp_path / "out"
    arguments = ["inspect", file] if command == "inspect" else _port(file, out)
    found, _, message = cli(*arguments)
    assert found == code, message
    _is_one_clear_message(message, word)
    assert not out.exists() or not list(out.iterdir())
    assert not (source / "executed").exists()
    assert not (tmp_path / "executed").exists()


def _port(file: Path, out: Path, release: str = "i3d") -> list[object]:
    return ["port", release, "--weights", file, "--out", out, "--no-validate"]


def _is_one_clear_message(message: str, word: str) -> None:
    assert message.startswith("vidweights: ")
    assert word.lower() in message.lower(), message
    assert "Traceback" not in message


def _without(key: str) -> dict[str, Array]:
    return {k: a for k, a in deepmind().items() if k != key}


TENSORS = [
    (lambda: {"fc.weight": np.zeros((3, 4), np.float32)}, "not those of a known network"),
    (lambda: _without(KERNEL), f"missing (1):\n    {KERNEL}"),
    (lambda: {**deepmind(), "RGB/inception_i3d/one/more": np.zeros(3, np.float32)}, "unexpected (1)"),
    (lambda: {**deepmind(), KERNEL: np.zeros((3, 3, 3, 3, 5), np.float32)}, "misshapen (1)"),
]


@pytest.mark.parametrize(("arrays", "words"), TENSORS, ids=["another family", "missing", "one too many", "misshapen"])
def test_tensors_that_do_not_fit(tmp_path: Path, cli: Run, arrays: Callable[[], dict[str, Array]], words: str) -> None:
    code, _, message = cli(*_port(bundle(tmp_path / "source", arrays()), tmp_path / "out"))
    assert code == 5
    _is_one_clear_message(message, words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arrays", "words"), TENSORS, ids=["another family", "missing", "one too many", "misshapen"])
def test_inspect_tells_what_it_can_of_tensors_that_do_not_fit(
    tmp_path: Path, cli: Run, arrays: Callable[[], dict[str, Array]], words: str
) -> None:
    code, out, message = cli("inspect", bundle(tmp_path / "source", arrays()))
    assert code == 0, message
    assert "tensors   " in out


def test_a_folder_never_replaces_what_it_is_made_from(tmp_path: Path, cli: Run) -> None:
    mine = tmp_path / "mine"
    write(mine, "safetensors", canonical(NARROW))
    (mine / "config.json").write_text("{}")
    (mine / "notes.txt").write_text("notes")
    code, _, message = cli(*_port(mine / "model.safetensors", tmp_path), "--overwrite", "--to", "piergiaj")
    assert code == 0, message  # tmp_path/model is another place
    code, _, message = cli(*_port(mine, tmp_path), "--overwrite")
    assert code == 6
    _is_one_clear_message(message, "would replace the --weights")
    assert (mine / "notes.txt").read_text() == "notes"


@pytest.mark.parametrize("weights", [".", "..", ".hidden.safetensors", "i3d-rgb-scratch-k400.safetensors"])
def test_a_name_that_is_no_name_or_a_releases_is_refused(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    folder = tmp_path / ".inside" / "deeper"
    folder.mkdir(parents=True)
    file = write(tmp_path / "source", "safetensors", canonical(NARROW))
    for place in (folder, folder.parent):
        shutil.copy(file, place / ".hidden.safetensors")
    shutil.copy(file, folder / "i3d-rgb-scratch-k400.safetensors")
    monkeypatch.chdir(folder.parent if weights == "." else folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    code, _, message = cli(*_port(Path(weights), tmp_path / "out"), "--overwrite")
    assert code == 2, message
    _is_one_clear_message(message, "rename it")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


CONFIGS = [
    {"main": None},
    {"files": None},
    {"files": []},
    {"files": {}},
    {"files": {"other.safetensors": "0" * 64}},
    {"family": "resnet"},
    {"config": {"in_channels": 3, "num_classes": 9, "depth_multiplier": 1 / 32}},
    {"config": {"in_channels": "many"}},
    {"dialect": "unknown"},
]


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
@pytest.mark.parametrize("change", CONFIGS, ids=str)
def test_a_config_that_was_tampered_with_is_one_message(tmp_path: Path, cli: Run, change: dict[str, object]) -> None:
    pytest.importorskip("torch")
    assert cli(*_port(bundle(tmp_path / "source"), tmp_path / "out"))[0] == 0
    folder = tmp_path / "out" / "model"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises((FormatError, PlanError)):
        vidweights.load(folder)


RELEASE_CASES = [
    (I3DConfig(num_classes=157), "deepmind-rgb", 5, "num_classes: found 157, expected 400"),
    (I3DConfig(in_channels=2), "deepmind-flow", 5, "in_channels: found 2, expected 3"),
    (I3DConfig(), "deepmind-rgb", 4, "230 of 287 tensors differ"),
]


@pytest.mark.parametrize(
    ("config", "dialect", "code", "words"), RELEASE_CASES, ids=["157 classes", "flow as RGB", "other numbers"]
)
def test_a_checkpoint_that_is_not_the_declared_release(
    tmp_path: Path, cli: Run, config: I3DConfig, dialect: str, code: int, words: str
) -> None:
    file = bundle(tmp_path / "source", deepmind(config, dialect))
    found, _, message = cli(*_port(file, tmp_path / "out", "i3d-rgb-scratch-k400"))
    assert found == code
    _is_one_clear_message(message, words)
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path, cli: Run) -> None:
    file = bundle(tmp_path / "source")
    out = tmp_path / "out" / "model"
    out.mkdir(parents=True)
    (out / "mine").write_text("mine")
    code, _, message = cli(*_port(file, tmp_path / "out"))
    assert code == 6
    _is_one_clear_message(message, "exists already")
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_a_failure_with_overwrite_leaves_the_existing_output_whole(tmp_path: Path, cli: Run) -> None:
    file = bundle(tmp_path / "source")
    assert cli(*_port(file, tmp_path / "out"))[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out" / "model").iterdir()}
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "source").mkdir()
    code, _, _ = cli(*_port(flipped_byte(tmp_path / "source"), tmp_path / "out"), "--overwrite")
    assert code == 4
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "model").iterdir()} == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]


def _process(arguments: list[object], prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vidweights_cli", *map(str, arguments)]

    def start() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background of a shell inherits that it is ignored
        if prepare is not None:
            prepare()

    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=start)  # noqa: PLW1509


def test_a_disk_that_is_full_is_one_message_and_no_partial_file(tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the disk: the kernel refuses the write in the same place."""
    file = bundle(tmp_path / "source")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = _process(_port(file, tmp_path / "out"), limit)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 6
    _is_one_clear_message(message, "cannot write")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path) -> None:
    config = I3DConfig()
    file = bundle(tmp_path / "source", deepmind(config))
    out = tmp_path / "out"
    process = _process(_port(file, out))
    deadline = time.monotonic() + 30
    while not (out.exists() and any(out.iterdir())):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    _is_one_clear_message(message.lstrip(), "interrupted")  # click ends the line of the ^C first
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["port"], "Missing argument"),
        (["port", "i3d-tff"], "i3d-tf"),
        (["port", "i3d-tf", "--checkpoint", "rgb"], "rgb_scratch"),
        (["port", "i3d"], "--weights"),
        (["port", "i3d", "--weights", "/no/such/file"], "no such file"),
        (["port", "i3d-tf", "--to", "pytorch"], "piergiaj"),
        (["port", "i3d-tf", "--format", "pickle"], "safetensors"),
        (["info", "i3d-rgb"], "i3d-rgb-scratch-k400"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_would_be_right(cli: Run, arguments: list[str], word: str) -> None:
    code, _, message = cli(*arguments)
    assert code == 2
    assert word in message
    assert "Traceback" not in message


def test_a_file_that_is_not_there_is_a_message(tmp_path: Path, cli: Run) -> None:
    code, _, message = cli("inspect", tmp_path / "nothing.pt")
    assert code in {2, 4}
    _is_one_clear_message(message, "nothing.pt")


def test_with_json_an_error_is_json_too(tmp_path: Path, cli: Run) -> None:
    code, out, _ = cli("inspect", "--json", empty_file(tmp_path))
    assert code == 4
    assert json.loads(out)["error"]["type"] == "FormatError"
