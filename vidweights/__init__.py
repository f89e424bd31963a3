"""vidweights: pretrained weights for video networks, ported, proved to match the release, and loaded in three lines.

    import vidweights

    model = vidweights.load("i3d-rgb-scratch-k400")

Importing this package imports no framework; each attribute below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidweights._converters import inflate as inflate
    from vidweights._converters import port as port
    from vidweights._converters import push as push
    from vidweights._converters import validate as validate
    from vidweights.errors import VidweightsError as VidweightsError
    from vidweights.models.inflated import inflate_module as inflate_module
    from vidweights.models.optimize import optimize as optimize
    from vidweights.pretrained import UnvalidatedWarning as UnvalidatedWarning
    from vidweights.pretrained import Weights as Weights
    from vidweights.pretrained import download as download
    from vidweights.pretrained import list_weights as list_weights
    from vidweights.pretrained import load as load
    from vidweights.pretrained import state_dict as state_dict
    from vidweights.pretrained import weights as weights

__version__ = "0.1.0"

_PLACES = {
    "load": "vidweights.pretrained",
    "state_dict": "vidweights.pretrained",
    "list_weights": "vidweights.pretrained",
    "download": "vidweights.pretrained",
    "weights": "vidweights.pretrained",
    "Weights": "vidweights.pretrained",
    "UnvalidatedWarning": "vidweights.pretrained",
    "VidweightsError": "vidweights.errors",
    "optimize": "vidweights.models.optimize",
    "inflate": "vidweights._converters",
    "inflate_module": "vidweights.models.inflated",
    "port": "vidweights._converters",
    "push": "vidweights._converters",
    "validate": "vidweights._converters",
}

__all__ = ["__version__", *_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'vidweights' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
