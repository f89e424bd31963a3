"""How long one forward pass takes, ours beside other people's networks.

    python benchmarks/forward.py [--network r2plus1d_18] [--peer hassony2=CHECKOUT] [--peer piergiaj=CHECKOUT]

The 3D ResNets stand beside torchvision's, which must be installed; I3D beside the ports of other people, whose
checkouts (clones of their repositories) are imported and run. All contestants have the same weights and see the same
clip. Each round runs every contestant once, in an order that rotates, and a ratio is taken inside its round: a machine
that slows down for a while slows all of them. The table shows medians over the rounds.
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
from peer_inflate import torchvision
from torch import Tensor, nn

from vidweights import dialects
from vidweights.clips import noise_clip
from vidweights.dialects import Stored
from vidweights.families.i3d import I3DConfig
from vidweights.models.i3d import I3D
from vidweights.models.optimize import optimize
from vidweights.models.resnet3d import ResNet3D

Forward = Callable[[Tensor], Tensor]


# network of torchvision: our variant
RESNETS = {"r3d_18": "r3d", "mc3_18": "mc3", "r2plus1d_18": "r2plus1d"}


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


def _i3d(peers: list[str]) -> dict[str, Forward]:
    model = I3D(I3DConfig()).eval()
    contestants: dict[str, Forward] = {"vidweights": model, "vidweights, optimized": optimize(model)}
    for peer in peers:
        name, _, checkout = peer.partition("=")
        if name not in PEERS or not Path(checkout).is_dir():
            sys.exit(f"--peer {peer}: expected NAME=FOLDER, an existing folder, with NAME one of {', '.join(PEERS)}")
        sys.path.insert(0, checkout)
        contestants[name] = PEERS[name](model)
    return contestants


def _resnet(name: str) -> dict[str, Forward]:
    """Ours with torchvision's seeded weights, whose batch norms then get statistics and parameters of their own."""
    peer = getattr(torchvision.models.video, name)().eval()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.1)
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    dialect = dialects.get("torchvision-video")
    values = {**dialect.settings, "variant": RESNETS[name], "depth": 18, "num_classes": 400}
    model, theirs = ResNet3D(dialect.family.configure(**values)).eval(), peer.state_dict()
    rows = dialect.table(model.config)
    model.load_state_dict({row.tensor.name: theirs[row.place.key] for row in rows if isinstance(row.place, Stored)})
    return {"vidweights": model, "vidweights, optimized": optimize(model), "torchvision": peer}


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
    """Measure and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = ["i3d", *RESNETS]
    parser.add_argument("--network", action="append", choices=networks, help="all of them if not given")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=CHECKOUT", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, help="224 for I3D and 112 for the others if not given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, float32, {options.threads} threads, CPU; medians of {options.rounds} rounds; ")
    print("logits: difference to ours over the largest")
    for network in options.network or networks:
        size = options.size or (224 if network == "i3d" else 112)
        torch.manual_seed(0)
        contestants = _i3d(options.peer) if network == "i3d" else _resnet(network)
        clip = torch.from_numpy(noise_clip(options.frames, size, size, 3, seed=0))
        print(f"\n{network}, 1x3x{options.frames}x{size}x{size}")
        print(_compared(contestants, clip, options.rounds))


def _compared(contestants: dict[str, Forward], clip: Tensor, rounds: int) -> str:
    """The table of one network."""
    with torch.inference_mode():
        logits = {name: forward(clip) for name, forward in contestants.items()}  # also the warm-up
        largest = logits["vidweights"].abs().max()
        differences = {n: float((y - logits["vidweights"]).abs().max() / largest) for n, y in logits.items()}
        return _table(_measure(contestants, clip, rounds), differences)


if __name__ == "__main__":
    main()
