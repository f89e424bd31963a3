"""torchvision beside a CPU-only torch too; use: `from torchvision_cpu import torchvision`."""

from __future__ import annotations

from vidweights_converters.references.images.torchvision_net import torchvision as _imported

torchvision = _imported()

__all__ = ["torchvision"]
