"""Folders that appear whole or not at all, and hashes."""

from __future__ import annotations

import errno
import hashlib
import subprocess
from pathlib import Path

import pytest

from vidweights.errors import OutputError
from vidweights.files import HashedFile, git_blob_id_of, sha256_of, staged_folder


def test_a_staged_folder_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with staged_folder(target) as stage:
        (stage / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [p.name for p in target.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "new") as stage:
            (stage / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message_and_leaves_the_existing_folder(tmp_path: Path) -> None:
    target = tmp_path / "old"
    target.mkdir()
    (target / "file").write_text("old")

    def fill() -> None:
        with staged_folder(target, overwrite=True, mark="file"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        fill()
    assert (target / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "old"
    target.mkdir()
    (target / "file").write_text("old")
    with pytest.raises(OutputError, match="exists already"), staged_folder(target):
        pass
    with staged_folder(target, overwrite=True, mark="file") as stage:
        (stage / "new").write_text("new")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_appeared_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "new"

    def race() -> None:
        with staged_folder(target):
            target.mkdir()
            (target / "theirs").write_text("theirs")

    with pytest.raises(OutputError, match="exists already"):
        race()
    assert [p.name for p in target.iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_an_interrupt_during_the_replacement_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "old"
    target.mkdir()
    (target / "file").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if to == target and not monkeypatched["restoring"]:
            monkeypatched["restoring"] = True
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatched = {"restoring": False}
    monkeypatch.setattr(Path, "rename", interrupted)

    def replace() -> None:
        with staged_folder(target, overwrite=True, mark="file") as stage:
            (stage / "file").write_text("new")

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert (target / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("what", ["folder", "file", "link", "dangling link"])
def test_what_is_not_of_its_kind_is_never_replaced(tmp_path: Path, what: str) -> None:
    target, other = tmp_path / "theirs", tmp_path / "other"
    other.mkdir()
    (other / "mark").write_text("")
    match what:
        case "folder":
            target.mkdir()
            (target / "thesis.tex").write_text("years of work")
        case "file":
            target.write_text("years of work")
        case "link":
            target.symlink_to(other)
        case _:
            target.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="left alone"), staged_folder(target, overwrite=True, mark="mark"):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write in"), staged_folder(tmp_path / "file" / "folder"):
        pass


def test_a_hashed_file_knows_the_hash_of_what_it_wrote(tmp_path: Path) -> None:
    file = HashedFile(tmp_path / "file")
    file.write(b"abc")
    file.pad(8)
    file.write(b"def")
    content = b"abc\0\0\0\0\0def"
    assert file.close() == hashlib.sha256(content).hexdigest() == sha256_of(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "file")


def test_the_blob_id_is_gits(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some bytes\n" * 100)
    git = subprocess.run(["git", "hash-object", tmp_path / "file"], capture_output=True, text=True, check=True)
    assert git_blob_id_of(tmp_path / "file") == git.stdout.strip()
