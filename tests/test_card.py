"""The card: what it states, that the hub reads its metadata, that its code runs, and that an edited one is kept."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import NARROW, canonical, stored, write

import vidweights
from vidweights import catalog, dialects, folder, images
from vidweights.catalog import Release, SourceFile
from vidweights.folder import FolderConfig
from vidweights_converters import card, citation, inflate, licence

RELEASES = catalog.releases()
RELEASE = catalog.get("i3d-flow-imagenet-k400")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished folder of a person's own checkpoint."""
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))
    source = write(tmp_path / "source", "tf", stored(dialects.get("deepmind-rgb"), NARROW, canonical(NARROW)))
    return next(iter(vidweights.port("i3d", weights=source, out=tmp_path / "out", validate=False).values()))


def planned(release: Release, **changes: Any) -> FolderConfig:
    """The configuration of a release's folder, with some of its provenance changed."""
    config = card.planned(release)
    return replace(config, files={"w": "0" * 64}, main="w", release={**(config.release or {}), **changes})


def metadata(text: str) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(text, ignore_metadata_errors=False).data


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


# --- what it states ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_each_release_states_licence_training_input_and_labels_with_their_sources(release: Release) -> None:
    text = card.of_release(release)
    rows = section(text, "Licence").splitlines()
    for what, stated in (
        ("the weights", release.licence),
        ("the code they were released with", release.licence.get("code")),
        ("the training data", release.training.get("licence")),
    ):
        (row,) = (row for row in rows if row.startswith(f"| {what} |"))
        if stated:
            assert f"| {stated['id']} |" in row
            assert citation.link(stated["source"]) in row
        else:
            assert "no statement by the publisher" in row
    assert release.training["data"] in section(text, "What it is")
    assert citation.shown(release.input_source) in section(text, "Input")
    told = section(text, "Labels")
    assert (f"{len(release.labels)} classes" in told) == bool(release.labels)
    names = ("source",) if release.labels else ("source", "note")
    assert all(citation.shown(release.label_source[name]) in told for name in names)
    if release.accuracy:
        assert f"Published by {citation.shown(release.accuracy['published_by'])}" in section(text, "Accuracy")
        assert "It was not measured again here" in section(text, "Accuracy")
    else:
        assert "None published." in section(text, "Accuracy")


def test_nothing_has_a_default() -> None:
    release = RELEASE
    text = card.render(planned(release, licence={}, training={"data": "Sports-1M"}, accuracy={}), None)
    assert section(text, "Licence").count("no statement by the publisher") == 3
    assert "| trained by | not recorded |" in text
    assert "None published." in text
    data = metadata(text).to_dict()
    assert not data.keys() & {"license", "datasets", "model-index", "license_name"}


def test_a_release_whose_file_was_never_seen_says_so_first() -> None:
    release = next(release for release in RELEASES if release.verified == "names only")
    text = card.of_release(release)
    assert text.split(f"# {release.title}\n\n")[1].startswith("**Not yet seen: names and shapes only.**")
    assert f"vidweights port {release.name}" in text
    assert "Validated" not in text
    code = card.of_release(replace(release, verified="code"))
    assert "**Not yet seen.** The port was held to the logits of the released code" in code


def test_an_entry_may_lack_all_but_its_network_and_its_training_data() -> None:
    bare = replace(RELEASE, crc32c={}, accuracy={}, licence={}, copies=(), training={"data": "IG-65M"})
    bare = replace(bare, label_source={}, input={}, input_source="", files=(SourceFile("a.pth"),))
    text = card.of_release(bare)
    assert "no statement by the publisher" in section(text, "Licence")
    assert "IG-65M" in text
    assert "`a.pth` (no SHA-256 is published)" in text
    for title in ("Input", "Labels"):
        assert section(text, title).strip() == "No statement by the publisher."
    assert "torch.rand(1, 2, 16, 224, 224)" in section(text, "Use")
    assert metadata(text).to_dict().keys() == {"library_name", "pipeline_tag", "tags"}


def test_only_one_of_two_rates_may_be_published() -> None:
    accuracy = {"dataset": "Kinetics-400 validation", "top1": 57.5, "published_by": "a/b@1:README.md"}
    config = planned(RELEASE, accuracy=accuracy)
    assert "top-1 57.5 % on Kinetics-400 validation" in card.render(config, None)
    (result,) = metadata(card.render(config, None)).eval_results
    assert result.metric_value == 57.5


def test_the_frames_that_are_asked_for_are_those_of_the_input() -> None:
    fields = {**RELEASE.input, "channels": "rgb", "size": [128, 171], "fps": "native", "stride": 2, "frames": 8}
    text = card.of_release(replace(RELEASE, input=fields))
    assert "the frames of your video, one in 2: (T, H, W, 3), RGB." in text
    assert "(8, 128, 171, 3)" in text
    assert "| height, width | 128, 171 |" in section(text, "Input")
    assert "short side" not in section(text, "Input")


# --- what the hub reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_the_hub_reads_the_metadata(release: Release) -> None:
    data = metadata(card.of_release(release))
    assert data.library_name == "vidweights"
    assert data.pipeline_tag == "video-classification"
    assert data.datasets == (release.training.get("datasets") or None)
    assert data.license == (release.licence["id"].lower() if release.licence else None)
    found = {(one.metric_name, one.metric_value) for one in data.eval_results or ()}
    assert found == {(f"Top-{n}", release.accuracy[f"top{n}"]) for n in (1, 5) if f"top{n}" in release.accuracy}
    for one in data.eval_results or ():
        assert release.accuracy["published_by"] in one.source_name
        assert one.source_url == citation.link(release.accuracy["published_by"])
        assert f"{one.dataset_name} {one.dataset_split}" == release.accuracy["dataset"]
    from huggingface_hub.repocard_data import eval_results_to_model_index

    if data.eval_results:  # what the library would write itself
        written = eval_results_to_model_index(data.model_name, data.eval_results)
        assert data.to_dict()["model-index"] == written


def test_a_licence_that_the_hub_does_not_know_is_other_with_its_name_and_place() -> None:
    own = {"id": "CUHK research licence", "source": "a/b@1:LICENSE"}
    data = metadata(card.render(planned(RELEASE, licence=own), None)).to_dict()
    assert data["license"] == "other"
    assert data["license_name"] == "cuhk-research-licence"
    assert data["license_link"] == "https://github.com/a/b/blob/1/LICENSE"


@pytest.mark.parametrize("odd", ["no", "a: b", "#1", 'quo"te', "- x", "é", "{}", "123", ""])
def test_any_title_is_read_back_as_it_is(odd: str) -> None:
    config = planned(RELEASE, title=odd, training={"data": "x", "datasets": [odd]})
    data = metadata(card.render(config, None))
    assert data.model_name == odd
    assert data.datasets == [odd]


# --- licences ---------------------------------------------------------------------------------------------------------


def test_the_licence_text_is_that_of_the_weights(made: Path) -> None:
    release = catalog.get("i3d-rgb-scratch-k400")
    texts = licence.texts(planned(release))
    ours = Path(__file__).parents[1] / "LICENSE"
    assert texts["LICENSE"] == ours.read_text(encoding="utf-8")
    assert release.repository in texts["NOTICE"]
    assert release.commit in texts["NOTICE"]
    assert citation.link(release.licence["source"]) in texts["NOTICE"]
    assert not (made / "LICENSE").exists()
    assert "No licence of the weights is known" in (made / "NOTICE").read_text()


@pytest.mark.parametrize("name", images.names())
def test_inflated_weights_carry_the_licence_of_their_2d_source(name: str) -> None:
    weights = images.get(name)
    texts = licence.texts(planned(RELEASE, **inflate.provenance(weights)))
    stated = weights.licence
    assert f"Licence of the weights: {stated['id']}" in texts["NOTICE"]
    assert ("LICENSE" in texts) == (stated["id"] != "BSD-3-Clause" or "copyright" in stated)
    assert stated.get("copyright", "") in texts.get("LICENSE", "")


@pytest.mark.parametrize("name", ["MIT", "BSD-3-Clause"])
def test_a_text_that_needs_a_copyright_line_is_not_made_up_without_it(name: str) -> None:
    stated = {"id": name, "source": "a/b@1:LICENSE"}
    texts = licence.texts(planned(RELEASE, licence=stated))
    assert "LICENSE" not in texts
    assert "is not repeated here" in texts["NOTICE"]
    line = "Copyright (c) 2019 Somebody"
    texts = licence.texts(planned(RELEASE, licence={**stated, "copyright": line}))
    assert line in texts["LICENSE"]
    assert "$" not in texts["LICENSE"]


def test_a_licence_without_a_text_of_ours_is_named_with_its_place() -> None:
    texts = licence.texts(planned(RELEASE, licence={"id": "CC-BY-NC-3.0", "source": "a/b@1:LICENSE"}))
    assert "LICENSE" not in texts
    assert "CC-BY-NC-3.0" in texts["NOTICE"]
    assert "https://github.com/a/b/blob/1/LICENSE" in texts["NOTICE"]


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("a/b@1f:LICENSE", "https://github.com/a/b/blob/1f/LICENSE"),
        ("a/b@1f:README.md, other.py", None),
        ("section 3.1 of the paper", None),
        ("https://example.org/a", None),
    ],
)
def test_a_source_is_a_link_only_where_it_is_an_address(source: str, address: str | None) -> None:
    assert citation.link(source) == (address or source)
    assert (f"]({address})" in citation.shown(source)) == (address is not None)


# --- cards that a person edited ---------------------------------------------------------------------------------------


def test_a_card_as_it_was_written_is_renewed_and_an_edited_one_is_kept(made: Path) -> None:
    config = folder.read_config(made)
    text = (made / "README.md").read_text(encoding="utf-8")
    assert text == card.render(config, None)
    assert card.renewed(made, "new") == "new"
    for changed in (text + "A remark.\n", text.replace("# ", "## ", 1), "My own card\n", text.rsplit("<!--", 1)[0]):
        (made / "README.md").write_text(changed, encoding="utf-8")
        assert card.renewed(made, "new") is None
        assert card.renewed(made, "new", overwrite=True) == "new"
    (made / "README.md").write_bytes(text.replace("\n", "\r\n").encode())
    assert card.renewed(made, "new") == "new"  # only the line ends differ


def test_a_port_over_a_folder_keeps_its_edited_card_and_says_so(made: Path, tmp_path: Path) -> None:
    mine = (made / "README.md").read_text(encoding="utf-8") + "\nA remark.\n"
    (made / "README.md").write_text(mine, encoding="utf-8")
    command = [sys.executable, "-m", "vidweights_cli", "port", "i3d", "--weights", str(tmp_path / "source")]
    command += ["--out", str(made.parent), "--no-validate", "--overwrite"]
    shutil.move(made, made.with_name("source"))  # the name that the port gives it
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "edited by hand and is kept" in done.stdout
    assert (made.with_name("source") / "README.md").read_text(encoding="utf-8") == mine


# --- its code ---------------------------------------------------------------------------------------------------------


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code: str, where: Path, environment: Mapping[str, str]) -> str:
    import os

    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=where, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_code_of_a_card_runs_beside_its_folder(made: Path) -> None:
    pytest.importorskip("torch")
    (code,) = blocks((made / "README.md").read_text(encoding="utf-8"))
    assert run(code, made.parent, {}).strip() == f"torch.Size([1, {NARROW.num_classes}])"


def test_frames_of_an_exact_size_and_at_the_rate_of_the_video() -> None:
    release = catalog.get("i3d-rgb-scratch-k400")
    fields = {k: v for k, v in release.input.items() if k != "short_side"}
    made = replace(planned(release), input={**fields, "size": [128, 171], "crop": 112, "fps": "native"})
    text = card.render(made, None)
    assert "the frames of your video: (T, H, W, 3)" in text
    assert "(64, 128, 171, 3)" in text


def test_the_code_of_a_card_in_another_dialect_loads_that_folder_and_no_other(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (other,) = vidweights.port(
        "i3d", weights=made, to="piergiaj", format="torch", out=tmp_path / "to", validate=False
    ).values()
    text = (other / "README.md").read_text(encoding="utf-8")
    assert "safetensors" not in section(text, "Use")
    (code,) = blocks(text)
    assert run(code, other.parent, {}).strip() == f"torch.Size([1, {NARROW.num_classes}])"


def one_of_each_kind() -> list[Release]:
    """The shallowest release of each dialect and kind of input, since their code differs in nothing else."""
    deepest_first = sorted(RELEASES, key=lambda release: -getattr(release.config, "depth", 0))
    return list({(release.dialect, release.input.get("channels")): release for release in deepest_first}.values())


def narrowed(release: Release) -> Any:
    """The configuration of a release, with fewer channels."""
    values = release.config.to_json()
    narrow = {"width": 4, "depth_multiplier": 1 / 32}
    return type(release.config)(**{**values, **{name: n for name, n in narrow.items() if name in values}})


@pytest.mark.parametrize("release", one_of_each_kind(), ids=lambda release: release.name)
def test_the_code_of_a_release_runs_and_prints_five_labels(release: Release, tmp_path: Path) -> None:
    """On a narrow network in the place of the release's own, which has the same input and the same classes."""
    pytest.importorskip("torch")
    dialect, config = dialects.get(release.dialect), narrowed(release)
    source = write(tmp_path / "source", "safetensors", stored(dialect, config, canonical(config)))
    (made,) = vidweights.port(release.family, weights=source, out=tmp_path / "out", validate=False).values()
    (tmp_path / "home" / "weights").mkdir(parents=True)
    made.rename(tmp_path / "home" / "weights" / release.name)
    (code,) = blocks(card.of_release(release))
    lines = run(code, tmp_path, {"VIDWEIGHTS_HOME": str(tmp_path / "home")}).splitlines()
    assert len(lines) == 5
    classes = release.labels or tuple(map(str, range(release.config.num_classes)))
    assert all(line.strip().split("  ", 1)[1] in classes for line in lines)
