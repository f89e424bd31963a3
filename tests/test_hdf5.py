"""HDF5 files: Keras's layouts under the names that its users know, and nothing outside of the file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidweights import dialects
from vidweights.errors import FormatError, UsageError
from vidweights.families.i3d import I3DConfig, Mixed, layers
from vidweights.families.units import Unit
from vidweights.formats.base import TensorInfo
from vidweights.formats.hdf5 import Hdf5File, Hdf5Writer
from vidweights.layout import Array

CONFIG = I3DConfig(num_classes=5, depth_multiplier=1 / 8)


def write(path: Path, arrays: dict[str, Array]) -> dict[str, str]:
    writer = Hdf5Writer(path, [TensorInfo(key, a.shape, a.dtype.name) for key, a in arrays.items()])
    for key, array in arrays.items():
        writer.write(key, array)
    return writer.finish()


def same(path: Path, arrays: dict[str, Array]) -> bool:
    with Hdf5File(path) as file:
        assert list(file.tensors) == list(arrays)
        return all(
            np.array_equal(file.read(key), array) and file.read(key).dtype == array.dtype
            for key, array in arrays.items()
        )


def noise(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype("<f4") for key, shape in shapes.items()}


@given(
    names=st.lists(st.text("abc_0", min_size=1, max_size=8), min_size=1, max_size=6, unique=True),
    dtype=st.sampled_from(["<f4", "<f8", "<f2", "<i8", "|u1", "|b1"]),
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, names: list[str], dtype: str) -> None:
    path = tmp_path_factory.mktemp("h5") / "model.h5"
    arrays = {f"{n}/kernel": np.arange(6).reshape(1, 2, 3).astype(dtype) for n in names}
    arrays |= {f"{n}/step": np.array(3).astype(dtype) for n in names}
    ordered = {key: arrays[key] for n in names for key in (f"{n}/kernel", f"{n}/step")}
    write(path, ordered)
    assert same(path, ordered)


def test_keys_without_layers_are_plain_datasets(tmp_path: Path) -> None:
    arrays = noise({"a.weight": (2, 3), "b.weight": (4,)})
    write(tmp_path / "model.h5", arrays)
    assert same(tmp_path / "model.h5", arrays)
    with h5py.File(tmp_path / "model.h5") as file:
        assert list(file) == ["a.weight", "b.weight"]


def test_the_bytes_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    arrays = noise({"conv/kernel": (3, 4, 5), "conv/bias": (5,)})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write(tmp_path / "a" / "model.h5", arrays)
    time.sleep(1.1)
    assert write(tmp_path / "b" / "model.h5", arrays) == first


def test_a_list_of_layers_beyond_the_attribute_limit_is_cut_and_joined(tmp_path: Path) -> None:
    arrays = {f"layer_with_a_rather_long_name_{i:04}/w": np.full(1, i, "<f4") for i in range(2500)}
    write(tmp_path / "model.h5", arrays)
    with h5py.File(tmp_path / "model.h5") as file:
        assert "layer_names0" in file.attrs
        assert "layer_names" not in file.attrs
    assert same(tmp_path / "model.h5", arrays)


def test_bfloat16_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        Hdf5Writer(tmp_path / "model.h5", [TensorInfo("a/b", (1,), "bfloat16")])
    assert not list(tmp_path.iterdir())


def test_a_weight_that_does_not_begin_with_its_layer_gets_its_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names"] = [b"convolution3d_1", b"block"]
        file.create_group("convolution3d_1").attrs["weight_names"] = [b"convolution3d_1_W"]  # as Keras 1 did
        file["convolution3d_1/convolution3d_1_W"] = np.ones((2, 3), "f4")
        file.create_group("block").attrs["weight_names"] = [b"inner/kernel:0"]
        file["block/inner/kernel:0"] = np.zeros(3, "f4")
        file["optimizer_weights/iterations"] = 3
    with Hdf5File(tmp_path / "old.h5") as checkpoint:
        assert list(checkpoint.tensors) == ["convolution3d_1_W", "block/inner/kernel"]
        assert checkpoint.others == {"optimizer_weights/iterations": "optimiser state"}


def test_big_endian_fortran_and_strings(tmp_path: Path) -> None:
    values = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep/big"] = values
        file["labels"] = ["a", "b"]
        file["nothing"] = h5py.Empty("f4")
    with Hdf5File(tmp_path / "x.h5") as checkpoint:
        assert list(checkpoint.tensors) == ["deep/big"]
        assert set(checkpoint.others) == {"labels", "nothing"}
        read = checkpoint.read("deep/big")
    assert read.dtype == np.dtype("<f4")
    assert np.array_equal(read, values)


def links(file: Any) -> None:
    file["a"] = h5py.SoftLink("/b")


def external_links(file: Any) -> None:
    file["a"] = h5py.ExternalLink("/etc/passwd", "/b")


def external_storage(file: Any) -> None:
    file.create_dataset("a", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual_storage(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "b", (4,))
    file.create_virtual_dataset("a", layout)


def bomb(file: Any) -> None:
    file.create_dataset("a", (1 << 20, 1 << 22), "f4", chunks=(1024, 1024), compression="gzip")


def cycle(file: Any) -> None:
    file.create_group("a")["b"] = file["/"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (links, "SoftLink"),
        (external_links, "ExternalLink"),
        (external_storage, "in other files"),
        (virtual_storage, "in other files"),
        (bomb, "claims 17,592,186,044,416 bytes"),
        (cycle, "there twice"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, make: Any, message: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        make(file)
    with pytest.raises(FormatError, match=message):
        Hdf5File(tmp_path / "x.h5")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    arrays = noise({"conv/kernel": (3, 4, 5), "conv/bias": (5,)})
    write(tmp_path / "model.h5", arrays)
    data = (tmp_path / "model.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FormatError, match="not a whole HDF5 file"):
        Hdf5File(tmp_path / "cut.h5")


@given(at=st.integers(0, 4000), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_byte_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("h5")
    write(folder / "model.h5", noise({"conv/kernel": (3, 4), "conv/bias": (5,)}))
    data = bytearray((folder / "model.h5").read_bytes())
    data[at % len(data)] = value
    (folder / "bad.h5").write_bytes(data)
    try:
        with Hdf5File(folder / "bad.h5") as file:
            for key in file.tensors:
                file.read(key)
    except FormatError:
        pass


def keras_i3d(config: I3DConfig) -> Any:
    """A functional Keras model with the layers, and the names of layers, of dlpbc/keras-kinetics-i3d."""
    import keras
    from keras.layers import Activation, AveragePooling3D, BatchNormalization, Conv3D, Dropout, MaxPooling3D

    def unit(x: Any, name: str, channels: int, kernel: Any, stride: Any = (1, 1, 1)) -> Any:
        x = Conv3D(channels, kernel, stride, "same", use_bias=False, name=f"{name}_conv")(x)
        return Activation("relu", name=name)(BatchNormalization(scale=False, name=f"{name}_bn")(x))

    inputs = x = keras.Input((16, 224, 224, config.in_channels))
    for layer in layers(config):
        match layer:
            case Unit(name, channels, kernel, stride):
                x = unit(x, name, channels, kernel, stride)
            case Mixed(name, (b0, b1a, b1b, b2a, b2b, b3)):
                at, one, three = f"Conv3d_{name.removeprefix('Mixed_')}", (1, 1, 1), (3, 3, 3)
                y0 = unit(x, f"{at}_0a_1x1", b0, one)
                y1 = unit(unit(x, f"{at}_1a_1x1", b1a, one), f"{at}_1b_3x3", b1b, three)
                y2 = unit(unit(x, f"{at}_2a_1x1", b2a, one), f"{at}_2b_3x3", b2b, three)
                y3 = unit(MaxPooling3D(three, one, "same")(x), f"{at}_3b_1x1", b3, one)
                x = keras.layers.concatenate([y0, y1, y2, y3], name=name)
            case pool:
                x = MaxPooling3D(pool.kernel, pool.stride, "same")(x)
    x = Dropout(0.5)(AveragePooling3D((2, 7, 7), (1, 1, 1), "valid")(x))
    return keras.Model(inputs, Conv3D(config.num_classes, (1, 1, 1), name="Conv3d_6a_1x1_conv")(x))


def table_shapes(config: I3DConfig) -> dict[str, tuple[int, ...]]:
    rows = dialects.get("keras-i3d").table(config)
    return {row.place.key: row.stored_shape for row in rows if isinstance(row.place, dialects.Stored)}


def weights_of(model: Any) -> dict[str, Array]:
    return {variable.path: variable.numpy() for variable in model.variables if "seed" not in variable.path}


def save_as_keras_does(model: Any, path: Path) -> None:
    """In the way that the name says: the weights, the whole model, or the weights as Keras 2 laid them out."""
    if path.name == "legacy.h5":
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
    else:
        (model.save if path.name == "whole.h5" else model.save_weights)(path)


@pytest.mark.slow
def test_keras_loads_our_file_by_position(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    arrays = noise(table_shapes(CONFIG))
    write(tmp_path / "model.h5", arrays)
    model = keras_i3d(CONFIG)
    model.load_weights(tmp_path / "model.h5")
    loaded = weights_of(model)
    assert loaded.keys() == arrays.keys()
    assert [key for key in arrays if not np.array_equal(loaded[key], arrays[key])] == []


@pytest.mark.slow
def test_the_dialect_has_the_order_of_kerass_own_file(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    keras_i3d(CONFIG).save(tmp_path / "theirs.h5")
    with Hdf5File(tmp_path / "theirs.h5") as file:
        assert list(file.tensors) == list(table_shapes(CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.weights.h5", "whole.h5", "legacy.h5"])
def test_files_of_keras_are_read_under_the_names_of_the_dialect(tmp_path: Path, name: str) -> None:
    pytest.importorskip("keras")
    model = keras_i3d(CONFIG)
    for variable, array in zip(model.variables, noise({v.path: v.shape for v in model.variables}).values()):
        if "seed" not in variable.path:
            variable.assign(array)
    save_as_keras_does(model, tmp_path / name)
    with Hdf5File(tmp_path / name) as checkpoint:
        assert {key: info.shape for key, info in checkpoint.tensors.items()} == table_shapes(CONFIG)
        expected = weights_of(model)
        assert [key for key in expected if not np.array_equal(checkpoint.read(key), expected[key])] == []


@pytest.mark.slow
def test_keras_bfloat16_and_optimiser_state(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((3,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(4, name="dense", dtype="bfloat16")(inputs))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(x))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "x.weights.h5")
    with Hdf5File(tmp_path / "x.weights.h5") as checkpoint:
        weights = ["norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance", "dense/kernel", "dense/bias"]
        assert sorted(checkpoint.tensors) == sorted(weights)
        assert set(checkpoint.others.values()) == {"optimiser state"}
        assert checkpoint.tensors["dense/kernel"].dtype == "bfloat16"
        pattern = model.get_layer("dense").kernel.numpy().view("u2")
        assert np.array_equal(checkpoint.read("dense/kernel"), pattern)


def test_names_that_no_encoding_has_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layers/conv3d/vars/0"] = np.zeros((1, 1, 1, 1, 1), "<f4")
        file["layers/conv3d/vars"].attrs.create("name", b"\xff", dtype=h5py.string_dtype())
    with pytest.raises(FormatError, match="which is not text"):
        Hdf5File(tmp_path / "x.h5")


RESNET = {
    "conv1_conv/kernel": (7, 7, 3, 8),
    "conv1_conv/bias": (8,),
    "conv1_bn/gamma": (8,),
    "conv1_bn/beta": (8,),
    "conv1_bn/moving_mean": (8,),
    "conv1_bn/moving_variance": (8,),
    "conv2_block1_0_conv/kernel": (1, 1, 8, 32),
    "conv2_block1_0_conv/bias": (32,),
    "probs/kernel": (32, 10),
    "probs/bias": (10,),
}


@pytest.mark.parametrize("top", [True, False])
def test_the_files_of_keras_applications_are_read_under_the_names_of_their_layers(tmp_path: Path, top: bool) -> None:
    """As Keras 2.2 wrote them: layers without weights are listed too."""
    arrays = {key: array for key, array in noise(RESNET).items() if top or not key.startswith("probs")}
    layers = list(dict.fromkeys(key.split("/")[0] for key in arrays))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = np.bytes_(b"2.2.4"), np.bytes_(b"tensorflow")
        file.attrs["layer_names"] = [name.encode() for name in ["input_1", "conv1_pad", *layers, "avg_pool"]]
        for layer in ["input_1", "conv1_pad", *layers, "avg_pool"]:
            names = [f"{key}:0" for key in arrays if key.startswith(f"{layer}/")]
            file.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                file[f"{layer}/{name}"] = arrays[name.removesuffix(":0")]
    assert same(tmp_path / "x.h5", arrays)


@pytest.mark.slow
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("name", ["x.weights.h5", "whole.h5", "legacy.h5"])
def test_a_resnet_of_keras_is_read_under_the_names_of_its_layers(tmp_path: Path, name: str, top: bool) -> None:
    keras = pytest.importorskip("keras")
    model = keras.applications.ResNet50(weights=None, include_top=top, input_shape=(64, 64, 3), classes=10)
    save_as_keras_does(model, tmp_path / name)
    with Hdf5File(tmp_path / name) as checkpoint:
        assert not checkpoint.others
        assert {"conv1_conv/bias", "conv5_block3_3_bn/moving_variance"} <= checkpoint.tensors.keys()
        assert ("predictions/kernel" in checkpoint.tensors) is top
        expected = weights_of(model)
        assert checkpoint.tensors.keys() == expected.keys()
        assert [key for key in expected if not np.array_equal(checkpoint.read(key), expected[key])] == []
