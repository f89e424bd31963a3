"""How long one forward pass of I3D takes, ours beside other people's ports.

    python benchmarks/forward.py --peer hassony2=CHECKOUT --peer piergiaj=CHECKOUT

A checkout is a clone of the peer's repository; its code is imported and run. All contestants have the same weights
and see the same clip. Each round runs every contestant once, in an order that rotates, and a ratio is taken inside
its round: a machine that slows down for a while slows all of them. The table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vidweights import dialects
from vidweights.clips import noise_clip
from vidweights.dialects import Stored
from vidweights.families.i3d import I3DConfig
from vidweights.models.i3d import I3D
from vidweights.models.optimize import optimize

Forward = Callable[[Tensor], Tensor]


def _weights(model: I3D, dialect: str, peer: nn.Module) -> None:
    """Give the peer our weights, under its own names."""
    ours, theirs = model.state_dict(), peer.state_dict()
    for row in dialects.get(dialect).table(model.config):
        if isinstance(row.place, Stored):
            theirs[row.place.key] = ours[row.tensor.name]
    peer.load_state_dict(theirs)


def _hassony2(model: I3D) -> Forward:
    peer = importlib.import_module("src.i3dpt").I3D(num_classes=400, modality="rgb").eval()
    _weights(model, "hassony2", peer)
    return lambda clip: peer(clip)[1]


def _piergiaj(model: I3D) -> Forward:
    peer = importlib.import_module("pytorch_i3d").InceptionI3d(400, in_channels=3).eval()
    _weights(model, "piergiaj", peer)
    return lambda clip: peer(clip).mean(2)


PEERS: dict[str, Callable[[I3D], Forward]] = {"hassony2": _hassony2, "piergiaj": _piergiaj}


def _contestants(peers: list[str]) -> dict[str, Forward]:
    model = I3D(I3DConfig()).eval()
    contestants: dict[str, Forward] = {"vidweights": model, "vidweights, optimized": optimize(model)}
    for peer in peers:
        name, _, checkout = peer.partition("=")
        if name not in PEERS or not Path(checkout).is_dir():
            sys.exit(f"--peer {peer}: expected NAME=FOLDER, an existing folder, with NAME one of {', '.join(PEERS)}")
        sys.path.insert(0, checkout)
        contestants[name] = PEERS[name](model)
    return contestants


def _measure(contestants: dict[str, Forward], clip: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contestants[name](clip)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _table(seconds: dict[str, list[float]], differences: dict[str, float]) -> str:
    """One line for each contestant: median time, median ratio to each of the others, difference of the logits."""
    lines = [f"{'':24}{'ms':>8}  {'logits':>9}" + "".join(f"{'/ ' + name:>24}" for name in seconds)]
    for name, own in seconds.items():
        ratios = [statistics.median(a / b for a, b in zip(own, other)) for other in seconds.values()]
        lines.append(
            f"{name:24}{1e3 * statistics.median(own):8.0f}  {differences[name]:9.1e}"
            + "".join(f"{ratio:24.3f}" for ratio in ratios)
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=CHECKOUT", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clip = torch.from_numpy(noise_clip(options.frames, options.size, options.size, 3, seed=0))
    with torch.inference_mode():
        contestants = _contestants(options.peer)
        logits = {name: forward(clip) for name, forward in contestants.items()}  # also the warm-up
        largest = logits["vidweights"].abs().max()
        differences = {n: float((y - logits["vidweights"]).abs().max() / largest) for n, y in logits.items()}
        seconds = _measure(contestants, clip, options.rounds)
    print(f"I3D, 1x3x{options.frames}x{options.size}x{options.size}, float32, {options.threads} threads, CPU")
    print(f"torch {torch.__version__}; medians of {options.rounds} rounds; logits: difference to ours over the largest")
    print(_table(seconds, differences))


if __name__ == "__main__":
    main()
