"""timm's own ResNet on a file under torchvision's names, which are timm's too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidweights.errors import UnavailableError
from vidweights_converters.references.images.base import Adjust, ImageOutputs, Images, Precision
from vidweights_converters.references.images.module import depths, run_module
from vidweights_converters.references.images.source import read
from vidweights_converters.references.images.torchvision_net import torchvision


class TimmNet:
    """A ResNet of any depth. timm is imported on first use."""

    name = "timm"

    def __init__(self, path: Path, prefix: str) -> None:
        self.path, self.prefix = path, prefix

    @property
    def version(self) -> str:
        """The versions of timm and torch. Raises UnavailableError when timm cannot be imported."""
        import torch

        return f"timm {_timm().__version__}, torch {torch.__version__}"

    def outputs(self, images: Images, precision: Precision, adjust: Adjust | None = None) -> ImageOutputs:
        """See `ImageReference.outputs`."""
        import torch

        resnet = _timm().models.resnet
        tensors = read(self.path, "torchvision-resnet", self.prefix, adjust)
        block = resnet.Bottleneck if "layer1.0.conv3.weight" in tensors else resnet.BasicBlock
        with torch.device("meta"):
            net = resnet.ResNet(block, depths(tensors))
        return run_module(net, self.path, tensors, images, precision)


def _timm() -> Any:
    """timm, which imports torchvision."""
    torchvision()
    try:
        import timm
    except Exception as error:
        raise UnavailableError(
            f"timm is installed and cannot be imported ({error}); install it again: pip install -U timm."
        ) from error
    return timm
