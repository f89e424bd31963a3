"""A release by its catalog name: made here, published, or made from its source; the same bytes each way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub import Hub, running
from networks import canonical, stored, write
from packages import package

import vidweights
from vidweights import catalog, dialects, folder, home, identity
from vidweights.catalog import Release, SourceFile
from vidweights.errors import IntegrityError, UnavailableError
from vidweights.families.i3d import I3DConfig
from vidweights.files import git_blob_id_of
from vidweights.hub import NotHereError, RepositoryCache, opened
from vidweights_converters import publish

pytestmark = pytest.mark.usefixtures("alice")
NAME = "i3d-rgb-scratch-k400"
REPOSITORY = f"vidweights/{NAME}"
CONFIG = I3DConfig(num_classes=400, depth_multiplier=1 / 32)


@pytest.fixture
def release(alice: None, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A narrow release in place of the catalog's, whose source files are on this machine."""
    dialect = dialects.get("deepmind-rgb")
    arrays = stored(dialect, CONFIG, canonical(CONFIG))
    source = home.source_folder(NAME)
    write(source, "tf", arrays)
    files = tuple(
        SourceFile(path.name, path.stat().st_size, git_blob_id_of(path))
        for path in sorted(source.iterdir(), reverse=True)
    )
    sums = {key: identity.crc32c(array) for key, array in arrays.items()}
    made = replace(catalog.get(NAME), config=CONFIG, files=files, copies=(), crc32c=sums, weights_sha256=None)
    plain = catalog.get
    monkeypatch.setattr(catalog, "get", lambda name: made if name == NAME else plain(name))
    return made


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "hub") as hub:
        yield hub


def published(made: Path, hub: Hub) -> str:
    """Push a folder, with a report that says it passed, under the release's name; returns the commit."""
    config = folder.read_config(made)
    report = {"passed": True, "weights_sha256": dict(config.files), "failures": []}
    (made / "validation.json").write_text(json.dumps(report))
    return publish.push(publish.plan(made, REPOSITORY, opened(hub.url))).commit


@pytest.mark.usefixtures("release")
def test_what_no_hub_has_is_made_only_if_asked_for(hub: Hub) -> None:
    with pytest.raises(NotHereError, match=r"load\('i3d-rgb-scratch-k400', build=True\)"):
        vidweights.download(NAME, hub=hub.url)
    assert not home.weights_folder(NAME).exists()
    made = vidweights.download(NAME, hub=hub.url, build=True)
    assert made == home.weights_folder(NAME) == vidweights.download(NAME)
    assert folder.validation_state(made, folder.read_config(made)) == "unvalidated"


@pytest.mark.usefixtures("release")
def test_what_is_published_is_what_the_recipe_makes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = vidweights.download(NAME, hub=hub.url, build=True)
    commit = published(made, hub)
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "another home"))
    found = vidweights.download(NAME, hub=hub.url, build=True)
    assert found == RepositoryCache(REPOSITORY).snapshot(commit)
    for name in ("model.safetensors", "config.json", "labels.txt"):
        assert (found / name).read_bytes() == (made / name).read_bytes()
    assert vidweights.weights(NAME).state == "passed"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert vidweights.download(NAME) == found


@pytest.mark.usefixtures("release")
def test_something_else_under_the_name_of_a_release_is_refused(hub: Hub, tmp_path: Path) -> None:
    published(package(tmp_path / NAME, seed=5, network=CONFIG), hub)
    with pytest.raises(IntegrityError, match=f"published as {NAME} and is not it"):
        vidweights.state_dict(NAME, framework="numpy", hub=hub.url)


def test_the_catalog_s_own_hash_stands_where_it_has_one(
    release: Release, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = vidweights.download(NAME, hub=hub.url, build=True)
    published(made, hub)
    sha256 = folder.read_config(made).files["model.safetensors"]
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "another home"))
    for known, right in ((sha256, True), ("0" * 64, False)):
        pinned = replace(release, weights_sha256=known)
        monkeypatch.setattr(catalog, "get", lambda name, pinned=pinned: pinned)
        if right:
            assert vidweights.download(NAME, hub=hub.url)
        else:
            with pytest.raises(IntegrityError, match="the catalog has 0000"):
                vidweights.download(NAME, hub=hub.url)


def test_where_neither_a_hub_nor_the_source_can_be_had_both_are_told(
    release: Release, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in home.source_folder(NAME).iterdir():
        path.unlink()
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    with pytest.raises(UnavailableError, match=release.files[0].name):
        vidweights.download(NAME, hub=hub.url, build=True)
