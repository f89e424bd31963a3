"""The catalog's entries, and finding them."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from genuine import Network

from vidweights import catalog, dialects
from vidweights.catalog import Release
from vidweights.clips import Preprocessing
from vidweights.dialects.base import Stored
from vidweights.errors import UsageError
from vidweights.families.resnet3d import RESNET3D, named
from vidweights.files import git_blob_id_of, sha256_of
from vidweights.formats.table import unmask
from vidweights.formats.tf_bundle import read_index
from vidweights.preprocessing import CHANNELS

RELEASES = catalog.releases()
I3D = [release for release in RELEASES if release.collection == "i3d-tf"]
RESNETS = [release for release in RELEASES if release.family == RESNET3D.name]
each = pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.name)
each_resnet = pytest.mark.parametrize("release", RESNETS, ids=lambda r: r.name)

# --- what an entry says ----------------------------------------------------------------------------------------------


@each
def test_labels_are_as_many_as_classes_and_are_the_published_file(release: Release) -> None:
    if "file" not in release.label_source:
        assert release.labels == ()
        assert set(release.label_source) == {"source", "note"}
        return
    assert len(release.labels) == len(set(release.labels)) == release.config.num_classes
    path = Path(catalog.__file__).parent / "labels" / release.label_source["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == release.label_source["sha256"]


@each
def test_every_release_says_its_licence_its_training_and_who_published_its_accuracy(release: Release) -> None:
    assert release.licence["id"]
    assert release.licence["note"]
    assert {"id", "source"} <= release.licence["code"].keys()
    assert {"data", "by", "source"} <= release.training.keys()
    if release.accuracy:
        assert {"dataset", "published_by"} <= release.accuracy.keys()
        figures = [value for name, value in release.accuracy.items() if isinstance(value, float)]
        assert figures
        assert all(1 < figure < 100 for figure in figures)
    if {"top1", "top5"} <= release.accuracy.keys():
        assert release.accuracy["top1"] < release.accuracy["top5"]


@each
def test_the_input_is_a_preprocessing_that_fits_the_network(release: Release) -> None:
    preprocessing = Preprocessing.from_json(release.input)
    assert CHANNELS[preprocessing.channels] == release.config.in_channels
    assert release.input_source
    if getattr(release.config, "frames", None):
        assert preprocessing.frames == release.config.frames


@each
def test_the_dialect_holds_the_network(release: Release) -> None:
    assert dialects.get(release.dialect).family.name == release.family
    assert dialects.get(release.dialect).differing(release.config) == {}


CITATION = re.compile(r"[\w.-]+/[\w.-]+@(?:[0-9a-f]{8,40}|v\d+\.\d+\.\d+):[^\s:@]+")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from strings(one)


@each
def test_every_citation_is_an_owner_a_repository_a_commit_and_a_path(release: Release) -> None:
    told = (release.input_source, release.verified_by or "", release.label_source, release.licence, release.training)
    words = [
        word
        for text in strings({str(n): one for n, one in enumerate((*told, release.accuracy))})
        for word in text.split()
    ]
    cited = [word.strip("().,;") for word in words if "@" in word]
    assert len(cited) > 3
    assert [word for word in cited if not CITATION.fullmatch(word)] == []
    assert re.fullmatch("[0-9a-f]{40}", release.commit)
    assert release.repository.startswith("https://github.com/")


@each
def test_every_file_has_a_place_and_what_is_known_of_its_bytes_is_well_formed(release: Release) -> None:
    for file in release.files:
        assert release.url_of(file).startswith("https://")
        assert " " not in release.url_of(file)
        assert re.fullmatch("[0-9a-f]{8}", file.sha256_begins or "0" * 8)
        assert file.sha256_begins is None or file.name.split(".")[0].endswith(file.sha256_begins)
        assert "drive.google.com" not in release.url or release.manual


def test_no_file_is_two_releases() -> None:
    count = Counter(release.url_of(file) for release in RELEASES if not release.manual for file in release.files)
    assert [url for url, times in count.items() if times > 1] == []


# --- names -----------------------------------------------------------------------------------------------------------

WHO = {
    "torchvision-video": ("torchvision",),
    "ig65m": ("ig65m",),
    "vmz-caffe2": ("vmz",),
    "vmz": ("vmz-torch",),
    "pytorchvideo": ("pytorchvideo", "pysf"),
    "mmaction2-r2plus1d": ("mmaction2",),
    "mmaction2-slowonly": ("mmaction2",),
    "mmaction2-i3d": ("mmaction2",),
    "kenshohara": ("kenshohara",),
    "kenshohara-2018": ("kenshohara2018",),
}
# {what a name calls the last data set: its classes}; IG-65M has two sets of them.
CLASSES = {
    "k400": (400,), "k700": (700,), "k710": (710,), "ig65m": (359, 487), "sports1m": (487,),
    "k700_mit": (1039,), "k700_mit_stair": (1139,), "k700_stair": (800,), "mit": (339,), "mit_stair": (439,),
    "stair": (100,),
}  # fmt: skip
OWN_NAMES = {"slowonly": "slowonly", "i3d_r50": "i3d-resnet-mm_50"}


def parts(release: Release) -> tuple[str, list[str]]:
    """The network, and what follows the publisher."""
    (who,) = (who for who in WHO[release.collection] if f"-{who}-" in release.name)
    network, _, rest = release.name.partition(f"-{who}-")
    return network, rest.split("-")


@each_resnet
def test_the_parts_of_a_name_are_those_of_the_configuration(release: Release) -> None:
    network, rest = parts(release)
    assert named(OWN_NAMES.get(network, network)) == {"variant": release.config.variant, "depth": release.config.depth}
    data = [part for part in rest if part in CLASSES]
    assert release.config.num_classes in CLASSES[data[-1]]
    assert ("flow" in rest) == (release.input["channels"] == "flow")
    assert ("imagenet" in rest) == ("ImageNet" in release.training["data"])
    lengths = [part for part in rest if part[0].isdigit()]
    for length in lengths:
        frames, stride = length.removesuffix("f"), None
        if "x" in length:
            frames, stride = length.split("x")
            assert int(stride) == release.input["stride"]
        assert int(frames) == release.input["frames"]
    assert set(rest) <= {*data, "flow", "imagenet", "dense", *lengths}
    if len(data) > 1 or "imagenet" in rest:  # it was trained on one after the other, and the title says so
        assert ", then " in release.title
        assert ", then " in release.training["data"]


@pytest.mark.parametrize("collection", catalog.collections())
def test_the_checkpoints_of_a_collection_have_different_names(collection: str) -> None:
    checkpoints = [release.checkpoint for release in catalog.select(collection)]
    assert len(set(checkpoints)) == len(checkpoints)


def test_the_readme_has_every_collection_and_the_number_of_its_releases() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for collection, count in Counter(release.collection for release in RESNETS).items():
        told = re.findall(rf"`{collection}` \((\d+)\)", readme)
        assert sum(map(int, told)) == count, collection


# --- the genuine code ------------------------------------------------------------------------------------------------

# {(dialect, variant, depth, channels, the length that its clips must have): the record}
RECORDED: dict[tuple[str, str, int, int, int | None], str] = {
    ("vmz", "r2plus1d", 34, 3, None): "vmz-r2plus1d_34",
    ("vmz", "r2plus1d", 152, 3, None): "vmz-r2plus1d_152",
    **{("vmz-caffe2", f"{x}mc{n}", 18, 3, None): f"vmz-caffe2-{x}mc{n}_18" for x in ("", "r") for n in (2, 3, 4, 5)},
    ("vmz-caffe2", "r2d", 18, 3, 8): "vmz-caffe2-r2d_18_l8",
    ("vmz-caffe2", "r2d", 18, 3, 16): "vmz-caffe2-r2d_18_l16",
    ("vmz-caffe2", "f-r2d", 18, 3, None): "vmz-caffe2-r2df_18",
    ("vmz-caffe2", "r3d", 18, 3, None): "vmz-caffe2-r3d_18",
    ("vmz-caffe2", "r2plus1d", 18, 3, None): "vmz-caffe2-r2plus1d_18",
    ("vmz-caffe2", "r2plus1d", 34, 2, None): "vmz-caffe2-r2plus1d_34_flow",
    ("vmz-caffe2", "r2plus1d", 152, 3, None): "vmz-caffe2-r2plus1d_152",
    ("mmaction2-r2plus1d", "r2plus1d", 34, 3, None): "mmaction2-r2plus1d_r34",
    ("mmaction2-slowonly", "slowonly", 50, 3, None): "mmaction2-slowonly_r50",
    ("mmaction2-i3d", "i3d-resnet-mm", 50, 3, None): "mmaction2-i3d_r50",
    ("kenshohara", "r3d", 18, 3, None): "kenshohara-resnet18",
    ("kenshohara", "r3d", 50, 3, None): "kenshohara-resnet50",
    ("kenshohara", "r3d", 200, 3, None): "kenshohara-resnet200",
}  # fmt: skip
ZEROS = {18: "kenshohara-cvpr2018-resnet18-a", 34: "kenshohara-cvpr2018-resnet34-a"}


def recorded(release: Release) -> str | None:
    """The network of `data/genuine` that has the layers of a release."""
    config = release.config
    if config.shortcut == "zeros":
        return ZEROS[config.depth]
    return RECORDED.get((release.dialect, config.variant, config.depth, config.in_channels, config.frames))


@pytest.mark.parametrize("release", [r for r in RESNETS if recorded(r)], ids=lambda r: r.name)
def test_the_tensors_of_a_release_are_those_that_its_own_code_makes(release: Release) -> None:
    network = Network(str(recorded(release)))
    outer = "blobs." if release.dialect == "vmz-caffe2" else ""
    shapes = {
        outer + key: tuple(shape) for key, role, shape in network.record["tensors"] if role != "counter"
    }  # as the code itself calls them, without the prefix of a file
    heads = [shape for key, shape in shapes.items() if len(shape) == 2]
    classes = heads[0][0]  # the record may have the head of another data set
    config = replace(release.config, num_classes=classes)
    table = dialects.get(release.dialect).table(config)
    assert {row.place.key: row.stored_shape for row in table if isinstance(row.place, Stored)} == shapes


def test_the_networks_whose_very_layers_were_not_recorded_are_known() -> None:
    """Their dialect was held to its code at another depth; those of torchvision and pytorchvideo run in the tests."""
    alone = {(r.dialect, r.config.variant, r.config.depth) for r in RESNETS if not recorded(r)}
    assert alone == {
        *(("torchvision-video", variant, 18) for variant in ("r3d", "mc3", "r2plus1d")),
        ("pytorchvideo-r2plus1d", "r2plus1d", 50),
        ("mmaction2-slowonly", "slowonly", 101),
        ("vmz-caffe2", "r2plus1d", 34),
        *(("kenshohara", "r3d", depth) for depth in (34, 101, 152)),
    }


@each
def test_what_stands_behind_a_claim_is_said(release: Release) -> None:
    if release.family == RESNET3D.name:
        assert release.verified_by
        assert (release.verified == "names only") == (release.dialect == "vmz-caffe2" and release.config.depth == 152)


@each_resnet
def test_published_sizes_in_mebibytes_are_those_of_the_tensors(release: Release) -> None:
    for file in release.files:
        if file.mib is not None:
            tensors = dialects.get(release.dialect).family.tensors(release.config)
            assert file.mib * 2**20 == pytest.approx(sum(4 * math.prod(t.shape) for t in tensors), rel=2e-3)


# --- DeepMind's index ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", I3D, ids=lambda r: r.name)
def test_the_published_sizes_are_those_of_the_tensors(release: Release) -> None:
    table = dialects.get(release.dialect).table(release.config)
    weights = sum(4 * math.prod(row.stored_shape) for row in table if isinstance(row.place, Stored))
    data = release.files[1].size
    slots = sum(key.endswith("/Momentum") for key in release.crc32c)
    assert data is not None
    assert data >= weights
    assert (data == weights) == (slots == 0)


@pytest.mark.parametrize("release", I3D, ids=lambda r: r.name)
def test_the_catalog_agrees_with_the_published_index(release: Release, shared: Path) -> None:
    index = shared / "deepmind-i3d" / release.checkpoint / release.files[0].name
    assert sha256_of(index) == release.files[0].sha256
    assert git_blob_id_of(index) == release.files[0].git_blob
    entries = read_index(index).entries
    assert {key.decode(): unmask(entry.crc32c) for key, entry in entries.items()} == release.crc32c
    assert max(entry.offset + entry.size for entry in entries.values()) == release.files[1].size


# --- finding entries -------------------------------------------------------------------------------------------------


def test_a_collection_means_all_its_checkpoints_and_one_can_be_chosen() -> None:
    assert len(catalog.select("i3d-tf")) == 5
    assert [r.name for r in catalog.select("i3d-tf", "rgb_scratch")] == ["i3d-rgb-scratch-k400"]
    assert [r.name for r in catalog.select("i3d-flow-scratch-k400")] == ["i3d-flow-scratch-k400"]
    assert [r.name for r in catalog.select("torchvision-video", "mc3_18")] == ["mc3_18-torchvision-k400"]


@pytest.mark.parametrize(
    ("name", "checkpoint", "answer"),
    [
        ("i3d", None, "i3d-rgb-scratch-k400"),
        ("i3d-tf", "rgb_scrath", "rgb_scratch"),
        ("r2plus1d_18-torchvison-k400", None, "r2plus1d_18-torchvision-k400"),
        ("nothing of the kind", None, "i3d-tf, ig65m"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_are_near(name: str, checkpoint: str | None, answer: str) -> None:
    with pytest.raises(UsageError, match=answer) as caught:
        catalog.select(name, checkpoint)
    assert len(str(caught.value)) < 600
    if checkpoint is None:
        with pytest.raises(UsageError, match=answer):
            catalog.get(name)


def test_a_row_adds_to_what_its_collection_shares_or_overrides_it_table_by_table() -> None:
    shared = {"a": 1, "table": {"x": 1, "inner": {"y": 1, "z": 1}}, "list": [1, 2]}
    row = {"table": {"inner": {"y": 2}, "w": 3}, "list": [3], "b": 2}
    found = catalog.merged(shared, row)
    assert found == {"a": 1, "table": {"x": 1, "inner": {"y": 2, "z": 1}, "w": 3}, "list": [3], "b": 2}
    assert shared["table"] == {"x": 1, "inner": {"y": 1, "z": 1}}


def test_names_are_those_of_the_entries_and_no_file_is_parsed_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [release.name for release in RELEASES] == list(catalog.names()) == sorted(catalog.names())
    catalog._places.cache_clear()
    monkeypatch.setattr("vidweights.catalog.read_toml", pytest.fail)
    assert list(catalog.names()) == [release.name for release in RELEASES]


def fastest(call: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        catalog._places.cache_clear()
        catalog._collection.cache_clear()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_the_catalog_is_read_in_a_moment() -> None:
    assert fastest(catalog.names) < 0.02
    assert fastest(lambda: catalog.get("i3d-rgb-scratch-k400")) < 0.05
    assert fastest(catalog.releases) < 0.3
