"""3D ResNets as plain forwards in torch, on a released file under its own names.

Written from the released codes, which `CODES` cites. They need nothing but torch, compute in float64 too, take any
depth, width and number of input channels from the tensors, and share no table with the networks that they judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidweights_converters.references.base import HEAD, Clip, Precision
from vidweights_converters.references.images.source import SourceNet, differing

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[int, int, int]
# (kernel, stride, padding) of a max-pool.
Window = tuple[Triple, Triple, Triple]


@dataclass(frozen=True)
class Keys:
    """What a code calls a convolution and its batch norm: as a whole, or as two halves with a norm behind each.

    `{g}` is the group from 1, `{b}` the block in it, `{n}` the block in the network from 0, `{k}` the convolution in
    the block from 1 and `{a}` its letter.
    """

    conv: str
    norm: str
    halves: tuple[str, str, str, str] = ("", "", "", "")

    def filled(self, **numbers: Any) -> Keys:
        """The keys of one convolution."""
        first, middle, second, last = (half.format(**numbers) for half in self.halves)
        return Keys(self.conv.format(**numbers), self.norm.format(**numbers), (first, middle, second, last))


@dataclass(frozen=True)
class Code:
    """What a released code calls its tensors, and what it does that no tensor tells.

    Attributes:
        head: the classifier; `*` stands for the number of its classes.
        leaves: what ends the key of a kernel, and the four of a batch norm: scale, shift, mean, variance.
        groups: the stride of each group in space, and `times` in time, where the group is 3D.
        time_first: whether the temporal half runs first.
        window: of an average pool of stride 1 in front of the classifier; None for everything.
    """

    stem: Keys
    block: Keys
    shortcut: Keys
    head: str = "fc"
    leaves: tuple[str, ...] = (".weight", ".weight", ".bias", ".running_mean", ".running_var")
    epsilon: float = 1e-5
    middle_epsilon: float | None = None
    stem_stride: int = 1
    pool: Window | None = None
    pool_behind_group_1: Window | None = None
    groups: tuple[int, ...] = (1, 2, 2, 2)
    times: tuple[int, ...] = (1, 2, 2, 2)
    time_first: bool = False
    window: Triple | None = None


def _conv_module(name: str) -> Keys:
    """mmcv's `ConvModule`, and in it mmaction2's `Conv2plus1d`."""
    inner = f"{name}.conv"
    return Keys(inner, f"{name}.bn", (f"{inner}.conv_s", f"{inner}.bn_s", f"{inner}.conv_t", f"{name}.bn"))


def _caffe2(conv: str, norm: str) -> Keys:
    return Keys(conv, norm, (f"{conv}_middle", f"{norm}_middle", conv, norm))


_IN_SPACE: Window = ((1, 3, 3), (1, 2, 2), (0, 1, 1))
_LAYER = "layer{g}.{b}."

# torchvision/models/video/resnet.py (pytorch/vision v0.28): the modules of a `Sequential` are numbered.
_TORCHVISION = Code(
    Keys("stem.0", "stem.1", ("stem.0", "stem.1", "stem.3", "stem.4")),
    Keys(
        f"{_LAYER}conv{{k}}.0",
        f"{_LAYER}conv{{k}}.1",
        (f"{_LAYER}conv{{k}}.0.0", f"{_LAYER}conv{{k}}.0.1", f"{_LAYER}conv{{k}}.0.3", f"{_LAYER}conv{{k}}.1"),
    ),
    Keys(f"{_LAYER}downsample.0", f"{_LAYER}downsample.1"),
)
# mmaction/models/backbones/resnet3d.py (open-mmlab/mmaction2 at 4d6c9347).
_MMACTION2 = Code(
    _conv_module("backbone.conv1"),
    _conv_module(f"backbone.{_LAYER}conv{{k}}"),
    _conv_module(f"backbone.{_LAYER}downsample"),
    head="cls_head.fc_cls",
    pool=_IN_SPACE,
    times=(1, 1, 1, 1),
)
# models/resnet.py and models/resnet2p1d.py (kenshohara/3D-ResNets-PyTorch at 540a0ea1).
_KENSHOHARA = Code(
    Keys("conv1", "bn1", ("conv1_s", "bn1_s", "conv1_t", "bn1_t")),
    Keys(
        f"{_LAYER}conv{{k}}",
        f"{_LAYER}bn{{k}}",
        (f"{_LAYER}conv{{k}}_s", f"{_LAYER}bn{{k}}_s", f"{_LAYER}conv{{k}}_t", f"{_LAYER}bn{{k}}_t"),
    ),
    Keys(f"{_LAYER}downsample.0", f"{_LAYER}downsample.1"),
    pool=((3, 3, 3), (2, 2, 2), (1, 1, 1)),
)
_RES = "blocks.{g}.res_blocks.{b}."
_CONV_B, _NORM_B = (f"{_RES}branch2.{part}_{{a}}" for part in ("conv", "norm"))

CODES: dict[str, Code] = {
    "torchvision-video": _TORCHVISION,
    # pt/vmz/models/r2plus1d.py (facebookresearch/VMZ at 4cc542d5), and ig65m/models.py (moabitcoin/ig65m-pytorch).
    "vmz": replace(_TORCHVISION, epsilon=1e-3),
    # c2/lib/models/r3d_model.py and builder/video_model.py (facebookresearch/VMZ at 4cc542d5).
    "vmz-caffe2": Code(
        Keys(
            "blobs.conv1",
            "blobs.conv1_spatbn_relu",
            ("blobs.conv1_middle", "blobs.conv1_middle_spatbn_relu", "blobs.conv1", "blobs.conv1_spatbn_relu"),
        ),
        _caffe2("blobs.comp_{n}_conv_{k}", "blobs.comp_{n}_spatbn_{k}"),
        Keys("blobs.shortcut_projection_{n}", "blobs.shortcut_projection_{n}_spatbn"),
        head="blobs.last_out_L*",
        leaves=("_w", "_s", "_b", "_rm", "_riv"),
        epsilon=1e-3,
    ),
    # configs/_base_/models/r2plus1d_r34.py; `Conv2plus1d` makes its own batch norm, without the epsilon given there.
    "mmaction2-r2plus1d": replace(_MMACTION2, epsilon=1e-3, middle_epsilon=1e-5, times=(1, 2, 2, 2)),
    # configs/_base_/models/i3d_r50.py.
    "mmaction2-i3d": replace(
        _MMACTION2,
        stem_stride=2,
        pool=((1, 3, 3), (2, 2, 2), (0, 1, 1)),
        pool_behind_group_1=((2, 1, 1), (2, 1, 1), (0, 0, 0)),
    ),
    # configs/_base_/models/slowonly_r50.py.
    "mmaction2-slowonly": _MMACTION2,
    "kenshohara": _KENSHOHARA,
    "kenshohara-r2plus1d": _KENSHOHARA,
    # pytorchvideo/models/r2plus1d.py (facebookresearch/pytorchvideo at f3142bb0), without the softmax of its head.
    "pytorchvideo-r2plus1d": Code(
        Keys("blocks.0.conv", "blocks.0.norm"),
        Keys(_CONV_B, _NORM_B, (f"{_CONV_B}.conv_t", f"{_CONV_B}.norm", f"{_CONV_B}.conv_xy", _NORM_B)),
        Keys(f"{_RES}branch1_conv", f"{_RES}branch1_norm"),
        head="blocks.5.proj",
        groups=(2, 2, 2, 2),
        times=(1, 1, 2, 2),
        time_first=True,
        window=(4, 7, 7),
    ),
}


class PlainResNet3D(SourceNet):
    """The plain forward of one dialect on one file. torch is imported on first use."""

    name = "plain forward"

    @property
    def version(self) -> str:
        """The version of torch."""
        import torch

        return f"torch {torch.__version__}"

    def endpoints(self, clip: Clip, precision: Precision) -> Mapping[str, NDArray[Any]]:
        """See `Reference.endpoints`."""
        import torch

        dtype = getattr(torch, precision)
        with torch.inference_mode():
            weights = {key: torch.from_numpy(array).to(dtype) for key, array in self.tensors.items()}
            run = _Run(self.path, self.dialect, weights)
            return {name: value.numpy() for name, value in run(torch.from_numpy(np.ascontiguousarray(clip)).to(dtype))}


class _Run:
    """One network, its tensors by the keys of the file."""

    def __init__(self, path: Path, dialect: str, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.dialect, self.code, self.tensors = path, dialect, CODES[dialect], tensors

    def __call__(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        from torch.nn import functional as F

        code, number = self.code, 0
        x = self._unit(code.stem, x, (code.stem_stride, 2, 2))
        yield "stem", x
        if code.pool:
            x = F.max_pool3d(x, *code.pool)
            yield "pool1", x
        for group in (1, 2, 3, 4):
            for block in range(self._length(group, number)):
                x = self._block(x, group, block, number)
                number += 1
                yield f"layer{group}.{block}", x
            if group == 1 and code.pool_behind_group_1:
                x = F.max_pool3d(x, *code.pool_behind_group_1)
                yield "pool2", x
        if code.window:
            x = F.avg_pool3d(x, code.window, stride=1)
        yield HEAD, F.linear(x.mean((2, 3, 4)), self._head("weight"), self._head("bias"))

    def _head(self, leaf: str) -> Tensor:
        ending = f"_{leaf[0]}" if self.code.leaves[0] == "_w" else f".{leaf}"
        key = self.code.head + ending
        return self[next((stored for stored in self.tensors if fnmatchcase(stored, key)), key)]

    def __getitem__(self, key: str) -> Tensor:
        differing(self.path, self.dialect, {key}, {key} & self.tensors.keys())
        return self.tensors[key]

    def _has(self, *names: str) -> bool:
        return all(name and name + self.code.leaves[0] in self.tensors for name in names)

    def _is_there(self, keys: Keys) -> bool:
        return self._has(keys.conv) or self._has(keys.halves[0], keys.halves[2])

    def _length(self, group: int, number: int) -> int:
        """How many blocks a group has; where they are numbered through, the next group begins with a projection."""
        length = 0
        while self._is_there(self.code.block.filled(g=group, b=length, n=number + length, k=1, a="a")):
            numbered = length and "{n}" in self.code.shortcut.conv
            if numbered and self._is_there(self.code.shortcut.filled(n=number + length)):
                break
            length += 1
        return length

    def _block(self, x: Tensor, group: int, block: int, number: int) -> Tensor:
        from torch.nn import functional as F

        place = {"g": group, "b": block, "n": number}
        convs = [self.code.block.filled(**place, k=k, a="abc"[k - 1]) for k in (1, 2, 3)]
        convs = [keys for keys in convs if self._is_there(keys)]
        strided = len(convs) - 2  # the first of two, or the second of three
        space = self.code.groups[group - 1] if block == 0 else 1
        time = self.code.times[group - 1] if block == 0 and self._is_3d(convs[strided]) else 1
        stride = (time, space, space)
        shortcut = self.code.shortcut.filled(**place)
        if self._is_there(shortcut):
            y = self._unit(shortcut, x, stride, relu=False)
        else:
            y = x[:, :, ::time, ::space, ::space]
        for index, keys in enumerate(convs):
            x = self._unit(keys, x, stride if index == strided else (1, 1, 1), relu=index < len(convs) - 1)
        new = x.shape[1] - y.shape[1]  # channels that a shortcut without weights does not have
        return F.relu(x + F.pad(y, (0, 0, 0, 0, 0, 0, 0, new)))

    def _is_3d(self, keys: Keys) -> bool:
        factorised = self._has(keys.halves[0], keys.halves[2])
        return factorised or self[keys.conv + self.code.leaves[0]].shape[2] > 1

    def _unit(self, keys: Keys, x: Tensor, stride: Triple, *, relu: bool = True) -> Tensor:
        from torch.nn import functional as F

        code = self.code
        if self._has(keys.halves[0], keys.halves[2]):
            first, middle, second, last = keys.halves
            in_space, in_time = (1, *stride[1:]), (stride[0], 1, 1)
            one, other = (in_time, in_space) if code.time_first else (in_space, in_time)
            x = F.relu(self._norm(self._conv(x, first, one), middle, code.middle_epsilon or code.epsilon))
            x = self._norm(self._conv(x, second, other), last, code.epsilon)
        else:
            x = self._norm(self._conv(x, keys.conv, stride), keys.norm, code.epsilon)
        return F.relu(x) if relu else x

    def _conv(self, x: Tensor, name: str, stride: Triple) -> Tensor:
        from torch.nn import functional as F

        kernel = self[name + self.code.leaves[0]]
        # A stem of even length is that of R2D, as long as the clip: nothing pads it.
        return F.conv3d(x, kernel, None, stride, [n // 2 if n % 2 else 0 for n in kernel.shape[2:]])

    def _norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        from torch.nn import functional as F

        scale, shift, mean, variance = (self[name + leaf] for leaf in self.code.leaves[1:])
        return F.batch_norm(x, mean, variance, scale, shift, eps=epsilon)
