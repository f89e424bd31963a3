"""The catalog's entries."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from vidweights import catalog, dialects
from vidweights.catalog import Release
from vidweights.dialects.base import Stored
from vidweights.errors import UsageError
from vidweights.files import git_blob_id_of, sha256_of
from vidweights.formats.table import unmask
from vidweights.formats.tf_bundle import read_index

RELEASES = catalog.releases()


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.name)
def test_labels_are_as_many_as_classes_and_are_the_published_file(release: Release) -> None:
    assert len(release.labels) == release.config.num_classes
    path = Path(catalog.__file__).parent / "labels" / release.label_source["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == release.label_source["sha256"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.name)
def test_the_published_sizes_are_those_of_the_tensors(release: Release) -> None:
    table = dialects.get(release.dialect).table(release.config)
    weights = sum(4 * _count(row.stored_shape) for row in table if isinstance(row.place, Stored))
    data = release.files[1].size
    slots = sum(key.endswith("/Momentum") for key in release.crc32c)
    assert data is not None
    assert data >= weights
    assert (data == weights) == (slots == 0)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.name)
def test_every_release_says_its_licence_and_who_published_its_accuracy(release: Release) -> None:
    assert release.licence["id"]
    assert release.commit[:8] in release.licence["source"]
    assert not release.accuracy or release.accuracy["published_by"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.name)
def test_the_catalog_agrees_with_the_published_index(release: Release, shared: Path) -> None:
    index = shared / "deepmind-i3d" / release.checkpoint / release.files[0].name
    assert sha256_of(index) == release.files[0].sha256
    assert git_blob_id_of(index) == release.files[0].git_blob
    entries = read_index(index).entries
    assert {key.decode(): unmask(entry.crc32c) for key, entry in entries.items()} == release.crc32c
    assert max(entry.offset + entry.size for entry in entries.values()) == release.files[1].size


def test_a_collection_means_all_its_checkpoints_and_one_can_be_chosen() -> None:
    assert len(catalog.select("i3d-tf")) == 5
    assert [r.name for r in catalog.select("i3d-tf", "rgb_scratch")] == ["i3d-rgb-scratch-k400"]
    assert [r.name for r in catalog.select("i3d-flow-scratch-k400")] == ["i3d-flow-scratch-k400"]


@pytest.mark.parametrize(("name", "checkpoint"), [("i3d", None), ("i3d-tf", "rgb_scrath")])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str, checkpoint: str | None) -> None:
    with pytest.raises(UsageError, match="scratch"):
        catalog.select(name, checkpoint)
