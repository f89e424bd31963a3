"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real checkpoint and the recorded truth, which developers and CI have and users lack."""
    path = Path(os.environ.get("VIDWEIGHTS_SHARED", Path(__file__).parents[2] / "shared"))
    if not (path / "deepmind-i3d").is_dir():
        pytest.skip("no shared folder with the real checkpoint beside this checkout")
    return path.resolve()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks that are too small for threads, which cost much where other work runs beside the tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vidweights_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `vidweights ARGUMENTS` in this process; returns (exit code, stdout, stderr)."""
    from vidweights_cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vidweights", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def alice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A person with a token of the test hub, places of her own, a client that uses LFS, and no time to wait."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, get_session
    from huggingface_hub.utils._http import close_session

    from vidweights import remote_hub

    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "VIDWEIGHTS_OFFLINE", "VIDWEIGHTS_HUB", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_alice_secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(remote_hub, "PAUSES", (0.01, 0.02, 0.02, 0.02))
    monkeypatch.setitem(_http.http_backoff.__kwdefaults__, "base_wait_time", 0.01)  # type: ignore[arg-type]
    get_session()
    yield
    close_session()  # connections to a hub that is gone
