"""torchvision's own ResNets and GoogLeNet on a file under its names."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vidweights.errors import UnavailableError
from vidweights_converters.references.images.base import Adjust, ImageOutputs, Images, Precision
from vidweights_converters.references.images.module import depths, run_module
from vidweights_converters.references.images.source import Tensors, read

# torchvision/transforms/_presets.py: what ImageClassification subtracts and divides by.
_MEAN = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
_DEVIATION = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)

_declared: list[Any] = []  # a torch.library.Library takes its schemas with it when it goes


class TorchvisionNet:
    """A ResNet of any depth, or GoogLeNet. torchvision is imported on first use."""

    name = "torchvision"

    def __init__(self, path: Path, dialect: str, prefix: str) -> None:
        self.path, self.dialect, self.prefix = path, dialect, prefix

    @property
    def version(self) -> str:
        """The versions of torchvision and torch. Raises UnavailableError when torchvision cannot be imported."""
        return f"torchvision {torchvision().__version__}, torch {sys.modules['torch'].__version__}"

    def outputs(self, images: Images, precision: Precision, adjust: Adjust | None = None) -> ImageOutputs:
        """See `ImageReference.outputs`."""
        models = torchvision().models
        tensors = read(self.path, self.dialect, self.prefix, adjust)
        if self.dialect == "torchvision-resnet":
            return run_module(_resnet(models.resnet, tensors), self.path, tensors, images, precision)
        # The auxiliary classifiers take part in training only.
        tensors = {key: array for key, array in tensors.items() if not key.startswith("aux")}
        is_rgb = images.shape[1] == 3
        net = _googlenet(models, transform_input=is_rgb)
        # The release expects normalised images and brings them to [-1, 1] itself.
        images = ((images + 1) / 2 - _MEAN) / _DEVIATION if is_rgb else images
        return run_module(net, self.path, tensors, images, precision)


def _resnet(module: Any, tensors: Tensors) -> Any:
    import torch

    block = module.Bottleneck if "layer1.0.conv3.weight" in tensors else module.BasicBlock
    with torch.device("meta"):
        return module.ResNet(block, depths(tensors))


def _googlenet(module: Any, transform_input: bool) -> Any:
    import torch

    with torch.device("meta"):
        return module.GoogLeNet(aux_logits=False, transform_input=transform_input, init_weights=False)


def torchvision() -> Any:
    """torchvision, which is imported here.

    Its wheels on PyPI are built for CUDA. Beside a CPU-only torch their compiled operators do not load; torchvision
    does without them, except that its `_meta_registrations.py` wants the schemas of two, nms and qnms. Those are
    declared, without an implementation, if and only if the operators are absent.

    Raises:
        UnavailableError: it cannot be imported.
    """
    if "torchvision" not in sys.modules:
        _declare_operators()
    try:
        import torchvision
    except Exception as error:  # a torchvision of another torch fails in its own ways
        raise UnavailableError(
            f"torchvision is installed and cannot be imported ({error}); install the one made for your torch, "
            "see pytorch.org/get-started."
        ) from error
    return torchvision


def _declare_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    for file in (file for folder in folders for file in Path(folder).glob("_C*.so")):
        with suppress(OSError):
            torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _declared.append(library)
