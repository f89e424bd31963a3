"""`inflate_module`: the 3D network computes what the 2D network computes, and the 2D network stays as it was."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from vidweights.errors import InputError, PlanError, UsageError, ValidationError  # noqa: E402
from vidweights.models.inflated import inflate_module, layers, window  # noqa: E402

SIZE = (3, 20, 24)
EXACT = 1e-10  # float64, relative


class Small(nn.Module):
    """Convolutions with groups and strides, batch norms, both kinds of pools, a gate, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3, momentum=0.2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.gate = nn.Conv2d(8, 8, 1)
        self.average = nn.AvgPool2d(3, 1, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn(self.stem(x))))
        x = x + self.average(self.grouped(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = F.adaptive_avg_pool2d(x, 1)
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


class Calls(nn.Module):
    """One layer, and then what `forward` says."""

    def __init__(self, forward: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.weights = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.register_buffer("blur", torch.rand(6, 1, 3, 3))
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x), self)


def calibrated(network: nn.Module, size: tuple[int, ...] = SIZE, seed: int = 0) -> Any:
    """Random affine parameters, and batch-norm statistics of noise, without which a network is blind to its input."""
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.3 * torch.randn(norm.bias.shape, generator=generator))
            norm.reset_running_stats()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the average of all passes
        network.train()
        for _ in range(3):
            network(torch.randn(4, *size, generator=generator))
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
    return network.eval()


def small() -> Any:
    torch.manual_seed(0)
    return calibrated(Small())


def noise(*shape: int, seed: int = 5) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_images(*size: int) -> Any:
    """Noise of different contrast and brightness, so that no network that pools sees them alike."""
    return noise(2, *size) * torch.tensor([0.5, 3.0]).view(2, 1, 1, 1) + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)


def still(image: Any, frames: int) -> Any:
    return image.unsqueeze(2).repeat(1, 1, frames, 1, 1)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def parts(network: nn.Module) -> dict[str, type]:
    return {name: type(part) for name, part in network.named_modules()}


def test_a_still_clip_gives_what_the_image_gives() -> None:
    network = small().double()
    inflated = inflate_module(network, check=SIZE)
    image = two_images(*SIZE)
    with torch.no_grad():
        expected = network(image)
        assert relative(expected[:1], expected[1:]) > 0.1, "the network is blind to its input"
        for frames in (1, 2, 7, 12):
            assert relative(inflated(still(image, frames)), expected) < EXACT


def test_the_source_is_untouched() -> None:
    network = small().train()
    before = copy.deepcopy(network.state_dict())
    classes, code = parts(network), [m.__dict__.get("forward") for m in network.modules()]
    image = noise(2, *SIZE).float()
    expected = copy.deepcopy(network).eval()(image)

    inflated = inflate_module(network, check=SIZE)
    with torch.no_grad():
        for tensor in inflated.state_dict().values():
            tensor.add_(1)

    assert network.training
    assert parts(network) == classes
    assert [m.__dict__.get("forward") for m in network.modules()] == code
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(network.eval()(image), expected)
    theirs = {t.untyped_storage().data_ptr() for t in inflated.state_dict().values()}
    assert theirs.isdisjoint(t.untyped_storage().data_ptr() for t in network.state_dict().values())


def test_the_batch_norms_of_the_source_still_refuse_clips() -> None:
    network = small()
    inflate_module(network, check=SIZE)
    with pytest.raises(ValueError, match="expected 4D input"):
        network.bn(torch.zeros(1, 8, 2, 4, 4))


def test_a_forgotten_division_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def undivided(weight: Tensor, method: str) -> Tensor:
        return weight.unsqueeze(2).repeat(1, 1, weight.shape[2], 1, 1)

    monkeypatch.setattr(layers, "kernel_3d", undivided)
    with pytest.raises(ValidationError, match=r"first part that departs is stem \(Conv3d\)"):
        inflate_module(small(), check=SIZE)


def test_the_first_layer_that_departs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = window.kernel_3d

    def wrong_in_groups(weight: Tensor, method: Any) -> Tensor:
        kernel = honest(weight, method)
        return kernel.flip(0) if weight.shape[1] == 2 else kernel

    monkeypatch.setattr(layers, "kernel_3d", wrong_in_groups)
    with pytest.raises(ValidationError, match="departs is grouped"):
        inflate_module(small(), check=SIZE)


def test_an_off_centre_kernel_is_found_by_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = window.kernel_3d
    monkeypatch.setattr(layers, "kernel_3d", lambda weight, method: honest(weight, method).roll(1, 2))
    with pytest.raises(ValidationError, match="noise"):
        inflate_module(small(), method="center", check=SIZE)


def test_keys_stay_and_only_kernels_change_shape() -> None:
    network = small()
    inflated = inflate_module(network, check=SIZE)
    flat, deep = network.state_dict(), inflated.state_dict()
    assert list(flat) == list(deep)
    for key, tensor in flat.items():
        if tensor.dim() == 4:
            steps = tensor.shape[2]
            assert deep[key].shape == (*tensor.shape[:2], steps, *tensor.shape[2:])
            assert torch.equal(deep[key], (tensor / steps).unsqueeze(2).expand_as(deep[key]))
        else:
            assert torch.equal(deep[key], tensor)


def test_batch_norm_keeps_its_constants() -> None:
    bn: Any = inflate_module(small(), check=SIZE).get_submodule("bn")
    assert type(bn) is nn.BatchNorm3d
    assert (bn.eps, bn.momentum) == (1e-3, 0.2)


def test_a_saved_state_dict_loads_into_the_network_inflated_again() -> None:
    inflated = inflate_module(small(), check=SIZE)
    with torch.no_grad():
        for parameter in inflated.parameters():
            parameter.mul_(1.1)
    file = io.BytesIO()
    torch.save(inflated.state_dict(), file)
    file.seek(0)
    other = inflate_module(small(), check=SIZE)
    other.load_state_dict(torch.load(file, weights_only=True))
    clip = noise(1, 3, 5, 20, 24).float()
    assert torch.equal(other(clip), inflated(clip))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_runs_its_own_weights(again: Callable[[Any], Any]) -> None:
    inflated: Any = inflate_module(small(), check=SIZE)
    clip = noise(1, 3, 5, 20, 24).float()
    expected = inflated(clip)
    other = again(inflated)
    assert torch.equal(other(clip), expected)
    assert other.inflation == inflated.inflation
    with torch.no_grad():
        other.fc.weight.zero_()
    assert torch.equal(inflated(clip), expected)
    assert not torch.equal(other(clip), expected)


def test_a_new_head_and_training() -> None:
    inflated: Any = inflate_module(small().train(), check=SIZE)
    inflated.fc = nn.Linear(8, 11)
    assert inflated.training
    inflated(noise(2, 3, 5, 20, 24).float()).sum().backward()
    assert all(p.grad is not None for p in inflated.parameters())
    assert inflated.stem.weight.grad.shape == (8, 3, 5, 5, 5)


def test_modes_and_gradients_stay_as_they_are() -> None:
    network = small()
    network.bn.train()
    network.stem.weight.requires_grad_(False)
    inflated: Any = inflate_module(network, check=SIZE)
    assert [m.training for m in inflated.modules()] == [m.training for m in network.modules()]
    assert {k: p.requires_grad for k, p in inflated.named_parameters()} == {
        k: p.requires_grad for k, p in network.named_parameters()
    }


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
def test_half_precision_stays_and_its_rounding_is_reported(dtype: Any, rounding: float) -> None:
    inflated: Any = inflate_module(small().to(dtype), check=SIZE)
    assert {p.dtype for p in inflated.parameters()} == {dtype}
    assert inflated.inflation.float64 < EXACT
    assert 1e-5 < inflated.inflation.float32 < rounding


def test_zero_padding_is_measured_and_replicate_is_the_default() -> None:
    zero: Any = inflate_module(small(), time_padding="zero", check=SIZE)
    replicate: Any = inflate_module(small(), check=SIZE)
    clip = still(noise(1, *SIZE).float(), 8)
    expected = small()(clip[:, :, 0])
    assert relative(zero(clip), expected) > 0.01
    assert relative(replicate(clip), expected) < 1e-4
    assert zero.inflation.zero_padding == replicate.inflation.zero_padding > 1e-3
    assert zero.inflation.float64 < EXACT


def test_zero_padding_pads_with_zeros() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)).double()
    inflated: Any = inflate_module(network, time_padding="zero", check=SIZE)
    clip = still(noise(1, *SIZE), 3)
    expected = network(clip[:, :, 0])
    found = inflated(clip)
    for frame, share in enumerate((2 / 3, 1, 2 / 3)):
        assert relative(found[:, :, frame], share * expected) < 1e-6  # 1/3 is rounded in the kernels


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(2, 1)),
        nn.Conv2d(3, 6, 3, groups=3, padding="same"),
        nn.Conv2d(3, 6, (4, 2), padding="same"),
        nn.Conv2d(3, 6, 3, padding="valid"),
        nn.Conv2d(3, 6, 3, padding=2, padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 6, (1, 7), padding=(0, 3)),
        nn.Conv2d(3, 6, (7, 1), padding=(3, 0), padding_mode="replicate"),
        nn.Conv2d(3, 6, 4, stride=4),
    ],
    ids=str,
)
def test_convolutions_of_all_kinds(conv: nn.Conv2d) -> None:
    network = conv.double()
    inflated: Any = inflate_module(network, check=SIZE)
    assert inflated.inflation.layers == ("",)
    image = noise(2, *SIZE)
    expected = network(image)
    found = inflated(still(image, 9))
    for frame in found.unbind(2):
        assert relative(frame, expected) < EXACT
    assert inflated.kernel_size[0] == conv.kernel_size[0]
    if conv.padding == "same":
        assert found.shape[2] == 9


def test_time_is_strided_as_space_unless_it_must_not() -> None:
    for time_stride, frames in ((True, 3), (False, 9)):
        network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1))
        found = inflate_module(network, time_stride=time_stride, check=SIZE)(torch.zeros(1, 3, 9, 20, 24))
        assert found.shape == (1, 4, frames, 5, 6)


def ramp(frames: int) -> Any:
    """A clip (1, 1, T, 4, 4) whose frame t is t + 1 everywhere."""
    return torch.arange(1.0, frames + 1).view(1, 1, -1, 1, 1).expand(1, 1, frames, 4, 4)


def pooled(pool: Any, clip: Tensor) -> list[float]:
    """The middle of each frame that comes out of a pool."""
    identity = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(identity.weight)
    found = inflate_module(nn.Sequential(identity, pool), check=(1, 4, 4))(clip)
    return [float(value) for value in found[0, 0, :, found.shape[3] // 2, found.shape[4] // 2]]


def test_average_pools_never_count_frames_that_were_added() -> None:
    expected = [1.5, 2, 3, 3.5]
    for count in (True, False):
        assert pooled(nn.AvgPool2d(3, 1, 1, count_include_pad=count), ramp(4)) == pytest.approx(expected)


def test_an_average_pool_still_counts_the_padding_of_space() -> None:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=True)
    identity = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(identity.weight)
    found = inflate_module(nn.Sequential(identity, pool), check=(1, 4, 4))(torch.ones(1, 1, 3, 4, 4))
    assert torch.allclose(found[0, 0, :, 0, 0], torch.full((3,), 4 / 9))


def test_max_pools_add_minus_infinity() -> None:
    assert pooled(nn.MaxPool2d(3, 1, 1), -ramp(4)) == [-1, -1, -2, -3]
    assert pooled(nn.MaxPool2d(3, 1, 1, dilation=2), -ramp(4)) == [-1, -2, -1, -2]


def test_a_last_window_that_is_not_full_follows_ceil_mode() -> None:
    assert pooled(nn.AvgPool2d(2, 2, ceil_mode=True), ramp(5)) == [1.5, 3.5, 5]
    assert pooled(nn.AvgPool2d(2, 2, ceil_mode=False), ramp(5)) == [1.5, 3.5]


def test_center_copies_frames_of_any_clip() -> None:
    torch.manual_seed(0)
    network = calibrated(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 5, 2, 2, dilation=1))
    ).double()
    for fill in ("replicate", "zero"):
        inflated: Any = inflate_module(network, method="center", time_padding=fill, check=SIZE)
        clip = noise(1, 3, 11, *SIZE[1:])
        found = inflated(clip)
        expected = network(clip[0, :, ::4].transpose(0, 1))
        assert relative(found[0].transpose(0, 1), expected) < EXACT
        assert (inflated.inflation.noise_layer, inflated.inflation.noise_stride) == ("", 4)
        assert inflated.inflation.noise < EXACT


def test_center_says_up_to_which_layer_frames_stay_apart() -> None:
    inflated: Any = inflate_module(small(), method="center", check=SIZE)
    assert (inflated.inflation.noise_layer, inflated.inflation.noise_stride) == ("bn", 2)


def test_center_refuses_an_even_kernel_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2))
    with pytest.raises(PlanError, match=r"1 \(Conv2d\): kernel \(2, 2\) has no middle"):
        inflate_module(network, method="center", check=SIZE)
    inflate_module(network, method="mean", check=SIZE)


@pytest.mark.parametrize(
    "body",
    [
        lambda x, net: F.avg_pool2d(F.max_pool2d(x, 3, 2, ceil_mode=True), 2),
        lambda x, net: torch.max_pool2d(x, 3, 2, 1),
        lambda x, net: F.avg_pool2d(x, 3, 1, 1, False, False),
        lambda x, net: F.avg_pool2d(x, x.shape[2:]).flatten(1),
        lambda x, net: F.adaptive_max_pool2d(x, (2, 3)).flatten(1),
        lambda x, net: F.lp_pool2d(x, 2, 3, 2),
        lambda x, net: F.dropout2d(x, 0.5, net.training),
        lambda x, net: F.pad(x, (1, 2, 3, 0)),
        lambda x, net: F.pad(x, (1, 2, 3, 0), mode="reflect"),
        lambda x, net: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
        lambda x, net: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), net.blur, stride=2, groups=6),
        lambda x, net: torch.max(x, net.weights) + torch.where(x > net.weights, x, net.weights),
        lambda x, net: x.mean([2, 3]),
        lambda x, net: x.mean((-2, -1), True) * x,
        lambda x, net: torch.mean(x, dim=1, keepdim=True) * x,
        lambda x, net: torch.amax(x, dim=(2, 3)) + x.amin((-1, -2)),
        lambda x, net: x.sum(dim=(2, 3)) - x.sum(1, keepdim=True).sum((-1, -2)),
        lambda x, net: x.mean(),
        lambda x, net: F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2),
        lambda x, net: net.weights * x + x / net.weights,
        lambda x, net: x * x.mean((2, 3)).view(-1, 6, 1, 1).expand_as(x),
        lambda x, net: torch.cat([x[:, :2], F.relu(x[:, 2:])], 1),
        lambda x, net: x.view(x.size(0), 6, -1).mean(2),
        lambda x, net: F.group_norm(x, 3),
    ],
)
def test_calls_in_forward(body: Callable[[Tensor, Any], Tensor]) -> None:
    torch.manual_seed(0)
    network = Calls(body).eval().double()
    inflated: Any = inflate_module(network, check=SIZE)
    assert inflated.inflation.float64 < EXACT
    image = noise(2, *SIZE, seed=6)
    expected, found = network(image), inflated(still(image, 10))
    if found.dim() > expected.dim():
        expected = expected.unsqueeze(2).expand_as(found)
    assert relative(found, expected) < EXACT


def test_layers_of_all_kinds() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.ReflectionPad2d((1, 2, 0, 1)),
        nn.Conv2d(3, 6, 3),
        nn.InstanceNorm2d(6, affine=True),
        nn.ZeroPad2d(1),
        nn.Dropout2d(0.3),
        nn.LPPool2d(2, 2),
        nn.GroupNorm(2, 6),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.SyncBatchNorm(8),
        nn.ConstantPad2d((0, 1, 1, 0), 0.5),
        nn.AdaptiveMaxPool2d((3, None)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    inflated: Any = inflate_module(network.eval(), check=SIZE)
    assert inflated.inflation.float64 < EXACT
    assert isinstance(inflated[11], nn.AdaptiveAvgPool3d)
    assert isinstance(inflated[2], nn.InstanceNorm3d)


def test_shared_layers_and_shared_kernels_stay_shared() -> None:
    first, second, third = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
    second.weight = first.weight
    inflated: Any = inflate_module(nn.Sequential(first, second, third, first), check=SIZE)
    assert inflated[0] is inflated[3]
    assert inflated[0].weight is inflated[1].weight


def test_a_batch_norm_with_an_activation_inside() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dim() == 4
            return F.relu(super().forward(x))

    torch.manual_seed(0)
    network = calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4)))
    inflated: Any = inflate_module(network, check=SIZE)
    assert inflated.inflation.float64 < EXACT
    assert list(inflated.state_dict()) == list(network.state_dict())


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Unpacks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        return x.reshape(n, 2, c // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def _hooked() -> nn.Module:
    conv = nn.Conv2d(3, 4, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (nn.ConvTranspose2d(4, 4, 2), "ConvTranspose2d"),
        (nn.Upsample(scale_factor=2), "Upsample"),
        (nn.PixelShuffle(2), "PixelShuffle"),
        (nn.LayerNorm((18, 22)), "one map size"),
        (nn.MultiheadAttention(4, 1), "MultiheadAttention"),
        (OwnForward(4, 4, 3), "forward of its own"),
        (nn.MaxPool2d(2, return_indices=True), "returns indices"),
        (nn.Conv3d(4, 4, 3), "3D already"),
        (nn.Softmax2d(), "Softmax2d"),
        (_hooked(), "hooks"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "parametrized"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_cannot_be_inflated_are_named(part: nn.Module, words: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), part))
    with pytest.raises(PlanError, match=rf"1\.1 .*{words}"):
        inflate_module(network, check=SIZE)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda x, net: F.interpolate(x, scale_factor=2), "interpolate"),
        (lambda x, net: F.conv2d(x, nn.Parameter(net.blur), groups=6), "conv2d"),
        (lambda x, net: x.permute(0, 2, 1, 3), "permute"),
        (lambda x, net: x[:, :, 0, 0], "slices"),
        (lambda x, net: x.std((2, 3)), "std"),
    ],
)
def test_calls_that_cannot_be_inflated_are_named(body: Callable[[Tensor, Any], Tensor], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        inflate_module(Calls(body), check=SIZE)


def test_code_that_counts_axes_is_refused_with_the_module_that_has_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Unpacks()))
    with pytest.raises(PlanError, match=r"1\.0: ValueError: too many values"):
        inflate_module(network, check=SIZE)


def test_code_that_runs_but_computes_something_else_is_refused() -> None:
    network = Calls(lambda x, net: x.flatten(2)[:, :, : 20 * 24].mean(2) + x.flatten(2).norm(dim=2))
    with pytest.raises(ValidationError, match="all parts agree but its output"):
        inflate_module(network, check=SIZE)


def test_every_tensor_of_the_output_is_compared() -> None:
    wrong = Calls(lambda x, net: (x.flatten(2).norm(dim=2), x))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValidationError, match="all parts agree but its output"):
        inflate_module(wrong, check=SIZE)
    fewer = Calls(lambda x, net: [x] * (6 - x.dim()))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValidationError, match="all parts agree but its output"):
        inflate_module(fewer, check=SIZE)


def _out_of_memory(x: Tensor, net: nn.Module) -> Tensor:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda x, net: x.argmax(1), "no floating tensor"),
        (lambda x, net: x / 0, "NaN or infinity at its output"),
        (lambda x, net: x + net.missing, "does not take images .* 'missing'"),
        (_out_of_memory, "not enough memory"),
    ],
)
def test_a_2d_network_that_cannot_be_compared_is_told(body: Callable[[Tensor, Any], Tensor], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inflate_module(Calls(body), check=SIZE)


def test_layers_that_evaluation_does_not_reach_are_named() -> None:
    class WithAuxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.conv(x)
            return (x, self.aux(x)) if self.training else x

    inflated: Any = inflate_module(WithAuxiliary(), check=SIZE)
    assert inflated.inflation.not_run == ("aux",)
    assert inflated.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "sum"}, "method='sum'"),
        ({"time_padding": "same"}, "time_padding='same'"),
        ({"check": (224, 224)}, r"\(C, H, W\)"),
        ({"check": (4, 20, 24)}, "2D network itself does not take"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inflate_module(small(), **{"check": SIZE, **options})


def test_what_is_not_a_2d_network_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to inflate"):
        inflate_module(nn.Linear(3, 3))
    with pytest.raises(UsageError, match="inflated already"):
        inflate_module(inflate_module(small(), check=SIZE))
    with pytest.raises(UsageError, match="no weights yet"):
        inflate_module(nn.Sequential(nn.LazyConv2d(4, 3)))
    with pytest.raises(UsageError, match=r"\.module"):
        inflate_module(nn.DataParallel(small()))


def test_an_image_or_too_short_a_clip_is_told() -> None:
    inflated: Any = inflate_module(nn.Sequential(nn.Conv2d(3, 4, 2), nn.MaxPool2d(2)), check=SIZE)
    with pytest.raises(InputError, match="expected a clip"):
        inflated(torch.zeros(1, 3, 20, 24))
    with pytest.raises(InputError, match="found list"):
        inflated([0])
    with pytest.raises(InputError, match="too short"):
        inflated(torch.zeros(1, 3, 1, 20, 24))


def torchvision_network(name: str, size: tuple[int, ...], **options: Any) -> Any:
    from torchvision_cpu import torchvision

    torch.manual_seed(0)
    return calibrated(getattr(torchvision.models, name)(weights=None, num_classes=13, **options), size)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_networks(name: str) -> None:
    size = (3, 48, 40)
    network = torchvision_network(name, size)
    inflated: Any = inflate_module(network, check=size)
    image = two_images(*size).float()
    with torch.no_grad():
        expected = network(image)
        assert relative(expected[:1], expected[1:]) > 0.1, "the network is blind to its input"
        assert relative(inflated(still(image, 5)), expected) < 1e-3
    assert inflated.inflation.float64 < EXACT
    assert inflated.inflation.not_run == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("resnext50_32x4d", (3, 48, 48), {}),
        ("densenet121", (3, 48, 48), {}),
        ("efficientnet_b0", (3, 48, 48), {}),
        ("regnet_y_400mf", (3, 48, 48), {}),
        ("googlenet", (3, 64, 64), {"init_weights": False, "aux_logits": False, "transform_input": True}),
        ("inception_v3", (3, 96, 96), {"init_weights": False, "aux_logits": False, "transform_input": True}),
        ("vgg11_bn", (3, 32, 32), {}),
    ],
)
def test_larger_torchvision_networks(name: str, size: tuple[int, ...], options: dict[str, Any]) -> None:
    inflated: Any = inflate_module(torchvision_network(name, size, **options), check=size)
    assert inflated.inflation.float64 < 1e-9
    assert inflated.inflation.zero_padding > 0.01


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "vit_b_32"])
def test_torchvision_networks_that_are_refused(name: str) -> None:
    from torchvision_cpu import torchvision

    with pytest.raises(PlanError):
        inflate_module(getattr(torchvision.models, name)(weights=None).eval(), check=(3, 224, 224))


@pytest.mark.slow
def test_export_and_compile_give_the_same() -> None:
    inflated = inflate_module(small(), check=SIZE)
    clip = noise(2, 3, 6, 20, 24).float()
    with torch.no_grad():
        expected = inflated(clip)
        exported: Any = torch.export.export(inflated, (clip,)).module()
        assert torch.allclose(exported(clip), expected, rtol=1e-5, atol=1e-6)
        compiled: Any = torch.compile(inflated, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(clip), expected, rtol=1e-5, atol=1e-6)
