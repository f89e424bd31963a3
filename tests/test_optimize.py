from __future__ import annotations

from typing import Any

import pytest

from vidweights.errors import UsageError
from vidweights.families.i3d import I3DConfig

torch = pytest.importorskip("torch")

from vidweights.models.i3d import I3D, TwoStreamI3D  # noqa: E402
from vidweights.models.optimize import optimize  # noqa: E402


def network(in_channels: int = 3, seed: int = 0) -> Any:
    """A narrow I3D whose batch norms have random parameters and statistics."""
    torch.manual_seed(seed)
    model = I3D(I3DConfig(in_channels, 5, 1 / 8), head_pool="mean").eval()
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
    fast.Conv3d_1a_7x7.conv.weight.zero_()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) and after[name].stride() == strides[name]
               for name, tensor in before.items())  # fmt: skip
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_batch_norm_is_left_and_kernels_are_channels_last() -> None:
    fast = optimize(network())
    assert not [m for m in fast.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert fast.Conv3d_2c_3x3.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
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
    stem, exact = halved.Conv3d_1a_7x7.conv.weight, scale.Conv3d_1a_7x7.conv.weight
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
