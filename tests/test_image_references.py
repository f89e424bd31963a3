"""The executions of 2D sources: that they agree on files which the genuine libraries wrote, and can differ."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vidweights.errors import FormatError, UnavailableError
from vidweights_converters.references import images as image_references
from vidweights_converters.references.images import (
    ImageOutputs,
    ImageReference,
    Images,
    Precision,
    choose,
    importable,
)
from vidweights_converters.references.images import source as source_module
from vidweights_converters.references.images.functional import FunctionalNet
from vidweights_converters.references.images.keras_net import KerasNet
from vidweights_converters.references.images.timm_net import TimmNet
from vidweights_converters.references.images.torchvision_net import TorchvisionNet

torch = pytest.importorskip("torch")

SIZE = (65, 97)
PRECISIONS: tuple[Precision, Precision] = ("float32", "float64")
Files = Callable[[str], Path]


def noise(*shape: int, seed: int = 0) -> Images:
    """Unrelated images: each its own noise on its own colour."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) + rng.standard_normal((*shape[:2], 1, 1))


def gap(ours: ImageOutputs, theirs: ImageOutputs) -> float:
    """The largest difference of features or logits, in parts of their largest value."""
    assert (ours.logits is None) == (theirs.logits is None)
    pairs = [(ours.features, theirs.features), (ours.logits, theirs.logits)]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs if a is not None and b is not None)


def calibrated(net: Any) -> Any:
    """Random affine parameters, then the statistics of train-mode passes over noise."""
    torch.manual_seed(0)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = None
    with torch.no_grad():
        for seed in range(2):
            net.train()(torch.from_numpy(noise(8, 3, 64, 96, seed=seed)).float())
    return net.eval()


def made(name: str) -> Any:
    torch.manual_seed(1)
    if name.startswith("timm-"):
        pytest.importorskip("timm")
        from torchvision_cpu import torchvision
        import timm  # isort: skip

        return timm.create_model(name.removeprefix("timm-"), num_classes=10)
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from torchvision_cpu import torchvision

    if name == "googlenet":
        return torchvision.models.googlenet(num_classes=10, aux_logits=True, transform_input=True, init_weights=True)
    return getattr(torchvision.models, name)(num_classes=10)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A file as torchvision or timm writes it, by the name of the network; made once."""
    folder = tmp_path_factory.mktemp("released")

    def file(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            torch.save(calibrated(made(name)).state_dict(), path)
        return path

    return file


def dialect_of(name: str) -> str:
    return "torchvision-googlenet" if name == "googlenet" else "torchvision-resnet"


def plain(path: Path, dialect: str = "torchvision-resnet", prefix: str = "") -> FunctionalNet:
    return FunctionalNet(path, dialect, prefix)


def agree(references: list[ImageReference], x: Images, adjust: Any = None) -> float:
    first, *others = (reference.outputs(x, "float64", adjust) for reference in references)
    assert first.logits is not None
    for pair in (first.features, first.logits):  # unrelated inputs are told apart
        assert np.abs(pair[0] - pair[1]).max() > 0.1 * np.abs(pair).max()
    return max(gap(first, other) for other in others)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "timm-resnet18", "googlenet"])
def test_the_plain_forward_computes_what_the_library_does(released: Files, name: str) -> None:
    references, absent = choose(released(name), dialect_of(name))
    assert [one.name for one in references] == [
        "torchvision",
        *(["timm"] if name != "googlenet" and find_spec("timm") else []),
        "plain forward",
    ]
    assert all(one.name == "timm" for one in absent)
    for height, width in (SIZE, (64, 78)):
        assert agree(list(references), noise(2, 3, height, width, seed=7)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet152", "timm-resnet50", "resnet50", "googlenet"])
def test_the_plain_forward_computes_what_the_library_does_at_every_depth(released: Files, name: str) -> None:
    references, _ = choose(released(name), dialect_of(name))
    for height, width in ((193, 209), (224, 224)):
        assert agree(list(references), noise(2, 3, height, width, seed=7)) < 1e-12


def test_the_released_module_as_it_stands_computes_the_reference_s_logits(released: Files) -> None:
    x = noise(2, 3, *SIZE, seed=3)
    for name in ("resnet18", "googlenet"):
        net = made(name)
        net.load_state_dict(torch.load(released(name), weights_only=True))
        # ImageNet's mean and deviation: what the release wants, and brings to [-1, 1] itself if it is GoogLeNet.
        mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 1, 3, 1, 1)
        given = ((x + 1) / 2 - mean) / deviation if name == "googlenet" else x
        with torch.no_grad():
            expected = net.double().eval()(torch.from_numpy(given)).numpy()
        for reference in choose(released(name), dialect_of(name))[0]:
            logits = reference.outputs(x, "float64").logits
            assert logits is not None
            assert np.abs(logits - expected).max() < 1e-12 * np.abs(expected).max()


def test_float32_is_computed_in_float32(released: Files) -> None:
    x = noise(2, 3, *SIZE)
    for reference in choose(released("resnet18"), "torchvision-resnet")[0]:
        single, double = (reference.outputs(x, precision) for precision in PRECISIONS)
        assert (single.features.dtype.name, double.features.dtype.name) == PRECISIONS
        assert 1e-9 < gap(single, double) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_a_stem_averaged_over_rgb_computes_on_grey_channels_what_the_source_does(released: Files, name: str) -> None:
    stem = "conv1.conv.weight" if name == "googlenet" else "conv1.weight"

    def widened(key: str, array: Images) -> Images:
        return np.repeat(array.mean(1, keepdims=True), 10, 1) * 0.3 if key == stem else array

    grey = noise(2, 1, *SIZE)
    for reference in choose(released(name), dialect_of(name))[0]:
        before = reference.outputs(grey.repeat(3, 1), "float64")
        after = reference.outputs(grey.repeat(10, 1), "float64", widened)
        assert gap(after, before) < 1e-12


class Noted:
    """An `Adjust` that changes nothing and remembers the shape of everything."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, key: str, array: Images) -> Images:
        assert array.dtype == np.float64
        self.shapes[key] = array.shape
        return array


def test_adjust_is_given_every_tensor_of_numbers_in_float64_and_in_the_layout_of_the_file(released: Files) -> None:
    state = torch.load(released("resnet18"), weights_only=True)
    expected = {key: tuple(tensor.shape) for key, tensor in state.items() if "num_batches" not in key}
    for reference in choose(released("resnet18"), "torchvision-resnet")[0]:
        noted = Noted()
        reference.outputs(noise(1, 3, *SIZE), "float32", noted)
        assert noted.shapes == expected


def _epsilon(original: Any) -> Any:
    return lambda *args, eps, **options: original(*args, eps=10 * eps, **options)


def _ceil_mode(original: Any) -> Any:
    return lambda *args, ceil_mode=False, **options: original(*args, ceil_mode=not ceil_mode, **options)


def _stride(original: Any) -> Any:
    """Strides are taken where they are, one pixel later."""

    def moved(x: Any, *args: Any, stride: int = 1, **options: Any) -> Any:
        return original(x.roll(-1, 3) if stride > 1 else x, *args, stride=stride, **options)

    return moved


def _transposed(original: Any) -> Any:
    return lambda x, kernel, *args, **options: original(x, kernel.transpose(2, 3), *args, **options)


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
@pytest.mark.parametrize(
    ("operator", "fault"),
    [("batch_norm", _epsilon), ("max_pool2d", _ceil_mode), ("conv2d", _stride), ("conv2d", _transposed)],
)
def test_a_fault_in_the_plain_forward_departs_from_the_library(
    released: Files, monkeypatch: pytest.MonkeyPatch, name: str, operator: str, fault: Callable[[Any], Any]
) -> None:
    x = noise(2, 3, 64, 96)
    library, *_ = choose(released(name), dialect_of(name))[0]
    expected = library.outputs(x, "float64")
    monkeypatch.setattr(torch.nn.functional, operator, fault(getattr(torch.nn.functional, operator)))
    assert gap(plain(released(name), dialect_of(name)).outputs(x, "float64"), expected) > 1e-4


def variants(path: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """The same network as other people store it, each with the prefix of its keys."""
    from safetensors.torch import save_file

    state = torch.load(path, weights_only=True)
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    torch.save(wrapped, folder / "wrapped.pth.tar")
    yield folder / "wrapped.pth.tar", "state_dict.module."
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    yield folder / "legacy.pth", ""
    save_file({f"model.{key}": tensor.contiguous() for key, tensor in state.items()}, folder / "hub.safetensors")
    yield folder / "hub.safetensors", "model."


def test_wrapped_legacy_and_safetensors_files_compute_the_same(released: Files, tmp_path: Path) -> None:
    x = noise(2, 3, *SIZE)
    expected = plain(released("resnet18")).outputs(x, "float64")
    for path, prefix in variants(released("resnet18"), tmp_path):
        for reference in choose(path, "torchvision-resnet", prefix)[0]:
            assert gap(reference.outputs(x, "float64"), expected) < 1e-12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_widened(released: Files, tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import save_file

    state = torch.load(released("resnet18"), weights_only=True)
    half = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(half, tmp_path / "half.pth")
    save_file(half, tmp_path / "half.safetensors")
    torch.save({k: v.float() if v.is_floating_point() else v for k, v in half.items()}, tmp_path / "widened.pth")
    x = noise(2, 3, *SIZE)
    expected = plain(tmp_path / "widened.pth").outputs(x, "float64")
    assert gap(plain(released("resnet18")).outputs(x, "float64"), expected) > 1e-5
    for path in (tmp_path / "half.pth", tmp_path / "half.safetensors"):
        for reference in choose(path, "torchvision-resnet")[0]:
            assert gap(reference.outputs(x, "float64"), expected) < 1e-12


def test_a_source_without_classifier_has_no_logits(released: Files, tmp_path: Path) -> None:
    state = torch.load(released("resnet18"), weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "features.pth")
    x = noise(2, 3, *SIZE)
    whole = plain(released("resnet18")).outputs(x, "float64")
    for reference in choose(tmp_path / "features.pth", "torchvision-resnet")[0]:
        outputs = reference.outputs(x, "float64")
        assert outputs.logits is None
        assert np.abs(outputs.features - whole.features).max() < 1e-12 * np.abs(whole.features).max()


def test_a_missing_tensor_is_named(released: Files, tmp_path: Path) -> None:
    state = torch.load(released("resnet18"), weights_only=True)
    del state["layer3.1.bn2.running_var"]
    torch.save(state, tmp_path / "cut.pth")
    for reference in choose(tmp_path / "cut.pth", "torchvision-resnet")[0]:
        with pytest.raises(FormatError, match=r"lacks layer3\.1\.bn2\.running_var"):
            reference.outputs(noise(1, 3, *SIZE), "float32")


class Harmless:
    """What torch refuses to unpickle."""


def test_a_file_that_the_library_refuses_is_told(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "options": Harmless()}, tmp_path / "train.pth")
    with pytest.raises(FormatError, match=r"cannot be read with PyTorch.*--no-validate"):
        plain(tmp_path / "train.pth").outputs(noise(1, 3, *SIZE), "float32")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(FormatError, match=r"no tensor whose name begins with 'module\.'"):
        plain(tmp_path / "other.pth", prefix="module.").outputs(noise(1, 3, *SIZE), "float32")


# TF-slim, against logits that its own code computed in TensorFlow 1.15.


@pytest.fixture(scope="module")
def slim_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A TensorFlow checkpoint of the variables that TF-slim ran, by the name of the network; made once."""
    import slim
    from networks import write

    folder = tmp_path_factory.mktemp("slim")

    def file(name: str) -> Path:
        if not (folder / name).exists():
            slots = {f"{name}/conv1/weights/Momentum": np.zeros((7, 7, 3, 64), np.float32)}
            write(folder / name, "tf", {**slim.variables(name), **slots})
        return next((folder / name).glob("*.index"))

    return file


SLIM = {"inception_v1": ("slim-inception", "InceptionV1/"), "resnet_v1_50": ("slim-resnet", "resnet_v1_50/")}


def slim_gap(path: Path, name: str) -> float:
    """The largest difference from TF-slim's logits, in parts of the largest."""
    import slim

    (reference,), absent = choose(path, *SLIM[name])
    assert (reference.name, absent) == ("plain forward", ())
    gaps = []
    for images, logits in zip(slim.images(name), slim.logits(name, "float64"), strict=True):
        ours = reference.outputs(np.moveaxis(images, -1, 1).astype(np.float64), "float64").logits
        assert ours is not None
        gaps.append(float(np.abs(ours - logits).max() / np.abs(logits).max()))
    return max(gaps)


@pytest.mark.parametrize("name", sorted(SLIM))
def test_the_plain_forward_computes_tf_slim_s_logits(
    slim_files: Files, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(source_module, "find_spec", lambda _name: None)
    assert slim_gap(slim_files(name), name) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLIM))
def test_tensorflow_reads_the_same_variables_from_a_checkpoint_of_slim(slim_files: Files, name: str) -> None:
    pytest.importorskip("tensorflow")
    assert slim_gap(slim_files(name), name) < 1e-12


def _odd_pixel_first(original: Any) -> Any:
    def flipped(x: Any, *args: Any, **options: Any) -> Any:
        return original(x.flip(2, 3), *args, **options).flip(2, 3)

    return flipped


def test_tf_slim_s_logits_can_tell_a_fault(slim_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidweights_converters.references.images import functional

    path = slim_files("inception_v1")
    monkeypatch.setattr(source_module, "find_spec", lambda _name: None)
    for module, operator, fault in (
        (functional, "pad_same", _odd_pixel_first),
        (torch.nn.functional, "batch_norm", _epsilon),
        (torch.nn.functional, "conv2d", _transposed),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, operator, fault(getattr(module, operator)))
            assert slim_gap(path, "inception_v1") > 1e-4, fault


# Keras.


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """An `.h5` file as Keras writes it, by the name of the network; made once."""
    if find_spec("tensorflow") is None or find_spec("keras") is None:
        pytest.skip("Keras and TensorFlow are not installed")
    folder = tmp_path_factory.mktemp("keras")

    def file(name: str) -> Path:
        path = folder / f"{name}.h5"
        if not path.exists():
            _write_keras(name, path)
        return path

    return file


def _write_keras(name: str, path: Path) -> None:
    from vidweights_converters.references.tf_i3d import tensorflow

    tensorflow()
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    net = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 96, 3), classes=10, classifier_activation=None
    )
    norms = [layer for layer in net.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.uniform(-0.5, 0.5, norm.beta.shape))
        norm.momentum = 0.0
    for layer in net.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.bias.assign(rng.uniform(-0.1, 0.1, layer.bias.shape))
    net(np.moveaxis(60 * noise(8, 3, 64, 96), 1, -1), training=True)
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, net)
    net.save_weights(path.with_suffix(".weights.h5"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "ResNet101", "ResNet152"])
def test_the_plain_forward_computes_what_keras_does(keras_files: Files, name: str) -> None:
    import keras

    references, absent = choose(keras_files(name), "keras-resnet")
    assert [one.name for one in references] == ["keras.applications", "plain forward"]
    assert absent == ()
    before = keras.config.floatx(), keras.config.dtype_policy().name
    for height, width in (SIZE, (64, 96), (193, 209))[: 3 if name == "ResNet50" else 1]:
        assert agree(list(references), 60 * noise(2, 3, height, width, seed=7)) < 1e-12
    assert (keras.config.floatx(), keras.config.dtype_policy().name) == before


@pytest.mark.slow
def test_keras_computes_in_float32_too(keras_files: Files) -> None:
    def halved(key: str, array: Images) -> Images:
        return array / 2 if key == "predictions/kernel" else array

    x = 60 * noise(2, 3, *SIZE)
    for reference in choose(keras_files("ResNet50"), "keras-resnet")[0]:
        single, double = (reference.outputs(x, precision, halved) for precision in PRECISIONS)
        assert (single.features.dtype.name, double.features.dtype.name) == PRECISIONS
        assert 1e-9 < gap(single, double) < 1e-4


@pytest.mark.slow
def test_keras_takes_a_stem_averaged_over_its_channels(keras_files: Files) -> None:
    def widened(key: str, array: Images) -> Images:
        return np.repeat(array.mean(2, keepdims=True), 10, 2) * 0.3 if key == "conv1_conv/kernel" else array

    grey = 60 * noise(2, 1, *SIZE)
    for reference in choose(keras_files("ResNet50"), "keras-resnet")[0]:
        before = reference.outputs(grey.repeat(3, 1), "float64")
        assert gap(reference.outputs(grey.repeat(10, 1), "float64", widened), before) < 1e-12


@pytest.mark.slow
def test_files_of_keras_3_and_files_without_suffix_compute_the_same(keras_files: Files, tmp_path: Path) -> None:
    x = 60 * noise(2, 3, *SIZE)
    expected = plain(keras_files("ResNet50"), "keras-resnet").outputs(x, "float64")
    blob = tmp_path / "2cb95161c43110f7111970584f804107"
    blob.write_bytes(keras_files("ResNet50").read_bytes())
    for path in (blob, keras_files("ResNet50").with_suffix(".weights.h5")):
        for reference in choose(path, "keras-resnet")[0]:
            assert gap(reference.outputs(x, "float64"), expected) < 1e-12


@pytest.mark.slow
def test_the_classifier_may_have_keras_applications_name_or_be_absent(keras_files: Files, tmp_path: Path) -> None:
    x = 60 * noise(2, 3, *SIZE)
    expected = plain(keras_files("ResNet50"), "keras-resnet").outputs(x, "float64")
    named, bare = tmp_path / "probs.h5", tmp_path / "notop.h5"
    for path in (named, bare):
        path.write_bytes(keras_files("ResNet50").read_bytes())
        with h5py.File(path, "r+") as file:
            layers = [name for name in file.attrs["layer_names"].astype(str) if name != "predictions"]
            if path == named:
                group = file.create_group("probs")
                group.attrs["weight_names"] = [b"probs/kernel:0", b"probs/bias:0"]
                for leaf in ("kernel", "bias"):
                    group[f"probs/{leaf}:0"] = file[f"predictions/predictions/{leaf}"][()]
                layers.append("probs")
            del file["predictions"]
            file.attrs["layer_names"] = np.array(layers, "S")
    for reference in choose(named, "keras-resnet-probs")[0]:
        noted = Noted()
        assert gap(reference.outputs(x, "float64", noted), expected) < 1e-12
        assert {"probs/kernel", "probs/bias"} <= noted.shapes.keys()
    for reference in choose(bare, "keras-resnet")[0]:
        outputs = reference.outputs(x, "float64")
        assert outputs.logits is None
        assert np.abs(outputs.features - expected.features).max() < 1e-12 * np.abs(expected.features).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "fault"), [("batch_norm", _epsilon), ("conv2d", _stride), ("conv2d", _transposed)]
)
def test_a_fault_in_the_plain_forward_departs_from_keras(
    keras_files: Files, monkeypatch: pytest.MonkeyPatch, operator: str, fault: Callable[[Any], Any]
) -> None:
    x = 60 * noise(2, 3, *SIZE)
    expected = KerasNet(keras_files("ResNet50"), "").outputs(x, "float64")
    monkeypatch.setattr(torch.nn.functional, operator, fault(getattr(torch.nn.functional, operator)))
    assert gap(plain(keras_files("ResNet50"), "keras-resnet").outputs(x, "float64"), expected) > 1e-4


def _keras_stub(path: Path, width: int, units: tuple[int, ...]) -> Path:
    names = [f"conv{s}_block{n + 1}_1_conv" for s, count in zip((2, 3, 4, 5), units) for n in range(count)]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in ("conv1_conv", *names)]
        for name in ("conv1_conv", *names):
            file.create_group(name).attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            file[f"{name}/{name}/kernel:0"] = np.zeros((7, 7, 3, width), np.float32)
    return path


# Which references there are.


def test_keras_is_absent_for_widths_and_depths_that_it_does_not_have(tmp_path: Path) -> None:
    if find_spec("tensorflow") is None or find_spec("keras") is None:
        pytest.skip("Keras and TensorFlow are not installed")
    narrow = _keras_stub(tmp_path / "narrow.h5", 8, (3, 4, 6, 3))
    shallow = _keras_stub(tmp_path / "shallow.h5", 64, (2, 2, 2, 2))
    for path, reason in ((narrow, r"widths are fixed .* \(8\)"), (shallow, r"\(2, 2, 2, 2\) blocks")):
        (only,), (absent,) = choose(path, "keras-resnet")
        assert isinstance(only, FunctionalNet)
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(absent.reason)


def test_a_reference_that_is_not_installed_is_absent_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(image_references, "find_spec", lambda name: None if name in ("timm", "torchvision") else name)
    references, absent = choose(tmp_path / "any.pth", "torchvision-resnet")
    assert [type(one) for one in references] == [FunctionalNet]
    assert {one.name: one.reason for one in absent} == {
        "torchvision": "torchvision not installed: pip install torchvision",
        "timm": "torchvision, timm not installed: pip install timm",
    }


def test_a_reference_whose_library_cannot_be_imported_is_absent_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    references = (TorchvisionNet(tmp_path, "torchvision-resnet", ""), plain(tmp_path))
    assert importable(references) == (references, ())
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found, (absent,) = importable(references)
    assert found == references[1:]
    assert absent.name == "torchvision"
    assert "cannot be imported" in absent.reason
    with pytest.raises(UnavailableError, match="torchvision is installed and cannot be imported"):
        references[0].outputs(noise(1, 3, *SIZE), "float32")
    if find_spec("timm") is not None:
        assert [one.name for one in importable((TimmNet(tmp_path, ""),))[1]] == ["timm"]


def test_torchvision_is_imported_beside_any_torch_without_a_warning() -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    module = "vidweights_converters.references.images.torchvision_net"
    code = f"from {module} import torchvision; print(torchvision().__version__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_choosing_imports_no_framework(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from vidweights_converters.references.images import choose
for dialect in ("torchvision-resnet", "torchvision-googlenet", "slim-resnet", "slim-inception"):
    choose(Path({str(tmp_path)!r}), dialect)
import sys
print(*{{name.split(".")[0] for name in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frameworks = {"torch", "torchvision", "timm", "tensorflow", "keras", "jax", "h5py"}
    assert not set(done.stdout.split()) & frameworks


def test_no_reference_imports_a_table_that_it_judges() -> None:
    forbidden = {"families", "dialects", "plan", "run", "models", "identity", "layers", "faults", "inflate"}
    for path in Path(image_references.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vidweights"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                assert not {part for name in names for part in name.split(".")} & forbidden, path.name
