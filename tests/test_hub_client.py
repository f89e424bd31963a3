"""The test hub, held to what the genuine client does with it: every kind of transfer, and what the hub refuses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub, running

# The client reads its environment when it is imported, so each way of transfer has a process of its own.
CLIENT = """
import hashlib, sys
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()
data = bytes(range(256)) * 4096
name = "acme/net"
def additions():
    return [CommitOperationAdd("README.md", b"---\\nlicense: mit\\n---\\n# net\\n"),
            CommitOperationAdd("config.json", b"{}"), CommitOperationAdd("model.safetensors", "big")]
open("big", "wb").write(data)
assert api.whoami()["name"] == "alice"
api.create_repo(name), api.create_repo(name, exist_ok=True)
first = api.model_info(name).sha
done = api.create_commit(name, additions(), commit_message="one", parent_commit=first)
assert api.model_info(name).sha == done.oid != first
assert api.create_commit(name, additions(), commit_message="again").oid == done.oid
try:
    api.create_commit(name, [CommitOperationAdd("a", b"a")], commit_message="stale", parent_commit=first)
except HfHubHTTPError as error:
    assert error.response.status_code == 412
else:
    raise AssertionError("a stale parent was taken")
sha256 = hashlib.sha256(data).hexdigest()
files = {file.rfilename: file for file in api.model_info(name, files_metadata=True).siblings}
assert files["model.safetensors"].lfs.sha256 == sha256 and files["config.json"].blob_id
assert api.get_paths_info(name, ["model.safetensors"])[0].lfs.sha256 == sha256
assert {file.path for file in api.list_repo_tree(name)} == {*files}
got = open(hf_hub_download(name, "model.safetensors"), "rb").read()
assert got == data
assert open(hf_hub_download(name, "config.json")).read() == "{}"
pull = api.create_commit(name, [CommitOperationAdd("b.txt", b"b")], commit_message="b", create_pr=True)
assert pull.pr_revision == "refs/pr/1"
assert open(hf_hub_download(name, "b.txt", revision=pull.pr_revision)).read() == "b"
assert len(api.list_repo_refs(name, include_pull_requests=True).pull_requests) == 1
try:
    HfApi(token="hf_bob_secret").create_commit(name, additions(), commit_message="not his")
except HfHubHTTPError as error:
    assert error.response.status_code == 403
else:
    raise AssertionError("another user's token was taken")
"""


@pytest.fixture(params=["lfs", "parts", "xet"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    parts = 300_000 if request.param == "parts" else None
    with running(tmp_path / "hub", xet=request.param == "xet", part_size=parts) as hub:
        yield hub


def test_the_genuine_client_commits_lists_and_downloads(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_alice_secret",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "" if hub.xet else "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [request.line for request in hub.requests]
    storage = [request for request in hub.requests if request.server == "storage"]
    assert not any("authorization" in request.headers for request in storage)
    assert not any(line.startswith("TOKEN") for line in lines)
    assert any("xet-write-token" in line for line in lines) == bool(hub.xet)
    puts = [request.line for request in storage if request.line.startswith("PUT")]
    assert len(puts) == (0 if hub.xet else 4 if hub.part_size else 1)
    sha256 = hashlib.sha256(bytes(range(256)) * 4096).hexdigest()
    assert hub.head("acme/net").files["model.safetensors"].sha256 == sha256
