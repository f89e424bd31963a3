"""What a push does when the network, the hub or its own process fails: all of it is there in the end, or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub import Fault, Hub, running
from packages import package

import vidweights
from vidweights.errors import IntegrityError, PublishError, UnavailableError
from vidweights.families.i3d import I3DConfig
from vidweights.hub import Repository, Revision, opened
from vidweights.remote_hub import RemoteHub
from vidweights_converters import publish

pytestmark = pytest.mark.usefixtures("alice")
NAME = "acme/narrow"
WIDER = I3DConfig(num_classes=7, depth_multiplier=1 / 4)  # some 6 MB
PUSH = "import sys, vidweights; vidweights.push(sys.argv[1], sys.argv[2], hub=sys.argv[3])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("made") / "narrow", network=WIDER)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "hub") as hub:
        yield hub


def push(folder: Path, hub: Hub, *, pull_request: bool = False) -> publish.Pushed:
    return publish.push(publish.plan(folder, NAME, opened(hub.url)), pull_request=pull_request)


def whole(hub: Hub, folder: Path) -> bool:
    """Whether the newest commit has the whole package, and there was one commit beside the first."""
    return vidweights.download(NAME, hub=hub.url).name == hub.head(NAME).oid and len(commits(hub)) == 2


def commits(hub: Hub) -> list[str]:
    return list(hub.repositories[NAME].commits)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "/api/whoami"),
        Fault("status", "/api/repos/create"),
        Fault("status", "/preupload/", times=2),
        Fault("status", "/objects/batch", status=500),
        Fault("status", "PUT /put/", times=2),
        Fault("reset", "PUT /put/"),
        Fault("cut-reset", "PUT /put/", after=1_500_000),
        Fault("lost", "PUT /put/"),
        Fault("status", "/objects/verify", status=502),
        Fault("status", "POST /api/models/.*/commit/", times=2),
        Fault("reset", "POST /api/models/.*/commit/"),
        Fault("status", "POST /api/models/.*/commit/", status=429, headers={"Retry-After": "1"}),
        Fault("lost", "POST /api/models/.*/commit/"),
        Fault("lost", "/api/repos/create"),
    ],
    ids=lambda fault: f"{fault.what} {fault.path}",
)
def test_a_failure_that_passes_ends_in_one_whole_commit(hub: Hub, folder: Path, fault: Fault) -> None:
    hub.faults = [replace(fault)]
    push(folder, hub)
    assert hub.injected
    assert whole(hub, folder)


@pytest.mark.parametrize("path", ["PUT /put/", "POST /api/models/.*/commit/"])
def test_a_hub_that_keeps_failing_is_given_up_and_has_nothing(hub: Hub, folder: Path, path: str) -> None:
    hub.faults = [Fault("status", path, times=99)]
    with pytest.raises(UnavailableError, match=r"failed \(503"):
        push(folder, hub)
    assert len(commits(hub)) == 1
    hub.faults = []
    push(folder, hub)
    assert whole(hub, folder)


@pytest.mark.parametrize("status", [401, 403, 404, 400])
def test_a_refusal_of_the_commit_is_told_once(hub: Hub, folder: Path, status: int) -> None:
    hub.faults = [Fault("status", "POST /api/models/.*/commit/", status=status, times=99)]
    with pytest.raises(PublishError, match=f"{status}.*Nothing was published"):
        push(folder, hub)
    assert len(hub.injected) == 1
    assert len(commits(hub)) == 1


def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(hub: Hub, folder: Path) -> None:
    opened(hub.url).api.create_repo(NAME)  # type: ignore[attr-defined]
    hub.faults = [Fault("lost", "POST /api/models/.*/commit/")]
    with pytest.raises(UnavailableError, match="/discussions before you push again"):
        push(folder, hub, pull_request=True)
    assert [ref for ref in hub.repositories[NAME].refs if ref.startswith("refs/pr/")] == ["refs/pr/1"]


def test_of_two_pushes_at_once_one_is_published_and_the_other_told(hub: Hub, tmp_path: Path) -> None:
    folders = [package(tmp_path / str(seed) / "narrow", seed=seed) for seed in (1, 2)]
    opened(hub.url).api.create_repo(NAME)  # type: ignore[attr-defined]
    hub.faults = [Fault("slow", "PUT /put/", seconds=0.1, times=2)]
    planned = [publish.plan(folder, NAME, opened(hub.url)) for folder in folders]
    outcomes: dict[int, publish.Pushed | PublishError] = {}

    def run(index: int) -> None:
        try:
            outcomes[index] = publish.push(planned[index])
        except PublishError as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((winner, pushed),) = [(i, o) for i, o in outcomes.items() if isinstance(o, publish.Pushed)]
    (error,) = [outcome for outcome in outcomes.values() if isinstance(outcome, PublishError)]
    assert "has changed since" in str(error)
    assert hub.head(NAME).oid == pushed.commit
    found = vidweights.download(NAME, hub=hub.url)
    for name in ("config.json", "model.safetensors", "validation.json"):
        assert (found / name).read_bytes() == (folders[winner] / name).read_bytes()


def test_a_push_that_is_killed_in_the_middle_leaves_nothing_and_can_be_done_again(hub: Hub, folder: Path) -> None:
    hub.faults = [Fault("slow", "PUT /put/", times=2, seconds=0.3)]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen([sys.executable, "-c", PUSH, str(folder), NAME, hub.url], env=environment)
    stored = hub.root / "lfs"
    for _ in range(500):
        if any(path.stat().st_size > 1_000_000 for path in stored.iterdir()):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(commits(hub)) == 1
    assert not [path for path in stored.iterdir() if not path.name.startswith(".") and path.stat().st_size > 1_000_000]
    push(folder, hub)
    assert whole(hub, folder)


def test_a_push_into_a_folder_that_is_killed_in_the_middle_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    script = (
        "import os, shutil, sys, vidweights\n"
        "copy = shutil.copyfile\n"
        "def killed(source, target):\n"
        "    copy(source, target)\n"
        "    if str(source).endswith('.safetensors'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "shutil.copyfile = killed\n" + PUSH
    )
    hub = tmp_path / "hub"
    done = subprocess.run([sys.executable, "-c", script, str(folder), NAME, str(hub)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert opened(hub).describe(Repository(NAME)) is None
    pushed = publish.push(publish.plan(folder, NAME, opened(hub)))
    assert sorted(path.name for path in (hub / NAME / "commits").iterdir()) == [pushed.commit, f"{pushed.commit}.json"]


def test_a_hub_without_xet_is_told_with_the_switch(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(UnavailableError, match="HF_HUB_DISABLE_XET=1"):
        push(folder, hub)
    assert len(commits(hub)) == 1


def test_other_bytes_than_were_sent_are_noticed(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RemoteHub.describe

    def altered(self: RemoteHub, repository: Repository) -> Revision | None:
        found = plain(self, repository)
        if found is None or "model.safetensors" not in found.files:
            return found
        weights = replace(found.files["model.safetensors"], sha256="0" * 64)
        return replace(found, files={**found.files, "model.safetensors": weights})

    monkeypatch.setattr(RemoteHub, "describe", altered)
    with pytest.raises(IntegrityError, match="other bytes than were sent: model"):
        push(folder, hub)


def test_a_token_is_neither_printed_nor_sent_elsewhere(
    hub: Hub, folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults = [Fault("status", "PUT /put/"), Fault("lost", "POST /api/models/.*/commit/")]
    with caplog.at_level("DEBUG"):
        push(folder, hub)
        vidweights.download(NAME, hub=hub.url)
    said = capfd.readouterr()
    assert "hf_alice_secret" not in said.out + said.err + caplog.text
    storage = [request for request in hub.requests if request.server == "storage"]
    assert storage
    assert not any("authorization" in request.headers or request.line.startswith("TOKEN") for request in storage)
