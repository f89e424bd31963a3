"""How far every inflated network is from its 2D source, for each source, target and method.

    python benchmarks/equality.py                      # all that is installed; half an hour
    python benchmarks/equality.py resnet18 googlenet   # these

The source files are written by the genuine libraries (torchvision, timm, keras.applications), TF-slim's from the
variables that the tests keep of it. None is pretrained: affine parameters are random, and batch-norm statistics
calibrated by train-mode passes over noise. The 2D side is the genuine network where there is one, the 3D side the file
on disk, loaded again. Differences are the largest, relative to the largest logit: of every output frame of a still
clip, and of noise where the method promises that, in float64; then in float32; then what the rounding of W/N makes of
the logits; then what zeros in time make of them (16 frames).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import vidweights
from vidweights import formats
from vidweights.formats.base import TensorInfo
from vidweights.inflation import TARGETS, Options
from vidweights_converters import equality, inflate, stills
from vidweights_converters.equality_run import Runner
from vidweights_converters.references.images import choose, importable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def calibrate(module: nn.Module, size: int = 96) -> nn.Module:
    """Random affine parameters, and statistics of noise of different contrast and colour."""
    torch.manual_seed(0)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.momentum = None  # the plain mean of all passes
            norm.reset_running_stats()
        module.train()
        for _ in range(4):
            module(torch.randn(4, 3, size, size + 16) * torch.rand(4, 1, 1, 1) * 2 + torch.randn(4, 3, 1, 1) / 2)
    return module.eval()


def of_torchvision(name: str, folder: Path) -> Path:
    """A file that torchvision's own module and torch.save wrote."""
    from torchvision_cpu import torchvision

    options = {"init_weights": False, "transform_input": False} if name == "googlenet" else {}
    path = folder / f"{name}.pth"
    torch.save(calibrate(getattr(torchvision.models, name)(**options)).state_dict(), path)
    return path


def of_timm(name: str, folder: Path) -> Path:
    """A safetensors file of timm's own module."""
    from torchvision_cpu import torchvision  # noqa: F401  (timm imports it, which works once this has)

    import timm  # isort: skip
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    save_file(calibrate(timm.create_model(name.removeprefix("timm-"), pretrained=False)).state_dict(), path)
    return path


def of_keras(name: str, folder: Path) -> Path:
    """A file that keras.applications' own network wrote."""
    import keras

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, f"ResNet{name.removeprefix('keras-resnet')}")(weights=None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
            layer.momentum = 0.5
    for _ in range(6):
        contrast, colour = rng.uniform(0, 200, (4, 1, 1, 1)), rng.normal(0, 50, (4, 1, 1, 3))
        model(rng.normal(size=(4, 224, 224, 3)) * contrast + colour, training=True)
    path = folder / f"{name}.h5"
    model.save(path)
    return path


def of_slim(name: str, folder: Path) -> Path:
    """The variables of genuine TF-slim networks (tests/slim.py), as a TensorFlow bundle."""
    import slim

    arrays = slim.variables({"slim-resnet50": "resnet_v1_50", "slim-inception-v1": "inception_v1"}[name])
    writer_type = formats.writer("tf")
    outputs = writer_type.order(TensorInfo(key, a.shape, a.dtype.name) for key, a in arrays.items())
    writer = writer_type(folder / writer_type.file_name, outputs)
    for info in outputs:
        writer.write(info.key, arrays[info.key])
    return folder / next(iter(writer.finish()))


Write = Callable[[str, Path], Path]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SOURCES: dict[str, tuple[str, Write]] = {
    **dict.fromkeys(RESNETS, ("resnet", of_torchvision)),
    **{f"timm-{name}": ("resnet", of_timm) for name in ("resnet18", "resnet50")},
    **{f"keras-resnet{depth}": ("resnet", of_keras) for depth in (50, 101, 152)},
    "slim-resnet50": ("resnet", of_slim),
    "googlenet": ("inception", of_torchvision),
    "slim-inception-v1": ("inception", of_slim),
}


def combinations(family: str) -> Iterator[Options]:
    """Every target and method of a 2D family, the released planes of R(2+1)D among them."""
    for into, (target, _) in TARGETS.items():
        if (target == "resnet3d") != (family == "resnet"):
            continue
        for method in ("mean", "exact") if into in ("r2plus1d", "s3d") else ("mean", "center"):
            yield Options(into=into, method=method)
    if family == "resnet":
        yield Options(into="r2plus1d", method="exact", planes="block", stem_planes=45)


def row(path: Path, family: str, options: Options, folder: Path) -> list[str]:
    """The figures of one inflation."""
    wanted = inflate.request(family, weights=path, options=options, out=folder, validate=False, overwrite=True)
    made = inflate.inflate(wanted)
    planned = made.plan
    dialect = planned.source.dialect.name
    references, _ = importable(choose(path, dialect, planned.source.prefix)[0])
    promise = equality.promise_of(planned)
    noise = stills.noise(3, dialect)[:1] if promise in ("equal on any clip", "exact", "exact (bounded)") else ()
    short, network = (loaded(wanted.folder, dtype) for dtype in (torch.float32, torch.float64))
    runner = Runner(network, planned, "logits", stills.images(3, dialect)[:1], noise, fits={})
    judge = references[0]
    outputs = runner.wanted(judge)
    compared = runner.compare(judge, outputs, runner.ours(lambda _: None), short)
    worst: dict[bool, float] = {}
    for clip in compared.clips:
        worst[clip.inputs is None] = max(clip.worst, worst.get(clip.inputs is None, 0.0))
    zero = runner.zero_padding(outputs)[0].clip
    figures = [worst[True], worst.get(False), compared.float32, compared.unadjusted, zero]
    planes = " planes as torchvision" if options.planes == "block" else ""
    shown = [f"{figure:.1e}" if figure is not None else "-" for figure in figures]
    return [f"{options.into}{planes}", options.method, promise, judge.name, *shown]


def loaded(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The network on disk, as anybody loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vidweights.UnvalidatedWarning)
        return vidweights.load(folder, dtype=dtype)


def main() -> None:
    """Print one table for each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=[], help=", ".join(SOURCES))
    chosen = parser.parse_args().sources or list(SOURCES)
    unknown = [name for name in chosen if name not in SOURCES]
    if unknown:
        parser.error(f"no source is called {', '.join(unknown)}; there are: {', '.join(SOURCES)}")
    headings = ["target", "method", "promise", "2D side", "still", "noise", "float32", "rounding", "zeros"]
    for name in chosen:
        family, write = SOURCES[name]
        print(f"\n{name}\n{'':2}" + _columns(headings))
        with tempfile.TemporaryDirectory() as scratch:
            path = write(name, Path(scratch))
            for options in combinations(family):
                print(f"{'':2}" + _columns(row(path, family, options, Path(scratch) / "out")), flush=True)


def _columns(cells: list[str]) -> str:
    widths = (34, 7, 20, 20, 8, 8, 8, 8, 8)
    return " ".join(cell.ljust(width) for cell, width in zip(cells, widths))


if __name__ == "__main__":
    main()
