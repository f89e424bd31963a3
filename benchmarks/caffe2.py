"""How fast a pickle of Caffe2 is ported, and how much memory that takes, beside unpickling and `torch.save`.

    python benchmarks/caffe2.py [--weights BLOBS.pkl] [--runs 5]

Every figure is a whole process; every ratio comes from runs that took turns. Without --weights the pickle is made here,
as Python 2 wrote it: an R(2+1)D-34 of VMZ with random weights, 254 MB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import numpy as np
from genuine import write_caffe2
from processes import in_turn, show

from vidweights import dialects
from vidweights.dialects import Stored
from vidweights.families.resnet3d import ResNet3DConfig

HERE = Path(__file__).parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a pickle of blobs that VMZ released")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vidweights-benchmark-") as scratch:
        folder = Path(scratch)
        os.environ["VIDWEIGHTS_HOME"] = str(folder / "home")
        beside_unpickling(folder, options.weights or made(folder), options.runs)


def made(folder: Path) -> Path:
    """A pickle of protocol 2 as cPickle of Python 2 wrote the blobs of Caffe2's workspace."""
    dialect, rng = dialects.get("vmz-caffe2"), np.random.default_rng(0)
    config = dialect.family.configure(**{**dialect.settings, "variant": "r2plus1d", "depth": 34})
    assert isinstance(config, ResNet3DConfig)
    blobs = {
        row.place.key.removeprefix("blobs."): rng.random(row.stored_shape, np.float32)
        for row in dialect.table(config)
        if isinstance(row.place, Stored)
    }
    path = folder / "r2plus1d_34.pkl"
    write_caffe2(path, blobs)
    return path


def beside_unpickling(folder: Path, pickled: Path, runs: int) -> None:
    """One table, and memory beside the size of the file."""
    port = [sys.executable, "-m", "vidweights_cli", "port", "--no-validate", "resnet3d"]
    commands = {
        "vidweights port --no-validate": [*port, "--weights", str(pickled), "--out", str(folder / "ported")],
        "unpickle, torch.save": [sys.executable, str(HERE / "unpickle.py"), str(pickled), str(folder / "saved.pt")],
        "import torch (part of the row above)": [sys.executable, "-c", "import torch"],
        "cp": ["cp", str(pickled), str(folder / "copied")],
    }
    results = in_turn(commands, runs, [folder / name for name in ("ported", "saved.pt", "copied")])
    size = pickled.stat().st_size
    show(f"{size / 1e6:.0f} MB pickle, whole process, {runs} runs in turn", results)
    ours, unpickled, imported, _ = results.values()
    print(
        f"  {ours.seconds / unpickled.seconds:.2f} of unpickle and torch.save, "
        f"{ours.seconds / (unpickled.seconds - imported.seconds):.2f} of them without the import of torch; "
        f"anonymous memory {ours.anonymous * 2**20 / size:.2f} of the file, "
        f"theirs {unpickled.anonymous * 2**20 / size:.2f}"
    )


if __name__ == "__main__":
    main()
