"""How fast an inflation is, and how much memory it takes, beside plain copies and the other projects that inflate.

    python benchmarks/inflate.py [--weights resnet50.pth] [--hassony2 CLONE] [--mmaction2 CLONE] [--runs 5]
                                 [--skip-peers] [--skip-large]

Every figure is a whole process; every ratio comes from runs that took turns. Without --weights torchvision writes a
ResNet-50 with seeded weights. See peer_inflate.py for the peers; those that are not there are skipped by name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peer_inflate import ABSENT, PEERS, torchvision
from processes import Command, in_turn, show

from vidweights import formats

PEER = Path(__file__).with_name("peer_inflate.py")
START = [sys.executable, "-c", "pass"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a ResNet-50 of torchvision")
    parser.add_argument("--hassony2", type=Path, help="a clone of github.com/hassony2/inflated_convnets_pytorch")
    parser.add_argument("--mmaction2", type=Path, help="a clone of github.com/open-mmlab/mmaction2")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--skip-large", action="store_true", help="leave the memory of ResNet-152 out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vidweights-benchmark-") as scratch:
        folder = Path(scratch)
        os.environ["VIDWEIGHTS_HOME"] = str(folder / "home")
        weights = options.weights or written("resnet50", folder)
        beside_cp(folder, weights, options.runs)
        if not options.skip_large:
            memory(folder, options.runs)
        if not options.skip_peers:
            clones = {"hassony2": options.hassony2, "mmaction2": options.mmaction2}
            beside_peers(folder, weights, clones, options.runs)


def written(name: str, folder: Path) -> Path:
    """A file that torchvision wrote, of seeded weights."""
    torch.manual_seed(0)
    path = folder / f"{name}.pth"
    torch.save(getattr(torchvision.models, name)().state_dict(), path)
    return path


def ours(name: str, weights: Path, folder: Path) -> Command:
    """The command line that is measured; it writes into `folder`/inflated."""
    command = [sys.executable, "-m", "vidweights_cli", "inflate", "--no-validate", name]
    return [*command, "--weights", str(weights), "--out", str(folder / "inflated")]


def output(folder: Path) -> Path:
    """The weights that `ours` has written."""
    return next((folder / "inflated").glob("*/model.safetensors"))


def beside_cp(folder: Path, weights: Path, runs: int) -> None:
    """ResNet-50 against cp of the file that is written and the start of an interpreter."""
    command = ours("resnet50", weights, folder)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    copied = output(folder).rename(folder / "copied")
    results = in_turn(
        {
            "vidweights inflate --no-validate resnet50": command,
            "cp of its output to a new file": ["cp", str(copied), str(folder / "new")],
            "cp of its output over an existing file": ["cp", str(copied), str(folder / "existing")],
            "interpreter start (python -c pass)": START,
        },
        runs,
        [folder / "inflated", folder / "new"],
    )
    show(f"{copied.stat().st_size / 1e6:.0f} MB written, whole process, {runs} runs in turn", results)
    inflate, new, existing, start = (each.seconds for each in results.values())
    print(
        f"  {inflate / (existing + start):.2f} times cp over an existing file and interpreter start, "
        f"{inflate / (new + start):.2f} times cp to a new file and interpreter start"
    )


def memory(folder: Path, runs: int) -> None:
    """Anonymous memory of ResNet-152."""
    command = ours("resnet152", written("resnet152", folder), folder)
    results = in_turn({"vidweights inflate --no-validate resnet152": command}, min(runs, 3), [folder / "inflated"])
    with formats.open_checkpoint(output(folder)) as checkpoint:
        largest = max(info.nbytes for info in checkpoint.tensors.values()) / 2**20
    (measured,) = results.values()
    show(f"the largest 3D tensor has {largest:.0f} MiB", results)
    print(f"  memory beyond the largest tensor: {measured.anonymous - largest:.0f} MiB")


def beside_peers(folder: Path, weights: Path, clones: dict[str, Path | None], runs: int) -> None:
    """Each peer reads the same file, inflates it and writes one file."""
    commands = {"vidweights inflate --no-validate resnet50": ours("resnet50", weights, folder)}
    for name in PEERS:
        command = [sys.executable, str(PEER), name, str(weights), str(folder / f"{name}.pth")]
        clone = clones.get(name)
        command += ["--checkout", str(clone)] if clone else []
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode == ABSENT:
            print(f"\nskipped: {tried.stderr.strip().splitlines()[-1]}")
        else:
            commands[name] = command
    outputs = [folder / "inflated", *(folder / f"{name}.pth" for name in PEERS)]
    show(f"ResNet-50, whole process, {runs} runs in turn", in_turn(commands, runs, outputs))


if __name__ == "__main__":
    main()
