"""keras.applications' own ResNets on an `.h5` file, which Keras itself loads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vidweights import formats
from vidweights.errors import FormatError
from vidweights_converters.references.images.base import Adjust, ImageOutputs, Images, Precision
from vidweights_converters.references.images.functional import KERAS_TOPS
from vidweights_converters.references.tf_i3d import tensorflow

STEM = "conv1_conv/kernel"
STEM_WIDTH = 64  # the widths of keras.applications are fixed
# keras/src/applications/resnet.py: the units of each stage.
_NETWORKS: Mapping[tuple[int, ...], str] = {
    (3, 4, 6, 3): "ResNet50",
    (3, 4, 23, 3): "ResNet101",
    (3, 8, 36, 3): "ResNet152",
}

Shapes = Mapping[str, tuple[int, ...]]


class KerasNet:
    """ResNet50, 101 or 152. Keras and TensorFlow are imported on first use."""

    name = "keras.applications"

    def __init__(self, path: Path, prefix: str) -> None:
        self.path, self.prefix = path, prefix

    @property
    def version(self) -> str:
        """The versions of Keras and TensorFlow."""
        return f"keras {_keras().__version__}, tensorflow {tensorflow().__version__}"

    def outputs(self, images: Images, precision: Precision, adjust: Adjust | None = None) -> ImageOutputs:
        """See `ImageReference.outputs`."""
        keras = _keras()
        shapes = stored_shapes(self.path, self.prefix)
        with _computing_in(keras, precision):
            net = _build(keras, shapes, images, shapes[STEM][2])
            _load(net, self.path)
            if adjust is not None:
                values = _adjusted(keras, net, shapes, adjust)
                if images.shape[1] != shapes[STEM][2]:
                    net = _build(keras, shapes, images, images.shape[1])
                for variable, value in zip(net.variables, values, strict=True):
                    variable.assign(value)
            ends = keras.Model(net.inputs[0], [net.get_layer("avg_pool").output, net.outputs[0]])
            arrays = ends(np.moveaxis(images, 1, -1).astype(precision), training=False)
            features, logits = (keras.ops.convert_to_numpy(array) for array in arrays)
        return ImageOutputs(features, None if _top(shapes) is None else logits)


def stored_shapes(path: Path, prefix: str) -> Shapes:
    """The shapes of the file's tensors, by their keys without the prefix."""
    with formats.open_checkpoint(path) as checkpoint:
        return {
            key.removeprefix(prefix): info.shape for key, info in checkpoint.tensors.items() if key.startswith(prefix)
        }


def lacks(shapes: Shapes) -> str | None:
    """Why keras.applications has no network of these shapes; None if it has one."""
    width = shapes[STEM][-1] if STEM in shapes else "none"
    if width != STEM_WIDTH:
        return f"its widths are fixed ({STEM_WIDTH} in the stem), and those of this network are others ({width})"
    if _units(shapes) not in _NETWORKS:
        return f"it has {', '.join(_NETWORKS.values())}, and this network has {_units(shapes)} blocks in its stages"
    return None


def _units(shapes: Shapes) -> tuple[int, ...]:
    names = {key.split("/")[0] for key in shapes}
    return tuple(
        sum(name.startswith(f"conv{stage}_block") and name.endswith("_1_conv") for name in names)
        for stage in (2, 3, 4, 5)
    )


def _top(shapes: Shapes) -> str | None:
    return next((name for name in KERAS_TOPS if f"{name}/kernel" in shapes), None)


def _build(keras: Any, shapes: Shapes, images: Images, channels: int) -> Any:
    top = _top(shapes)
    return getattr(keras.applications, _NETWORKS[_units(shapes)])(
        weights=None,
        include_top=top is not None,
        input_tensor=keras.Input((*images.shape[2:], channels)),
        pooling="avg",
        classes=1000 if top is None else shapes[f"{top}/kernel"][1],
        classifier_activation=None,
    )


def _load(net: Any, path: Path) -> None:
    """Load the file as Keras does; it goes by the suffix, which a file in a cache may lack."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, ".weights.h5" if _is_keras3(path) else "legacy.h5")
        link.symlink_to(path.resolve())
        try:
            net.load_weights(link)
        except Exception as error:  # a ValueError or what h5py raises
            reason = str(error).partition("\n")[0]
            raise FormatError(
                f"{path} cannot be loaded by Keras ({reason}); give the file as it was released."
            ) from error


def _is_keras3(path: Path) -> bool:
    import h5py

    with h5py.File(path, "r") as file:
        return "layers" in file


def _adjusted(keras: Any, net: Any, shapes: Shapes, adjust: Adjust) -> list[Any]:
    """The value that every variable shall have, in the order of `net.variables`."""
    names = {id(variable): f"{layer.name}/{variable.name}" for layer in net.layers for variable in layer.variables}
    values = []
    for variable in net.variables:
        # Older releases of Keras called the classifier otherwise.
        name = names[id(variable)].replace(KERAS_TOPS[0], _top(shapes) or "")
        values.append(adjust(name, keras.ops.convert_to_numpy(variable).astype(np.float64)))
    return values


@contextmanager
def _computing_in(keras: Any, precision: Precision) -> Iterator[None]:
    """Give new layers this precision and the layout NHWC; what was set before is set again at the end."""
    config = keras.config
    before = config.floatx(), config.dtype_policy(), config.image_data_format()
    try:
        config.set_floatx(precision)
        config.set_dtype_policy(precision)
        config.set_image_data_format("channels_last")
        yield
    finally:
        config.set_floatx(before[0])
        config.set_dtype_policy(before[1])
        config.set_image_data_format(before[2])


def _keras() -> Any:
    """Keras, imported after TensorFlow so that neither writes to the terminal."""
    tensorflow()
    import keras

    return keras
