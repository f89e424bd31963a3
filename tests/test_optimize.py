from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidweights.errors import UsageError
from vidweights.families.i3d import I3DConfig
from vidweights.families.resnet3d import ResNet3DConfig
from vidweights.families.units import Unit

torch = pytest.importorskip("torch")

from vidweights.models.i3d import I3D, TwoStreamI3D  # noqa: E402
from vidweights.models.optimize import _FrameConv, _TimeConv, optimize  # noqa: E402
from vidweights.models.resnet3d import ResNet3D  # noqa: E402
from vidweights.models.units import Conv, Padding  # noqa: E402


def network(in_channels: int = 3, seed: int = 0) -> Any:
    """A narrow I3D whose batch norms have random parameters and statistics."""
    torch.manual_seed(seed)
    return randomised(I3D(I3DConfig(in_channels, 5, 1 / 8), head_pool="mean").eval())


def randomised(model: Any) -> Any:
    """The network with random parameters and statistics in its batch norms."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.weight.uniform_(1.5, 2.5)
                module.bias.normal_(0, 0.2)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def clip(channels: int = 3) -> Any:
    return torch.rand(2, channels, 9, 40, 33, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels_last", [True, False])
def test_logits_and_endpoints_stay_the_same(channels_last: bool) -> None:
    model = network()
    fast = optimize(model, channels_last=channels_last)
    with torch.inference_mode():
        expected, got = model.endpoints(clip()), fast.endpoints(clip())
    for name, tensor in expected.items():
        assert (got[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name


def test_folding_is_exact_up_to_rounding() -> None:
    model = network().double()
    with torch.inference_mode():
        expected, got = model(clip().double()), optimize(model)(clip().double())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))


def test_the_original_is_untouched() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
    fast = optimize(model)
    fast.Conv3d_1a_7x7.conv.conv.weight.zero_()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) and after[name].stride() == strides[name]
               for name, tensor in before.items())  # fmt: skip
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_batch_norm_is_left_and_kernels_are_channels_last() -> None:
    fast = optimize(network())
    assert not [m for m in fast.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert fast.Conv3d_2c_3x3.conv.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    for name, tensor in fast.endpoints(clip()[:1]).items():
        assert name == "Logits" or tensor.is_contiguous(memory_format=torch.channels_last_3d), name


def test_two_streams_are_optimized_together() -> None:
    model = TwoStreamI3D(network(), network(2, seed=1)).eval()
    with torch.inference_mode():
        expected, got = model(clip(), clip(2)), optimize(model)(clip(), clip(2))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_half_precision_folds_in_float64() -> None:
    model = network()
    halved = optimize(model.bfloat16())
    scale = optimize(model.double())
    stem, exact = halved.Conv3d_1a_7x7.conv.conv.weight, scale.Conv3d_1a_7x7.conv.conv.weight
    assert stem.dtype == torch.bfloat16
    assert torch.equal(stem, exact.to(torch.bfloat16))


def test_training_mode_is_refused() -> None:
    model = network()
    model.Mixed_4b.train()
    with pytest.raises(UsageError, match=r"training mode; call model\.eval\(\)"):
        optimize(model)


def test_a_model_with_nothing_to_fold_is_refused() -> None:
    with pytest.raises(UsageError, match="no convolution with a batch norm behind it in Sequential"):
        optimize(torch.nn.Sequential(torch.nn.Conv3d(3, 4, 1)).eval())
    with pytest.raises(UsageError, match="has not been optimized before"):
        optimize(optimize(network()))


def conv(kernel: Any, stride: Any, padding: Padding) -> Any:
    """A convolution of a clip in float64, from 3 to 4 channels."""
    made = Conv(3, Unit("conv", 4, kernel, stride, bias=True), padding).double().eval()
    assert made.bias is not None
    with torch.no_grad():
        made.bias.normal_()
    return made


def noise(batch: int, *size: int, last: bool) -> Any:
    """A clip (batch, 3, T, H, W) in float64, with its channels last in memory or not."""
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last_3d) if last else x


RULES = st.builds(
    Padding, st.sampled_from(["same", "symmetric", "none"]), st.sampled_from(["same", "symmetric"]), st.booleans()
)


@given(
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    padding=RULES,
    size=st.tuples(st.integers(7, 12), st.integers(3, 6), st.integers(3, 6)),
    batch=st.integers(1, 2),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_kernel_on_frames_gives_what_it_gives_on_clips(
    kernel: Any, stride: Any, padding: Padding, size: Any, batch: int, last: bool
) -> None:
    made = conv(kernel, stride, padding)
    x = noise(batch, *size, last=last)
    with torch.inference_mode():
        torch.testing.assert_close(_FrameConv(made).of_frames(x), made(x), rtol=0, atol=1e-12)


@given(
    height=st.integers(2, 4),
    padding=RULES,
    frames=st.integers(6, 9),
    batch=st.integers(1, 2),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_two_outputs_at_a_time_are_what_a_kernel_gives_on_clips(
    height: int, padding: Padding, frames: int, batch: int, last: bool
) -> None:
    made = conv((3, height, 3), (1, 1, 1), padding)
    x = noise(batch, frames, 5, 6, last=last)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        expected = made(x)
        patch.setattr("vidweights.models.optimize._PAIR_CHANNELS", 3)
        paired = _FrameConv(made)
        assert paired.mixed is not None
        assert not hasattr(made, "weight") or made.weight is None
        torch.testing.assert_close(paired(x), expected, rtol=0, atol=1e-12)


def test_what_a_clip_does_to_the_logits_of_an_optimized_network_can_be_differentiated() -> None:
    model = resnet(variant="r3d", width=64, depth=10)
    clip = torch.randn(1, 3, 8, 24, 24).requires_grad_()
    expected, found = (
        torch.autograd.grad(network(clip).square().sum(), clip)[0] for network in (model, optimize(model))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@given(
    length=st.integers(2, 7),
    stride=st.integers(1, 3),
    padding=RULES,
    frames=st.integers(7, 12),
    batch=st.integers(1, 2),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_kernel_in_time_gives_on_images_what_it_gives_on_clips(
    length: int, stride: int, padding: Padding, frames: int, batch: int, last: bool
) -> None:
    made = conv((length, 1, 1), (stride, 1, 1), padding)
    x = noise(batch, frames, 4, 5, last=last)
    with torch.inference_mode():
        expected = made(x)
        torch.testing.assert_close(_TimeConv(made)(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("replicate", [True, False])
def test_clips_shorter_than_the_kernel_are_convolved(frames: int, padding: Any, replicate: bool) -> None:
    x = torch.randn(2, 3, frames, 5, 6, dtype=torch.float64)
    for kernel, stride, kind in (((5, 3, 3), (2, 2, 1), _FrameConv), ((5, 1, 1), (2, 1, 1), _TimeConv)):
        made = conv(kernel, stride, Padding(padding, padding, replicate))
        with torch.inference_mode():
            expected = made(x)
            torch.testing.assert_close(kind(made)(x), expected, rtol=0, atol=1e-12)


def resnet(**values: Any) -> Any:
    """A narrow 3D ResNet with random parameters in its batch norms, and the statistics of noise."""
    torch.manual_seed(0)
    released = {"depth": 18, "time_padding": "zero", "stem_pool": False}
    model = randomised(ResNet3D(ResNet3DConfig(**{**released, "num_classes": 5, "width": 8, **values})))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 8, 40, 33))
    return model.eval()


RESNETS: dict[str, dict[str, Any]] = {
    "r3d": {"variant": "r3d"},
    "mc3": {"variant": "mc3"},
    "r2plus1d": {"variant": "r2plus1d", "planes": "block", "stem_planes": 45},
    "i3d-resnet-nl": {"variant": "i3d-resnet-nl", "depth": 50, "time_padding": "replicate", "stem_pool": True},
    "i3d-resnet": {"variant": "i3d-resnet", "time_padding": "replicate", "stem_pool": True},
}


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_3d_resnet_gives_the_same_logits(name: str, channels_last: bool) -> None:
    model = resnet(**RESNETS[name])
    fast = optimize(model, channels_last=channels_last)
    replaced = {type(module.conv) for module in fast.modules() if hasattr(module, "conv")} - {Conv}
    assert bool(replaced - {torch.nn.Conv3d}) == channels_last
    x = clip()[:, :, :8]
    with torch.inference_mode():
        expected, got = model(x), fast(x)
        assert fast.features(x).is_contiguous(memory_format=torch.channels_last_3d) or not channels_last
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.05 * expected.abs().max()  # the network is not blind


def test_an_optimized_network_can_be_exported() -> None:
    fast = optimize(resnet(variant="r2plus1d"))
    x = clip()[:1]
    exported = torch.export.export(fast, (x,)).module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(x), fast(x))
