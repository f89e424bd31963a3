"""3D ResNets: a 2D ResNet with time added, in the forms that people use.

Sources: `i3d-resnet` inflates every kernel and strides time as space (the rule of Carreira and Zisserman, arXiv
1705.07750, on a ResNet; hassony2/inflated_convnets_pytorch has a stem 3 frames long and of stride 1 in time);
`i3d-resnet-nl` is `obtain_arc` of facebookresearch/video-nonlocal-net@c253ed5:lib/models/resnet_video.py; the others
are those of Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (arXiv 1711.11248,
section 3, table 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vidweights.errors import UsageError
from vidweights.families import resnet
from vidweights.families.base import Family, ShapeOf, Tensor
from vidweights.families.resnet import HEAD, STEM, Block, Conv, ResNetConfig, blocks, head_tensors
from vidweights.families.units import Pool, Unit, is_count, unit_tensors

TimePadding = Literal["replicate", "zero"]
Planes = Literal["conv", "block"]

_ALL = (2, 3, 4, 5)
_TIME_KERNEL = 3


@dataclass(frozen=True)
class Time:
    """What a variant adds to the 2D network.

    Attributes:
        stem: (kernel, stride) of the stem in time, and `pool` of the max-pool behind it.
        groups: the groups (2 to 5) whose 3x3 kernels are 3x3x3 and whose strides are in time too.
        factorised: whether those kernels, and the stem's, are a spatial and a temporal one.
        first: groups in which the first kernel of some blocks alone is 3 long in time, and which blocks: all, those of
            even or those of odd index.
        pool_after_2: (kernel, stride) in time of a max-pool behind conv2_x.
    """

    stem: tuple[int, int]
    pool: tuple[int, int] = (1, 1)
    groups: tuple[int, ...] = ()
    factorised: bool = False
    first: tuple[tuple[int, str], ...] = ()
    pool_after_2: tuple[int, int] | None = None


VARIANTS: dict[str, Time] = {
    "i3d-resnet": Time(stem=(7, 2), pool=(3, 2), groups=_ALL),
    "i3d-resnet-nl": Time(
        stem=(5, 1), first=((2, "all"), (3, "even"), (4, "even"), (5, "odd")), pool_after_2=(2, 2)
    ),
    "r3d": Time(stem=(3, 1), groups=_ALL),
    **{f"mc{x}": Time(stem=(3, 1), groups=tuple(range(2, x))) for x in _ALL},
    **{f"rmc{x}": Time(stem=(1, 1), groups=tuple(range(x, 6))) for x in _ALL},
    "f-r2d": Time(stem=(1, 1)),
    "r2plus1d": Time(stem=(3, 1), groups=_ALL, factorised=True),
}  # fmt: skip


@dataclass(frozen=True)
class ResNet3DConfig(ResNetConfig):
    """One 3D ResNet: the fields of the 2D one, and what time adds.

    Attributes:
        variant: a key of `VARIANTS`.
        time_padding: what stands before the first and behind the last frame: the frame itself, or zeros.
        stem_pool: whether a 3x3 max-pool stands behind the stem (in the released R3D line none does).
        planes: the middle planes of a factorised 3x3x3 kernel: by the paper's formula for each `conv`, or once for
            each `block` from its input and its width (torchvision).
        stem_planes: the middle planes of a factorised stem; None for the paper's formula (83 for 3 to 64 channels; the
            releases have 45).
    """

    variant: str = "i3d-resnet"
    time_padding: TimePadding = "replicate"
    stem_pool: bool = True
    planes: Planes = "conv"
    stem_planes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sound = self.variant in VARIANTS and self.time_padding in ("replicate", "zero")
        sound = sound and type(self.stem_pool) is bool and self.planes in ("conv", "block")
        sound = sound and (self.stem_planes is None or is_count(self.stem_planes, 1))
        if not sound:
            raise UsageError(
                f"{self}: expected a variant of {', '.join(VARIANTS)}, time_padding 'replicate' or 'zero', "
                "planes 'conv' or 'block', stem_planes above 0 or none"
            )

    @property
    def time(self) -> Time:
        """What the variant adds."""
        return VARIANTS[self.variant]


@dataclass(frozen=True)
class Block3D:
    """A residual block; `stride` subsamples an input that is added as it is. Its units' names are relative to it."""

    name: str
    units: tuple[Unit, ...]
    shortcut: Unit | None
    stride: tuple[int, int, int]


Layer = Unit | Pool | Block3D


def middle_planes(in_channels: int, channels: int, time: int, space: int) -> int:
    """The planes that give a (2+1)D pair as many weights as the whole kernel has (arXiv 1711.11248, section 3.5)."""
    return time * space**2 * in_channels * channels // (space**2 * in_channels + time * channels)


def layers(config: ResNet3DConfig) -> Iterator[Layer]:
    """The layers of a configuration, from the stem to the last block."""
    time = config.time
    kernel, stride = time.stem
    planes = None
    if time.factorised:
        planes = config.stem_planes or middle_planes(config.in_channels, config.width, kernel, 7)
    yield Unit(STEM, config.width, (kernel, 7, 7), (stride, 2, 2), planes, bias=config.conv_bias)
    if config.stem_pool:
        yield Pool("pool1", (time.pool[0], 3, 3), (time.pool[1], 2, 2))
    for block in blocks(config):
        if block.group == 3 and block.index == 0 and time.pool_after_2:
            yield Pool("pool2", (time.pool_after_2[0], 1, 1), (time.pool_after_2[1], 1, 1))
        yield _with_time(block, config)


def _with_time(block: Block, config: ResNet3DConfig) -> Block3D:
    whole = block.group in config.time.groups

    def unit(conv: Conv, place: int) -> Unit:
        long = (whole and conv.kernel > 1) or (place == 0 and _is_first(block, config.time))
        kernel = _TIME_KERNEL if long else 1
        planes = _planes(block, conv, config) if long and config.time.factorised else None
        size, stride = conv.kernel, conv.stride
        time_stride = stride if whole else 1
        strides = (time_stride, stride, stride)
        return Unit(conv.name, conv.channels, (kernel, size, size), strides, planes, conv.relu, config.conv_bias)

    return Block3D(
        name=block.name,
        units=tuple(unit(conv, place) for place, conv in enumerate(block.convs)),
        shortcut=unit(block.shortcut, -1) if block.shortcut else None,
        stride=(block.stride if whole else 1, block.stride, block.stride),
    )


def _is_first(block: Block, time: Time) -> bool:
    """Whether the first kernel of this block is one of those that alone are long in time."""
    which = dict(time.first).get(block.group)
    return which == "all" or (which is not None and (block.index % 2 == 0) == (which == "even"))


def _planes(block: Block, conv: Conv, config: ResNet3DConfig) -> int:
    inputs = block.convs[0].in_channels if config.planes == "block" else conv.in_channels
    return middle_planes(inputs, conv.channels, _TIME_KERNEL, conv.kernel)


def tensors(config: ResNet3DConfig) -> tuple[Tensor, ...]:
    """The canonical tensors of a configuration, in the order of the layers."""

    def walk() -> Iterator[Tensor]:
        width = config.in_channels
        for layer in layers(config):
            match layer:
                case Unit():
                    yield from unit_tensors("", layer, width)
                    width = layer.channels
                case Block3D(name, units, shortcut, _):
                    inner = width
                    for unit in units:
                        yield from unit_tensors(f"{name}.", unit, inner)
                        inner = unit.channels
                    if shortcut:
                        yield from unit_tensors(f"{name}.", shortcut, width)
                    width = inner
                case Pool():
                    pass
        yield from head_tensors(config)

    return tuple(walk())


def infer(shape_of: ShapeOf) -> ResNet3DConfig | None:
    """The configuration of a checkpoint whose shapes tell its depth, its channels and its variant."""

    def kernel(name: str) -> Any:
        return next((s for part in ("", ".spatial") if (s := shape_of(f"{name}{part}.conv.weight", "OIDHW"))), None)

    depth = resnet.infer_depth(lambda name: kernel(name.removesuffix(".conv.weight")) is not None)
    stem = kernel(STEM)
    if depth is None or stem is None or 0 in stem:
        return None
    temporal = shape_of(f"{STEM}.temporal.conv.weight", "OIDHW")
    head = shape_of(f"{HEAD}.weight", "OI")
    known = {
        "depth": depth,
        "in_channels": stem[1],
        "num_classes": head[0] if head else 0,
        "width": (temporal or stem)[0],
        "conv_bias": any(shape_of(f"{STEM}{part}.conv.bias", "C") for part in ("", ".temporal")),
        "stem_planes": stem[0] if temporal else None,
    }
    return max(_candidates(known), key=lambda config: _fitting(config, shape_of))


def _fitting(config: ResNet3DConfig, shape_of: ShapeOf) -> int:
    """How many kernels of a configuration a checkpoint has in their shape; vectors say nothing of a variant."""
    return sum(shape_of(t.name, t.layout) == t.shape for t in tensors(config) if t.layout == "OIDHW")


def _candidates(known: dict[str, Any]) -> Iterator[ResNet3DConfig]:
    """The configurations that may be meant; a stem of the formula's width is written as such."""
    for variant, time in VARIANTS.items():
        if time.factorised != (known["stem_planes"] is not None):
            continue
        formula = middle_planes(known["in_channels"], known["width"], time.stem[0], 7)
        planes: tuple[Planes, ...] = ("conv", "block") if time.factorised else ("conv",)
        stem = {"stem_planes": None} if known["stem_planes"] == formula else {}
        for rule in planes:
            yield ResNet3DConfig(**{**known, **stem, "variant": variant, "planes": rule})


FACTS: dict[str, Any] = {
    "padding": "half the kernel on both sides; zeros in space, in time as the configuration says",
    "batch_norm_momentum": 0.1,
    "head": "global average pool over time and space, fully connected layer",
    "axis_order": "NCTHW",
}

RESNET3D = Family(
    name="resnet3d",
    configure=ResNet3DConfig,
    tensors=tensors,
    infer=infer,
    facts=FACTS,
    stems=(f"{STEM}.conv.weight", f"{STEM}.spatial.conv.weight"),
)
