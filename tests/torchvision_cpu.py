"""torchvision beside a CPU-only torch, where its compiled operators cannot be loaded.

Its Python code needs two of their schemas to be declared before it is imported; they are declared here only if the
operators themselves are absent. Use: `from torchvision_cpu import torchvision`.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

import torch


def _operators_are_there() -> bool:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    for library in Path(spec.origin).parent.glob("_C*.so"):
        with suppress(OSError):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    return hasattr(torch.ops.torchvision, "nms")


if not _operators_are_there():
    _LIBRARY = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # held, or they go
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]

import torchvision  # noqa: E402

__all__ = ["torchvision"]
