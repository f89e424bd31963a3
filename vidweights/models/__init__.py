"""Torch models, one file per family. Importing this package imports no framework; building a model imports torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vidweights.errors import UnavailableError

if TYPE_CHECKING:
    from torch import nn

# family: (module, class)
_MODELS = {
    "i3d": ("vidweights.models.i3d", "I3D"),
    "s3d": ("vidweights.models.i3d", "I3D"),
    "resnet3d": ("vidweights.models.resnet3d", "ResNet3D"),
}


def build(family: str, config: Any, **options: Any) -> nn.Module:
    """The torch model of a family, with weights as its constructor leaves them.

    Args:
        family: `i3d`, ...
        config: the family's configuration.
        options: keyword arguments of the model (`dropout`, `head_pool`, ...).

    Raises:
        UnavailableError: torch is not installed.
    """
    module, name = _MODELS[family]
    try:
        model = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UnavailableError("building a network needs torch: pip install 'vidweights[torch]'") from error
    built: nn.Module = model(config, **options)
    return built
