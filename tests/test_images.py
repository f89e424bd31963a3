"""The catalog of 2D ImageNet weights, compared with what the libraries that publish them say."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vidweights import catalog, images
from vidweights.clips import Preprocessing
from vidweights.errors import UsageError

DIALECTS = {
    "resnet": {"torchvision-resnet", "keras-resnet", "slim-resnet"},
    "inception": {"torchvision-googlenet", "slim-inception"},
}
TORCHVISION = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V1",
    "resnet152": "ResNet152_Weights.IMAGENET1K_V1",
    "resnet50-v2": "ResNet50_Weights.IMAGENET1K_V2",
    "resnet101-v2": "ResNet101_Weights.IMAGENET1K_V2",
    "resnet152-v2": "ResNet152_Weights.IMAGENET1K_V2",
    "googlenet": "GoogLeNet_Weights.IMAGENET1K_V1",
}


@pytest.fixture(scope="module")
def torchvision() -> Any:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    from torchvision_cpu import torchvision

    return torchvision


@pytest.mark.parametrize("name", images.names())
def test_every_entry_is_whole(name: str) -> None:
    weights = images.get(name)
    assert weights.name == name
    assert weights.dialect in DIALECTS[weights.family]
    assert (weights.depth in {18, 34, 50, 101, 152}) == (weights.family == "resnet")
    assert str(weights.depth or "") in name
    assert weights.hub or any(file.url for file in weights.files)
    assert {"id", "source", "note", "code"} == set(weights.licence) - {"copyright"}
    assert {"dataset", "published_by", "top1", "top5"} == set(weights.accuracy)
    assert 50 < weights.accuracy["top1"] < weights.accuracy["top5"] < 100
    assert set(weights.input) < {field.name for field in fields(Preprocessing)}
    Preprocessing(**weights.input)
    assert len(weights.labels) == weights.num_classes == len(set(weights.labels))


@pytest.mark.parametrize("name", images.names())
def test_a_hash_in_a_file_name_is_the_hash_that_is_checked(name: str) -> None:
    for file in images.get(name).files:
        in_name = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
        assert file.url is None or file.url.endswith(f"/{file.name}")
        assert file.url is None or file.url.startswith("https://")
        assert (in_name[1] if in_name else None) == file.sha256 or file.member


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_publishes_the_same(name: str, torchvision: Any) -> None:
    weights, theirs = images.get(name), torchvision.models.get_weight(TORCHVISION[name])
    metrics = theirs.meta["_metrics"]["ImageNet-1K"]
    transforms = theirs.transforms()
    assert weights.files[0].url == theirs.url
    assert weights.files[0].mib == theirs.meta["_file_size"]
    assert (weights.accuracy["top1"], weights.accuracy["top5"]) == (metrics["acc@1"], metrics["acc@5"])
    assert weights.labels == tuple(theirs.meta["categories"])
    assert [weights.input["crop"]] == transforms.crop_size
    assert [weights.input["short_side"]] == transforms.resize_size
    assert list(weights.input["mean"]) == transforms.mean
    assert list(weights.input["std"]) == transforms.std


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_keras_publishes_the_same(depth: int) -> None:
    resnet = pytest.importorskip("keras.src.applications.resnet")
    (file,) = images.get(f"keras-resnet{depth}").files
    assert file.md5 == resnet.WEIGHTS_HASHES[f"resnet{depth}"][0]
    assert file.url == f"{resnet.BASE_WEIGHTS_PATH}resnet{depth}_weights_tf_dim_ordering_tf_kernels.h5"


@pytest.mark.parametrize("name", [name for name in images.names() if (images.get(name).hub or "").startswith("timm/")])
def test_timm_publishes_the_same(name: str, torchvision: Any) -> None:
    pytest.importorskip("timm")
    from timm.models import get_pretrained_cfg

    weights = images.get(name)
    assert weights.hub is not None
    theirs = get_pretrained_cfg(weights.hub.removeprefix("timm/"))
    assert theirs is not None
    assert theirs.num_classes == weights.num_classes
    assert theirs.mean == weights.input["mean"]
    assert theirs.std == weights.input["std"]
    assert (theirs.license or "").lower() == weights.licence["id"].lower()
    if name == weights.hub:
        assert theirs.input_size[-1] == weights.input["crop"]
        assert int(theirs.input_size[-1] / theirs.crop_pct) == weights.input["short_side"]
        assert theirs.interpolation == weights.resize
    else:  # the two publish the same file
        assert theirs.url == weights.files[0].url


def test_the_label_file_is_the_recorded_one() -> None:
    source = images.get("resnet18").label_source
    path = Path(catalog.__file__).parent / "labels" / source["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == source["sha256"]


def test_the_background_class_of_tf_slim_comes_first() -> None:
    labels = images.get("slim-inception-v1").labels
    assert labels[0] == "background"
    assert labels[1:] == images.get("resnet18").labels


def test_image_weights_are_no_releases() -> None:
    assert not set(images.names()) & set(catalog.names())
    assert "images" not in catalog.names()


def test_a_hub_repository_is_found_by_its_own_name() -> None:
    assert images.get("timm/resnet18.tv_in1k") is images.get("resnet18")


def test_an_unknown_name_is_answered_with_those_close_to_it() -> None:
    with pytest.raises(UsageError, match="'resnet51'; close to it are: resnet50"):
        images.get("resnet51")
    with pytest.raises(UsageError, match=r"there are: resnet18, .*slim-inception-v1, and 38 of timm"):
        images.get("vgg")
