"""The torch model of 3D ResNets: against torchvision's video networks, a plain forward, and each 2D code on images."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from networks import InMemory, canonical, stored

from vidweights import dialects, inflation
from vidweights.errors import InputError
from vidweights.families.i3d import InceptionConfig, S3DConfig
from vidweights.families.resnet import ResNetConfig
from vidweights.families.resnet3d import VARIANTS, ResNet3DConfig
from vidweights.inflation import Options

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from vidweights import models  # noqa: E402
from vidweights.models.optimize import optimize  # noqa: E402
from vidweights.models.resnet3d import ResNet3D  # noqa: E402
from vidweights_converters.references.images.functional import FORWARDS, Weights  # noqa: E402

NARROW: dict[str, Any] = {"num_classes": 5, "width": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


def randomise(model: Any) -> Any:
    """Random affine parameters and statistics, so that no batch norm is the identity; float64, evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
            elif getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.2, generator=generator)
    return model.double().eval()


def network(**values: Any) -> Any:
    torch.manual_seed(0)
    return randomise(ResNet3D(ResNet3DConfig(**{**NARROW, **values})))


def clip(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * wanted.abs().max().item())


# --- the released networks in time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("r3d_18", {"variant": "r3d"}),
        ("mc3_18", {"variant": "mc3"}),
        ("r2plus1d_18", {"variant": "r2plus1d", "planes": "block", "stem_planes": 45}),
    ],
)
def test_the_r3d_line_computes_what_torchvision_does(name: str, values: dict[str, Any]) -> None:
    """Its state dict has our tensors in our order, and pads with zeros in time."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from torchvision_cpu import torchvision

    torch.manual_seed(0)
    genuine = randomise(getattr(torchvision.models.video, name)(num_classes=7))
    state = [t for key, t in genuine.state_dict().items() if not key.endswith("num_batches_tracked")]
    with torch.device("meta"):
        model = ResNet3D(ResNet3DConfig(18, num_classes=7, stem_pool=False, time_padding="zero", **values))
    model.load_state_dict(dict(zip(model.state_dict(), state, strict=True)), assign=True)
    norms = [[m for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d)] for net in (model, genuine)]
    assert [(m.eps, m.momentum) for m in norms[0]] == [(m.eps, m.momentum) for m in norms[1]]
    for frames in (1, 8, 9):
        x = clip(1, 3, frames, 34, 41)
        with torch.inference_mode():
            close(model.eval()(x), genuine(x))


class Time(NamedTuple):
    """The strides in time that the sources give a variant (kernels tell their own lengths)."""

    stem: int = 1
    pool: tuple[int, int] = (1, 1)
    groups: tuple[int, int, int, int] = (1, 1, 1, 1)  # where a group halves the size
    pool2: bool = False


# arXiv 1705.07750 on a ResNet; `obtain_arc` and pool2 of video-nonlocal-net; arXiv 1711.11248, section 3.
TIMES = {
    "i3d-resnet": Time(2, (3, 2), (2, 2, 2, 2)),
    "i3d-resnet-nl": Time(pool2=True),
    "r3d": Time(groups=(2, 2, 2, 2)),
    "mc2": Time(),
    "mc4": Time(groups=(2, 2, 1, 1)),
    "mc5": Time(groups=(2, 2, 2, 1)),
    "rmc2": Time(groups=(2, 2, 2, 2)),
    "rmc4": Time(groups=(1, 1, 2, 2)),
    "f-r2d": Time(),
    "r2plus1d": Time(groups=(2, 2, 2, 2)),
}
CODES: dict[str, dict[str, Any]] = {
    "basic": {"depth": 18},
    "torchvision": {"depth": 50},
    "keras": {"depth": 50, **dialects.get("keras-resnet").settings},
    "slim": {"depth": 50, **dialects.get("slim-resnet").settings},
}


class Plain:
    """A 3D ResNet written out over the names of its tensors."""

    def __init__(self, model: Any, time: Time) -> None:
        self.w, self.time, self.config = model.state_dict(), time, model.config

    def conv(self, x: Any, name: str, stride: Any) -> Any:
        """A convolution with half its kernel before and behind, and its batch norm."""
        kernel = self.w[f"{name}.conv.weight"]
        t, h, w = (size // 2 for size in kernel.shape[2:])
        x = F.pad(x, (0, 0, 0, 0, t, t), mode="replicate" if self.config.time_padding == "replicate" else "constant")
        x = F.conv3d(x, kernel, self.w.get(f"{name}.conv.bias"), stride, (0, h, w))
        mean, var, weight, bias = (self.w[f"{name}.bn.{v}"] for v in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=self.config.batch_norm_epsilon)

    def unit(self, x: Any, name: str, stride: Any) -> Any:
        if f"{name}.conv.weight" in self.w:
            return self.conv(x, name, stride)
        t, h, w = stride
        return self.conv(F.relu(self.conv(x, f"{name}.spatial", (1, h, w))), f"{name}.temporal", (t, 1, 1))

    def pool(self, x: Any) -> Any:
        kernel, stride = self.time.pool
        pads: list[int] = []
        for n in (x.shape[4], x.shape[3]):
            total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
            pads += [total // 2, total - total // 2] if self.config.pool_padding == "same" else [1, 1]
        x = F.pad(x, (*pads, kernel // 2, kernel // 2), value=float("-inf"))
        return F.max_pool3d(x, (kernel, 3, 3), (stride, 2, 2))

    def block(self, x: Any, name: str, time: int, space: int) -> Any:
        stride, one = (time, space, space), (1, 1, 1)
        y = x[:, :, ::time, ::space, ::space]
        if f"{name}.downsample.conv.weight" in self.w:
            y = self.unit(x, f"{name}.downsample", stride)
        bottleneck = f"{name}.conv3.conv.weight" in self.w
        first = not bottleneck or self.config.stride_on == "1x1"
        x = F.relu(self.unit(x, f"{name}.conv1", stride if first else one))
        x = self.unit(x, f"{name}.conv2", one if first else stride)
        return F.relu((self.unit(F.relu(x), f"{name}.conv3", one) if bottleneck else x) + y)

    def __call__(self, x: Any) -> Any:
        x = self.pool(F.relu(self.unit(x, "stem", (self.time.stem, 2, 2))))
        for group in (1, 2, 3, 4):
            count = len({key.split(".")[1] for key in self.w if key.startswith(f"layer{group}.")})
            if group == 2 and self.time.pool2:
                x = F.max_pool3d(x, (2, 1, 1))
            for index in range(count):
                last = self.config.stride_on == "last"
                halves = (group < 4 and index == count - 1) if last else (group > 1 and index == 0)
                x = self.block(x, f"layer{group}.{index}", self.time.groups[group - 1] if halves else 1, 1 + halves)
        return F.linear(x.mean((2, 3, 4)), self.w["fc.weight"], self.w["fc.bias"])


@pytest.mark.parametrize(
    ("variant", "code"),
    [(variant, "basic") for variant in TIMES]
    + [(variant, code) for variant in ("i3d-resnet", "i3d-resnet-nl", "mc4", "r2plus1d") for code in list(CODES)[1:]],
)
def test_a_variant_computes_what_a_plain_forward_does(variant: str, code: str) -> None:
    for time_padding, size in (("replicate", (9, 33, 46)), ("zero", (6, 38, 35))):
        model = network(variant=variant, time_padding=time_padding, **CODES[code])
        with torch.inference_mode():
            close(model(clip(2, 3, *size)), Plain(model, TIMES[variant])(clip(2, 3, *size)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_frame_counts_and_a_shift_in_time_is_seen(variant: str) -> None:
    model = network(depth=18, variant=variant)
    frames = model.config.frames or 16
    x = clip(1, 3, frames, 33, 38)
    with torch.inference_mode():
        scores = model(x)
        assert (model(x.flip(2)) - scores).abs().max() > 1e-6 or variant == "f-r2d"
        close(model.per_frame(x).mean(1), scores)
        # Its pool takes every second frame of the stem, of which the last does not see the last frame of the clip.
        for frame in range(0, frames - (variant == "i3d-resnet-mm"), 5):
            changed = x.clone()
            changed[:, :, frame] += 1
            assert not torch.equal(model(changed), scores)


@pytest.mark.parametrize(
    ("variant", "frames"),
    [
        ("i3d-resnet", {1: 1, 9: 1, 32: 1, 33: 2}),
        ("i3d-resnet-nl", {2: 1, 3: 1, 9: 4}),
        ("r3d", {1: 1, 9: 2, 16: 2}),
        ("mc3", {1: 1, 9: 9}),
        ("mc4", {9: 5}),
        ("rmc5", {1: 1, 9: 5}),
        ("f-r2d", {1: 1, 9: 9}),
        ("r2plus1d", {1: 1, 9: 2}),
    ],
)
def test_the_frames_that_are_left(variant: str, frames: dict[int, int]) -> None:
    model = network(depth=18, variant=variant)
    for before, after in frames.items():
        assert model.features(clip(1, 3, before, 33, 32)).shape == (1, 32, after, 2, 1)


def test_a_single_frame_is_refused_where_two_are_pooled() -> None:
    with pytest.raises(InputError, match="1 frame is left where i3d-resnet-nl pools two"):
        network(depth=18, variant="i3d-resnet-nl")(clip(1, 3, 1, 32, 32))


# --- the 2D codes ---------------------------------------------------------------------------------------------------

SOURCES: dict[str, Any] = {
    "torchvision-resnet": ResNetConfig(18, num_classes=5, width=8),
    "keras-resnet": ResNetConfig(50, num_classes=5, width=8, **dialects.get("keras-resnet").settings),
    "slim-resnet": ResNetConfig(50, num_classes=5, width=8, **dialects.get("slim-resnet").settings),
    "torchvision-googlenet": InceptionConfig(num_classes=5, depth_multiplier=1 / 8, padding="symmetric"),
    "slim-inception": InceptionConfig(num_classes=5, depth_multiplier=1 / 8),
}
SIZES = ((64, 64), (65, 80), (72, 97))


def float64_arrays(dialect: str) -> dict[str, Any]:
    """Seeded tensors under a release's names; kernels as He et al. scale them, or the values would overflow."""
    config, arrays = SOURCES[dialect], canonical(SOURCES[dialect])
    for name, array in arrays.items():
        scale = (2 / math.prod(array.shape[1:])) ** 0.5 if array.ndim > 1 else 1.0
        arrays[name] = array.astype(np.float64) * scale
    return stored(dialects.get(dialect), config, arrays)


def inflated(arrays: dict[str, Any], options: Options, **changes: Any) -> Any:
    """The 3D network of a 2D source, with some other fields of its configuration."""
    source = InMemory(arrays)
    planned = inflation.make(source.tensors, options)
    model = models.build(planned.family.name, replace(planned.config, **changes)).double().eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in inflation.stream(planned, source)})
    return model


@pytest.mark.parametrize("dialect", SOURCES)
@pytest.mark.parametrize("method", ["mean", "center", "exact"])
def test_a_still_clip_is_what_each_2d_code_computes(dialect: str, method: Any) -> None:
    arrays = float64_arrays(dialect)
    factorised = "r2plus1d" if "resnet" in dialect else "s3d"
    model = inflated(arrays, Options(into=factorised if method == "exact" else None, method=method))
    for size in SIZES:
        image = clip(1, 3, *size)
        with torch.inference_mode():
            found = model(image[:, :, None].expand(-1, -1, 9, -1, -1))
            _, wanted = FORWARDS[dialect](Weights(Path("memory"), dialect, arrays, torch.float64), image)
        close(found, wanted)


@pytest.mark.parametrize("dialect", ["torchvision-resnet", "slim-inception"])
def test_the_configuration_says_what_stands_before_the_first_frame(dialect: str) -> None:
    arrays = float64_arrays(dialect)
    repeated, zeros = (inflated(arrays, Options(), time_padding=padding) for padding in ("replicate", "zero"))
    x = clip(1, 3, 65, 80)[:, :, None]
    with torch.inference_mode():
        for frames in (1, 9):
            still = x.expand(-1, -1, frames, -1, -1)
            close(repeated(still), repeated(x))
            assert (zeros(still) - repeated(x)).abs().max() > 0.01 * repeated(x).abs().max()


# --- beside the forward ---------------------------------------------------------------------------------------------


def test_without_classes_the_pooled_features_come_out() -> None:
    model, x = network(depth=18, num_classes=0), clip(2, 3, 9, 33, 32)
    close(model(x), model.features(x).mean((2, 3, 4)))
    assert model.per_frame(x).shape == (2, 1, 32)


def test_a_new_head_can_be_drawn_again() -> None:
    model = network(depth=18)
    heads = []
    for _ in range(2):
        model.reset_head(3, generator=torch.Generator().manual_seed(4))
        heads.append(model.fc.weight.detach().clone())
    assert torch.equal(*heads)
    assert (heads[0].shape, heads[0].dtype, model.config.num_classes) == ((3, 32), torch.float64, 3)


def test_8_bit_frames_are_refused_without_i3ds_scale() -> None:
    with pytest.raises(InputError, match=r"uint8; .*as the weights' config.json states"):
        network(depth=18)(torch.zeros(1, 3, 9, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "config", [ResNet3DConfig(50, variant="r2plus1d", conv_bias=True, **NARROW), S3DConfig(3, 5, 1 / 8)]
)
def test_a_factorised_network_is_folded_up_to_rounding(config: Any, channels_last: bool) -> None:
    torch.manual_seed(0)
    model = randomise(models.build("s3d" if isinstance(config, S3DConfig) else "resnet3d", config))
    fast = optimize(model, channels_last=channels_last)
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in fast.modules())
    with torch.inference_mode():
        close(fast(clip(1, 3, 9, 40, 33)), model(clip(1, 3, 9, 40, 33)))


@pytest.mark.parametrize("variant", ["i3d-resnet", "i3d-resnet-nl", "r2plus1d"])
def test_exports_at_a_fixed_size(variant: str) -> None:
    model, x = network(depth=18, variant=variant), clip(1, 3, 9, 40, 33)
    program = torch.export.export(model, (x,))
    close(program.module()(x), model(x))
