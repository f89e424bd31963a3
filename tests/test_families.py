"""The families' canonical tensors, beside what the genuine libraries create."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import InMemory, canonical, stored

from vidweights import dialects
from vidweights.dialects import recognise
from vidweights.dialects.base import Stored
from vidweights.errors import UsageError
from vidweights.families import FAMILIES
from vidweights.families.base import Tensor
from vidweights.families.i3d import I3DConfig, InceptionConfig, S3DConfig
from vidweights.families.resnet import ResNetConfig
from vidweights.families.resnet3d import VARIANTS, Block3D, ResNet3DConfig, layers, middle_planes
from vidweights.formats.base import TensorInfo

torch = pytest.importorskip("torch")

from torchvision_cpu import torchvision  # noqa: E402

from vidweights import models  # noqa: E402

SLIM = json.loads((Path(__file__).parent / "data" / "slim_names.json").read_text())


def table(dialect: str, config: Any) -> dict[str, tuple[int, ...]]:
    rows = dialects.get(dialect).table(config)
    return {row.place.key: row.stored_shape for row in rows if isinstance(row.place, Stored)}


def on_meta(make: Any, **options: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = make(**options).state_dict()
    return {key: tuple(t.shape) for key, t in state.items() if not key.endswith("num_batches_tracked")}


def parameters(tensors: tuple[Tensor, ...]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors if "running" not in tensor.name)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_a_resnet_has_the_tensors_that_torchvision_creates(depth: int) -> None:
    genuine = on_meta(getattr(torchvision.models, f"resnet{depth}"), num_classes=10)
    assert table("torchvision-resnet", ResNetConfig(depth=depth, num_classes=10)) == genuine


def test_googlenet_has_the_tensors_that_torchvision_creates() -> None:
    genuine = on_meta(torchvision.models.googlenet, num_classes=10, init_weights=False)
    ignored = dialects.get("torchvision-googlenet").reason_to_ignore
    assert table("torchvision-googlenet", InceptionConfig(num_classes=10, padding="symmetric")) == {
        key: shape for key, shape in genuine.items() if not ignored(key)
    }
    assert {key.split(".")[0] for key in genuine if ignored(key)} == {"aux1", "aux2"}


@pytest.mark.parametrize("name", ["resnet_v1_50", "resnet_v1_101", "resnet_v1_152", "inception_v1"])
def test_the_slim_namings_are_those_that_slim_creates(name: str) -> None:
    genuine = {key: tuple(shape) for key, shape in SLIM[name].items()}
    found = recognise({key: TensorInfo(key, shape, "float32") for key, shape in genuine.items()})
    ours = {found.prefix + key: shape for key, shape in table(found.dialect.name, found.config).items()}
    assert ours == {key: shape for key, shape in genuine.items() if key in ours}
    assert set(genuine) - set(ours) <= {"global_step"}
    assert found.dialect.name == ("slim-inception" if name == "inception_v1" else "slim-resnet")


@pytest.mark.slow
@pytest.mark.parametrize("depth", [50, 101, 152])
def test_a_keras_resnet_has_the_tensors_that_keras_creates(depth: int) -> None:
    keras = pytest.importorskip("keras")
    model = getattr(keras.applications, f"ResNet{depth}")(weights=None, classes=10)
    genuine = {v.path: tuple(v.shape) for v in model.weights}
    config = ResNetConfig(depth, num_classes=10, **dialects.get("keras-resnet").settings)
    assert table("keras-resnet", config) == genuine


def test_the_r3d_line_has_the_parameters_that_torchvision_has() -> None:
    """Torchvision's three video ResNets, their kernels and their numbers of parameters."""
    video = torchvision.models.video
    for make, values, count in (
        (video.r3d_18, {"variant": "r3d"}, 33_371_472),
        (video.mc3_18, {"variant": "mc3"}, 11_695_440),
        (video.r2plus1d_18, {"variant": "r2plus1d", "planes": "block", "stem_planes": 45}, 31_505_325),
    ):
        tensors = FAMILIES["resnet3d"].tensors(ResNet3DConfig(18, num_classes=400, **values))
        assert parameters(tensors) == count
        assert Counter(t.shape for t in tensors) == Counter(on_meta(make).values())


def test_s3d_has_the_tensors_that_torchvision_has() -> None:
    tensors = FAMILIES["s3d"].tensors(S3DConfig())
    assert [t.shape for t in tensors] == list(on_meta(torchvision.models.video.s3d).values())


def test_the_papers_planes_keep_the_parameters_of_the_whole_kernel() -> None:
    """Section 3.5 of arXiv 1711.11248; 83 planes in the stem, 288 between 128 and 128 channels."""
    assert (middle_planes(3, 64, 3, 7), middle_planes(128, 128, 3, 3)) == (83, 288)
    whole = parameters(FAMILIES["resnet3d"].tensors(ResNet3DConfig(18, variant="r3d")))
    pairs = parameters(FAMILIES["resnet3d"].tensors(ResNet3DConfig(18, variant="r2plus1d")))
    assert abs(pairs / whole - 1) < 1e-3


def kernels(config: ResNet3DConfig) -> list[list[int]]:
    """The length in time of the first kernel of each block, group by group."""
    groups: dict[str, list[int]] = {}
    for layer in layers(config):
        if isinstance(layer, Block3D):
            groups.setdefault(layer.name.split(".")[0], []).append(layer.units[0].kernel[0])
    return list(groups.values())


def test_the_non_local_line_inflates_the_first_kernel_of_alternating_blocks() -> None:
    """`obtain_arc(2)` of facebookresearch/video-nonlocal-net@c253ed5: 1 stands for a kernel of 3 frames."""
    arc = [[1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0, 1, 0], [0, 1, 0]]
    assert kernels(ResNet3DConfig(50, variant="i3d-resnet-nl")) == [[1 + 2 * n for n in group] for group in arc]


@pytest.mark.parametrize(
    ("variant", "stem", "every_3x3"),
    [
        ("i3d-resnet", 7, 3),
        ("i3d-resnet-nl", 5, 1),
        ("r3d", 3, 3),
        ("mc3", 3, None),
        ("rmc3", 1, None),
        ("f-r2d", 1, 1),
    ],
)
def test_how_long_the_kernels_of_a_variant_are_in_time(variant: str, stem: int, every_3x3: int | None) -> None:
    """Their sources are named in `vidweights.families.resnet3d`; the mixed ones have both lengths."""
    shapes = [t.shape for t in FAMILIES["resnet3d"].tensors(ResNet3DConfig(50, variant=variant)) if t.layout == "OIDHW"]
    assert shapes[0][2:] == (stem, 7, 7)
    assert {shape[2] for shape in shapes if shape[3] == 3} == ({every_3x3} if every_3x3 else {1, 3})
    alone = {shape[2] for shape in shapes if shape[3] == 1}
    assert alone == ({1, 3} if variant == "i3d-resnet-nl" else {1})


@pytest.mark.parametrize("x", [2, 3, 4, 5])
def test_mixed_convolutions_are_3d_below_the_group_and_the_reversed_ones_from_it_on(x: int) -> None:
    below = [[3 if group < x else 1] * 2 for group in (2, 3, 4, 5)]
    assert kernels(ResNet3DConfig(18, variant=f"mc{x}")) == below
    assert kernels(ResNet3DConfig(18, variant=f"rmc{x}")) == [[4 - t for t in group] for group in below]


NARROW: dict[str, Any] = {"num_classes": 3, "width": 4}
CODES: tuple[tuple[int, dict[str, Any]], ...] = (
    (18, {}),
    (50, {"stride_on": "last", "pool_padding": "same"}),
    (50, {"stride_on": "1x1", "conv_bias": True, "num_classes": 0}),
)
CONFIGS = [
    ResNet3DConfig(**{**NARROW, "depth": depth, "variant": variant, **values})
    for variant in VARIANTS
    for depth, values in CODES
] + [ResNet3DConfig(**{**NARROW, "depth": 34, "variant": "r2plus1d", "planes": "block", "stem_planes": 5})]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.variant}-{c.depth}-{c.stride_on}-{c.planes}")
def test_the_model_has_exactly_the_canonical_tensors_and_a_file_tells_its_configuration(config: ResNet3DConfig) -> None:
    expected = {t.name: t.shape for t in FAMILIES["resnet3d"].tensors(config)}
    assert on_meta(lambda: models.build("resnet3d", config)) == expected
    native = dialects.native("resnet3d")
    found = recognise(InMemory(stored(native, config, canonical(config))).tensors).config
    variant = {"i3d-resnet-mm": "i3d-resnet-nl"}.get(config.variant, config.variant)  # the same tensors
    told = replace(config, stride_on="3x3", pool_padding="symmetric", planes=found.planes, variant=variant)
    assert found == told
    assert FAMILIES["resnet3d"].tensors(found) == FAMILIES["resnet3d"].tensors(config)


@pytest.mark.parametrize("config", [I3DConfig(2, 0, 1 / 16), S3DConfig(3, 5, 1 / 16)], ids=str)
def test_i3d_and_s3d_have_exactly_their_canonical_tensors(config: I3DConfig) -> None:
    family = "s3d" if config.separable else "i3d"
    expected = {t.name: t.shape for t in FAMILIES[family].tensors(config)}
    assert on_meta(lambda: models.build(family, config)) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"depth": 20},
        {"depth": 18, "stride_on": "1x1"},
        {"in_channels": 0},
        {"width": 0},
        {"pool_padding": "valid"},
        {"conv_bias": 1},
        {"batch_norm_epsilon": 0.0},
    ],
    ids=str,
)
def test_an_impossible_resnet_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected a depth of 10, 18, 26, 34"):
        ResNetConfig(**values)


@pytest.mark.parametrize(
    "values",
    [{"variant": "r4d"}, {"time_padding": "mirror"}, {"stem_planes": 0}, {"stem_planes": "45"}, {"stem_pool": "no"}],
    ids=str,
)
def test_an_impossible_3d_resnet_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected a variant of i3d-resnet"):
        ResNet3DConfig(**values)
