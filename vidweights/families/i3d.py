"""I3D, the inflated Inception v1 of Carreira and Zisserman, "Quo Vadis, Action Recognition?" (arXiv 1705.07750).

Topology and facts follow `i3d.py` of google-deepmind/kinetics-i3d at commit 0667e889. The layer table below is
the only place where the network is written: the torch model is built from it, and so is the list of
canonical tensors. The references under `converters/` are written apart from it on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from vidweights.errors import UsageError
from vidweights.families.base import Family, ShapeOf, Tensor
from vidweights.families.units import Pool, Unit, is_count, unit_tensors

Padding = Literal["same", "symmetric"]
TimePadding = Literal["replicate", "zero"]
HeadPool = Literal["release", "mean"]


@dataclass(frozen=True)
class Mixed:
    """Inception module: four branches joined along the channels, in this order.

    `Branch_0` is a 1x1x1 unit, `Branch_1` and `Branch_2` a 1x1x1 unit before a 3x3x3 one, `Branch_3` a
    3x3x3 max-pool of stride 1 before a 1x1x1 unit. `channels` gives the widths
    (b0, b1 1x1x1, b1 3x3x3, b2 1x1x1, b2 3x3x3, b3).
    """

    name: str
    channels: tuple[int, int, int, int, int, int]
    separable: bool = False

    @property
    def branches(self) -> tuple[tuple[Unit | Pool, ...], ...]:
        """The layers of the four branches."""
        b0, b1a, b1b, b2a, b2b, b3 = self.channels
        one, three = (1, 1, 1), (3, 3, 3)
        return (
            (Unit("Conv3d_0a_1x1", b0, one),),
            (Unit("Conv3d_0a_1x1", b1a, one), _separated(Unit("Conv3d_0b_3x3", b1b, three), self.separable)),
            (Unit("Conv3d_0a_1x1", b2a, one), _separated(Unit("Conv3d_0b_3x3", b2b, three), self.separable)),
            (Pool("MaxPool3d_0a_3x3", three, one), Unit("Conv3d_0b_1x1", b3, one)),
        )

    @property
    def out_channels(self) -> int:
        """The width of the joined output."""
        b0, _, b1b, _, b2b, b3 = self.channels
        return b0 + b1b + b2b + b3


def _separated(unit: Unit, separable: bool) -> Unit:
    """The unit, factorised if that is wanted and its kernel is long in time; both halves are of its width."""
    return replace(unit, planes=unit.channels) if separable and unit.kernel[0] > 1 else unit


Layer = Unit | Pool | Mixed

STEM_CHANNELS = 64

_LAYERS: tuple[Layer, ...] = (
    Unit("Conv3d_1a_7x7", STEM_CHANNELS, (7, 7, 7), (2, 2, 2)),
    Pool("MaxPool3d_2a_3x3", (1, 3, 3), (1, 2, 2)),
    Unit("Conv3d_2b_1x1", 64, (1, 1, 1)),
    Unit("Conv3d_2c_3x3", 192, (3, 3, 3)),
    Pool("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
    Mixed("Mixed_3b", (64, 96, 128, 16, 32, 32)),
    Mixed("Mixed_3c", (128, 128, 192, 32, 96, 64)),
    Pool("MaxPool3d_4a_3x3", (3, 3, 3), (2, 2, 2)),
    Mixed("Mixed_4b", (192, 96, 208, 16, 48, 64)),
    Mixed("Mixed_4c", (160, 112, 224, 24, 64, 64)),
    Mixed("Mixed_4d", (128, 128, 256, 24, 64, 64)),
    Mixed("Mixed_4e", (112, 144, 288, 32, 64, 64)),
    Mixed("Mixed_4f", (256, 160, 320, 32, 128, 128)),
    Pool("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2)),
    Mixed("Mixed_5b", (256, 160, 320, 32, 128, 128)),
    Mixed("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)

ENDPOINTS = tuple(layer.name for layer in _LAYERS)
HEAD = "Logits"


@dataclass(frozen=True)
class InceptionConfig:
    """One Inception v1, and what its released code does.

    Attributes:
        in_channels: 3 for RGB, 2 for optical flow.
        num_classes: outputs of the head; 0 leaves the head out.
        depth_multiplier: scales the width of every layer, in steps of 1/64 so that the stem tells it (a release
            has 1.0; a narrow network tests fast).
        padding: in space: TensorFlow's `same`, or `symmetric`, half the kernel on both sides, where max-pools with a
            stride have none and round the size up (torchvision).
    """

    in_channels: int = 3
    num_classes: int = 1000
    depth_multiplier: float = 1.0
    padding: Padding = "same"

    separable: ClassVar[bool] = False
    batch_norm_epsilon: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        stem = self.depth_multiplier * STEM_CHANNELS if isinstance(self.depth_multiplier, int | float) else 0
        sound = is_count(self.in_channels, 1) and is_count(self.num_classes)
        sound = sound and stem % 1 == 0 and is_count(int(stem), 1)
        if not sound or self.padding not in ("same", "symmetric"):
            raise UsageError(
                f"{self}: expected in_channels >= 1, num_classes >= 0 (0 leaves the head out), a "
                f"depth_multiplier that is a positive multiple of 1/{STEM_CHANNELS}, and padding 'same' or 'symmetric'"
            )

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values, in the order of its fields."""
        return asdict(self)


@dataclass(frozen=True)
class I3DConfig(InceptionConfig):
    """One I3D network: the fields of the 2D one, and what time adds.

    Attributes:
        time_padding: what stands before the first and behind the last frame: zeros (the release), or the frame itself.
        head_pool: `release` averages windows of 2x7x7, `mean` all of time and space.
    """

    num_classes: int = 400
    time_padding: TimePadding = "zero"
    head_pool: HeadPool = "release"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_padding not in ("zero", "replicate") or self.head_pool not in ("release", "mean"):
            raise UsageError(f"{self}: expected time_padding 'zero' or 'replicate', head_pool 'release' or 'mean'")


@dataclass(frozen=True)
class S3DConfig(I3DConfig):
    """One S3D network of Xie et al. (arXiv 1712.04851, section 4): I3D whose kernels that are long in time are
    factorised, a spatial and a temporal unit of the same width each.
    """

    head_pool: HeadPool = "mean"

    separable: ClassVar[bool] = True


def layers(config: InceptionConfig) -> tuple[Layer, ...]:
    """The layers of a configuration, stem to `Mixed_5c`; each is an endpoint of that name."""

    def width(channels: int) -> int:
        return max(1, round(channels * config.depth_multiplier))

    def scale(layer: Layer) -> Layer:
        match layer:
            case Unit():
                return _separated(replace(layer, channels=width(layer.channels)), config.separable)
            case Mixed(name, (b0, b1a, b1b, b2a, b2b, b3)):
                widths = (width(b0), width(b1a), width(b1b), width(b2a), width(b2b), width(b3))
                return Mixed(name, widths, config.separable)
            case _:
                return layer

    return tuple(scale(layer) for layer in _LAYERS)


def feature_channels(config: InceptionConfig) -> int:
    """The width of `Mixed_5c`, the input of the head (1024 in a release)."""
    last = layers(config)[-1]
    assert isinstance(last, Mixed)
    return last.out_channels


def _mixed_tensors(mixed: Mixed, in_channels: int) -> Iterator[Tensor]:
    for index, branch in enumerate(mixed.branches):
        width = in_channels
        for layer in branch:
            if isinstance(layer, Unit):
                yield from unit_tensors(f"{mixed.name}.Branch_{index}.", layer, width)
                width = layer.channels


def tensors(config: InceptionConfig) -> tuple[Tensor, ...]:
    """The canonical tensors of a configuration, in the order of the layers."""

    def walk() -> Iterator[Tensor]:
        width = config.in_channels
        for layer in layers(config):
            match layer:
                case Unit():
                    yield from unit_tensors("", layer, width)
                    width = layer.channels
                case Mixed():
                    yield from _mixed_tensors(layer, width)
                    width = layer.out_channels
                case Pool():
                    pass
        if config.num_classes:
            yield Tensor(f"{HEAD}.weight", (config.num_classes, width, 1, 1, 1), "OIDHW")
            yield Tensor(f"{HEAD}.bias", (config.num_classes,), "C")

    return tuple(walk())


Network = TypeVar("Network", bound=InceptionConfig)


def infer_as(
    configure: type[Network],
    shape_of: ShapeOf,
    settings: Mapping[str, Any],
    *,
    stem: str,
    kernel: str = "OIDHW",
    head: str = "OIDHW",
) -> Network | None:
    """A configuration of that type, read off the shapes of the kernel `stem` and of the head, in these layouts."""
    first, last = shape_of(stem, kernel), shape_of(f"{HEAD}.weight", head)
    if first is None or 0 in first[:2]:
        return None
    classes, multiplier = last[0] if last else 0, first[0] / STEM_CHANNELS
    return configure(in_channels=first[1], num_classes=classes, depth_multiplier=multiplier, **settings)


_WHOLE_STEM, _FACTORISED_STEM = (f"{ENDPOINTS[0]}{part}.conv.weight" for part in ("", ".spatial"))


def infer(shape_of: ShapeOf, settings: Mapping[str, Any]) -> I3DConfig | None:
    """The configuration of a checkpoint, read off the shapes of its stem and its head."""
    return infer_as(I3DConfig, shape_of, settings, stem=_WHOLE_STEM)


def infer_s3d(shape_of: ShapeOf, settings: Mapping[str, Any]) -> S3DConfig | None:
    """As `infer`, for the factorised stem of S3D."""
    return infer_as(S3DConfig, shape_of, settings, stem=_FACTORISED_STEM)


FACTS: dict[str, Any] = {
    "padding": "TensorFlow SAME, from the run-time size of each axis; max-pools pad with minus infinity",
    "batch_norm_epsilon": InceptionConfig.batch_norm_epsilon,
    # Sonnet's decay of 0.999 is kept of the old statistics; torch's momentum is the share of the new.
    "batch_norm_momentum": 1e-3,
    "convolution_bias": "none, except in the head",
    "head": "2x7x7 average pool (VALID, stride 1), dropout, 1x1x1 convolution, mean over time",
    "axis_order": "NCTHW",
}

I3D = Family(name="i3d", configure=I3DConfig, tensors=tensors, infer=infer, facts=FACTS, stems=(_WHOLE_STEM,))
S3D = Family(
    name="s3d",
    configure=S3DConfig,
    tensors=tensors,
    infer=infer_s3d,
    facts=FACTS,
    stems=(_FACTORISED_STEM,),
)
