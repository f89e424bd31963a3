"""Plain forwards of the 2D networks in torch, over the names and layouts of each release.

Written from the released code, which each forward names. They need nothing but torch, compute in float64 too, take
any width, depth and number of input channels from the tensors, and share no table with the networks they judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidweights_converters.references.images.base import Adjust, ImageOutputs, Images, Precision
from vidweights_converters.references.images.source import Tensors, differing, read

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# What Keras, and keras_applications before it, call the classifier.
KERAS_TOPS = ("predictions", "probs")


class FunctionalNet:
    """The plain forward of one dialect on one file. torch is imported on first use."""

    name = "plain forward"

    def __init__(self, path: Path, dialect: str, prefix: str) -> None:
        self.path, self.dialect, self.prefix = path, dialect, prefix

    @property
    def version(self) -> str:
        """The version of torch."""
        import torch

        return f"torch {torch.__version__}"

    def outputs(self, images: Images, precision: Precision, adjust: Adjust | None = None) -> ImageOutputs:
        """See `ImageReference.outputs`."""
        import torch

        tensors = read(self.path, self.dialect, self.prefix, adjust)
        weights = Weights(self.path, self.dialect, tensors, getattr(torch, precision))
        with torch.inference_mode():
            features, logits = FORWARDS[self.dialect](weights, torch.from_numpy(images).to(weights.dtype))
        return ImageOutputs(features.numpy(), None if logits is None else logits.numpy())


class Weights:
    """The tensors of a source in one precision, by their names there."""

    def __init__(self, path: Path, network: str, tensors: Tensors, dtype: torch.dtype) -> None:
        self.path, self.network, self.tensors, self.dtype = path, network, tensors, dtype

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def __getitem__(self, key: str) -> Tensor:
        import torch

        differing(self.path, self.network, {key}, {key} & self.tensors.keys())
        return torch.from_numpy(self.tensors[key]).to(self.dtype)

    def kernel(self, key: str) -> Tensor:
        """A kernel of TensorFlow, (H, W, in, out), as torch wants it: (out, in, H, W)."""
        return self[key].permute(3, 2, 0, 1)

    def norm(self, x: Tensor, name: str, leaves: tuple[str, str, str | None, str], epsilon: float) -> Tensor:
        """Batch norm by the leaves of a name: mean, variance, weight (None for 1) and bias."""
        from torch.nn import functional as F

        mean, variance, weight, bias = (leaf if leaf is None else self[name + leaf] for leaf in leaves)
        return F.batch_norm(x, mean, variance, weight, bias, eps=epsilon)

    def counted(self, key: str, first: int) -> Iterator[int]:
        """The numbers, from the first, for which the key with its `{}` filled in is there."""
        while key.format(first) in self.tensors:
            yield first
            first += 1


def torchvision_resnet(w: Weights, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """torchvision/models/resnet.py (pytorch/vision v0.28); timm's resnet.py has the same names."""
    from torch.nn import functional as F

    def norm(name: str, x: Tensor) -> Tensor:
        return w.norm(x, f"{name}.", ("running_mean", "running_var", "weight", "bias"), 1e-5)

    def block(name: str, x: Tensor, stride: int) -> Tensor:
        shortcut = x
        if f"{name}.downsample.0.weight" in w:
            shortcut = norm(f"{name}.downsample.1", F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride))
        if f"{name}.conv3.weight" in w:  # a bottleneck; the stride is on its 3x3
            x = F.relu(norm(f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"])))
            x = F.relu(norm(f"{name}.bn2", F.conv2d(x, w[f"{name}.conv2.weight"], stride=stride, padding=1)))
            x = norm(f"{name}.bn3", F.conv2d(x, w[f"{name}.conv3.weight"]))
        else:
            x = F.relu(norm(f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)))
            x = norm(f"{name}.bn2", F.conv2d(x, w[f"{name}.conv2.weight"], padding=1))
        return F.relu(x + shortcut)

    x = F.relu(norm("bn1", F.conv2d(x, w["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        for unit in w.counted(f"layer{stage}.{{}}.conv1.weight", 0):
            x = block(f"layer{stage}.{unit}", x, 2 if stage > 1 and unit == 0 else 1)
    features = x.mean((2, 3))
    return features, F.linear(features, w["fc.weight"], w["fc.bias"]) if "fc.weight" in w else None


def keras_resnet(w: Weights, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """keras/src/applications/resnet.py (keras-team/keras v3.15), version 1 with `use_bias=True`."""
    from torch.nn import functional as F

    def unit(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        kernel, bias = w.kernel(f"{name}_conv/kernel"), w[f"{name}_conv/bias"]
        x = F.conv2d(x, kernel, bias, stride=stride, padding=padding)
        return w.norm(x, f"{name}_bn/", ("moving_mean", "moving_variance", "gamma", "beta"), 1.001e-5)

    def block(name: str, x: Tensor, stride: int) -> Tensor:
        shortcut = unit(f"{name}_0", x, stride) if f"{name}_0_conv/kernel" in w else x
        x = F.relu(unit(f"{name}_1", x, stride))  # the stride is on the first 1x1
        x = F.relu(unit(f"{name}_2", x, padding=1))
        return F.relu(shortcut + unit(f"{name}_3", x))

    x = F.relu(unit("conv1", F.pad(x, (3, 3, 3, 3)), stride=2))
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)  # padded with zeros
    for stage in (2, 3, 4, 5):
        for number in w.counted(f"conv{stage}_block{{}}_1_conv/kernel", 1):
            x = block(f"conv{stage}_block{number}", x, 2 if stage > 2 and number == 1 else 1)
    features = x.mean((2, 3))
    top = next((name for name in KERAS_TOPS if f"{name}/kernel" in w), None)
    return features, None if top is None else features @ w[f"{top}/kernel"] + w[f"{top}/bias"]


def slim_resnet(w: Weights, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """research/slim/nets/resnet_v1.py and resnet_utils.py (tensorflow/models at 169dcbd0), below `resnet_v1_50/`."""
    from torch.nn import functional as F

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w.kernel(f"{name}/weights")
        # conv2d_same pads a strided convolution by the same on both sides, unlike SAME.
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return w.norm(x, f"{name}/BatchNorm/", ("moving_mean", "moving_variance", "gamma", "beta"), 1e-5)

    def bottleneck(name: str, x: Tensor, stride: int) -> Tensor:
        has_projection = f"{name}/shortcut/weights" in w
        shortcut = unit(f"{name}/shortcut", x, stride) if has_projection else x[:, :, ::stride, ::stride]
        x = F.relu(unit(f"{name}/conv1", x))
        x = F.relu(unit(f"{name}/conv2", x, stride))
        return F.relu(shortcut + unit(f"{name}/conv3", x))

    x = F.relu(unit("conv1", x, 2))
    x = F.max_pool2d(pad_same(x, 3, 2, float("-inf")), 3, stride=2)
    for block in (1, 2, 3, 4):
        numbers = list(w.counted(f"block{block}/unit_{{}}/bottleneck_v1/conv1/weights", 1))
        for number in numbers:
            # the stride is in the last unit of a block, and the fourth block has none
            stride = 2 if block < 4 and number == numbers[-1] else 1
            x = bottleneck(f"block{block}/unit_{number}/bottleneck_v1", x, stride)
    return _slim_top(w, x.mean((2, 3), keepdim=True), "logits")


def _slim_top(w: Weights, features: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """The classifier of slim, a 1x1 convolution with biases on (N, F, 1, 1)."""
    from torch.nn import functional as F

    logits = None
    if f"{name}/weights" in w:
        logits = F.conv2d(features, w.kernel(f"{name}/weights"), w[f"{name}/biases"]).flatten(1)
    return features.flatten(1), logits


def pad_same(x: Tensor, size: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding of H and W for a window of one size: the odd pixel goes below and right."""
    from torch.nn import functional as F

    pads: list[int] = []
    for length in (x.shape[3], x.shape[2]):  # F.pad counts axes from the last
        missing = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads, value=value)


def torchvision_googlenet(w: Weights, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """torchvision/models/googlenet.py (pytorch/vision v0.28), after its `transform_input`."""
    import torch
    from torch.nn import functional as F

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return F.relu(w.norm(x, f"{name}.bn.", ("running_mean", "running_var", "weight", "bias"), 1e-3))

    def inception(name: str, x: Tensor) -> Tensor:
        second = unit(f"{name}.branch2.1", unit(f"{name}.branch2.0", x))
        third = unit(f"{name}.branch3.1", unit(f"{name}.branch3.0", x))
        fourth = unit(f"{name}.branch4.1", F.max_pool2d(x, 3, stride=1, padding=1, ceil_mode=True))
        return torch.cat([unit(f"{name}.branch1", x), second, third, fourth], 1)

    x = F.max_pool2d(unit("conv1", x, 2), 3, stride=2, ceil_mode=True)
    x = F.max_pool2d(unit("conv3", unit("conv2", x)), 3, stride=2, ceil_mode=True)
    x = inception("inception3b", inception("inception3a", x))
    x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
    for letter in "abcde":
        x = inception(f"inception4{letter}", x)
    x = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
    features = inception("inception5b", inception("inception5a", x)).mean((2, 3))
    return features, F.linear(features, w["fc.weight"], w["fc.bias"]) if "fc.weight" in w else None


def slim_inception(w: Weights, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """research/slim/nets/inception_v1.py (tensorflow/models at 169dcbd0), below `InceptionV1/`.

    Its average pool is a window of 7x7, which is the whole map of a 224x224 image; here it is the whole map of any.
    """
    import torch
    from torch.nn import functional as F

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w.kernel(f"{name}/weights")
        x = F.conv2d(pad_same(x, kernel.shape[-1], stride), kernel, stride=stride)
        return F.relu(w.norm(x, f"{name}/BatchNorm/", ("moving_mean", "moving_variance", None, "beta"), 1e-3))

    def pool(x: Tensor, size: int, stride: int) -> Tensor:
        return F.max_pool2d(pad_same(x, size, stride, float("-inf")), size, stride=stride)

    def mixed(name: str, x: Tensor) -> Tensor:
        last = "Conv2d_0a_3x3" if name == "Mixed_5b" else "Conv2d_0b_3x3"  # so the release calls it
        second = unit(f"{name}/Branch_1/Conv2d_0b_3x3", unit(f"{name}/Branch_1/Conv2d_0a_1x1", x))
        third = unit(f"{name}/Branch_2/{last}", unit(f"{name}/Branch_2/Conv2d_0a_1x1", x))
        fourth = unit(f"{name}/Branch_3/Conv2d_0b_1x1", pool(x, 3, 1))
        return torch.cat([unit(f"{name}/Branch_0/Conv2d_0a_1x1", x), second, third, fourth], 1)

    x = pool(unit("Conv2d_1a_7x7", x, 2), 3, 2)
    x = pool(unit("Conv2d_2c_3x3", unit("Conv2d_2b_1x1", x)), 3, 2)
    x = pool(mixed("Mixed_3c", mixed("Mixed_3b", x)), 3, 2)
    for letter in "bcdef":
        x = mixed(f"Mixed_4{letter}", x)
    x = mixed("Mixed_5c", mixed("Mixed_5b", pool(x, 2, 2)))
    return _slim_top(w, x.mean((2, 3), keepdim=True), "Logits/Conv2d_0c_1x1")


FORWARDS: dict[str, Callable[[Weights, Any], tuple[Any, Any]]] = {
    "torchvision-resnet": torchvision_resnet,
    "keras-resnet": keras_resnet,
    "keras-resnet-probs": keras_resnet,
    "slim-resnet": slim_resnet,
    "torchvision-googlenet": torchvision_googlenet,
    "slim-inception": slim_inception,
}
