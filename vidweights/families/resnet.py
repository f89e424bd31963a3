"""2D ResNets of He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385, table 1).

The table of blocks below is the only place where a ResNet is written: the 2D family takes its tensors from it, and
`vidweights.families.resnet3d` adds time to it. What the released codes do differently is a field of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vidweights.errors import UsageError
from vidweights.families.base import Family, ShapeOf, Tensor
from vidweights.families.units import Unit, is_count, unit_tensors, without_time

STEM, HEAD = "stem", "fc"


@dataclass(frozen=True)
class Depth:
    """The blocks of one depth.

    Attributes:
        counts: how many there are in conv2_x to conv5_x.
        bottleneck: whether each is a bottleneck of three convolutions; a basic block has two.
        expansion: how many times wider than its inside a block puts out.
    """

    counts: tuple[int, int, int, int]
    bottleneck: bool = False
    expansion: int = 1


# 10 and 26 are those of `BLOCK_CONFIG` in facebookresearch/VMZ@4cc542d5:c2/lib/models/r3d_model.py, whose 26 layers are
# bottlenecks of the widths of basic blocks; 200 is that of kenshohara/3D-ResNets-PyTorch@540a0ea1:models/resnet.py.
DEPTHS: dict[int, Depth] = {
    10: Depth((1, 1, 1, 1)),
    18: Depth((2, 2, 2, 2)),
    26: Depth((2, 2, 2, 2), bottleneck=True),
    34: Depth((3, 4, 6, 3)),
    50: Depth((3, 4, 6, 3), bottleneck=True, expansion=4),
    101: Depth((3, 4, 23, 3), bottleneck=True, expansion=4),
    152: Depth((3, 8, 36, 3), bottleneck=True, expansion=4),
    200: Depth((3, 24, 36, 3), bottleneck=True, expansion=4),
}

StrideOn = Literal["3x3", "1x1", "last"]
PoolPadding = Literal["symmetric", "same"]


@dataclass(frozen=True)
class ResNetConfig:
    """One 2D ResNet, and what its released code does.

    Attributes:
        depth: a key of `DEPTHS`.
        in_channels: 3 for RGB.
        num_classes: outputs of the head; 0 leaves the head out.
        width: channels of the stem (64 in a release; a narrow network tests fast).
        stride_on: where a bottleneck group halves the size: `3x3` and `1x1` of its first block (torchvision and
            Keras), or the 3x3 of its `last` block, one group earlier (TF-slim).
        conv_bias: whether convolutions have a bias beside the batch norm (Keras).
        batch_norm_epsilon: added to every variance.
        pool_padding: of the 3x3 max-pool behind the stem: one pixel on each side, or TensorFlow's `SAME` (TF-slim).
    """

    depth: int = 50
    in_channels: int = 3
    num_classes: int = 1000
    width: int = 64
    stride_on: StrideOn = "3x3"
    conv_bias: bool = False
    batch_norm_epsilon: float = 1e-5
    pool_padding: PoolPadding = "symmetric"

    def __post_init__(self) -> None:
        sound = self.depth in DEPTHS and is_count(self.in_channels, 1) and is_count(self.width, 1)
        sound = sound and is_count(self.num_classes) and type(self.conv_bias) is bool
        sound = sound and 0 < self.batch_norm_epsilon < 1
        sound = sound and self.stride_on in ("3x3", "1x1", "last") and self.pool_padding in ("symmetric", "same")
        if not sound or (self.stride_on != "3x3" and not self.bottleneck):
            raise UsageError(
                f"{self}: expected a depth of {', '.join(map(str, DEPTHS))}, in_channels and width >= 1, "
                "num_classes >= 0 (0 leaves the head out), stride_on '3x3' ('1x1' or 'last' for bottlenecks), "
                "pool_padding 'symmetric' or 'same'"
            )

    @property
    def bottleneck(self) -> bool:
        """Whether its blocks are bottlenecks."""
        return DEPTHS[self.depth].bottleneck

    @property
    def expansion(self) -> int:
        """How many times wider than its inside a block puts out."""
        return DEPTHS[self.depth].expansion

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """By how much conv2_x to conv5_x divide the height and width."""
        return (2, 2, 2, 1) if self.stride_on == "last" else (1, 2, 2, 2)

    @property
    def feature_channels(self) -> int:
        """The width of the last block, the input of the head (512 or 2048 in a release)."""
        return self.width * 8 * self.expansion

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values, in the order of its fields."""
        return asdict(self)


@dataclass(frozen=True)
class Conv:
    """A square convolution of a block."""

    name: str
    in_channels: int
    channels: int
    kernel: int
    stride: int = 1
    relu: bool = True


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        name: `layer1.0`, the first block of conv2_x.
        group: 2 to 5, for conv2_x to conv5_x, and `index` its place there.
        width: channels inside the block.
        shortcut: the projection; None where the input itself is added, subsampled by `stride`.
    """

    name: str
    group: int
    index: int
    width: int
    convs: tuple[Conv, ...]
    shortcut: Conv | None
    stride: int


def blocks(config: ResNetConfig) -> Iterator[Block]:
    """The blocks of a ResNet, in order."""
    channels = config.width
    for group, count in enumerate(DEPTHS[config.depth].counts, start=2):
        width = config.width << (group - 2)
        out = width * config.expansion
        strided = count - 1 if config.stride_on == "last" else 0
        for index in range(count):
            stride = config.strides[group - 2] if index == strided else 1
            project = channels != out or (stride > 1 and index == 0)
            yield Block(
                name=f"layer{group - 1}.{index}",
                group=group,
                index=index,
                width=width,
                convs=_convs(config, channels, width, stride),
                shortcut=Conv("downsample", channels, out, 1, stride, relu=False) if project else None,
                stride=stride,
            )
            channels = out


def _convs(config: ResNetConfig, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
    if not config.bottleneck:
        return Conv("conv1", in_channels, width, 3, stride), Conv("conv2", width, width, 3, relu=False)
    on_1x1 = config.stride_on == "1x1"
    return (
        Conv("conv1", in_channels, width, 1, stride if on_1x1 else 1),
        Conv("conv2", width, width, 3, 1 if on_1x1 else stride),
        Conv("conv3", width, width * config.expansion, 1, relu=False),
    )


def tensors(config: ResNetConfig) -> tuple[Tensor, ...]:
    """The canonical tensors of a 2D ResNet, in the order of the layers."""

    def walk() -> Iterator[Tensor]:
        yield from unit_tensors(
            "", _flat(Conv(STEM, config.in_channels, config.width, 7, 2), config), config.in_channels
        )
        for block in blocks(config):
            for conv in (*block.convs, *([block.shortcut] if block.shortcut else [])):
                yield from unit_tensors(f"{block.name}.", _flat(conv, config), conv.in_channels)
        yield from head_tensors(config)

    return without_time(walk())


def _flat(conv: Conv, config: ResNetConfig) -> Unit:
    return Unit(conv.name, conv.channels, (1, conv.kernel, conv.kernel), bias=config.conv_bias)


def head_tensors(config: ResNetConfig) -> Iterator[Tensor]:
    """The tensors of the fully connected head, if there is one."""
    if config.num_classes:
        yield Tensor(f"{HEAD}.weight", (config.num_classes, config.feature_channels), "OI")
        yield Tensor(f"{HEAD}.bias", (config.num_classes,), "C")


def infer(shape_of: ShapeOf, settings: Mapping[str, Any]) -> ResNetConfig | None:
    """The configuration of a checkpoint, read off the blocks that it has and the shapes of its stem and its head."""
    stem = shape_of(f"{STEM}.conv.weight", "OIHW")
    depth = infer_depth(lambda name: shape_of(name, "OIHW") is not None)
    if stem is None or 0 in stem or depth is None:
        return None
    head = shape_of(f"{HEAD}.weight", "OI")
    classes = head[0] if head else 0
    return ResNetConfig(depth=depth, in_channels=stem[1], num_classes=classes, width=stem[0], **settings)


def infer_depth(has: Callable[[str], bool]) -> int | None:
    """The depth of a ResNet, given which kernels (`layer1.0.conv1.conv.weight`) there are; None if it is not known."""
    counts = []
    for group in range(1, 5):
        count = 0
        while has(f"layer{group}.{count}.conv1.conv.weight"):
            count += 1
        counts.append(count)
    bottleneck = has("layer1.0.conv3.conv.weight")
    return next((n for n, d in DEPTHS.items() if list(d.counts) == counts and d.bottleneck == bottleneck), None)


FACTS: dict[str, Any] = {
    "padding": "half the kernel on both sides, zeros",
    "head": "global average pool, fully connected layer",
    "axis_order": "NCHW",
}

RESNET = Family(
    name="resnet", configure=ResNetConfig, tensors=tensors, infer=infer, facts=FACTS, stems=(f"{STEM}.conv.weight",)
)
