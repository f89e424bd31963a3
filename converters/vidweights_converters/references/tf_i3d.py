"""DeepMind's I3D as a TensorFlow graph, on the released checkpoint under its own names.

Written from `i3d.py` of google-deepmind/kinetics-i3d at commit 0667e889 and from Sonnet 1.36's Conv3D and
BatchNorm, with TensorFlow's operators. The topology stands here a second time on purpose.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import FormatError
from vidweights_converters.references.base import HEAD, Clip, Precision

STEM = "Conv3d_1a_7x7"
_EPSILON = 1e-3

# (endpoint, window, stride) for a max-pool, (endpoint, stride) for a convolution, (endpoint,) for a Mixed block.
_GRAPH: tuple[tuple[Any, ...], ...] = (
    (STEM, 2),
    ("MaxPool3d_2a_3x3", (1, 3, 3), (1, 2, 2)),
    ("Conv3d_2b_1x1", 1),
    ("Conv3d_2c_3x3", 1),
    ("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
    ("Mixed_3b",),
    ("Mixed_3c",),
    ("MaxPool3d_4a_3x3", (3, 3, 3), (2, 2, 2)),
    ("Mixed_4b",),
    ("Mixed_4c",),
    ("Mixed_4d",),
    ("Mixed_4e",),
    ("Mixed_4f",),
    ("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2)),
    ("Mixed_5b",),
    ("Mixed_5c",),
)


class TensorFlowI3D:
    """The graph of one checkpoint, given by its `.index`. TensorFlow is imported on first use."""

    name = "TensorFlow graph"
    framework = "tensorflow"

    def __init__(self, index: Path) -> None:
        self.prefix = index.with_suffix("")

    @property
    def version(self) -> str:
        """The version of TensorFlow."""
        return f"tensorflow {tensorflow().__version__}"

    def endpoints(self, clip: Clip, precision: Precision) -> Mapping[str, NDArray[Any]]:
        """See `Reference.endpoints`. Raises FormatError when the checkpoint is not an I3D under released names."""
        graph = _Graph(self.prefix, precision)
        return {name: np.moveaxis(value, -1, 1) for name, value in graph.run(np.moveaxis(clip, 1, -1))}


class _Graph:
    """The variables of a checkpoint in one precision, and the operators over them. Tensors are NTHWC."""

    def __init__(self, prefix: Path, precision: Precision) -> None:
        self.tf = tensorflow()
        self.reader = self.tf.train.load_checkpoint(str(prefix))
        self.names = self.reader.get_variable_to_shape_map()
        self.scope = _scope(self.names, prefix)
        self.precision = precision

    def variable(self, name: str) -> Any:
        return self.tf.constant(self.reader.get_tensor(self.scope + name), self.precision)

    def run(self, clip: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
        net = self.tf.constant(clip, self.precision)
        for name, *arguments in _GRAPH:
            if name.startswith("Mixed"):
                net = self.mixed(name, net)
            elif name.startswith("MaxPool"):
                net = self.max_pool(net, *arguments)
            else:
                net = self.unit(name, net, *arguments)
            yield name, net.numpy()
        yield HEAD, self.head(net).numpy()

    def unit(self, name: str, net: Any, stride: int = 1) -> Any:
        strides = [1, stride, stride, stride, 1]
        net = self.tf.nn.conv3d(net, self.variable(f"{name}/conv_3d/w"), strides=strides, padding="SAME")
        beta, mean, variance = (
            # A vector is [C] in the scoped checkpoints and [1, 1, 1, 1, C] in the others.
            self.tf.reshape(self.variable(f"{name}/batch_norm/{leaf}"), [-1])
            for leaf in ("beta", "moving_mean", "moving_variance")
        )
        return self.tf.nn.relu((net - mean) * self.tf.math.rsqrt(variance + _EPSILON) + beta)

    def mixed(self, name: str, net: Any) -> Any:
        # The release calls one 3x3x3 kernel of Mixed_5b 0a, and its siblings 0b.
        third = "Conv3d_0a_3x3" if name == "Mixed_5b" else "Conv3d_0b_3x3"
        branch_0 = self.unit(f"{name}/Branch_0/Conv3d_0a_1x1", net)
        branch_1 = self.unit(f"{name}/Branch_1/Conv3d_0a_1x1", net)
        branch_1 = self.unit(f"{name}/Branch_1/Conv3d_0b_3x3", branch_1)
        branch_2 = self.unit(f"{name}/Branch_2/Conv3d_0a_1x1", net)
        branch_2 = self.unit(f"{name}/Branch_2/{third}", branch_2)
        branch_3 = self.max_pool(net, (3, 3, 3), (1, 1, 1))
        branch_3 = self.unit(f"{name}/Branch_3/Conv3d_0b_1x1", branch_3)
        return self.tf.concat([branch_0, branch_1, branch_2, branch_3], axis=4)

    def max_pool(self, net: Any, window: tuple[int, ...], stride: tuple[int, ...]) -> Any:
        if self.precision == "float32":
            return self.tf.nn.max_pool3d(net, [1, *window, 1], [1, *stride, 1], padding="SAME")
        # TensorFlow pools no float64 volumes. A maximum over a box is one over each axis in turn.
        for axis, (size, step) in enumerate(zip(window, stride), start=1):
            net = self.max_along(net, axis, size, step)
        return net

    def max_along(self, net: Any, axis: int, size: int, step: int) -> Any:
        outputs = -(-net.shape[axis] // step)
        missing = max((outputs - 1) * step + size - net.shape[axis], 0)
        pads = [[0, 0]] * 5
        pads[axis] = [missing // 2, missing - missing // 2]
        padded = self.tf.pad(net, pads, constant_values=-np.inf)
        taps = [self.tf.range(outputs) * step + tap for tap in range(size)]
        return self.tf.reduce_max([self.tf.gather(padded, tap, axis=axis) for tap in taps], axis=0)

    def head(self, net: Any) -> Any:
        if self.precision == "float32":
            net = self.tf.nn.avg_pool3d(net, [1, 2, 7, 7, 1], [1, 1, 1, 1, 1], padding="VALID")
        else:
            net = self.mean_2x7x7(net)
        name = f"{HEAD}/Conv3d_0c_1x1/conv_3d"
        net = self.tf.nn.conv3d(net, self.variable(f"{name}/w"), strides=[1] * 5, padding="SAME")
        net = self.tf.squeeze(net + self.variable(f"{name}/b"), axis=[2, 3])
        return self.tf.reduce_mean(net, axis=1)

    def mean_2x7x7(self, net: Any) -> Any:
        """The average pool that TensorFlow lacks in float64, for a map of 7x7."""
        net = self.tf.ensure_shape(net, [None, None, 7, 7, None])
        net = self.tf.reduce_mean(net, axis=[2, 3], keepdims=True)
        return (net[:, :-1] + net[:, 1:]) / 2


def _scope(names: Mapping[str, Any], prefix: Path) -> str:
    """What stands before the stem's kernel: `RGB/inception_i3d/`, `Flow/inception_i3d/` or nothing."""
    end = f"{STEM}/conv_3d/w"
    scopes = [name.removesuffix(end) for name in names if name.endswith(end)]
    if len(scopes) != 1:
        raise FormatError(
            f"{prefix} cannot be run as DeepMind's I3D: found {len(scopes)} variables that end in {end}, "
            "expected one. Give the checkpoint as it was released."
        )
    return scopes[0]


def tensorflow() -> Any:
    """TensorFlow, imported without the lines that it writes to the terminal."""
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with _silent_stderr():
            import tensorflow  # noqa: F401
    return sys.modules["tensorflow"]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what native code writes before its log level is read; Python's exceptions are untouched."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
