"""3D ResNets: a 2D ResNet with time added, in the forms that people use.

R2D, f-R2D, R3D, MCx, rMCx and R(2+1)D are those of Tran et al., "A Closer Look at Spatiotemporal Convolutions for
Action Recognition" (arXiv 1711.11248): the layers of its table 1 are `layers`, the six networks of its figure 1 are
rows of `VARIANTS`, and the number of planes in the middle of a (2+1)D convolution (its section 3.5) is
`middle_planes`. What its releases do otherwise is a field of the configuration.

Two more come from inflation: `i3d-resnet` inflates every kernel and strides time as space (the rule of Carreira and
Zisserman, arXiv 1705.07750, on a ResNet; hassony2/inflated_convnets_pytorch has a stem 3 frames long and of stride 1
in time); `i3d-resnet-nl` is `obtain_arc` of facebookresearch/video-nonlocal-net@c253ed5:lib/models/resnet_video.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vidweights.errors import UsageError
from vidweights.families import resnet
from vidweights.families.base import Family, ShapeOf, Tensor
from vidweights.families.resnet import HEAD, STEM, Block, Conv, ResNetConfig, blocks, head_tensors
from vidweights.families.units import Pool, Unit, is_count, unit_tensors

TimePadding = Literal["replicate", "zero"]
Planes = Literal["conv", "block", "width"]
Shortcut = Literal["projection", "factorised", "zeros"]
Quadruple = tuple[int, int, int, int]

_ALL = (2, 3, 4, 5)
_TIME_KERNEL = 3


@dataclass(frozen=True)
class Time:
    """What a variant adds to the 2D network.

    Attributes:
        stem: (kernel, stride) of the stem in time, and `pool` of the max-pool behind it.
        groups: the groups (2 to 5) whose 3x3 kernels are 3x3x3 and whose strides are in time too.
        factorised: whether those kernels, and the stem's, are a spatial and a temporal one.
        folded: whether the stem takes all frames of the clip at once and puts out a single one; its kernel in time is
            then the length of the clip.
        first: groups in which the first kernel of some blocks alone is 3 long in time, and which blocks: all, those of
            even or those of odd index.
        pool_after_2: (kernel, stride) in time of a max-pool behind conv2_x.
    """

    stem: tuple[int, int]
    pool: tuple[int, int] = (1, 1)
    groups: tuple[int, ...] = ()
    factorised: bool = False
    folded: bool = False
    first: tuple[tuple[int, str], ...] = ()
    pool_after_2: tuple[int, int] | None = None


# As figure 1 of the paper has them: (a) r2d, where frames are channels, and f-r2d, where they are apart; (b) mcx, 3D
# below group x; (c) rmcx, 3D from group x on; (d) r3d; (e) r2plus1d.
PAPER: dict[str, Time] = {
    "r2d": Time(stem=(8, 1), folded=True),
    "f-r2d": Time(stem=(1, 1)),
    "r3d": Time(stem=(3, 1), groups=_ALL),
    **{f"mc{x}": Time(stem=(3, 1), groups=tuple(range(2, x))) for x in _ALL},
    **{f"rmc{x}": Time(stem=(1, 1), groups=tuple(range(x, 6))) for x in _ALL},
    "r2plus1d": Time(stem=(3, 1), groups=_ALL, factorised=True),
}
VARIANTS: dict[str, Time] = {
    "i3d-resnet": Time(stem=(7, 2), pool=(3, 2), groups=_ALL),
    "i3d-resnet-nl": Time(
        stem=(5, 1), first=((2, "all"), (3, "even"), (4, "even"), (5, "odd")), pool_after_2=(2, 2)
    ),
    # The 3D ResNets of open-mmlab/mmaction2@4d6c9347: configs/_base_/models/i3d_r50.py and slowonly_r50.py.
    "i3d-resnet-mm": Time(
        stem=(5, 2),
        pool=(1, 2),
        first=((2, "all"), (3, "even"), (4, "even"), (5, "odd")),
        pool_after_2=(2, 2),
    ),
    "slowonly": Time(stem=(1, 1), first=((4, "all"), (5, "all"))),
    **PAPER,
}  # fmt: skip


@dataclass(frozen=True)
class ResNet3DConfig(ResNetConfig):
    """One 3D ResNet: the fields of the 2D one, what time adds, and what its released code does.

    Attributes:
        variant: a key of `VARIANTS`.
        time_padding: what stands before the first and behind the last frame: the frame itself, or zeros.
        stem_pool: whether a 3x3 max-pool stands behind the stem (in the released R3D line none does).
        planes: the middle planes of a factorised 3x3x3 kernel: by the paper's formula for each `conv` (VMZ), or once
            for each `block` from its input and its width (torchvision); or the `width` of the block (pytorchvideo).
        stem_planes: the middle planes of a factorised stem; None for the paper's formula (83 for 3 to 64 channels; the
            releases have 45).
        stem_frames: the length of the stem's kernel in time; None for that of the variant. R2D always has a number, the
            length of its clips. Of one frame, a stem is not factorised (pytorchvideo).
        pool_time: whether the pool behind the stem is 3 long and of stride 2 in time; None for the variant's.
        time_first: whether the temporal half of a factorised kernel stands first (pytorchvideo).
        shortcut: where a block changes its size, a 1x1x1 `projection` with batch norm; the same, `factorised` like its
            kernels (mmaction2); or `zeros` for the channels that are new (type A of He et al.).
        space_strides: of conv2_x to conv5_x in height and width; None for the 2D network's (1, 2, 2, 2).
        time_strides: of conv2_x to conv5_x in time, where the group is 3D; None for those of space.
        middle_epsilon: of the batch norm between the halves of a factorised kernel; None for that of the others.
        head_window: (T, H, W) of an average-pool of stride 1 in front of the head, whose scores are then averaged
            (pytorchvideo); None averages everything, which is the same for a clip of the size of the window.
    """

    variant: str = "i3d-resnet"
    time_padding: TimePadding = "replicate"
    stem_pool: bool = True
    planes: Planes = "conv"
    stem_planes: int | None = None
    stem_frames: int | None = None
    pool_time: bool | None = None
    time_first: bool = False
    shortcut: Shortcut = "projection"
    space_strides: Quadruple | None = None
    time_strides: Quadruple | None = None
    middle_epsilon: float | None = None
    head_window: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("space_strides", "time_strides", "head_window"):
            if isinstance(value := getattr(self, name), list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        super().__post_init__()
        choices = (
            (self.variant, tuple(VARIANTS)),
            (self.time_padding, ("replicate", "zero")),
            (self.planes, ("conv", "block", "width")),
            (self.shortcut, ("projection", "factorised", "zeros")),
            (self.pool_time, (None, True, False)),
        )
        sound = all(value in allowed for value, allowed in choices)
        sound = sound and type(self.stem_pool) is type(self.time_first) is bool
        sound = sound and all(n is None or is_count(n, 1) for n in (self.stem_planes, self.stem_frames))
        sound = sound and (self.middle_epsilon is None or 0 < self.middle_epsilon < 1)
        tuples = ((self.space_strides, 4), (self.time_strides, 4), (self.head_window, 3))
        sound = sound and all(value is None or _are_counts(value, length) for value, length in tuples)
        if not sound or any(t > s for t, s in zip(self.time_strides or (), self.strides)):
            raise UsageError(
                f"{self}: expected a variant of {', '.join(VARIANTS)}, time_padding 'replicate' or 'zero', "
                "planes 'conv', 'block' or 'width', stem_planes and stem_frames above 0 or none, shortcut "
                "'projection', 'factorised' or 'zeros', four strides or none, of which none in time exceeds that in "
                "space, and a head_window of three numbers or none"
            )
        # What means nothing in a network has one value, so that equal networks have equal configurations.
        idle: dict[str, Any] = {}
        if not self.time.factorised:
            idle = {"planes": "conv", "stem_planes": None, "time_first": False, "middle_epsilon": None}
        elif self.stem_frames == 1:
            idle = {"stem_planes": None}
        if self.time.folded and self.stem_frames is None:
            idle["stem_frames"] = self.time.stem[0]
        for name, value in idle.items():
            object.__setattr__(self, name, value)

    @property
    def time(self) -> Time:
        """What the variant adds."""
        return VARIANTS[self.variant]

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values, in the order of its fields; without those that are None."""
        return {name: value for name, value in super().to_json().items() if value is not None}

    @property
    def strides(self) -> Quadruple:
        """By how much conv2_x to conv5_x divide the height and width."""
        return self.space_strides or super().strides

    @property
    def frames(self) -> int | None:
        """The number of frames that a clip must have; None where any is taken that the strides leave a frame of."""
        return self.stem_frames if self.time.folded else None


def _are_counts(value: object, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length and all(is_count(one, 1) for one in value)


def named(name: str) -> dict[str, Any] | None:
    """The values that a network's name gives: `r2plus1d` its variant, `r2plus1d_34` its depth too; None for others."""
    variant, _, depth = name.partition("_")
    if variant not in VARIANTS or (depth and depth not in map(str, resnet.DEPTHS)):
        return None
    return {"variant": variant, **({"depth": int(depth)} if depth else {})}


def paper(variant: str, depth: int, frames: int, num_classes: int = 400) -> ResNet3DConfig:
    """A network of the paper, for clips of so many frames: no pool behind the stem, zeros around the clip."""
    folded = VARIANTS[variant].folded
    return ResNet3DConfig(
        depth=depth,
        num_classes=num_classes,
        variant=variant,
        time_padding="zero",
        stem_pool=False,
        batch_norm_epsilon=1e-3,
        stem_frames=frames if folded else None,
    )


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
    """The layers of a configuration, from the stem to the last block (table 1 of the paper)."""
    time = config.time
    frames, stride = config.stem_frames or time.stem[0], time.stem[1]
    planes = None
    if time.factorised and frames > 1:
        planes = config.stem_planes or middle_planes(config.in_channels, config.width, frames, 7)
    stem = Unit(STEM, config.width, (frames, 7, 7), (stride, 2, 2), planes, bias=config.conv_bias, folded=time.folded)
    yield replace(stem, middle_epsilon=config.middle_epsilon)
    if config.stem_pool:
        length, step = time.pool if config.pool_time is None else ((3, 2) if config.pool_time else (1, 1))
        yield Pool("pool1", (length, 3, 3), (step, 2, 2))
    for block in blocks(config):
        if block.group == 3 and block.index == 0 and time.pool_after_2:
            yield Pool("pool2", (time.pool_after_2[0], 1, 1), (time.pool_after_2[1], 1, 1))
        yield _with_time(block, config)


def _with_time(block: Block, config: ResNet3DConfig) -> Block3D:
    whole = block.group in config.time.groups

    def strides(stride: int) -> tuple[int, int, int]:
        if not whole or stride == 1:
            return 1, stride, stride
        return (config.time_strides[block.group - 2] if config.time_strides else stride), stride, stride

    def unit(conv: Conv, place: int) -> Unit:
        long = (whole and conv.kernel > 1) or (place == 0 and _is_first(block, config.time))
        kernel = (_TIME_KERNEL if long else 1, conv.kernel, conv.kernel)
        planes = _planes(block, conv, config) if long and config.time.factorised else None
        return Unit(
            conv.name,
            conv.channels,
            kernel,
            strides(conv.stride),
            planes,
            relu=conv.relu,
            bias=config.conv_bias,
            time_first=config.time_first,
            middle_epsilon=config.middle_epsilon,
        )

    def projection(conv: Conv) -> Unit | None:
        if config.shortcut == "zeros":
            return None
        planes = None
        if config.shortcut == "factorised":  # by the formula of a kernel 3 long in time, which it is not
            planes = middle_planes(conv.in_channels, conv.channels, _TIME_KERNEL, conv.kernel)
        return replace(unit(conv, -1), planes=planes)

    return Block3D(
        name=block.name,
        units=tuple(unit(conv, place) for place, conv in enumerate(block.convs)),
        shortcut=projection(block.shortcut) if block.shortcut else None,
        stride=strides(block.stride),
    )


def _is_first(block: Block, time: Time) -> bool:
    """Whether the first kernel of this block is one of those that alone are long in time."""
    which = dict(time.first).get(block.group)
    return which == "all" or (which is not None and (block.index % 2 == 0) == (which == "even"))


def _planes(block: Block, conv: Conv, config: ResNet3DConfig) -> int:
    if config.planes == "width":
        return conv.channels
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


def infer(shape_of: ShapeOf, settings: Mapping[str, Any]) -> ResNet3DConfig | None:
    """The configuration of a checkpoint whose shapes tell its depth, its channels and its variant."""

    def kernel(name: str, *parts: str) -> Any:
        return next((s for part in parts if (s := shape_of(f"{name}{part}.conv.weight", "OIDHW"))), None)

    def has(name: str) -> bool:
        return kernel(name.removesuffix(".conv.weight"), ".spatial", "") is not None

    depth = settings.get("depth") or resnet.infer_depth(has)
    # A naming may call a whole stem what it calls a half: VMZ in Caffe2 the temporal one, torchvision the spatial one.
    spatial = kernel(STEM, ".spatial") if kernel(STEM, ".temporal") else None
    last = kernel(STEM, ".temporal") if spatial else kernel(STEM, "")
    first = spatial or last
    if depth is None or first is None or last is None or 0 in first:
        return None
    head = shape_of(f"{HEAD}.weight", "OI")
    known = {
        "depth": depth,
        "in_channels": first[1],
        "num_classes": head[0] if head else 0,
        "width": last[0],
        "conv_bias": any(shape_of(f"{STEM}{part}.conv.bias", "C") for part in ("", ".temporal")),
        "stem_planes": first[0] if spatial else None,
        "stem_frames": last[2],
        "shortcut": _shortcut(shape_of),
    }

    def likely(config: ResNet3DConfig) -> tuple[int, bool, bool]:
        """The most kernels; then a stem as long as the variant's own; then one that folds the clip."""
        return _fitting(config, shape_of), config.stem_frames is None, config.time.folded

    return max(_candidates(known, settings), key=likely)


def _shortcut(shape_of: ShapeOf) -> Shortcut:
    """How the first block of conv3_x, which always changes its size, projects its input."""
    if shape_of("layer2.0.downsample.spatial.conv.weight", "OIDHW"):
        return "factorised"
    return "projection" if shape_of("layer2.0.downsample.conv.weight", "OIDHW") else "zeros"


def _fitting(config: ResNet3DConfig, shape_of: ShapeOf) -> int:
    """How many kernels of a configuration a checkpoint has in their shape; vectors say nothing of a variant."""
    return sum(shape_of(t.name, t.layout) == t.shape for t in tensors(config) if t.layout == "OIDHW")


def _candidates(known: dict[str, Any], settings: Mapping[str, Any]) -> Iterator[ResNet3DConfig]:
    """The configurations that may be meant; what the variant or the formula says of the stem is not said again."""
    for variant, time in VARIANTS.items():
        if settings.get("variant", variant) != variant:
            continue
        values = {**known, "variant": variant}
        if values["stem_frames"] == time.stem[0]:
            values["stem_frames"] = None
        formula = middle_planes(known["in_channels"], known["width"], known["stem_frames"], 7)
        if known["stem_planes"] == formula:
            values["stem_planes"] = None
        # Halves of one width stand in either order; in the one release that has them the temporal one is the first.
        for planes in ("conv", "block", "width") if time.factorised else ("conv",):
            yield ResNet3DConfig(**{**values, "planes": planes, "time_first": planes == "width", **settings})


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
