"""A push and a download of a 500 MB package on loopback, beside the bare client and one SHA-256 pass; and `load`.

    python benchmarks/hub_speed.py [--runs 3] [--megabytes 500] [--xet]

Every figure is a whole process, and the processes take turns; the test hub runs in one of its own. Only weights are
moved by the bare client, and each run moves all of them: the caches, and what the hub stored, are removed before.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from packages import package
from processes import in_turn, show

import vidweights
from vidweights.families.i3d import I3DConfig

TESTS = Path(__file__).parents[1] / "tests"
NAME = "acme/net"
SHA256 = """
import hashlib
def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
"""
BARE_DOWNLOAD = f"""{SHA256}
import os, sys
from huggingface_hub import hf_hub_download
for name in sys.argv[1:]:
    path = hf_hub_download("{NAME}", name)
    assert os.path.getsize(path) < 10_000_000 or sha256(path)
"""
BARE_PUSH = f"""{SHA256}
import secrets, sys
from huggingface_hub import CommitOperationAdd, HfApi
api, repo = HfApi(), "acme/" + secrets.token_hex(8)
folder, *names = sys.argv[1:]
sha256(folder + "/model.safetensors")
api.create_repo(repo)
api.create_commit(repo, [CommitOperationAdd(name, folder + "/" + name) for name in names], commit_message="x")
"""
PUSH = """
import secrets, sys, vidweights
vidweights.push(sys.argv[1], "acme/" + secrets.token_hex(8))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--xet", action="store_true", help="over Xet; over LFS if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vidweights-benchmark-") as scratch, served(Path(scratch), options.xet):
        root = Path(scratch)
        network = I3DConfig(num_classes=7, depth_multiplier=round(64 * math.sqrt(options.megabytes / 50)) / 64)
        folder = package(root / "net", network=network)
        names = ["config.json", "model.safetensors", "labels.txt", "validation.json", "README.md", "kernels.png"]
        size = sum((folder / name).stat().st_size for name in names)
        python = [sys.executable, "-c"]
        title = f"{size / 1e6:.0f} MB over {'Xet' if options.xet else 'LFS'}, {options.runs} runs in turn"
        stored = [root / "hub" / "cas"] if options.xet else list_of_stored(root, folder)
        pushes = {
            "bare client: create_commit, one SHA-256 pass": [*python, BARE_PUSH, str(folder), *names],
            "vidweights push": [*python, PUSH, str(folder)],
        }
        show(f"push of {title}", in_turn(pushes, options.runs, stored))
        vidweights.push(folder, NAME)
        downloads = {
            "bare client: hf_hub_download, one SHA-256 pass": [*python, BARE_DOWNLOAD, *names],
            "vidweights download": [*python, "import sys, vidweights; vidweights.download(sys.argv[1])", NAME],
        }
        show(f"download of {title}", in_turn(downloads, options.runs, [root / "hf", root / "home"]))
        loads(folder)


def loads(folder: Path) -> None:
    """`load` in this process, after the first verification, beside the least that loading can be."""
    import torch
    from safetensors.torch import load_file

    from vidweights import models
    from vidweights.folder import read_config

    config = read_config(folder)
    pinned = f"{NAME}@{vidweights.download(NAME).name}"

    def least() -> None:
        with torch.device("meta"):
            model = models.build(config.family, config.config)
        model.load_state_dict(load_file(folder / config.main), strict=True, assign=True)
        model.eval()

    calls: dict[str, Callable[[], object]] = {
        "load_file, meta build, assign": least,
        "load(folder)": lambda: vidweights.load(folder),
        "load(org/name@commit), no question asked": lambda: vidweights.load(pinned),
        "load(org/name), the hub is asked for main": lambda: vidweights.load(NAME),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(16):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first ones verify
    print("\nload, 15 runs in turn")
    for name, median in medians.items():
        print(f"  {name:44} {median * 1e3:7.1f} ms {median / next(iter(medians.values())):7.2f}")


def list_of_stored(root: Path, folder: Path) -> list[Path]:
    """Where the hub stores the weights, by their hash."""
    from vidweights.files import sha256_of

    return [root / "hub" / "lfs" / sha256_of(folder / "model.safetensors")]


@contextmanager
def served(root: Path, xet: bool) -> Iterator[None]:
    """A hub in a process of its own, and an environment that names it."""
    command = [sys.executable, str(TESTS / "hub.py"), "--root", str(root / "hub"), *(["--xet"] if xet else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        os.environ |= {
            "HF_ENDPOINT": hub.stdout.readline().strip(),
            "HF_TOKEN": "hf_alice_secret",
            "HF_HOME": str(root / "hf"),
            "VIDWEIGHTS_HOME": str(root / "home"),
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        try:
            yield
        finally:
            hub.terminate()


if __name__ == "__main__":
    main()
