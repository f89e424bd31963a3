"""`vidweights push`, `download`, `list --hub` and `info ORG/NAME`: what they print, and how they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hub import running
from packages import package

from vidweights import home
from vidweights.files import sha256_of

pytestmark = pytest.mark.usefixtures("alice")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(vidweights_command: Run) -> Run:
    return vidweights_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return package(tmp_path / "narrow")


def test_a_dry_run_prints_files_hashes_and_the_difference_and_publishes_nothing(
    cli: Run, folder: Path, tmp_path: Path
) -> None:
    code, out, err = cli("push", folder, "--repo", "me/narrow", "--hub", tmp_path / "hub", "--dry-run")
    assert (code, err) == (0, "")
    assert "not there yet" in out
    assert sha256_of(folder / "model.safetensors") in out
    assert "6 of 6 files would be sent" in out
    assert not (tmp_path / "hub").exists()


def test_a_push_says_what_to_pin_and_the_second_that_all_is_there(cli: Run, folder: Path, tmp_path: Path) -> None:
    arguments = ("push", folder, "--repo", "me/narrow", "--hub", tmp_path / "hub")
    code, out, _ = cli(*arguments)
    pinned = out.split("vidweights.load('")[1].split("'")[0]
    assert code == 0
    code, out, _ = cli(*arguments)
    assert (code, "already" in out) == (0, True)
    assert pinned in out
    (folder / "README.md").write_text((folder / "README.md").read_text() + "more\n")
    fields = json.loads(cli(*arguments, "--dry-run", "--json")[1])
    assert f"me/narrow@{fields['head']}" == pinned
    assert {file["name"]: file["state"] for file in fields["files"]}["README.md"] == "changed"
    listed = json.loads(cli("list", "--hub", tmp_path / "hub", "--json")[1])
    assert [(entry["repository"], entry["state"]) for entry in listed] == [("me/narrow", "passed")]


def test_a_push_of_what_is_not_proved_leaves_with_its_own_code(cli: Run, tmp_path: Path) -> None:
    unproved = package(tmp_path / "narrow", passed=None)
    code, out, err = cli("push", unproved, "--repo", "me/narrow", "--hub", tmp_path / "hub", "--json")
    assert code == 7
    assert json.loads(out)["error"]["type"] == "PublishError"
    assert f"vidweights validate {unproved}" in err
    assert "--force" not in cli("push", "--help")[1]


def test_a_pull_request_is_named(cli: Run, folder: Path, tmp_path: Path) -> None:
    with running(tmp_path / "hub") as hub:
        assert cli("push", folder, "--repo", "acme/narrow", "--hub", hub.url)[0] == 0
        (folder / "README.md").write_text((folder / "README.md").read_text() + "more\n")
        code, out, _ = cli("push", folder, "--repo", "acme/narrow", "--hub", hub.url, "--pr")
        assert code == 0
        assert f"{hub.url}/acme/narrow/discussions/1" in out
        code, out, _ = cli("info", "acme/narrow@refs/pr/1", "--hub", hub.url)
        assert code == 0
        assert sha256_of(folder / "model.safetensors") in out
        assert "not fetched" in out
        assert cli("info", "acme/none", "--hub", hub.url)[0] == 3


def test_a_package_is_carried_to_a_machine_that_is_offline(
    cli: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "hub") as hub:
        cli("push", folder, "--repo", "acme/narrow", "--hub", hub.url)
        code, out, _ = cli("download", "acme/narrow", "--hub", hub.url, "--to", tmp_path / "x.tar")
    assert code == 0
    assert "--from x.tar" in out
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    code, _, err = cli("download", "acme/narrow")
    assert code == 3
    assert "vidweights download --from weights.tar" in err
    assert cli("download", "--from", tmp_path / "x.tar")[0] == 0
    code, out, err = cli("download", "acme/narrow", "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    assert found["state"] == "validated"
    assert sha256_of(Path(found["folder"]) / "model.safetensors") == sha256_of(folder / "model.safetensors")


@pytest.mark.parametrize("arguments", [(), ("a/b", "--from", "x.tar"), ("--from", "x.tar", "--to", "y.tar")])
def test_a_download_of_nothing_or_two_things_is_refused(cli: Run, arguments: tuple[str, ...]) -> None:
    assert cli("download", *arguments)[0] == 2


def test_a_release_that_no_hub_has_says_how_to_make_it(cli: Run, tmp_path: Path) -> None:
    with running(tmp_path / "hub") as hub:
        code, _, err = cli("download", "i3d-flow-imagenet-k400", "--hub", hub.url)
    assert code == 3
    for words in (
        "vidweights port i3d-flow-imagenet-k400",
        "build=True",
        "model.ckpt.index",
        str(home.home()),
        hub.url,
    ):
        assert words in err
