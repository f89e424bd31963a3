"""Independent executions of a 2D ImageNet source, and which of them can judge a file."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from vidweights.errors import UnavailableError
from vidweights_converters.references.base import Absent
from vidweights_converters.references.images.base import Adjust, ImageOutputs, ImageReference, Images, Precision
from vidweights_converters.references.images.functional import FunctionalNet
from vidweights_converters.references.images.keras_net import KerasNet, lacks, stored_shapes
from vidweights_converters.references.images.timm_net import TimmNet
from vidweights_converters.references.images.torchvision_net import TorchvisionNet

__all__ = [
    "Absent",
    "Adjust",
    "ImageOutputs",
    "ImageReference",
    "Images",
    "Precision",
    "choose",
    "importable",
]

Choice = tuple[tuple[ImageReference, ...], tuple[Absent, ...]]

# What each reference imports, and what pip installs for it.
_NEEDS = {
    TorchvisionNet.name: (("torch", "torchvision"), "torchvision"),
    TimmNet.name: (("torch", "torchvision", "timm"), "timm"),
    KerasNet.name: (("tensorflow", "keras"), "'vidweights[tensorflow]'"),
    FunctionalNet.name: (("torch",), "'vidweights[torch]'"),
}
_LIBRARIES = {
    "torchvision-resnet": (TorchvisionNet.name, TimmNet.name),
    "torchvision-googlenet": (TorchvisionNet.name,),
    "keras-resnet": (KerasNet.name,),
    "keras-resnet-probs": (KerasNet.name,),
    "slim-resnet": (),
    "slim-inception": (),
}


def choose(path: Path, dialect: str, prefix: str = "") -> Choice:
    """The references that can judge a 2D source, and those that cannot, each with the reason. Imports no framework.

    The plain forward is always among the first where torch is installed, and the only one for TF-slim, whose own
    graphs need TensorFlow 1.

    Args:
        path: the source file (for a TensorFlow bundle its `.index`).
        dialect: `torchvision-resnet` (timm's files too), `torchvision-googlenet`, `keras-resnet`,
            `keras-resnet-probs`, `slim-resnet` or `slim-inception`.
        prefix: what stands before every key of the network in the file (`module.`, `resnet_v1_50/`), or nothing.
    """
    found: list[ImageReference] = []
    absent: list[Absent] = []
    for name in (*_LIBRARIES[dialect], FunctionalNet.name):
        verdict = _missing(name) or _made(name, path, dialect, prefix)
        if isinstance(verdict, str):
            absent.append(Absent(name, verdict))
        else:
            found.append(verdict)
    return tuple(found), tuple(absent)


def importable(references: Iterable[ImageReference]) -> Choice:
    """Those references whose libraries can be imported, and those that are installed and cannot; imports them."""
    found: list[ImageReference] = []
    absent: list[Absent] = []
    for reference in references:
        try:
            reference.version  # noqa: B018
            found.append(reference)
        except UnavailableError as error:
            absent.append(Absent(reference.name, str(error)))
    return tuple(found), tuple(absent)


def _missing(name: str) -> str | None:
    packages, install = _NEEDS[name]
    lacking = [package for package in packages if find_spec(package) is None]
    return f"{', '.join(lacking)} not installed: pip install {install}" if lacking else None


def _made(name: str, path: Path, dialect: str, prefix: str) -> ImageReference | str:
    if name == KerasNet.name:
        return lacks(stored_shapes(path, prefix)) or KerasNet(path, prefix)
    if name == TimmNet.name:
        return TimmNet(path, prefix)
    return (TorchvisionNet if name == TorchvisionNet.name else FunctionalNet)(path, dialect, prefix)
