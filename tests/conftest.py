"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real checkpoint and the recorded truth, which developers and CI have and users lack."""
    path = Path(os.environ.get("VIDWEIGHTS_SHARED", Path(__file__).parents[2] / "shared"))
    if not (path / "deepmind-i3d").is_dir():
        pytest.skip("no shared folder with the real checkpoint beside this checkout")
    return path.resolve()
