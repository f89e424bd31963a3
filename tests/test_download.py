"""Downloads: every byte hashed, resumed where they stopped, shared by processes, and told in full when offline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Fault, Hub, running
from packages import package

import vidweights
from vidweights import hub as hubs
from vidweights import remote_hub
from vidweights.errors import FormatError, IntegrityError, OutputError, UnavailableError, UsageError
from vidweights.families.i3d import I3DConfig
from vidweights.hub import opened
from vidweights_converters import publish

pytestmark = pytest.mark.usefixtures("alice")
NAME = "acme/narrow"
WEIGHTS = r"GET /get/"
# Some 6 MB, so that a transfer can be cut.
WIDER = I3DConfig(num_classes=7, depth_multiplier=1 / 4)
DOWNLOAD = "import sys, vidweights; print(vidweights.download(sys.argv[1], hub=sys.argv[2]))"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("made") / "narrow", network=WIDER)


@pytest.fixture
def hub(server: Hub, folder: Path) -> Hub:
    """A hub that has the package, and has not been asked for it yet."""
    server.repositories.clear()
    server.faults.clear()
    publish.push(publish.plan(folder, NAME, opened(server.url)))
    server.requests.clear()
    server.injected.clear()
    return server


@pytest.fixture
def cache() -> hubs.RepositoryCache:
    return hubs.RepositoryCache(NAME)


def download(hub: Hub, name: str = NAME) -> Path:
    return vidweights.download(name, hub=hub.url)


def same(found: Path, folder: Path) -> bool:
    return all(
        (found / name).read_bytes() == (folder / name).read_bytes() for name in ("model.safetensors", "README.md")
    )


def partials(cache: hubs.RepositoryCache) -> list[Path]:
    return list((cache.folder / "blobs").glob("*.incomplete"))


def ranges(hub: Hub) -> list[str]:
    return [request.headers["range"] for request in hub.requests if "range" in request.headers]


def test_a_package_is_fetched_once_config_first_and_the_token_stays_with_the_hub(hub: Hub, folder: Path) -> None:
    found = download(hub)
    assert same(found, folder)
    assert found.name == hub.head(NAME).oid
    fetched = [r.line.partition("/resolve/")[2].partition("/")[2] for r in hub.requests if "/resolve/" in r.line]
    assert fetched[0] == "config.json"
    assert len(fetched) == len(set(fetched)) == 6
    assert all("authorization" in r.headers for r in hub.requests if r.server == "hub")
    assert not any(
        "authorization" in r.headers or r.line.startswith("TOKEN") for r in hub.requests if r.server != "hub"
    )
    hub.requests.clear()
    download(hub)
    assert len(hub.requests) == 1  # which commit is main now
    hub.requests.clear()
    download(hub, f"{NAME}@{found.name}")
    assert not hub.requests


def test_the_client_of_the_hub_finds_what_was_downloaded(hub: Hub, folder: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    download(hub)
    path = try_to_load_from_cache(NAME, "model.safetensors", cache_dir=hubs.cache_folder())
    assert isinstance(path, str)
    assert Path(path).read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", ["cut", "cut-reset"])
def test_a_connection_that_breaks_is_resumed(hub: Hub, folder: Path, how: str) -> None:
    hub.faults = [Fault(how, WEIGHTS, times=2, after=1_500_000)]
    assert same(download(hub), folder)
    assert len(hub.injected) == 2
    starts = [int(value.removeprefix("bytes=").rstrip("-")) for value in ranges(hub)]
    assert starts == sorted(starts)
    assert 0 < starts[0] <= 1_500_000


def test_a_server_that_ignores_ranges_sends_all_of_it_again(hub: Hub, folder: Path) -> None:
    hub.faults = [Fault("cut", WEIGHTS, after=1_500_000), Fault("ignore-range", WEIGHTS)]
    assert same(download(hub), folder)
    assert len(hub.injected) == 2


def test_a_flipped_bit_is_noticed_and_the_file_fetched_once_more(
    hub: Hub, folder: Path, cache: hubs.RepositoryCache
) -> None:
    hub.faults = [Fault("flip", WEIGHTS)]
    assert same(download(hub), folder)
    assert len(hub.injected) == 1
    assert not partials(cache)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_bytes_that_are_wrong_twice_are_refused_and_not_kept(hub: Hub, cache: hubs.RepositoryCache, name: str) -> None:
    hub.faults = [Fault("flip", WEIGHTS if name == "model.safetensors" else f"resolve-cache.*/{name}", times=9)]
    if name == "model.safetensors":
        hub.faults[0].path = rf"/get/{hub.head(NAME).files[name].sha256}"
    with pytest.raises(IntegrityError, match=f"{name} .*twice with other bytes"):
        download(hub)
    assert len(hub.injected) == 2
    assert cache.find(None) is None
    assert not partials(cache)
    file = hub.head(NAME).files[name]
    assert not (cache.folder / "blobs" / (file.sha256 or file.blob)).exists()


@pytest.mark.parametrize("what", ["status", "reset"])
@pytest.mark.parametrize("path", ["/api/models", "/resolve/.*config.json", "GET /get/"])
def test_a_failure_that_passes_is_waited_out(hub: Hub, folder: Path, what: str, path: str) -> None:
    hub.faults = [Fault(what, path, times=2)]
    assert same(download(hub), folder)
    assert len(hub.injected) == 2


def test_a_hub_that_keeps_failing_is_given_up_in_one_message(hub: Hub, cache: hubs.RepositoryCache) -> None:
    hub.faults = [Fault("status", "/api/models", times=99)]
    with pytest.raises(UnavailableError, match=r"failed \(503 injected\)"):
        download(hub)
    assert len(hub.injected) == 5
    assert cache.find(None) is None


def test_a_hub_that_fails_is_no_matter_where_the_package_is_here(hub: Hub, folder: Path) -> None:
    download(hub)
    hub.faults = [Fault("status", "/api/models", times=99)]
    assert same(download(hub), folder)
    assert len(hub.injected) == 1


def test_a_rate_limit_is_waited_for_or_told(hub: Hub, folder: Path) -> None:
    hub.faults = [Fault("status", "/resolve/", status=429, headers={"Retry-After": "1"})]
    started = time.monotonic()
    assert same(download(hub), folder)
    assert time.monotonic() - started >= 1
    for asked in ({"Retry-After": "3600"}, {"ratelimit": '"api"; r=0; t=3600'}):
        hub.faults = [Fault("status", "/api/models", status=429, headers=asked)]
        with pytest.raises(UnavailableError, match="asks to wait 3600 s"):
            vidweights.download(f"{NAME}2", hub=hub.url)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_told_at_once(hub: Hub, status: int) -> None:
    hub.faults = [Fault("status", "/resolve/", status=status, times=9)]
    with pytest.raises(UnavailableError, match=str(status)) as caught:
        download(hub)
    assert len(hub.injected) == 1
    assert "secret" not in str(caught.value)


def test_a_cached_file_that_was_damaged_is_fetched_again(hub: Hub, folder: Path) -> None:
    found = download(hub)
    with (found / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert same(download(hub, f"{NAME}@{found.name}"), folder)


def test_a_disk_that_is_full_is_told_and_nothing_shows(
    hub: Hub, cache: hubs.RepositoryCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote_hub._Partial, "write", full)
    with pytest.raises(OutputError, match=r"No space left.*HF_HOME"):
        download(hub)
    assert cache.find(None) is None


def test_a_cache_that_cannot_be_made_is_told(hub: Hub, cache: hubs.RepositoryCache) -> None:
    cache.root.parent.mkdir(parents=True, exist_ok=True)
    cache.root.write_text("a file")
    with pytest.raises(OutputError, match=str(cache.folder)):
        download(hub)


def test_what_a_repository_says_of_itself_must_agree(hub: Hub, tmp_path: Path) -> None:
    from dataclasses import replace

    other = hub.repositories[NAME].commits[hub.head(NAME).oid]
    publish.push(publish.plan(package(tmp_path / "other", seed=3), "acme/other", opened(hub.url)))
    mixed = {**hub.head("acme/other").files, "config.json": other.files["config.json"]}
    repository = hub.repositories["acme/other"]
    repository.commits[repository.refs["main"]] = replace(hub.head("acme/other"), files=mixed)
    with pytest.raises(IntegrityError, match="contradicts itself"):
        download(hub, "acme/other")


@pytest.mark.parametrize("content", [None, b"{}", b"[1", b'{"files": 3}'])
def test_a_repository_of_something_else_is_told(hub: Hub, content: bytes | None) -> None:
    from dataclasses import replace

    from hub import File, git_blob

    files = dict(hub.head(NAME).files)
    files.pop("config.json")
    if content is not None:
        files["config.json"] = File(len(content), git_blob(content), content)
    repository = hub.repositories[NAME]
    repository.commits[repository.refs["main"]] = replace(hub.head(NAME), files=files)
    with pytest.raises(FormatError, match="holds no weights of vidweights"):
        download(hub)


@pytest.mark.parametrize("hostile", [{"blob": "../../../escaped"}, {"sha256": "../../../escaped"}])
def test_a_hash_that_is_a_path_is_not_followed(hub: Hub, tmp_path: Path, hostile: dict[str, Any]) -> None:
    from dataclasses import replace

    name = "README.md" if "blob" in hostile else "model.safetensors"
    files = {**hub.head(NAME).files, name: replace(hub.head(NAME).files[name], **hostile)}
    repository = hub.repositories[NAME]
    repository.commits[repository.refs["main"]] = replace(hub.head(NAME), files=files)
    with pytest.raises(UnavailableError, match="not as a hub does"):
        download(hub)
    assert not list(tmp_path.rglob("escaped*"))


# --- processes --------------------------------------------------------------------------------------------------------


def process(hub: Hub) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, NAME, hub.url], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_download_shows_nothing_and_the_next_one_goes_on_from_there(
    hub: Hub, folder: Path, cache: hubs.RepositoryCache
) -> None:
    hub.faults = [Fault("slow", WEIGHTS, seconds=0.5)]
    running = process(hub)
    for _ in range(400):
        if any(path.stat().st_size > 1_000_000 for path in partials(cache)):
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert cache.find(None) is None
    assert len(partials(cache)) == 1
    assert same(download(hub), folder)
    assert ranges(hub)
    assert not partials(cache)


def test_what_killed_downloads_of_any_client_left_is_removed(hub: Hub, cache: hubs.RepositoryCache) -> None:
    (cache.folder / "blobs").mkdir(parents=True)
    digest = hub.head(NAME).files["model.safetensors"].sha256
    orphans = [
        cache.folder / "blobs" / f"{digest}.0a1b2c3d.incomplete",
        cache.folder / "blobs" / f"{'e' * 64}.incomplete",
    ]
    for path in orphans:
        path.write_bytes(b"half")
    download(hub)
    assert not partials(cache)


@pytest.mark.slow
def test_eight_processes_at_once_share_one_download(hub: Hub, folder: Path, cache: hubs.RepositoryCache) -> None:
    hub.faults = [Fault("slow", WEIGHTS, seconds=0.05)]
    processes = [process(hub) for _ in range(8)]
    found = {running.communicate()[0].strip() for running in processes}
    assert [running.returncode for running in processes] == [0] * 8
    assert len(found) == 1
    assert same(Path(found.pop()), folder)
    digest = hub.head(NAME).files["model.safetensors"].sha256
    assert sum(f"/get/{digest}" in request.line for request in hub.requests) == 1
    assert not partials(cache)


@pytest.mark.parametrize("fault", [None, "xet-read-token"])
def test_over_xet_the_genuine_client_fetches_and_the_hash_is_checked(
    tmp_path: Path, folder: Path, fault: str | None
) -> None:
    with running(tmp_path / "xet", xet=True) as hub:
        script = (
            "import sys, vidweights\n"
            "pinned = vidweights.push(sys.argv[1], sys.argv[2], hub=sys.argv[3])\n"
            "print(vidweights.download(pinned, hub=sys.argv[3]))\n"
        )
        if fault:
            hub.faults = [Fault("status", fault)]
        environment = {**os.environ, "HF_HUB_DISABLE_XET": "0"}
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), NAME, hub.url],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert same(Path(done.stdout.strip()), folder)
        lines = [request.line for request in hub.requests]
        assert any("xet-read-token" in line for line in lines)
        assert not any(line.startswith("GET /get/") for line in lines)


def test_a_block_that_went_bad_in_a_xet_store_is_noticed(tmp_path: Path, folder: Path) -> None:
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "0"}
    push = "import sys, vidweights; vidweights.push(sys.argv[1], sys.argv[2], hub=sys.argv[3])"
    get = (
        "import sys, vidweights\n"
        "try:\n"
        "    vidweights.download(sys.argv[1], hub=sys.argv[2])\n"
        "except vidweights.VidweightsError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    with running(tmp_path / "xet", xet=True) as hub:
        command = [sys.executable, "-c", push, str(folder), NAME, hub.url]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        block = max((hub.root / "cas").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        with block.open("r+b") as file:
            file.seek(block.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        command = [sys.executable, "-c", get, NAME, hub.url]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "IntegrityError" in done.stdout
    assert hubs.RepositoryCache(NAME).find(None) is None


# --- without a network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["VIDWEIGHTS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_nothing_is_asked_and_the_message_says_all(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(switch, "1")
    started = time.monotonic()
    with pytest.raises(hubs.NotHereError) as caught:
        download(hub)
    assert time.monotonic() - started < 0.5
    assert not hub.requests
    for words in (NAME, switch, str(hubs.cache_folder()), hub.url, "--to weights.tar", "--from weights.tar"):
        assert words in str(caught.value)


def test_offline_any_revision_that_is_here_serves_a_name_without_one(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.head(NAME).oid
    found = download(hub, f"{NAME}@{commit}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(hub) == download(hub, f"{NAME}@{commit}") == download(hub, f"{NAME}@{commit[:8]}") == found
    with pytest.raises(hubs.NotHereError, match=f"has {commit[:8]}"):
        download(hub, f"{NAME}@v2")


def test_a_path_that_is_wrong_is_not_taken_for_a_repository(hub: Hub) -> None:
    with pytest.raises(UsageError, match="neither a file or folder here"):
        download(hub, "weights/mine.pt")
    assert not hub.requests
    with pytest.raises(hubs.NotHereError, match="no such file or folder"):
        download(hub, "weights/mine")


def test_a_hub_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_hub, "PAUSES", (9.0,))
    monkeypatch.setenv("HF_ENDPOINT", "http://someone:hidden@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(hubs.NotHereError, match="refused") as caught:
        vidweights.download(NAME)
    assert time.monotonic() - started < 2
    assert "hidden" not in str(caught.value)
