"""A folder that serves as a hub: what is damaged or half done there is never taken for a package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packages import package

import vidweights
from vidweights.errors import FormatError, IntegrityError, UsageError
from vidweights.hub import NotHereError, Repository, opened
from vidweights_converters import publish

pytestmark = pytest.mark.usefixtures("alice")
NAME = "acme/narrow"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def commit(tmp_path: Path, root: Path) -> Path:
    """The folder of a commit."""
    pushed = publish.push(publish.plan(package(tmp_path / "narrow"), NAME, opened(root)))
    return root / NAME / "commits" / pushed.commit


def test_the_environment_names_the_hub(commit: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_HUB", str(root))
    assert vidweights.download(NAME) == commit
    assert [repository.name for repository in opened(root).repositories()] == [NAME]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["config.json", "labels.txt", "model.safetensors", "validation.json"])
def test_a_file_that_changed_is_noticed(commit: Path, root: Path, name: str) -> None:
    vidweights.download(NAME, hub=root)
    data = (commit / name).read_bytes()
    (commit / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(IntegrityError, match=rf"{name} is damaged"):
        vidweights.download(NAME, hub=root)


def test_a_file_that_is_gone_is_named(commit: Path, root: Path) -> None:
    (commit / "labels.txt").unlink()
    with pytest.raises(FormatError, match=r"labels\.txt is missing"):
        vidweights.download(NAME, hub=root)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {"size": 1}}}'])
def test_a_damaged_record_is_told(commit: Path, root: Path, content: str) -> None:
    commit.with_name(f"{commit.name}.json").write_text(content)
    with pytest.raises(FormatError, match="is damaged"):
        vidweights.download(NAME, hub=root)


def test_a_commit_that_main_never_came_to_is_not_shown(commit: Path, root: Path, tmp_path: Path) -> None:
    """As after a process that was killed between the two renames."""
    main = root / NAME / "refs" / "main"
    main.unlink()
    with pytest.raises(NotHereError, match="no such revision"):
        vidweights.download(NAME, hub=root)
    again = publish.push(publish.plan(package(tmp_path / "b" / "narrow", seed=1), NAME, opened(root)))
    assert main.read_text().strip() == again.commit != commit.name


@pytest.mark.parametrize("revision", ["v1", "0" * 40, "refs/pr/7"])
def test_a_revision_that_is_not_there_is_told(commit: Path, root: Path, revision: str) -> None:
    with pytest.raises(NotHereError, match="no such revision"):
        vidweights.download(f"{NAME}@{revision}", hub=root)


@pytest.mark.parametrize("text", ["a/b@../x", "a/../b", "../b", "/a/b", "a//b", "a/b@", "a/b.git", "a"])
def test_a_name_that_leads_elsewhere_is_no_repository(text: str) -> None:
    assert Repository.parse(text) is None


def test_what_is_neither_an_address_nor_a_folder_is_no_hub() -> None:
    with pytest.raises(UsageError, match="no hub"):
        opened("s3://bucket")


@pytest.mark.slow
def test_of_four_processes_that_push_at_once_one_is_published(tmp_path: Path, root: Path) -> None:
    script = "import sys, vidweights; print(vidweights.push(sys.argv[1], sys.argv[2], hub=sys.argv[3]))"
    folders = [package(tmp_path / str(seed) / "narrow", seed=seed) for seed in range(4)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), NAME, str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    said = [process.communicate() for process in processes]
    done = [out.strip() for process, (out, _) in zip(processes, said) if process.returncode == 0]
    # Processes that are slow to start see what was published before, and add to it.
    commits = [path.name for path in (root / NAME / "commits").iterdir() if path.is_dir()]
    assert sorted(done) == sorted(f"{NAME}@{commit}" for commit in commits)
    assert all("has changed since" in err for process, (_, err) in zip(processes, said) if process.returncode)
    assert vidweights.download(NAME, hub=root).name in commits
