"""The proof of inflated networks: that sound ones pass, and that each way to be wrong is seen and named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidweights import folder, formats, inflation
from vidweights.errors import ValidationError
from vidweights.families.resnet3d import ResNet3DConfig
from vidweights.folder import FolderConfig, SourceRecord
from vidweights.inflation import Options

torch = pytest.importorskip("torch")
if find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

from torchvision_cpu import torchvision  # noqa: E402

from vidweights.models.resnet3d import ResNet3D  # noqa: E402
from vidweights_converters import card, equality, kernel_check  # noqa: E402
from vidweights_converters.coverage import coverage  # noqa: E402
from vidweights_converters.equality_report import EqualityReport, render  # noqa: E402
from vidweights_converters.frames import frame_map, mixes_frames, pools_over_time  # noqa: E402
from vidweights_converters.inflated_faults import DELIBERATE, edited, time_padding  # noqa: E402
from vidweights_converters.references.images import choose  # noqa: E402

Tensors = dict[str, Any]
Made = Callable[..., "Inflated"]
_SHARE = 8  # the networks have an eighth of the released width

RESNET_TARGETS = [target for target, (family, _) in inflation.TARGETS.items() if family == "resnet3d"]
METHODS = {"r2plus1d": ("mean", "exact")}
# Others of the same kind are among the fast ones.
ALIKE = ("mc3", "mc4", "rmc3", "rmc4", "rmc5")
PAIRS = [
    pytest.param(into, method, marks=[pytest.mark.slow] if into in ALIKE else [])
    for into in RESNET_TARGETS
    for method in METHODS.get(into, ("mean", "center"))
]


pytestmark = pytest.mark.usefixtures("one_thread")


# --- genuine sources, narrow ----------------------------------------------------------------------------------------


def narrow(net: Any) -> Any:
    """torchvision's own network, every layer with an eighth of its channels."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Conv2d):
                inputs = 3 if child.in_channels == 3 else child.in_channels // _SHARE
                slim = torch.nn.Conv2d(
                    inputs, child.out_channels // _SHARE, child.kernel_size, child.stride, child.padding, bias=False
                )
            elif isinstance(child, torch.nn.BatchNorm2d):
                slim = torch.nn.BatchNorm2d(child.num_features // _SHARE, eps=child.eps, momentum=None)
            elif isinstance(child, torch.nn.Linear):
                slim = torch.nn.Linear(child.in_features // _SHARE, child.out_features)
            else:
                continue
            setattr(parent, name, slim)
    return net


def calibrated(net: Any) -> Any:
    """Random affine parameters, then the statistics of train-mode passes over noise."""
    generator = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(norm.bias, 0, 0.2, generator=generator)
    with torch.no_grad():
        for _ in range(2):
            noise = torch.randn(8, 3, 80, 96, generator=generator) + torch.randn(8, 3, 1, 1, generator=generator)
            net.train()(noise)
    return net.eval()


def network(name: str) -> Any:
    torch.manual_seed(0)
    if name == "googlenet":
        made = torchvision.models.googlenet(num_classes=10, aux_logits=False, init_weights=False, transform_input=True)
    else:
        made = getattr(torchvision.models, name)(num_classes=10)
    return calibrated(narrow(made))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A file that torch wrote, by the name of its network and its dtype; made once."""
    place = tmp_path_factory.mktemp("sources")

    def file(name: str = "resnet18", dtype: str = "float32", change: Callable[[Tensors], object] | None = None) -> Path:
        path = place / f"{name}-{dtype}{'' if change is None else change.__name__}.pth"
        if not path.exists():
            state = network(name).state_dict()
            if change is not None:
                change(state)
            kind = getattr(torch, dtype)
            torch.save({k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}, path)
        return path

    return file


@dataclass(frozen=True)
class Inflated:
    """A folder that an inflation wrote, and what it was made of."""

    path: Path
    source: Path
    options: Options

    @property
    def config(self) -> FolderConfig:
        return folder.read_config(self.path)

    def prove(self, *, every: bool = False) -> EqualityReport:
        with formats.open_checkpoint(self.source) as checkpoint:
            planned = inflation.make(checkpoint.tensors, self.options)
            references, absents = choose(self.source, planned.source.dialect.name, planned.source.prefix)
            chosen = references if every else references[-1:]
            return equality.prove(self.path, self.config, planned, checkpoint, chosen, absents)

    def failing(self) -> str:
        with pytest.raises(ValidationError) as caught:
            self.prove()
        assert not caught.value.report.passed
        return str(caught.value)

    def change(self, **changes: Callable[[Any], Any]) -> None:
        """Tensors of the written file, by their names with `__` for a dot."""
        from safetensors.numpy import load_file, save_file

        tensors = load_file(self.path / "model.safetensors")
        for name, change in changes.items():
            key = name.replace("__", ".")
            tensors[key] = np.ascontiguousarray(change(tensors[key])).astype(tensors[key].dtype)
        save_file(tensors, self.path / "model.safetensors")

    def declare(self, **fields: Any) -> None:
        """Fields of the configuration in `config.json`."""
        config = self.config
        folder.write_json(self.path / "config.json", replace(config, config=replace(config.config, **fields)).to_json())


@pytest.fixture
def made(source: Callable[..., Path], tmp_path: Path) -> Made:
    count = itertools.count()

    def make(path: Path | None = None, *, random_init: int | None = None, **options: Any) -> Inflated:
        return inflated(path or source(), tmp_path / str(next(count)), random_init, Options(**options))

    return make


def inflated(path: Path, place: Path, random_init: int | None, options: Options) -> Inflated:
    place.mkdir(exist_ok=True)
    with formats.open_checkpoint(path) as checkpoint:
        planned = inflation.make(checkpoint.tensors, options)
        writer_type = formats.writer("safetensors")
        outputs = writer_type.order(planned.outputs)
        writer = writer_type(place / writer_type.file_name, outputs)
        for name, array in inflation.stream(planned, checkpoint, [info.key for info in outputs]):
            writer.write(name, array)
        files = writer.finish()
        config = FolderConfig(
            name="made",
            family=planned.family.name,
            config=planned.config,
            dialect=planned.target.name,
            format="safetensors",
            main=next(iter(files)),
            files=files,
            facts={},
            source=SourceRecord(planned.source.dialect.name, checkpoint.format, {}, planned.sha256),
            inflation={
                "source_family": planned.source.dialect.family.name,
                "method": options.method,
                "random_init": random_init,
            },
        )
    folder.write_json(place / "config.json", config.to_json())
    return Inflated(place, path, options)


def largest(report: EqualityReport) -> float:
    return max(clip.worst for reference in report.references for clip in reference.clips)


def ratios(report: EqualityReport) -> dict[str, float]:
    return {fault.fault: fault.ratio for fault in report.faults if fault.ratio is not None}


# --- sound networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("into", "method"), PAIRS)
def test_every_target_and_method_of_a_resnet_passes(made: Made, into: str, method: Any) -> None:
    report = made(into=into, method=method).prove()
    assert report.passed
    assert largest(report) < 1e-11
    assert report.tolerance == 1e-9
    assert min(ratios(report).values()) > 1e3
    assert set(report.coverage) == {step for step in report.coverage if report.coverage[step] > 0}
    assert not report.kernels.differing


@pytest.mark.parametrize(("into", "method"), [("i3d", "mean"), ("i3d", "center"), ("s3d", "mean"), ("s3d", "exact")])
def test_every_target_and_method_of_an_inception_passes(
    made: Made, source: Callable[..., Path], into: str, method: Any
) -> None:
    report = made(source("googlenet"), into=into, method=method).prove()
    assert report.passed
    assert report.promise == "equal on still clips"  # max-pools mix frames
    assert largest(report) < 1e-9
    assert min(ratios(report).values()) > 1e3


def test_every_reference_agrees(made: Made) -> None:
    report = made(into="i3d-resnet").prove(every=True)
    assert len(report.references) >= 2
    assert {clip.name for clip in report.references[0].clips} == {clip.name for clip in report.references[1].clips}
    assert all(0 < clip.worst < 1e-11 for reference in report.references for clip in reference.clips)
    assert all(0 < reference.float32 < 1e-4 for reference in report.references)


@pytest.mark.slow
@pytest.mark.parametrize("into", ["i3d-resnet-nl", "r2plus1d", "r3d"])
def test_bottlenecks_pass(made: Made, source: Callable[..., Path], into: str) -> None:
    assert made(source("resnet50"), into=into, method="mean").prove(every=True).passed


@pytest.mark.slow
def test_the_released_width_passes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "source.pth"
    torch.save(calibrated(torchvision.models.resnet18()).state_dict(), path)
    report = inflated(path, tmp_path / "made", None, Options()).prove(every=True)
    assert report.passed
    # What the issue measured under zero padding: the logits of 16 frames 71 % off.
    assert report.zero_padding[0].clip > 0.3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("into", "method"), [("r3d", "mean"), ("r2plus1d", "exact")])
def test_short_dtypes_pass_with_their_rounding_reported(
    made: Made, source: Callable[..., Path], dtype: str, into: str, method: Any
) -> None:
    report = made(source("resnet18", dtype), into=into, method=method).prove()
    assert report.passed
    if into == "r3d":
        assert report.tolerance == 1e-9
        assert report.references[0].unadjusted > 1e-5  # the division rounds
    else:
        norms = report.kernels.identity_norms * report.kernels.identity_error
        assert 1e-9 < report.tolerance == 4 * norms < 1e-2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_short_s3d_passes_though_its_epsilon_is_large(made: Made, source: Callable[..., Path], dtype: str) -> None:
    assert made(source("googlenet", dtype), into="s3d", method="exact").prove().tolerance < 2e-3


# --- what is promised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "promise"),
    [
        ({"into": "r3d"}, "equal on still clips"),
        ({"into": "r3d", "time_padding": "zero"}, "equal with ends repeated"),
        ({"into": "r3d", "time_padding": "zero", "method": "center"}, "equal on any clip"),
        ({"into": "r3d", "method": "center"}, "equal on any clip"),
        ({"into": "i3d-resnet", "method": "center"}, "equal on still clips"),
        ({"into": "f-r2d"}, "equal on any clip"),
        ({"into": "r2plus1d", "method": "exact", "stem_planes": 16}, "exact (bounded)"),
        ({"into": "r2plus1d", "stem_planes": 4}, "approximate"),
        ({"into": "r3d", "stem_pool": False}, "initialisation only"),
    ],
)
def test_the_promise_follows_from_the_plan(source: Callable[..., Path], options: dict[str, Any], promise: str) -> None:
    with formats.open_checkpoint(source()) as checkpoint:
        assert equality.promise_of(inflation.make(checkpoint.tensors, Options(**options))) == promise


def test_noise_is_compared_frame_by_frame_under_either_padding(made: Made) -> None:
    report = made(into="r3d", method="center").prove()
    noise = [clip for clip in report.references[0].clips if clip.inputs is not None]
    assert {clip.padding for clip in noise} == {"replicate", "zero"}
    assert {len(clip.inputs or ()) for clip in noise} == {2}
    assert {clip.inputs for clip in noise} == {(0, 8)}
    assert ratios(report)["one tap later"] > 1e3


def test_zeros_in_time_change_a_still_clip_only_by_the_mean(made: Made) -> None:
    centre = made(into="r3d", method="center").prove()
    mean = made(into="r3d").prove()
    assert [zero.name for zero in mean.zero_padding] == ["noise 16x65x80", "noise 32x65x80"]
    assert [len(zero.frames) for zero in mean.zero_padding] == [2, 4]
    assert all(zero.clip > 0.01 and min(zero.frames) > 0 for zero in mean.zero_padding)
    assert all(zero.clip < 1e-12 for zero in centre.zero_padding)


def test_a_folder_that_pads_with_zeros_says_what_that_does(made: Made) -> None:
    report = made(into="r3d", time_padding="zero").prove()
    assert report.passed
    assert {clip.padding for clip in report.references[0].clips} == {"replicate"}
    (remark,) = report.remarks
    assert f"{report.zero_padding[0].clip:.1%}" in remark
    assert "does not preserve a still clip" in remark


def test_a_low_rank_stem_is_equal_to_the_network_that_holds_it(made: Made) -> None:
    report = made(into="r2plus1d", method="exact", stem_planes=5).prove()
    assert report.promise == "approximate"
    assert report.passed
    assert largest(report) < 1e-9
    assert report.references[0].unadjusted > 0.01  # and off the source itself
    stem = report.planes[0]
    assert (stem.layer, stem.promise, stem.outputs, stem.middle) == ("stem", "approximate", 8, 5)
    assert 0.05 < stem.error < 0.9


def test_lifted_planes_are_reported_and_none_is_cut(made: Made) -> None:
    report = made(into="r2plus1d", method="exact").prove()
    bounded = [unit for unit in report.planes if unit.promise == "bounded"]
    assert {unit.layer for unit in bounded} >= {"layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"}
    assert all(unit.clipped == 0 and unit.shift is not None and unit.shift[0] > 0 for unit in bounded)
    assert all(unit.lifted == 2 * unit.outputs - unit.middle for unit in bounded)


def test_cut_planes_are_counted_and_fail(made: Made) -> None:
    one = made(into="r2plus1d", method="exact", stem_planes=12)
    # Both sides of the lift are lowered, so that only the cutting shows.
    one.change(stem__spatial__bn__bias=lambda v: v * 1e-3, stem__temporal__bn__running_mean=_lowered(one))
    text = one.failing()
    assert "stem: " in text
    assert "below zero and cut" in text


def _lowered(one: Inflated) -> Callable[[Any], Any]:
    from safetensors.numpy import load_file

    tensors = load_file(one.path / "model.safetensors")
    bias, taps = tensors["stem.spatial.bn.bias"], tensors["stem.temporal.conv.weight"]
    lifted = ~(taps.sum(2)[..., 0, 0] < 0).any(1)
    return lambda mean: np.where(lifted, bias[: len(mean)] * np.float32(1e-3), mean)


def test_an_initialisation_claims_no_equality(made: Made) -> None:
    report = made(into="r3d", stem_pool=False).prove()
    assert report.promise == "initialisation only"
    assert report.passed
    assert not report.references
    assert not report.faults
    assert not report.zero_padding
    assert report.kernels.inflated == 17
    assert "no equality" in report.remarks[0]


def test_other_heads_and_inputs_are_compared_by_what_they_share(made: Made) -> None:
    report = made(into="i3d-resnet", num_classes=5, in_channels=4).prove()
    assert report.passed
    assert report.compared == "features"
    assert report.kernels.drawn == 2
    assert any("mean over 3 channels" in remark for remark in report.remarks)
    skipped = {fault.fault for fault in report.faults if fault.skipped}
    assert {"input channels reversed", "head bias left out"} <= skipped
    assert made(into="i3d-resnet", num_classes=0).prove().compared == "features"


def test_a_low_rank_stem_over_other_inputs_is_the_best_fit_of_the_averaged_one(made: Made) -> None:
    report = made(into="r2plus1d", method="exact", stem_planes=5, in_channels=2).prove()
    assert report.passed
    assert 0 < report.planes[0].error < 1
    assert largest(report) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "into", "method"), [("inception_v1", "i3d", "mean"), ("resnet_v1_50", "r2plus1d", "exact")]
)
def test_checkpoints_of_tf_slim_pass(tmp_path: Path, name: str, into: str, method: Any) -> None:
    import slim
    from networks import write

    path = write(tmp_path / "source", "tf", slim.variables(name))
    report = inflated(path, tmp_path / "made", None, Options(into=into, method=method)).prove()
    assert report.passed
    assert largest(report) < 1e-11
    assert min(ratios(report).values()) > 1e3


# --- each way to be wrong -------------------------------------------------------------------------------------------


def test_a_kernel_that_was_not_divided_is_named(made: Made) -> None:
    one = made(into="i3d-resnet")
    one.change(layer2__0__conv1__conv__weight=lambda k: k * 3)
    text = one.failing()
    assert "layer2.0.conv1.conv.weight" in text
    assert "3 times the kernel" in text
    assert "still clip noise 9x65x80" in text


def test_a_kernel_inflated_along_its_last_axis_is_named(made: Made) -> None:
    one = made(into="i3d-resnet")
    one.change(layer1__0__conv2__conv__weight=lambda k: k.transpose(0, 1, 3, 4, 2))
    text = one.failing()
    assert "layer1.0.conv2.conv.weight: its steps in time are not all the same" in text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stem__conv__weight", lambda k: k[:, ::-1]),
        ("fc__bias", lambda b: b * 0),
        ("layer3__0__conv1__bn__running_mean", lambda m: np.roll(m, 1)),
        ("layer4__1__conv2__conv__weight", lambda k: k * 0),
    ],
)
def test_a_tensor_that_is_another_is_named(made: Made, name: str, change: Callable[[Any], Any]) -> None:
    one = made(into="i3d-resnet")
    one.change(**{name: change})
    assert name.replace("__", ".") in one.failing()


def test_a_tap_beside_the_middle_is_named_though_a_still_clip_is_blind_to_it(made: Made) -> None:
    one = made(into="i3d-resnet", method="center")
    one.change(layer1__0__conv1__conv__weight=lambda k: np.roll(k, 1, 2))
    text = one.failing()
    assert "layer1.0.conv1.conv.weight: its steps in time are not zero beside the middle one" in text
    assert "still clip" not in text


def test_a_rounding_of_one_element_is_seen(made: Made) -> None:
    def nudge(kernel: Any) -> Any:
        changed = kernel.copy()
        changed[0, 0, 0, 0, 0] += 20 * np.spacing(np.abs(changed[0, 0, 0, 0, 0]))
        return changed

    one = made(into="i3d-resnet")
    one.change(layer1__0__conv1__conv__weight=nudge)
    assert "layer1.0.conv1.conv.weight" in one.failing()


def test_a_pair_whose_negative_is_off_is_named(made: Made) -> None:
    one = made(into="r2plus1d", method="exact")
    one.change(layer1__0__conv1__spatial__conv__weight=np.abs)
    assert "layer1.0.conv1.temporal.conv.weight" in one.failing()


def test_a_batch_norm_in_the_middle_that_is_not_the_identity_cannot_widen_the_tolerance(made: Made) -> None:
    one = made(into="r2plus1d", method="exact")
    # With the epsilon beside it, a variance of 1 is wrong by its half.
    one.change(layer1__0__conv1__spatial__bn__weight=lambda w: w * 0 + 1)
    one.change(layer1__0__conv1__spatial__bn__running_var=lambda v: v * 0 + 1)
    assert "layer1.0.conv1.spatial.bn: it should change nothing" in one.failing()


def test_a_fit_of_another_mean_is_named(made: Made) -> None:
    one = made(into="r2plus1d", stem_planes=5)
    one.change(stem__spatial__bn__running_mean=lambda m: m + 0.1)
    assert "stem.temporal.bn.running_mean: off the mean of the fit" in one.failing()


def test_a_centre_that_is_not_the_source_to_the_last_bit_is_named(made: Made) -> None:
    one = made(into="i3d-resnet", method="center")
    one.change(stem__conv__weight=lambda k: np.nextafter(k, np.where(k == 0, 0, 9), dtype=k.dtype))
    assert "stem.conv.weight: summed over time it is off the 2D kernel by 1 ulp" in one.failing()


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"time_padding": "zero"}, "time_padding 'zero', the plan 'replicate'"),
        ({"pool_padding": "same"}, "pool_padding"),
    ],
)
def test_another_fact_in_the_configuration_is_named(made: Made, fields: dict[str, Any], wanted: str) -> None:
    one = made(into="i3d-resnet")
    one.declare(**fields)
    assert wanted in one.failing()


def test_a_wrong_fact_is_told_from_a_wrong_tensor(made: Made) -> None:
    one = made(into="i3d-resnet")
    one.declare(batch_norm_epsilon=1e-3)
    text = one.failing()
    assert "every tensor is the source's, so the cause is a fact" in text


def _blind(state: Tensors) -> None:
    """Running variances so large that every input gives nearly the same."""
    for name in state:
        if name.endswith("running_var"):
            state[name] *= 1e6


def test_a_blind_source_fails_unless_its_weights_are_random(made: Made, source: Callable[..., Path]) -> None:
    path = source("resnet18", "float32", _blind)
    assert "the 2D network is blind" in made(path, into="f-r2d").failing()
    with pytest.raises(ValidationError) as caught:
        made(path, into="f-r2d", random_init=3).prove()
    assert "blind" not in str(caught.value)
    assert any("not pretrained" in remark for remark in caught.value.report.remarks)


# --- the parts ------------------------------------------------------------------------------------------------------


def test_no_deliberate_fault_stays_in_the_network() -> None:
    net = ResNet3D(ResNet3DConfig(depth=18, variant="r3d", width=4, num_classes=3)).double().eval()
    for norm in net.modules():
        if hasattr(norm, "running_var"):
            torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    assert net.fc is not None
    torch.nn.init.ones_(net.fc.bias)
    clip = torch.randn(1, 3, 9, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        before = net(clip)
        for fault in DELIBERATE:
            _, edits = fault.edits(net)
            assert edits, fault.name
            with edited(edits):
                assert fault.seen_on == "noise" or not torch.equal(net(clip), before), fault.name
            assert torch.equal(net(clip), before), fault.name
        with edited(time_padding(net, replicate=False)):
            assert not torch.equal(net(clip), before)


def test_the_frame_map_is_the_product_of_the_strides() -> None:
    # The groups 3 to 5 halve the size, or with TF-slim's strides the groups 2 to 4.
    strides = {"r3d": (8, 8), "f-r2d": (1, 1), "mc3": (1, 2), "mc5": (4, 8), "rmc4": (4, 2), "r2plus1d": (8, 8)}
    for variant, (usual, slim) in strides.items():
        for stride_on, stride in (("3x3", usual), ("1x1", usual), ("last", slim)):
            config = ResNet3DConfig(depth=50, variant=variant, stride_on=stride_on)  # type: ignore[arg-type]
            for frames in (9, 16, 17):
                assert frame_map(config, frames) == tuple(range(0, frames, stride)), (variant, stride_on)


def test_which_networks_mix_frames() -> None:
    mixing = {variant: (mixes_frames(c), pools_over_time(c)) for variant, c in _variants()}
    assert mixing["f-r2d"] == (False, False)
    assert mixing["r3d"] == (True, False)
    assert mixing["i3d-resnet"] == mixing["i3d-resnet-nl"] == (True, True)


def _variants() -> Iterator[tuple[str, ResNet3DConfig]]:
    for variant in RESNET_TARGETS:
        yield variant, ResNet3DConfig(depth=18, variant=variant)


def test_coverage_sees_the_statistics_of_a_network_without_head() -> None:
    net = ResNet3D(ResNet3DConfig(depth=18, variant="r2plus1d", width=4, num_classes=0)).eval()
    shares = coverage(net, [torch.randn(1, 3, 9, 40, 40)])
    assert shares["stem.spatial.bn.running_var"] == 1
    assert min(shares.values()) > 0
    torch.nn.init.zeros_(net.get_parameter("layer4.1.conv2.temporal.conv.weight"))
    assert coverage(net, [torch.randn(1, 3, 9, 40, 40)])["layer4.1.conv2.spatial.conv.weight"] == 0


@pytest.mark.parametrize("value", [1.0, -1.5, 3.1e-3, 2.0**-130])
def test_the_ulp_of_bfloat16_is_the_step_to_the_next_pattern(value: float) -> None:
    pattern = np.array([value], np.float32).view(np.uint32) >> np.uint32(16)
    here, there = (((pattern + np.uint32(i)) << np.uint32(16)).view(np.float32).astype(np.float64) for i in (0, 1))
    assert kernel_check.ulp(here, "bfloat16") == np.abs(there - here)


def test_what_is_adjusted_moves_by_rounding_only(source: Callable[..., Path]) -> None:
    with formats.open_checkpoint(source()) as checkpoint:
        planned = inflation.make(checkpoint.tensors, Options(into="r3d"))
        adjust = kernel_check.Adjustment(planned)
        kernel = checkpoint.read("conv1.weight")
        moved = adjust("conv1.weight", kernel.astype(np.float64))
        third = (kernel / np.float32(3)).astype(np.float64)
        assert np.array_equal(moved, 3 * third)
        assert not np.array_equal(moved, kernel)
        assert 0 < adjust.worst <= 1.5
        assert not adjust.excess
        norm = checkpoint.read("bn1.weight").astype(np.float64)
        assert adjust("bn1.weight", norm) is norm


# --- the report and the card ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proved(source: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Inflated, EqualityReport]:
    one = inflated(source(), tmp_path_factory.mktemp("proved"), None, Options(into="r2plus1d", stem_planes=5))
    return one, one.prove()


def test_a_report_survives_json(proved: tuple[Inflated, EqualityReport]) -> None:
    _, report = proved
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (data["kind"], data["validation"], data["passed"]) == ("inflation", 1, True)
    assert EqualityReport.from_json(data) == report


def test_the_report_has_the_difference_of_each_output_frame(proved: tuple[Inflated, EqualityReport]) -> None:
    _, report = proved
    for reference in report.references:
        for clip in reference.clips:
            assert max(clip.each) == pytest.approx(clip.frames)
            assert len(clip.each) == len(clip.inputs or clip.each) >= 1
    assert any(len(clip.each) > 1 for clip in report.references[0].clips)


def test_the_folder_counts_as_validated_by_its_report(proved: tuple[Inflated, EqualityReport]) -> None:
    one, report = proved
    assert folder.validation_state(one.path, one.config) == "unvalidated"
    folder.write_json(one.path / folder.VALIDATION, report.to_json())
    assert folder.validation_state(one.path, one.config) == "passed"
    other = replace(one.config, files={"model.safetensors": "0" * 64})
    assert folder.validation_state(one.path, other) == "unvalidated"


def test_a_report_is_read_in_80_columns(proved: tuple[Inflated, EqualityReport]) -> None:
    text = shown(proved[1])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "passed: approximate" in text
    assert "…" not in text


def shown(report: EqualityReport) -> str:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    render(report, Console(file=out, width=80))
    return out.getvalue()


def test_the_card_tells_what_is_promised_and_what_zeros_do(proved: tuple[Inflated, EqualityReport]) -> None:
    one, report = proved
    text = card.render(one.config, report.to_json())
    assert "**Validated, approximate**" in text
    assert "`stem` (approximate): 5 planes for 8 outputs" in text
    assert "With zeros in time, noise 16x65x80" in text
    assert "| noise 9x65x80 | replicate |" in text
    assert "Not pretrained" not in text


def test_the_card_of_random_weights_says_so_first(proved: tuple[Inflated, EqualityReport]) -> None:
    one, report = proved
    config = replace(one.config, inflation={**(one.config.inflation or {}), "random_init": 7})
    text = card.render(config, report.to_json())
    assert text.index("**Not pretrained.**") < text.index("**Validated")
    assert "seed 7" in text
    assert "trained on | nothing" in text


def test_the_card_of_a_failure_says_why(made: Made) -> None:
    one = made(into="f-r2d")
    one.change(fc__bias=lambda b: b * 0)
    with pytest.raises(ValidationError) as caught:
        one.prove()
    text = card.render(one.config, caught.value.report.to_json())
    assert "**Validation failed.**" in text
    assert "fc.bias" in text
