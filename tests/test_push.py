"""A push: what may be published, one commit, read back; on a server and in a folder by the same rules."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub, running
from packages import package

import vidweights
from vidweights.errors import IntegrityError, PlanError, PublishError, UnavailableError, UsageError
from vidweights.hub import opened
from vidweights_converters import publish

NAME = "acme/narrow"
pytestmark = pytest.mark.usefixtures("alice")
FILES = ["README.md", "config.json", "kernels.png", "labels.txt", "model.safetensors", "validation.json"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(params=["server", "folder"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of an empty hub."""
    server: Hub = request.getfixturevalue("server")
    server.repositories.clear()
    return server.url if request.param == "server" else str(tmp_path / "hub")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return package(tmp_path / "narrow")


def push(folder: Path, hub: str, **options: Any) -> publish.Pushed:
    return publish.push(publish.plan(folder, NAME, opened(hub)), **options)


def test_a_push_publishes_the_package_in_one_commit_that_loads(hub: str, folder: Path) -> None:
    planned = publish.plan(folder, NAME, opened(hub))
    assert sorted(item.name for item in planned.changes) == FILES
    assert {item.state for item in planned.items} == {"new"}
    pushed = publish.push(planned)
    loaded = vidweights.download(pushed.pinned, hub=hub)
    for name in FILES:
        assert (loaded / name).read_bytes() == (folder / name).read_bytes()
    assert not (loaded / "notes.txt").exists()
    assert not (loaded / "not-shown.png").exists()


def test_a_second_push_of_the_same_does_nothing(hub: str, folder: Path) -> None:
    first = push(folder, hub)
    again = push(folder, hub)
    assert again.already
    assert again.commit == first.commit


def test_only_what_changed_is_sent_and_what_others_added_is_kept(hub: str, folder: Path) -> None:
    first = push(folder, hub)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "more\n")
    (folder / "kernels.png").unlink()
    planned = publish.plan(folder, NAME, opened(hub))
    assert [item.name for item in planned.changes] == ["README.md"]
    assert "kernels.png" in planned.others
    second = publish.push(planned)
    assert second.commit != first.commit
    assert (vidweights.download(NAME, hub=hub) / "README.md").read_text().endswith("more\n")
    assert (vidweights.download(NAME, hub=hub) / "kernels.png").exists()
    assert not (vidweights.download(first.pinned, hub=hub) / "README.md").read_text().endswith("more\n")


def test_a_hub_that_changed_since_is_refused_and_left_as_it_is(hub: str, folder: Path, tmp_path: Path) -> None:
    push(folder, hub)
    planned = publish.plan(package(tmp_path / "b" / "narrow", seed=1), NAME, opened(hub))
    theirs = push(package(tmp_path / "c" / "narrow", seed=2), hub)
    with pytest.raises(PublishError, match="has changed since"):
        publish.push(planned)
    now = publish.plan(folder, NAME, opened(hub))
    assert now.head == theirs.commit


def test_a_pull_request_leaves_main_alone(hub: str, folder: Path, tmp_path: Path) -> None:
    first = push(folder, hub)
    pull = push(package(tmp_path / "b" / "narrow", seed=1), hub, pull_request=True)
    assert pull.pull_request
    assert publish.plan(folder, NAME, opened(hub)).head == first.commit
    proposed = vidweights.download(f"{NAME}@refs/pr/1", hub=hub)
    assert (proposed / "config.json").read_bytes() == (tmp_path / "b" / "narrow" / "config.json").read_bytes()


def test_a_pull_request_needs_a_repository(hub: str, folder: Path) -> None:
    with pytest.raises(PublishError, match="push without --pr"):
        push(folder, hub, pull_request=True)


def test_a_repository_that_another_made_in_the_meantime_is_left_as_it_is(
    hub: str, folder: Path, tmp_path: Path
) -> None:
    planned = publish.plan(folder, NAME, opened(hub))
    theirs = push(package(tmp_path / "b" / "narrow", seed=1), hub)
    with pytest.raises(PublishError, match="has changed since"):
        publish.push(planned)
    assert publish.plan(folder, NAME, opened(hub)).head == theirs.commit


@pytest.mark.parametrize("passed", [None, False])
def test_what_was_not_shown_to_match_is_refused(tmp_path: Path, hub: str, passed: bool | None) -> None:
    unproved = package(tmp_path / "narrow", passed=passed)
    with pytest.raises(PublishError, match="has not been shown to compute"):
        publish.plan(unproved, NAME, opened(hub))


def test_a_report_about_other_weights_does_not_count(tmp_path: Path, hub: str) -> None:
    folder, other = package(tmp_path / "narrow"), package(tmp_path / "other", seed=1)
    (folder / "validation.json").write_bytes((other / "validation.json").read_bytes())
    with pytest.raises(PublishError, match="no report about these very weights"):
        publish.plan(folder, NAME, opened(hub))


def test_weights_that_changed_after_their_hash_was_remembered_are_refused(folder: Path, hub: str) -> None:
    vidweights.state_dict(folder, framework="numpy")
    path = folder / "model.safetensors"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:  # the same size, inode and time
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(IntegrityError, match="changed after it was made"):
        publish.plan(folder, NAME, opened(hub))


def test_labels_that_changed_are_refused(folder: Path, hub: str) -> None:
    (folder / "labels.txt").write_text("other\n" * 7)
    with pytest.raises(IntegrityError, match=r"labels\.txt .*changed after it was made"):
        publish.plan(folder, NAME, opened(hub))


def test_tensors_of_another_network_than_is_described_are_refused(folder: Path, hub: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["config"]["in_channels"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError):
        publish.plan(folder, NAME, opened(hub))


def test_a_card_without_a_licence_is_refused(folder: Path, hub: str) -> None:
    (folder / "README.md").write_text("---\nlibrary_name: vidweights\n---\n# x\n")
    with pytest.raises(PublishError, match="states no licence"):
        publish.plan(folder, NAME, opened(hub))


def test_random_weights_go_only_where_the_name_says_so(tmp_path: Path, hub: str) -> None:
    drawn = package(tmp_path / "drawn", inflation={"random_init": 0})
    with pytest.raises(PublishError, match="narrow-random"):
        publish.plan(drawn, NAME, opened(hub))
    assert publish.push(publish.plan(drawn, "acme/tiny-random-i3d", opened(hub))).commit


def test_pickles_are_not_published(tmp_path: Path, hub: str) -> None:
    folder = package(tmp_path / "narrow")
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").rename(folder / "model.pt")
    files = {"model.pt": config["files"]["model.safetensors"]}
    (folder / "config.json").write_text(json.dumps({**config, "files": files, "main": "model.pt", "format": "torch"}))
    with pytest.raises(PublishError, match="runs no code"):
        publish.plan(folder, NAME, opened(hub))


@pytest.mark.parametrize("name", ["narrow", "acme/narrow@main", "a/b/c", "../x", ""])
def test_a_name_that_no_repository_can_have_is_refused(folder: Path, hub: str, name: str) -> None:
    with pytest.raises(UsageError, match="expected org/name"):
        publish.plan(folder, name, opened(hub))


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean(server: Hub) -> Hub:
    server.repositories.clear()
    server.requests.clear()
    server.faults.clear()
    return server


def test_no_token_is_told_before_anything_is_sent(clean: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="hf auth login"):
        push(folder, clean.url)
    assert not clean.repositories


@pytest.mark.parametrize(("token", "words"), [("hf_nobody_secret", "does not know"), ("hf_bob_secret", "forbids")])
def test_a_token_that_may_not_is_told_and_never_shown(
    clean: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((PublishError, UnavailableError), match=words) as caught:
        push(folder, clean.url)
    assert token not in str(caught.value)
    assert not clean.repositories


def test_a_card_that_the_hub_refuses_publishes_nothing(clean: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [a, b]\n---\n# x\n")
    with pytest.raises(PublishError, match="refuses the card"):
        push(folder, clean.url)
    assert list(clean.head(NAME).files) == [".gitattributes"]


def test_private_is_for_the_repository_that_is_made(clean: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = push(folder, clean.url, private=True)
    assert clean.repositories[NAME].private
    monkeypatch.setenv("HF_TOKEN", "hf_bob_secret")
    with pytest.raises(UnavailableError, match="no such repository"):
        vidweights.download(pushed.pinned, hub=clean.url)
