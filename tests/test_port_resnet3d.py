"""3D ResNets of every dialect, ported and proved end to end; and what is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import config_for, stored, write

from vidweights import catalog, dialects, models
from vidweights.dialects.base import Dialect, Stored
from vidweights.errors import FormatError, IntegrityError, PlanError, UsageError, VidweightsError
from vidweights.files import sha256_of
from vidweights.layout import Array
from vidweights_converters import port as porting
from vidweights_converters import validate as validating
from vidweights_converters import written as writing
from vidweights_converters.references.resnet3d import CODES

pytestmark = pytest.mark.usefixtures("one_thread")

RELEASED = [dialects.get(name) for name in CODES]


def narrow(dialect: Dialect, **values: Any) -> Any:
    """A network of the dialect with few channels; the stem that most releases share has 45 planes."""
    depth = {"mmaction2-i3d": 50, "mmaction2-slowonly": 50, "pytorchvideo-r2plus1d": 50}.get(dialect.name, 10)
    stem = {"stem_frames": 7} if dialect.name.startswith("kenshohara") else {}
    return config_for(dialect, **{"depth": depth, "width": 8, "num_classes": 7, **stem, **values})


def calibrated(config: Any, seed: int = 0) -> dict[str, Array]:
    """Random affine parameters, and statistics of noise, so that the network is not blind."""
    torch.manual_seed(seed)
    network = models.build("resnet3d", config)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    size = (16, 224, 200) if config.head_window else (config.frames or 16, 72, 64)
    with torch.no_grad():
        for norm in norms:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, 0, 0.2)
            norm.momentum = None  # the plain mean of all passes
            norm.reset_running_stats()
        network.train()
        clips = [
            torch.randn(2, 3, *size) * torch.rand(2, 1, 1, 1, 1) * 2 + torch.randn(2, 3, 1, 1, 1) / 2 for _ in "ab"
        ]
        for clip in clips:
            network(clip)
        # Scores about zero: a mean that all clips share would hide by how much they differ.
        network.fc.bias.copy_(-network.eval()(clips[0]).mean(0))  # type: ignore[operator, union-attr]
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def written(folder: Path, dialect: Dialect, config: Any) -> Path:
    container = "flax" if dialect.framework == "caffe2" else "torch"
    return write(folder, container, stored(dialect, config, calibrated(config)))


def ported(name: str, weights: Path, out: Path, **options: Any) -> porting.Outcome:
    (request,) = porting.requests(name, weights=weights, out=out, **options)
    return porting.port(request)


@pytest.mark.parametrize("dialect", RELEASED, ids=lambda d: d.name)
def test_a_file_of_any_dialect_is_recognised_ported_and_proved(dialect: Dialect, tmp_path: Path) -> None:
    config = narrow(dialect)
    file = written(tmp_path / "source", dialect, config)
    outcome = ported("resnet3d", file, tmp_path / "out")
    report = outcome.report
    assert report is not None
    assert outcome.plan is not None
    assert (outcome.plan.source, outcome.plan.config) == (dialect, config)
    assert {one.tolerance for one in report.references} == {1e-9}
    assert max(clip.max_relative for one in report.references for clip in one.clips) < 1e-12
    assert "plain forward" in [one.name for one in report.references]
    assert not report.absent
    assert all(report.coverage.values())
    made = [fault for fault in report.faults if not fault.skipped]
    assert len(made) >= 10
    assert min(fault.ratio or 0 for fault in made) > 1e4


@pytest.mark.parametrize(
    ("dialect", "library"),
    [("torchvision-video", "torchvision"), ("vmz", "torchvision"), ("pytorchvideo-r2plus1d", "pytorchvideo")],
)
def test_a_genuine_library_judges_where_there_is_one(dialect: str, library: str, tmp_path: Path) -> None:
    chosen = dialects.get(dialect)
    file = written(tmp_path / "source", chosen, narrow(chosen))
    outcome = ported("r2plus1d", file, tmp_path / "out")
    assert outcome.report is not None
    assert [one.name for one in outcome.report.references] == [library, "plain forward"]


@pytest.mark.parametrize("variant", ["r3d", "mc2", "mc4"])
def test_the_variants_that_torchvision_can_build_are_judged_by_it(variant: str, tmp_path: Path) -> None:
    dialect = dialects.get("torchvision-video")
    file = written(tmp_path / "source", dialect, narrow(dialect, variant=variant))
    outcome = ported(variant, file, tmp_path / "out")
    assert outcome.report is not None
    assert outcome.report.references[0].name == "torchvision"


@pytest.mark.parametrize("variant", ["r2d", "f-r2d", "r3d", "mc3", "rmc4"])
def test_every_variant_is_ported_from_caffe2(variant: str, tmp_path: Path) -> None:
    dialect = dialects.get("vmz-caffe2")
    file = written(tmp_path / "source", dialect, narrow(dialect, variant=variant))
    outcome = ported(variant, file, tmp_path / "out")
    assert outcome.report is not None
    assert outcome.plan is not None
    assert outcome.plan.config.variant == variant


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda a: {**a, "layer2.0.conv1.0.3.weight": a["layer2.0.conv1.0.3.weight"][:, :, ::-1].copy()}, "layer2.0"),
        (lambda a: {**a, "stem.1.running_mean": np.roll(a["stem.1.running_mean"], 1)}, "stem"),
    ],
    ids=["time reversed", "statistics rolled"],
)
def test_a_network_with_other_numbers_than_its_source_fails_and_the_layer_is_named(
    fault: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is judged is the right one; the network that is judged has the fault."""
    dialect = dialects.get("torchvision-video")
    config = narrow(dialect)
    arrays = stored(dialect, config, calibrated(config))
    file = write(tmp_path / "source", "torch", arrays)
    genuine = writing.tensors

    def faulty(checkpoint: Any, folder: Any) -> dict[str, Array]:
        keys = {row.tensor.name: row.place.key for row in dialect.table(config)}  # type: ignore[union-attr]
        back = fault({keys[name]: array for name, array in genuine(checkpoint, folder).items()})
        return {name: back[key] for name, key in keys.items()}

    monkeypatch.setattr(validating, "tensors", faulty)
    with pytest.raises(VidweightsError) as raised:
        ported("resnet3d", file, tmp_path / "out")
    assert "failed its validation" in str(raised.value)
    assert f"{named}" in str(raised.value)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_vmz_and_caffe2_take_each_others_network_bit_for_bit(tmp_path: Path) -> None:
    vmz, caffe2 = dialects.get("vmz"), dialects.get("vmz-caffe2")
    config = narrow(vmz)
    file = written(tmp_path / "source", vmz, config)
    there = ported("r2plus1d", file, tmp_path / "there", to=caffe2.name, validate=False)
    assert there.config is not None
    blobs = there.request.folder / there.config.main
    tree = pickle.loads(blobs.read_bytes())  # our own file
    assert set(tree) == {"blobs"}
    assert "last_out_L7_w" in tree["blobs"]
    back = ported("r2plus1d", blobs, tmp_path / "back", to=vmz.name, validate=False)
    assert back.config is not None
    first, second = (torch.load(path) for path in (file, back.request.folder / back.config.main))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize(
    ("source", "target", "differing"),
    [
        ("torchvision-video", "vmz", ["batch_norm_epsilon", "planes"]),
        ("vmz", "torchvision-video", ["batch_norm_epsilon", "planes"]),
        ("vmz", "mmaction2-r2plus1d", ["middle_epsilon", "shortcut", "stem_planes", "stem_pool"]),
        ("kenshohara-r2plus1d", "vmz", ["batch_norm_epsilon", "pool_time", "stem_frames", "stem_pool"]),
        ("pytorchvideo-r2plus1d", "vmz", ["head_window", "space_strides", "time_first", "time_strides"]),
    ],
)
def test_codes_that_compute_otherwise_do_not_take_each_others_network_and_the_facts_are_listed(
    source: str, target: str, differing: list[str], tmp_path: Path
) -> None:
    dialect = dialects.get(source)
    file = write(tmp_path / "source", "torch", stored(dialect, narrow(dialect), calibrated(narrow(dialect))))
    with pytest.raises(PlanError, match=f"{target} cannot hold this network") as raised:
        ported("r2plus1d", file, tmp_path / "out", to=target, validate=False)
    for fact in differing:
        assert f"{fact}: found" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_network_than_was_named_is_refused(tmp_path: Path) -> None:
    dialect = dialects.get("torchvision-video")
    file = written(tmp_path / "source", dialect, narrow(dialect))
    with pytest.raises(PlanError, match="variant: found r2plus1d, expected mc3"):
        ported("mc3", file, tmp_path / "out")
    with pytest.raises(PlanError, match="depth: found 10, expected 18"):
        ported("r2plus1d_18", file, tmp_path / "out")
    with pytest.raises(UsageError, match="r2plus1d_17"):
        ported("r2plus1d_17", file, tmp_path / "out")


def caffe2_blobs() -> dict[str, Array]:
    dialect = dialects.get("vmz-caffe2")
    config = narrow(dialect, num_classes=487)
    return {key.removeprefix("blobs."): array for key, array in stored(dialect, config, calibrated(config)).items()}


def python_2(path: Path, tree: Any) -> Path:
    """A pickle as Python 2 writes it: protocol 2, with arrays as numpy 1 names them and text as byte strings."""
    data = pickle.dumps(tree, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(data)
    return path


def test_a_training_checkpoint_of_caffe2_is_read_and_its_optimiser_is_left_for_a_reason(tmp_path: Path) -> None:
    blobs = caffe2_blobs()
    momenta = {f"{key}_momentum": np.zeros_like(array) for key, array in blobs.items() if key.endswith("_w")}
    others = {"lr": np.array([0.1], np.float32), "model_iter": np.array([7])}
    file = python_2(tmp_path / "r2plus1d.pkl", {"blobs": {**blobs, **momenta, **others}})
    outcome = ported("r2plus1d", file, tmp_path / "out", validate=False)
    assert outcome.plan is not None
    reasons = dict(outcome.plan.ignored)
    assert reasons["blobs.conv1_w_momentum"] == "optimiser slot"
    assert reasons["blobs.lr"] == "the learning rate"
    assert len(reasons) == len(momenta) + len(others)
    assert outcome.plan.config.num_classes == 487


def test_blobs_that_are_missing_or_extra_are_named(tmp_path: Path) -> None:
    blobs = caffe2_blobs()
    blobs["comp_9_conv_1_w"] = blobs.pop("comp_2_conv_1_middle_w")
    with pytest.raises(PlanError) as raised:
        ported("r2plus1d", python_2(tmp_path / "cut.pkl", {"blobs": blobs}), tmp_path / "out", validate=False)
    assert "blobs.comp_2_conv_1_middle_w" in str(raised.value)
    assert "blobs.comp_9_conv_1_w" in str(raised.value)


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_a_caffe2_pickle_that_imports_anything_else_is_refused_unrun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = python_2(tmp_path / "hostile.pkl", {"blobs": {**caffe2_blobs(), "evil": Hostile()}})
    with pytest.raises(FormatError, match="print"):
        ported("r2plus1d", file, tmp_path / "out", validate=False)
    assert capsys.readouterr().out == ""


def test_the_folder_of_a_port_is_loaded_with_what_no_tensor_tells(tmp_path: Path) -> None:
    dialect = dialects.get("kenshohara")
    outcome = ported("r3d", written(tmp_path / "source", dialect, narrow(dialect)), tmp_path / "out", validate=False)
    config = json.loads((outcome.request.folder / "config.json").read_text())["config"]
    assert (config["stem_frames"], config["pool_time"], config["time_padding"]) == (7, True, "zero")


def full(name: str, **values: Any) -> tuple[Dialect, Any]:
    """The dialect of a release, and its configuration with other values."""
    release = catalog.get(name)
    return dialects.get(release.dialect), replace(release.config, **values)


def zeros(dialect: Dialect, config: Any) -> dict[str, Array]:
    rows = ((row.place, row.stored_shape) for row in dialect.table(config))
    return {place.key: np.zeros(shape, np.float32) for place, shape in rows if isinstance(place, Stored)}


def as_released(name: str, path: Path, **values: Any) -> Path:
    """A file with the tensors of a release, all zero, as Python 2 would have written it."""
    dialect, config = full(name, **values)
    return python_2(path, {"blobs": {k.removeprefix("blobs."): array for k, array in zeros(dialect, config).items()}})


def test_r2d_of_16_frames_is_not_taken_for_that_of_8(tmp_path: Path) -> None:
    file = as_released("r2d_18-vmz-k400-16f", tmp_path / "r2d_d18_l16.pkl")
    with pytest.raises(PlanError, match="stem_frames: found 16, expected 8"):
        ported("r2d_18-vmz-k400-8f", file, tmp_path / "out", validate=False)
    assert ported("r2d_18-vmz-k400-16f", file, tmp_path / "out", validate=False).error is None


def test_a_head_of_487_classes_is_not_given_the_labels_of_kinetics(tmp_path: Path) -> None:
    file = as_released("r2plus1d_18-vmz-k400-8f", tmp_path / "file.pkl", num_classes=487)
    with pytest.raises(PlanError, match="num_classes: found 487, expected 400"):
        ported("r2plus1d_18-vmz-k400-8f", file, tmp_path / "out", validate=False)


def test_a_release_of_which_no_hash_was_published_is_ported_and_the_folder_says_so(tmp_path: Path) -> None:
    """The input and the licence are those of the catalog; nothing could tell another file of this shape."""
    name = "r2plus1d_18-vmz-k400-8f"
    file = as_released(name, tmp_path / "file.pkl")
    (request,) = porting.requests(name, weights=file, out=tmp_path / "out")
    with porting.opened(request) as (source, _, _):
        assert source.identity == "nothing was published that the file could be held to"
    outcome = ported(name, file, tmp_path / "out", validate=False)
    config = json.loads((outcome.request.folder / "config.json").read_text())
    assert config["input"]["size"] == [128, 171]
    assert config["release"]["licence"]["id"] == "Apache-2.0"
    # The order of its classes was not published.
    assert config["labels"] is None
    assert not (outcome.request.folder / "labels.txt").exists()


def test_a_file_with_the_published_hash_is_the_release_and_another_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "r2plus1d_18-torchvision-k400"
    dialect, config = full(name)
    file = write(tmp_path / "source", "torch", zeros(dialect, config))
    (own,) = porting.requests("r2plus1d_18", weights=file, out=tmp_path / "out")
    assert (own.release, own.name) == (None, "model")
    with pytest.raises(IntegrityError, match=r"one that begins with 91a641e6.*checkpoint of your own"):
        ported(name, file, tmp_path / "out", validate=False)
    (published,) = catalog.get(name).files
    known = replace(published, sha256_begins=sha256_of(file)[:8], size=file.stat().st_size)
    monkeypatch.setattr(catalog, "releases", lambda: (replace(catalog.get(name), files=(known,)),))
    (request,) = porting.requests("r2plus1d", weights=file, out=tmp_path / "out")
    assert request.name == name


@pytest.mark.parametrize("name", ["r2plus1d", "r2plus1d_34", "mc3_18", "r3d_18"])
def test_networks_stand_for_all_their_releases(name: str) -> None:
    found = [request.name for request in porting.requests(name)]
    assert found
    assert all(one.startswith((f"{name}-", f"{name}_")) for one in found)
