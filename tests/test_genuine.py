"""The dialects of 3D ResNets, held to what the code of each release computed with the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from genuine import Network, draw, networks

import vidweights
from vidweights import dialects, plan
from vidweights.clips import noise_clip
from vidweights.formats.base import TensorInfo
from vidweights.layout import Array

DIALECTS = {
    "ig65m-r2plus1d": "vmz",
    "kenshohara-cvpr2018": "kenshohara",
    "kenshohara-resnet": "kenshohara",
    "kenshohara-resnet2p1d": "kenshohara-r2plus1d",
    "mmaction2-i3d": "mmaction2-i3d",
    "mmaction2-r2plus1d": "mmaction2-r2plus1d",
    "mmaction2-slowonly": "mmaction2-slowonly",
    "vmz-caffe2": "vmz-caffe2",
    "vmz-r2plus1d": "vmz",
}


def expected_dialect(network: Network) -> str:
    return DIALECTS[max((start for start in DIALECTS if network.name.startswith(start)), key=len)]


def infos(network: Network) -> dict[str, TensorInfo]:
    """The tensors as they are listed from the file."""
    outer = f"{wrapper}." if (wrapper := network.record["wrapper"]) else ""
    counters = {network._key(key) for key, role, _ in network.record["tensors"] if role == "counter"}
    return {
        outer + key: TensorInfo(outer + key, shape, "int64" if key in counters else "float32")
        for key, shape in network.shapes.items()
    }


def relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def ported(file: Path, tmp_path: Path) -> Any:
    """The network that `load` gives of a ported file, in float64."""
    made = vidweights.port("resnet3d", weights=file, out=tmp_path / "out", validate=False)
    return vidweights.load(next(iter(made.values()))).double()


def run(model: Any, clip: Array) -> Array:
    import torch

    with torch.no_grad():
        found: Array = model(torch.from_numpy(clip).double()).numpy()
    return found


@pytest.mark.parametrize("network", networks("json"), ids=lambda network: network.name)
def test_every_name_of_the_genuine_code_is_known_to_its_dialect(network: Network) -> None:
    planned = plan.make(infos(network), dialects.get("vidweights-resnet3d"))
    assert planned.source.name == expected_dialect(network)
    counters = [key for key, info in infos(network).items() if info.dtype == "int64"]
    assert [key for key, _ in planned.ignored] == counters
    assert len(planned.steps) == len(network.shapes) - len(counters)


def test_the_blobs_of_a_caffe2_release_become_the_tensors_of_the_pytorch_release() -> None:
    blobs, tensors = infos(Network("vmz-caffe2-r2plus1d_152")), infos(Network("vmz-r2plus1d_152"))
    planned = plan.make(blobs, dialects.get("vmz"))
    weights = {key: info.shape for key, info in tensors.items() if info.dtype != "int64"}
    assert {info.key: info.shape for info in planned.outputs} == weights


def test_the_training_blobs_of_a_caffe2_checkpoint_are_left_with_a_reason() -> None:
    weights = infos(Network("vmz-caffe2-r3d_18"))
    names = ("conv1_spatbn_relu_s_momentum", "last_out_L400_b_momentum", "lr", "model_iter")
    extra = {f"blobs.{name}": TensorInfo(f"blobs.{name}", (1,), "float32") for name in names}
    planned = plan.make({**weights, **extra}, dialects.get("vidweights-resnet3d"))
    assert {key for key, _ in planned.ignored} == set(extra)


def test_ig65m_has_the_tensors_of_vmz_but_for_the_classes() -> None:
    one, two = Network("ig65m-r2plus1d_34_8_ig65m").shapes, Network("vmz-r2plus1d_34").shapes
    assert list(one) == list(two)
    assert {key for key in one if one[key] != two[key]} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("network", networks("npz"), ids=lambda network: network.name)
def test_the_genuine_network_tells_two_clips_apart(network: Network) -> None:
    one, two = network.logits
    assert relative(one, two) > 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
@pytest.mark.parametrize("network", networks("npz"), ids=lambda network: network.name)
def test_a_port_computes_what_the_genuine_code_computed(network: Network, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = ported(network.write(tmp_path), tmp_path)
    for clip, logits in zip(network.clips, network.logits):
        assert relative(run(model, clip)[0], logits) < 1e-9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
def test_the_comparison_sees_another_epsilon(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    network = Network("vmz-caffe2-r2d_18_l8")
    model = ported(network.write(tmp_path), tmp_path)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps *= 1.01
    assert relative(run(model, network.clips[0])[0], network.logits[0]) > 1e-6


def _torchvision(name: str) -> Any:
    from torchvision_cpu import torchvision

    return getattr(torchvision.models.video, name)()


def _pytorchvideo(_: str) -> Any:
    pytest.importorskip("pytorchvideo")
    import torchvision_cpu  # noqa: F401  (before the torchvision that pytorchvideo imports)
    from pytorchvideo.models.r2plus1d import create_r2plus1d

    return create_r2plus1d(dropout_rate=0.5, head_activation=None)  # the hub's r2plus1d_r50 before its softmax


Clip = tuple[int, int, int]
SMALL: tuple[Clip, Clip] = ((9, 64, 48), (12, 48, 72))
# The head's windows are 4x7x7: the last map of the smaller clip; the other has two of them.
WINDOWED: tuple[Clip, Clip] = ((13, 193, 193), (14, 193, 225))
LIVE: dict[str, tuple[Callable[[str], Any], str, str, tuple[Clip, Clip]]] = {
    "r3d_18": (_torchvision, "torchvision-video", "", SMALL),
    "mc3_18": (_torchvision, "torchvision-video", "", SMALL),
    "r2plus1d_18": (_torchvision, "torchvision-video", "", SMALL),
    "r2plus1d_r50": (_pytorchvideo, "pytorchvideo-r2plus1d", "model_state", WINDOWED),
}


def calibrate(model: Any, clip: Array) -> Any:
    """Draw the weights of a genuine torch network, and let it take the statistics of its batch norms from a clip."""
    import torch
    from torch import nn

    for name, module in model.named_modules():
        norm = isinstance(module, nn.BatchNorm3d)
        weight = "scale" if norm else "head" if isinstance(module, nn.Linear) else "kernel"
        for leaf, value in module.named_parameters(prefix=name, recurse=False):
            role = weight if leaf.endswith("weight") else "bias"
            value.data = torch.from_numpy(draw(leaf, tuple(value.shape), role, seed=1))
        if norm:
            module.momentum = None  # those of the pass itself
    with torch.no_grad():
        model.train()(torch.from_numpy(clip))
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
@pytest.mark.parametrize("name", LIVE)
def test_a_port_computes_what_the_installed_code_computes(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    build, dialect, wrapper, sizes = LIVE[name]
    clips = [noise_clip(*size, 3, seed) for seed, size in enumerate(sizes)]
    genuine = calibrate(build(name), noise_clip(*sizes[0], 3, seed=2))
    state = genuine.state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / f"{name}-own.pth")
    model = ported(tmp_path / f"{name}-own.pth", tmp_path)
    assert vidweights.folder.read_config(tmp_path / "out" / f"{name}-own").source.dialect == dialect
    expected = [run(genuine.double(), clip) for clip in clips]
    assert relative(*expected) > 0.1
    for clip, logits in zip(clips, expected):
        assert relative(run(model, clip), logits) < 1e-9
