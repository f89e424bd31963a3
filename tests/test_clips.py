from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vidweights import images
from vidweights.clips import ClipTransform, Preprocessing, moving_clip, noise_clip, read_clip
from vidweights.errors import FormatError, InputError, UsageError
from vidweights.preprocessing import RESIZERS

torch = pytest.importorskip("torch")

RGB, FLOW = Preprocessing(), Preprocessing(channels="flow")
SMALL = Preprocessing(short_side=8, crop=6)
# What torchvision's preset for its video ResNets says; the test below compares.
VIDEO_CLASSIFICATION = Preprocessing(
    size=(128, 171),
    crop=112,
    value_range=(0.0, 1.0),
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
    resizer="torchvision",
    frames=16,
    fps=15.0,
    clips=5,
    scores="softmax",
)


def frames(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bilinear(image: Any, height: int, width: int) -> Any:
    """Half-pixel bilinear resize of (H, W), borders repeated: the formula of OpenCV's INTER_LINEAR, in loops."""
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * image.shape[0] / height - 0.5, 0), image.shape[0] - 1)
            x = min(max((j + 0.5) * image.shape[1] / width - 0.5, 0), image.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            out[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return out


# --- the record -----------------------------------------------------------------------------------------------------


@given(
    st.builds(
        Preprocessing,
        channels=st.sampled_from(["rgb", "bgr"]),
        mean=st.none() | st.tuples(*3 * [st.floats(-200, 200)]),
        std=st.none() | st.tuples(*3 * [st.floats(0.01, 200)]),
        short_side=st.integers(128, 512),
        crop=st.integers(1, 128),
        value_range=st.tuples(st.floats(-2, 0), st.floats(0.5, 2)),
        frames=st.integers(1, 300),
        fps=st.just("native") | st.floats(0.5, 120),
        size=st.none() | st.tuples(st.integers(128, 512), st.integers(128, 512)),
        resizer=st.sampled_from(sorted(RESIZERS)),
        stride=st.integers(1, 8),
        spread=st.booleans(),
        clips=st.integers(1, 10),
        scores=st.sampled_from(["logits", "softmax"]),
        short_videos=st.sampled_from(["refuse", "loop"]),
    )
)
@example(FLOW)
@example(VIDEO_CLASSIFICATION)
def test_preprocessing_survives_json(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_the_json_of_a_release_without_mean_and_std_does_not_name_them() -> None:
    assert list(RGB.to_json()) == ["channels", "short_side", "crop", "value_range", "flow_clamp", "frames", "fps"]


def test_the_json_of_an_exact_size_names_no_shorter_side() -> None:
    names = list(VIDEO_CLASSIFICATION.to_json())
    assert "short_side" not in names
    assert names[-4:] == ["size", "resizer", "clips", "scores"]  # stride is the usual one


def test_the_shorter_side_of_an_exact_size_is_known() -> None:
    assert VIDEO_CLASSIFICATION.short_side == 128
    assert Preprocessing.from_json({**VIDEO_CLASSIFICATION.to_json(), "short_side": 128}) == VIDEO_CLASSIFICATION


@pytest.mark.parametrize(
    "change",
    [
        {"crop": "wide"},
        {"crop": 300},
        {"channels": "rgba"},
        {"value_range": [1]},
        {"mean": [1, 2]},
        {"std": 1},
        {"size": [128]},
        {"size": [200, 300]},
        {"size": [300, 400]},
        {"fps": "fast"},
        {"fps": 0},
        {"fps": float("nan")},
        {"stride": 0},
        {"spread": "yes"},
        {"clips": 0},
        {"resizer": "nearest"},
        {"scores": ["logits"]},
        {"short_videos": "pad"},
    ],
    ids=str,
)
def test_damaged_preprocessing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="does not hold the expected values"):
        Preprocessing.from_json({**RGB.to_json(), **change})


def test_preprocessing_with_other_fields_is_refused() -> None:
    values = RGB.to_json()
    values["average"] = values.pop("fps")
    with pytest.raises(FormatError, match=r"missing \['fps'\], unknown \['average'\]"):
        Preprocessing.from_json(values)


def test_impossible_preprocessing_is_refused() -> None:
    with pytest.raises(UsageError, match="1 <= crop <= short_side"):
        Preprocessing(short_side=200)


@pytest.mark.parametrize("change", [{"mean": (0.5,)}, {"std": (1.0, 2.0)}, {"std": (1.0, 0.0, 1.0)}], ids=str)
def test_a_mean_or_std_that_does_not_fit_the_channels_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="for each channel"):
        Preprocessing(**change)


# --- RGB ------------------------------------------------------------------------------------------------------------


def test_every_pixel_value_becomes_x_over_127_5_minus_1() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 256, 3))
    clip = ClipTransform(Preprocessing(crop=256))(ramp)
    expected = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(clip, expected.view(1, 1, 256, 1).expand(3, 1, 256, 256))
    assert float(clip.min()) == -1
    assert float(clip.max()) == 1


def test_frames_keep_their_order_and_channels_come_first() -> None:
    video = frames(5, 6, 6, 3)
    clip = ClipTransform(Preprocessing(short_side=6, crop=6))(video)
    np.testing.assert_array_equal(clip.numpy(), video.transpose(3, 0, 1, 2) / np.float32(127.5) - np.float32(1))
    assert clip.dtype == torch.float32


@pytest.mark.parametrize("size", [(11, 16), (16, 11), (5, 7), (8, 13)], ids=str)
def test_the_short_side_is_resized_bilinearly_and_the_centre_is_cropped(size: tuple[int, int]) -> None:
    video = frames(2, *size, 3)
    scale = 8 / min(size)
    height, width = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - 6) // 2, (width - 6) // 2
    clip = ClipTransform(SMALL)(video).numpy()
    for t, c in np.ndindex(2, 3):
        expected = bilinear(video[t, :, :, c].astype(float), height, width)[top : top + 6, left : left + 6]
        np.testing.assert_allclose(clip[c, t], expected / 127.5 - 1, rtol=0, atol=2e-6)


def test_the_released_size_comes_out() -> None:
    assert ClipTransform(RGB)(frames(2, 240, 320, 3)).shape == (3, 2, 224, 224)


def test_flow_without_a_clamp_stays_in_pixels() -> None:
    fields = {"channels": "flow", "short_side": 2, "crop": 2, "frames": 8, "fps": 30.0, "mean": [0.5, -0.5]}
    preprocessing = Preprocessing.from_json(fields)
    assert preprocessing.flow_clamp is None
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    assert not {"flow_clamp", "value_range"} & set(preprocessing.to_json())
    clip = ClipTransform(preprocessing)(np.full((1, 2, 2, 2), 300.0, np.float32))
    assert clip[:, 0, 0, 0].tolist() == [299.5, 300.5]


@pytest.mark.parametrize("clamp", [0, -1.0])
def test_a_clamp_that_leaves_nothing_is_refused(clamp: float) -> None:
    with pytest.raises(UsageError, match="flow_clamp above 0"):
        Preprocessing(channels="flow", flow_clamp=clamp)


def test_images_need_no_clamp_but_a_value_range() -> None:
    fields = {name: value for name, value in RGB.to_json().items() if name != "flow_clamp"}
    assert Preprocessing.from_json(fields).value_range == RGB.value_range
    with pytest.raises(FormatError, match="value_range"):
        Preprocessing.from_json({name: value for name, value in fields.items() if name != "value_range"})


def test_another_value_range() -> None:
    clip = ClipTransform(Preprocessing(short_side=2, crop=2, value_range=(0, 1)))(np.full((1, 2, 2, 3), 51, np.uint8))
    torch.testing.assert_close(clip, torch.full((3, 1, 2, 2), 0.2))


def test_tensors_flipped_arrays_and_read_only_arrays_give_the_same() -> None:
    video = frames(3, 9, 10, 3)
    expected = ClipTransform(SMALL)(video)
    locked = video.copy()
    locked.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ClipTransform(SMALL)(torch.from_numpy(video)), expected)
        assert torch.equal(ClipTransform(SMALL)(video[..., ::-1].copy()[..., ::-1]), expected)
        assert torch.equal(ClipTransform(SMALL)(locked), expected)
        assert torch.equal(ClipTransform(SMALL)(video.astype(">f4")), expected)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (frames(2, 9, 9, 3) / 255, r"float64 with values from .* to .*; expected uint8.*scaled to \[0, 1\]"),
        (frames(2, 9, 9, 3) / np.float32(127.5) - 1, r"values from -1 to .*floats in \[0, 255\].*scaled already"),
        (frames(2, 9, 9, 3) * 257.0, r"to 6.*expected uint8, or floats in \[0, 255\]"),
        (np.full((2, 9, 9, 3), np.nan), "expected finite numbers"),
        (frames(2, 9, 9, 3).astype(np.int64), r"int64; expected uint8 in \[0, 255\]"),
        (frames(2, 3, 9, 9), r"shape \(2, 3, 9, 9\); expected \(T, H, W, 3\).*TCHW"),
        (frames(9, 9, 3), r"frames\[None\]"),
        (frames(1, 2, 9, 9, 3), "one clip at a time"),
        (frames(2, 9, 9, 2), "flow has 2"),
        (frames(0, 9, 9, 3), r"shape \(0, 9, 9, 3\)"),
        (np.zeros((1, 1, 1 << 21, 3), np.uint8), "frames of 1x2097152 pixels become 8x16777216; expected a usual"),
        ("video.mp4", "the frames are a str"),
        (np.array([None]), "an array of object"),
    ],
)
def test_frames_that_do_not_fit_are_refused(video: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClipTransform(SMALL)(video)


def test_images_are_normalised_as_torchvision_does() -> None:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    from torchvision_cpu import torchvision

    for name, weights in (("resnet18", "ResNet18_Weights.IMAGENET1K_V1"), ("resnet50-v2", "ResNet50_Weights.DEFAULT")):
        transforms = torchvision.models.get_weight(weights).transforms()
        preprocessing = Preprocessing(**images.get(name).input)
        height, width = preprocessing.short_side, preprocessing.short_side + 14  # so that nothing is resized
        video = frames(2, height, width, 3)
        expected = transforms(torch.from_numpy(video.transpose(0, 3, 1, 2).copy()))
        clip = ClipTransform(preprocessing)(video)
        torch.testing.assert_close(clip.transpose(0, 1), expected, rtol=0, atol=1e-6)
        assert clip.std() > 1  # which the scaling alone would not make it


@pytest.mark.parametrize("size", [(240, 320), (256, 340), (112, 150), (128, 171), (333, 251)], ids=str)
@pytest.mark.parametrize("name", ["R3D_18_Weights", "MC3_18_Weights", "R2Plus1D_18_Weights"])
def test_torchvision_makes_the_same_clip(name: str, size: tuple[int, int]) -> None:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    from torchvision_cpu import torchvision

    theirs = torchvision.models.get_weight(f"{name}.KINETICS400_V1").transforms()
    assert (theirs.mean, theirs.std) == (list(VIDEO_CLASSIFICATION.mean or ()), list(VIDEO_CLASSIFICATION.std or ()))
    video = frames(3, *size, 3)
    expected = theirs(torch.from_numpy(video.transpose(0, 3, 1, 2).copy()))
    clip = ClipTransform(VIDEO_CLASSIFICATION)(video)
    torch.testing.assert_close(clip, expected, rtol=0, atol=1e-6)
    # The crop alone, one pixel beside, is seen.
    beside = ClipTransform(replace(VIDEO_CLASSIFICATION, resizer="opencv"))(video)
    assert (beside - expected).abs().max() > 0.1


@pytest.mark.parametrize("size", [(240, 320), (257, 341), (140, 125)], ids=str)
def test_torchvision_on_pillow_images_makes_the_same_clip_but_for_one_level(size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    from torchvision_cpu import torchvision

    # As kenshohara/3D-ResNets-PyTorch@540a0ea prepares its frames: main.py, get_inference_utils.
    functional = torchvision.transforms.functional
    video = frames(2, *size, 3)
    clip = ClipTransform(Preprocessing(short_side=112, crop=112, value_range=(0, 255), resizer="pillow"))(video)
    for t in range(2):
        theirs = functional.center_crop(functional.resize(image.fromarray(video[t]), 112), 112)
        difference = abs(clip[:, t].numpy().transpose(1, 2, 0) - np.asarray(theirs))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("size", [(240, 320), (257, 341), (141, 126)], ids=str)
def test_pytorchvideo_makes_the_same_clip(size: tuple[int, int]) -> None:
    package = importlib.util.find_spec("pytorchvideo")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pytorchvideo is not installed")
    # By itself: the package of transforms does not import beside torchvision from 0.17 on.
    file = Path(package.submodule_search_locations[0]) / "transforms" / "functional.py"
    spec = importlib.util.spec_from_file_location("pytorchvideo_functional", file)
    assert spec is not None
    assert spec.loader is not None
    functional = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(functional)
    video = frames(2, *size, 3)
    whole = torch.from_numpy(video).permute(3, 0, 1, 2).float()
    expected = functional.uniform_crop(functional.short_side_scale(whole, 128), 111, 1)
    clip = ClipTransform(Preprocessing(short_side=128, crop=111, value_range=(0, 255), resizer="pytorchvideo"))(video)
    torch.testing.assert_close(clip, expected, rtol=0, atol=1e-4)


def test_bgr_images_are_normalised_as_keras_does() -> None:
    resnet = pytest.importorskip("keras.applications.resnet")
    video = frames(2, 256, 270, 3)
    expected = resnet.preprocess_input(video[:, 16:240, 23:247].astype(np.float32))
    clip = ClipTransform(Preprocessing(**images.get("keras-resnet50").input))(video)
    np.testing.assert_array_equal(clip.numpy(), expected.transpose(3, 0, 1, 2))


def test_rgb_images_lose_the_mean_as_in_tf_slim() -> None:
    # vgg_preprocessing.py of tensorflow/models research/slim: the mean is subtracted from values in [0, 255].
    video = np.broadcast_to(np.array([10, 20, 30], np.uint8), (1, 256, 256, 3))
    clip = ClipTransform(Preprocessing(**images.get("slim-resnet50").input))(video)
    np.testing.assert_allclose(clip[:, 0, 0, 0], [10 - 123.68, 20 - 116.78, 30 - 103.94], rtol=1e-6)


def test_frames_for_a_bgr_network_are_checked_as_rgb() -> None:
    with pytest.raises(InputError, match=r"the rgb frames are float64.*scaled to \[0, 1\]"):
        ClipTransform(Preprocessing(channels="bgr", short_side=8, crop=6))(frames(2, 9, 9, 3) / 255)


# --- flow -----------------------------------------------------------------------------------------------------------


def test_flow_is_cut_at_20_pixels_and_divided_by_20() -> None:
    field = np.array([-50.0, -20.0, -3.0, 0.0, 0.5, 20.0, 21.0, 7.0], np.float32).reshape(1, 2, 2, 2)
    clip = ClipTransform(Preprocessing(channels="flow", short_side=2, crop=2))(field)
    expected = np.array([-1, -1, -0.15, 0, 0.025, 1, 1, 0.35], np.float32).reshape(1, 2, 2, 2).transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(clip.numpy(), expected)


def test_flow_is_rescaled_with_its_frames() -> None:
    field = np.broadcast_to(np.array([4.0, -8.0], np.float32), (3, 12, 24, 2))
    clip = ClipTransform(Preprocessing(channels="flow", short_side=6, crop=6))(field)
    assert clip.shape == (2, 3, 6, 6)
    torch.testing.assert_close(clip[:, 0, 0, 0], torch.tensor([2 / 20, -4 / 20]))


def test_flow_as_8_bit_images_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"flow frames are uint8; expected floating-point displacements.*x \* 40 / 255"
    ):
        ClipTransform(FLOW)(frames(1, 224, 224, 2))


# --- seeded clips ---------------------------------------------------------------------------------------------------


def test_noise_is_the_recorded_one() -> None:
    # The same stream of integers as rand_16_224 of the recorded truth, which is drawn for NTHWC.
    clip = noise_clip(16, 224, 224, 3, seed=0)
    assert clip.shape == (1, 3, 16, 224, 224)
    nthwc = clip.reshape(1, 16, 224, 224, 3)
    assert hashlib.sha256(nthwc.tobytes()).hexdigest().startswith("ab013b50ea1696dc")


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32))
def test_noise_lies_in_its_range_and_in_24_bits(t: int, h: int, w: int, channels: int, seed: int) -> None:
    clip = noise_clip(t, h, w, channels, seed)
    assert clip.shape == (1, channels, t, h, w)
    assert clip.dtype == np.float32
    assert clip.min() >= -1
    assert clip.max() < 1
    assert np.array_equal(clip.astype(float) * 2**23 % 1, np.zeros_like(clip))


def test_noise_is_uniform_and_differs_by_seed() -> None:
    clip = noise_clip(8, 32, 32, 3, seed=1)
    assert abs(clip.mean()) < 0.02
    assert abs(clip.var() - 1 / 3) < 0.01
    assert abs(np.corrcoef(clip.ravel(), noise_clip(8, 32, 32, 3, seed=2).ravel())[0, 1]) < 0.02


def test_a_moving_clip_is_smooth_moves_and_differs_by_channel_and_seed() -> None:
    clip = moving_clip(9, 64, 80, 3, seed=0)
    assert clip.shape == (1, 3, 9, 64, 80)
    assert clip.dtype == np.float32
    assert -1 <= clip.min() < -0.2
    assert 0.2 < clip.max() <= 1
    assert abs(np.diff(clip, axis=3)).max() < 0.2
    for axis in (1, 2):
        assert abs(np.diff(clip, axis=axis)).mean(axis=(0, 3, 4)).min() > 0.01
    assert abs(clip - moving_clip(9, 64, 80, 3, seed=1)).mean() > 0.1
    assert np.array_equal(clip, moving_clip(9, 64, 80, 3, seed=0))


def test_a_moving_clip_has_the_values_of_8_bit_frames() -> None:
    levels = (moving_clip(4, 20, 30, 2, seed=3).astype(float) + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), rtol=0, atol=1e-5)


def test_importing_the_clips_imports_no_framework() -> None:
    code = "import sys, vidweights.clips; print('torch' in sys.modules, 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_black_frames_are_black_in_any_dtype() -> None:
    black = np.zeros((2, 8, 9, 3), np.uint8)
    assert torch.equal(ClipTransform(SMALL)(black.astype(np.float32)), ClipTransform(SMALL)(black))


def test_a_clip_is_read_as_deepmind_ships_it(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 5, 6, 7, 2)).astype(np.float32)
    np.save(tmp_path / "clip.npy", frames)
    clip = read_clip(tmp_path / "clip.npy", 2)
    assert clip.shape == (1, 2, 5, 6, 7)
    assert (clip[0, 1, 2] == frames[0, 2, :, :, 1]).all()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((1, 5, 6, 7, 3), np.uint8), "uint8"),
        (np.zeros((1, 5, 6, 7, 3), np.float32), r"shape \(1, 5, 6, 7, 3\)"),
        (np.full((1, 5, 6, 7, 2), 3, np.float32), "from 3.0 to 3.0"),
        (np.full((1, 5, 6, 7, 2), np.nan, np.float32), "nan"),
    ],
)
def test_a_file_that_is_no_such_clip_is_refused(tmp_path: Path, frames: NDArray[Any], words: str) -> None:
    np.save(tmp_path / "clip.npy", frames)
    with pytest.raises(InputError, match=words):
        read_clip(tmp_path / "clip.npy", 2)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.npy").write_text("a web page")
    with pytest.raises(InputError, match="cannot be read as a clip"):
        read_clip(tmp_path / "clip.npy", 3)
