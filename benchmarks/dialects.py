"""How far our networks are from the genuine code of each release of the R(2+1)D line.

    python benchmarks/dialects.py                  # all; some minutes
    python benchmarks/dialects.py vmz kenshohara   # those whose names begin so

The genuine logits were recorded once (tests/data/genuine, which names the repositories and commits) on weights that
are drawn by a seed, not pretrained, with calibrated batch-norm statistics. Here the same weights are drawn again,
written as a file under the release's names, recognised, and loaded. Differences are the largest, relative to the
largest logit: of our network in float64 and in float32, and of the plain forward that judges ports, in float64.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

import vidweights
from vidweights import formats
from vidweights.dialects import recognise
from vidweights.layout import Array
from vidweights_converters.references.base import HEAD
from vidweights_converters.references.resnet3d import PlainResNet3D

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from genuine import Network, networks


def difference(found: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest of `wanted`."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def row(network: Network, folder: Path) -> list[str]:
    """The figures of one network, the worst of its clips."""
    path = network.write(folder)
    with formats.open_checkpoint(path) as checkpoint:
        found = recognise(checkpoint.tensors)
    plain = PlainResNet3D(path, found.dialect.name, found.prefix)
    worst = {"float64": 0.0, "float32": 0.0, "plain": 0.0}
    for clip, logits in zip(network.clips, network.logits):
        for dtype in (torch.float64, torch.float32):
            with torch.inference_mode():
                ours = vidweights.load(path, dtype=dtype)(torch.from_numpy(clip).to(dtype))[0].double().numpy()
            name = str(dtype).removeprefix("torch.")
            worst[name] = max(worst[name], difference(ours, logits))
        worst["plain"] = max(worst["plain"], difference(plain.endpoints(clip, "float64")[HEAD][0], logits))
    return [network.name, found.dialect.name, *(f"{value:.1e}" for value in worst.values())]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names")
    chosen = tuple(parser.parse_args().names)
    warnings.simplefilter("ignore", vidweights.UnvalidatedWarning)
    print(_columns(["genuine network", "dialect", "float64", "float32", "plain forward"]))
    for network in networks("npz"):
        if not chosen or network.name.startswith(chosen):
            with tempfile.TemporaryDirectory() as scratch:
                print(_columns(row(network, Path(scratch))), flush=True)


def _columns(cells: list[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, (34, 24, 8, 8, 13)))


if __name__ == "__main__":
    main()
