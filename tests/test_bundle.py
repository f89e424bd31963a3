"""Packages in a tar file: carried over whole, and nothing believed of a file that comes from elsewhere."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packages import package

import vidweights
from vidweights import bundle, home, hub
from vidweights.errors import FormatError, IntegrityError, OutputError, UsageError, VidweightsError
from vidweights.hub import RepositoryCache, opened
from vidweights_converters import publish

pytestmark = pytest.mark.usefixtures("alice")
NAME = "acme/narrow"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return package(tmp_path / "made" / "narrow")


@pytest.fixture
def tar(folder: Path, tmp_path: Path) -> Path:
    """The package of a folder that was made here."""
    bundle.write(tmp_path / "x.tar", [(bundle.described(folder, "narrow"), folder)])
    return tmp_path / "x.tar"


def test_a_package_that_was_made_here_is_found_by_its_name_there(tar: Path, folder: Path) -> None:
    ((found, place),) = bundle.read(tar)
    assert found.pinned == "narrow"
    assert place == home.weights_folder("narrow") == vidweights.download("narrow")
    assert (place / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (place / "notes.txt").exists()


def test_a_package_from_a_hub_is_found_at_its_commit_offline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = publish.push(publish.plan(folder, NAME, opened(tmp_path / "hub")))
    there = vidweights.download(NAME, hub=tmp_path / "hub")
    bundle.write(tmp_path / "x.tar", [(bundle.described(there, NAME), there)])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "other" / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ((found, _),) = bundle.read(tmp_path / "x.tar")
    assert found.pinned == pushed.pinned
    for name in (pushed.pinned, NAME):
        got = vidweights.download(name)
        assert got == RepositoryCache(NAME).snapshot(pushed.commit)
        assert (got / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_equal_packages_make_equal_files_and_a_file_is_not_replaced(tar: Path, folder: Path, tmp_path: Path) -> None:
    described = [(bundle.described(folder, "narrow"), folder)]
    bundle.write(tmp_path / "y.tar", described)
    assert (tmp_path / "y.tar").read_bytes() == tar.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        bundle.write(tar, described)


def test_other_weights_of_the_same_name_are_left_alone(tar: Path) -> None:
    mine = package(home.weights_folder("narrow"), seed=1)
    before = (mine / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="other weights"):
        bundle.read(tar)
    assert (mine / "model.safetensors").read_bytes() == before


Member = tuple[tarfile.TarInfo, bytes]


def rewritten(tar: Path, change: Callable[[list[Member]], list[Member]]) -> Path:
    with tarfile.open(tar) as old:
        members = []
        for info in old:
            content = old.extractfile(info)
            assert content is not None
            members.append((info, content.read()))
    with tarfile.open(tar, "w") as new:
        for info, data in change(members):
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return tar


def listing(change: Callable[[dict[str, Any]], object]) -> Callable[[list[Member]], list[Member]]:
    def apply(members: list[Member]) -> list[Member]:
        value = json.loads(members[0][1])
        change(value["packages"][0])
        return [(members[0][0], json.dumps(value).encode()), *members[1:]]

    return apply


def link(members: list[Member]) -> list[Member]:
    made = tarfile.TarInfo(members[2][0].name)
    made.type, made.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [*members[:2], (made, b""), *members[3:]]


def renamed(name: str) -> Callable[[list[Member]], list[Member]]:
    def apply(members: list[Member]) -> list[Member]:
        members[2][0].name = name
        return members

    return apply


def flipped(members: list[Member]) -> list[Member]:
    info, data = members[2]
    return [*members[:2], (info, data[:-1] + bytes([data[-1] ^ 1])), *members[3:]]


@pytest.mark.parametrize(
    "change",
    [
        link,
        flipped,
        renamed("../outside"),
        renamed("/tmp/outside"),
        lambda members: members[:-1],
        lambda members: members[1:],
        listing(lambda p: p.update(name="../../outside")),
        listing(lambda p: p.update(name="a/b", commit="../..")),
        listing(lambda p: p.update(name="a/../b", commit="0" * 40)),
        listing(lambda p: p.update(name="a/b", commit="0" * 40, revision="../../x")),
        listing(lambda p: p["files"].update({"../x": p["files"].pop("labels.txt")})),
        listing(lambda p: p["files"].pop("config.json")),
        listing(lambda p: p.update(files=3)),
        listing(lambda p: p["files"]["labels.txt"].update(sha256="../../x")),
        listing(lambda p: p["files"]["labels.txt"].update(size=10**12)),
    ],
)
def test_a_hostile_or_damaged_file_is_refused_and_nothing_is_kept(
    tar: Path, tmp_path: Path, change: Callable[[list[Member]], list[Member]]
) -> None:
    rewritten(tar, change)
    with pytest.raises((FormatError, IntegrityError)) as caught:
        bundle.read(tar)
    assert str(tar) in str(caught.value)
    assert not home.weights_folder("narrow").exists()
    assert not list(hub.cache_folder().glob("**/snapshots/*"))
    assert not list(tmp_path.glob("**/outside"))


@pytest.mark.parametrize("keep", [0, 100, 700, 5000, 40_000])
def test_a_file_that_was_cut_on_the_way_is_refused(tar: Path, keep: int) -> None:
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(VidweightsError, match=r"[Cc]arry (it|the file) over again"):
        bundle.read(tar)
    assert not home.weights_folder("narrow").exists()


def test_progress_counts_up_to_all_bytes_both_ways(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def tell(_: str, done: int, total: int) -> None:
        told.append((done, total))

    described = bundle.described(folder, "narrow")
    size = sum(file.size for file in described.files.values())
    bundle.write(tmp_path / "x.tar", [(described, folder)], tell)
    half = len(told)
    bundle.read(tmp_path / "x.tar", tell)
    for run in (told[:half], told[half:]):
        assert len(run) == len(described.files)
        assert run == sorted(run)
        assert run[-1] == (size, size)


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--to"):
        bundle.read(tmp_path / "absent.tar")


def test_what_is_not_listed_is_not_taken(tar: Path) -> None:
    ((_, place),) = bundle.read(rewritten(tar, lambda members: [*members, (tarfile.TarInfo("0/more"), b"x")]))
    assert not (place / "more").exists()
