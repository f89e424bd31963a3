"""A torchvision ResNet-50 inflated by another project, with as little around its own function as it allows.

    python benchmarks/peer_inflate.py {timm_3d,acsconv,hassony2,mmaction2} IN.pth OUT.pth [--checkout DIR]

`timm_3d` and `acsconv` are installed (`pip install --no-deps timm_3d==1.0.1 acsconv==0.1.1`). Of the others
`--checkout` is a clone: github.com/hassony2/inflated_convnets_pytorch; github.com/open-mmlab/mmaction2, which needs
mmengine 0.10.7 and mmcv-lite 2.1.0. A peer that cannot be imported makes the exit code 3.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from torchvision_cpu import torchvision  # all four peers import it

__all__ = ["ABSENT", "PEERS", "torchvision"]

State = Mapping[str, Any]
ABSENT = 3


def timm_3d(weights: Path) -> State:
    """Its rule alone, on the state dict; it repeats along the last axis."""
    converted: State = import_module("timm_3d.models._builder").convert_2d_weights_to_3d(
        torch.load(weights), verbose=False
    )
    return converted


def acsconv(weights: Path) -> State:
    """A torchvision model turned 3D in place, strides and all; every kernel is inflated."""

    class BatchNorm3d(torch.nn.BatchNorm3d):
        """It passes on every argument of the constructor by name, and torch has come to have one more."""

        def __init__(
            self, num_features: int, eps: float, momentum: float, affine: bool, track_running_stats: bool
        ) -> None:
            super().__init__(num_features, eps, momentum, affine, track_running_stats)

    torch.nn.BatchNorm3d = BatchNorm3d  # type: ignore[assignment,misc]
    converter = import_module("acsconv.converters").Conv3dConverter
    return dict(converter(_resnet50(weights), i3d_repeat_axis=-3).model.state_dict())


def hassony2(weights: Path) -> State:
    """I3ResNet, which keeps each kernel in the middle."""
    return dict(import_module("src.i3res").I3ResNet(_resnet50(weights)).state_dict())


def mmaction2(weights: Path) -> State:
    """Its ResNet3d, all 3x3 kernels inflated; it has no head."""
    network = import_module("mmaction.models.backbones.resnet3d").ResNet3d
    logger = import_module("mmengine.logging").MMLogger.get_instance("mmaction", log_level="ERROR")
    model = network(50, pretrained=str(weights), inflate_style="3x3x3", inflate=(1, 1, 1, 1), conv1_kernel=(7, 7, 7))
    model.inflate_weights(logger)
    return dict(model.state_dict())


def _resnet50(weights: Path) -> torch.nn.Module:
    model: torch.nn.Module = torchvision.models.resnet50()
    model.load_state_dict(torch.load(weights))
    return model


PEERS = {each.__name__: each for each in (timm_3d, acsconv, hassony2, mmaction2)}


def main() -> None:
    """Read, inflate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkout", type=Path)
    options = parser.parse_args()
    if options.checkout is not None:
        sys.path.insert(0, str(options.checkout))
    try:
        torch.save(PEERS[options.peer](options.weights), options.out)
    except ImportError as error:
        print(f"{options.peer} cannot be imported: {error}", file=sys.stderr)
        sys.exit(ABSENT)


if __name__ == "__main__":
    main()
