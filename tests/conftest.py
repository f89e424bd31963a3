"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
