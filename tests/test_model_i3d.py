from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidweights.errors import InputError, UsageError
from vidweights.families.i3d import ENDPOINTS, I3DConfig, tensors
from vidweights.families.units import Unit

torch = pytest.importorskip("torch")

from vidweights.models.i3d import I3D, TwoStreamI3D, feature_shape  # noqa: E402
from vidweights.models.units import Conv, MaxPool, Padding, same_padding  # noqa: E402

SAME = Padding("same", "same")
NARROW = I3DConfig(num_classes=5, depth_multiplier=1 / 16)
sizes = st.tuples(*[st.integers(1, 9)] * 3)
odd_kernels = st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3)
kernels = st.tuples(*[st.integers(1, 7)] * 3)
strides = st.tuples(*[st.integers(1, 3)] * 3)


def randomise(model: Any, seed: int = 0) -> Any:
    """Random affine parameters and statistics, so that no batch norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.weight.uniform_(1.5, 2.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def narrow() -> Any:
    torch.manual_seed(0)
    return randomise(I3D(NARROW))


def clip(*shape: int, seed: int = 0) -> Any:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the weights' names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [I3DConfig(), I3DConfig(2, 0), NARROW], ids=str)
def test_state_dict_is_the_canonical_tensors(config: I3DConfig) -> None:
    with torch.device("meta"):
        state = I3D(config).state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == [
        (tensor.name, tensor.shape) for tensor in tensors(config)
    ]


def test_loads_strictly_into_a_model_on_the_meta_device_and_trains_there() -> None:
    weights = {t.name: torch.rand(t.shape) for t in tensors(NARROW)}
    with torch.device("meta"):
        model = I3D(NARROW, head_pool="mean")
    model.load_state_dict(weights, assign=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not [name for name, buffer in model.named_buffers() if buffer.is_meta]
    model.to(torch.float64).train()(clip(2, 3, 4, 32, 32).double()).sum().backward()


def test_a_weight_that_is_missing_or_unknown_is_refused() -> None:
    weights = {t.name: torch.rand(t.shape) for t in tensors(NARROW)}
    model = I3D(NARROW)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**weights, "Mixed_3b.Branch_0.extra": torch.zeros(1)})
    weights.pop("Mixed_5c.Branch_2.Conv3d_0b_3x3.bn.running_var")
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(weights)


def test_a_saved_counter_of_training_steps_is_left_out_and_set_to_zero() -> None:
    model: Any = I3D(NARROW)
    stem = model.Conv3d_1a_7x7.bn
    stem.num_batches_tracked += 7
    model.load_state_dict({**model.state_dict(), "Conv3d_1a_7x7.bn.num_batches_tracked": torch.tensor(3)})
    assert stem.num_batches_tracked == 0


# --- padding --------------------------------------------------------------------------------------------------------


def windows(x: Any, kernel: Any, stride: Any, fill: float) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Every output position of TensorFlow's SAME rule, and the padded window that it looks at (brute force).

    The rule, in its documentation's words: out = ceil(in / stride), total = max((out - 1) * stride + k - in, 0),
    and total // 2 of it goes before.
    """
    size = x.shape[2:]
    out = [-(-n // s) for n, s in zip(size, stride)]
    before = [max((o - 1) * s + k - n, 0) // 2 for o, s, k, n in zip(out, stride, kernel, size)]
    for position in np.ndindex(*out):
        window = np.full((*x.shape[:2], *kernel), fill)
        for tap in np.ndindex(*kernel):
            at = tuple(o * s + i - b for o, s, i, b in zip(position, stride, tap, before))
            if all(0 <= i < n for i, n in zip(at, size)):
                window[(slice(None), slice(None), *tap)] = x[(slice(None), slice(None), *at)]
        yield position, window


@settings(deadline=None, max_examples=40)
@given(sizes, kernels, strides)
def test_conv_pads_as_tensorflow_does(size: Any, kernel: Any, stride: Any) -> None:
    conv = Conv(2, Unit("unit", 3, kernel, stride), SAME).double()
    x = clip(2, 2, *size).double()
    got, weight = conv(x).detach().numpy(), conv.weight.detach().numpy()
    expected = np.empty_like(got)
    for position, window in windows(x.numpy(), kernel, stride, 0.0):
        expected[(slice(None), slice(None), *position)] = np.einsum("ncthw,octhw->no", window, weight)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(sizes, kernels, strides)
def test_max_pool_pads_as_tensorflow_does(size: Any, kernel: Any, stride: Any) -> None:
    x = clip(2, 2, *size) - 3  # negative throughout: a padding of zeros would win every border
    got = MaxPool(kernel, stride)(x).numpy()
    expected = np.empty_like(got)
    for position, window in windows(x.numpy(), kernel, stride, -np.inf):
        expected[(slice(None), slice(None), *position)] = window.max((2, 3, 4))
    np.testing.assert_array_equal(got, expected)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 4))
def test_same_padding_leaves_ceil_of_the_size_over_the_stride(n: int, k: int, s: int) -> None:
    (both,), (behind,) = same_padding([n], [k], [s])
    assert behind in (0, 1)
    assert (n + 2 * both + behind - k) // s + 1 == -(-n // s)


@pytest.mark.slow
def test_conv_and_max_pool_agree_with_tensorflow() -> None:
    tf = pytest.importorskip("tensorflow")
    generator = np.random.default_rng(0)
    for kernel, stride in [((7, 7, 7), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)),
                           ((1, 3, 3), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))]:  # fmt: skip
        for _ in range(12):
            size = tuple(int(n) for n in generator.integers(1, 15, 3))
            x = clip(1, 3, *size) - 2
            nthwc = x.permute(0, 2, 3, 4, 1).numpy()
            strides = (1, *stride, 1)
            pooled = tf.nn.max_pool3d(nthwc, (1, *kernel, 1), strides, "SAME").numpy()
            np.testing.assert_array_equal(MaxPool(kernel, stride)(x).permute(0, 2, 3, 4, 1).numpy(), pooled)
            conv = Conv(3, Unit("unit", 4, kernel, stride), SAME)
            weight = conv.weight.detach().permute(2, 3, 4, 1, 0).numpy()
            convolved = tf.nn.conv3d(nthwc, weight, strides, "SAME").numpy()
            got = conv(x).detach().permute(0, 2, 3, 4, 1).numpy()
            np.testing.assert_allclose(got, convolved, rtol=0, atol=1e-5 * abs(convolved).max())


# --- endpoints and the head -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(ENDPOINTS), st.tuples(st.integers(1, 40), st.integers(1, 260), st.integers(1, 260)))
def test_feature_shape_is_the_shape_of_the_features(endpoint: str, size: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        features = I3D(I3DConfig(num_classes=0)).features(torch.empty(2, 3, *size), endpoint)
    assert (2, *feature_shape(I3DConfig(), endpoint, size)) == tuple(features.shape)


def test_feature_shape_at_the_release_size() -> None:
    # Kinetics-i3d's i3d_test.py: 64 frames of 224x224 leave 8x7x7 before the head, 1024 wide.
    assert feature_shape(I3DConfig(), "Mixed_5c", (64, 224, 224)) == (1024, 8, 7, 7)


def test_endpoints_are_the_features_in_order_and_the_logits() -> None:
    model = randomise(I3D(NARROW, head_pool="mean"))
    x = clip(1, 3, 9, 40, 33)
    outputs = model.endpoints(x)
    assert list(outputs) == [*ENDPOINTS, "Logits"]
    assert torch.equal(outputs["Logits"], model(x))
    for name in ("Conv3d_1a_7x7", "Mixed_4c", "Mixed_5c"):
        assert torch.equal(outputs[name], model.features(x, name))


def test_release_head_is_the_windowed_average_pool_of_i3d_py(narrow: Any) -> None:
    x = clip(2, 3, 33, 193, 200)
    with torch.inference_mode():
        features = narrow.features(x)
        pooled = torch.nn.functional.avg_pool3d(features, (2, 7, 7), stride=1)
        assert pooled.shape[2:] == (4, 1, 1)
        expected = narrow.Logits(pooled)[..., 0, 0].mean(2)
        torch.testing.assert_close(narrow(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_mean_head_averages_over_time_and_space() -> None:
    model = randomise(I3D(NARROW, head_pool="mean"))
    x = clip(2, 3, 17, 70, 40)
    with torch.inference_mode():
        expected = model.features(x).mean((2, 3, 4)) @ model.Logits.weight[:, :, 0, 0, 0].T + model.Logits.bias
        torch.testing.assert_close(model(x), expected)


def test_without_classes_the_pooled_features_come_out() -> None:
    model = randomise(I3D(I3DConfig(num_classes=0, depth_multiplier=1 / 16), head_pool="mean"))
    x = clip(2, 3, 8, 40, 33)
    torch.testing.assert_close(model(x), model.features(x).mean((2, 3, 4)))
    assert "Logits" not in model.endpoints(x)


def test_every_axis_of_the_clip_matters(narrow: Any) -> None:
    x = clip(1, 3, 10, 193, 200)
    with torch.inference_mode():
        logits = narrow(x)
        for changed in (x.flip(1), x.flip(2), x.flip(3), x.flip(4), clip(*x.shape, seed=1)):
            assert (narrow(changed) - logits).abs().max() > 1e-3 * logits.abs().max()


def test_a_clip_in_a_batch_gives_what_it_gives_alone(narrow: Any) -> None:
    batch = clip(3, 3, 9, 193, 193)
    with torch.inference_mode():
        together = narrow(batch)
        alone = torch.cat([narrow(x[None]) for x in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_floating_dtypes(dtype: str) -> None:
    kind = getattr(torch, dtype)
    model, x = randomise(I3D(NARROW)), clip(1, 3, 9, 193, 193)
    with torch.inference_mode():
        expected = model(x)
        logits = model.to(kind)(x.to(kind))
    assert logits.dtype == kind
    tolerance = {"float64": 1e-5, "bfloat16": 0.1, "float16": 0.02}[dtype]
    assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()


# --- training -------------------------------------------------------------------------------------------------------


def test_batch_norm_has_the_release_epsilon_and_momentum() -> None:
    # Sonnet 1's BatchNorm: eps 1e-3, and 0.999 of the old statistics is kept.
    model: Any = I3D(NARROW, head_pool="mean").train()
    norm = model.Conv3d_1a_7x7.bn
    x = clip(2, 3, 5, 40, 33)
    before = model.Conv3d_1a_7x7.conv(x).detach()
    norm(before)
    torch.testing.assert_close(norm.running_mean, 0.001 * before.mean((0, 2, 3, 4)))
    norm.eval()
    norm.running_var.fill_(3e-3)
    norm.running_mean.zero_()
    torch.testing.assert_close(norm(before), before / np.sqrt(4e-3))


def test_dropout_acts_in_training_only() -> None:
    model = randomise(I3D(NARROW, dropout=0.5, head_pool="mean"))
    x = clip(1, 3, 5, 40, 33)
    assert torch.equal(model(x), model(x))
    model.dropout.train()
    assert not torch.equal(model(x), model(x))


def test_weights_are_drawn_as_sonnet_draws_them() -> None:
    torch.manual_seed(0)
    model: Any = I3D(I3DConfig(depth_multiplier=0.5))
    weight = model.Conv3d_2c_3x3.conv.weight.detach()
    deviation = 1 / np.sqrt(weight[0].numel())
    assert weight.abs().max() <= 2 * deviation
    # A normal distribution that is cut at two deviations keeps 0.8796 of its deviation.
    assert abs(weight.std() / deviation - 0.8796) < 0.01


def test_reset_head_puts_a_new_head_in_and_keeps_the_rest() -> None:
    model: Any = I3D(NARROW, head_pool="mean").double().eval()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("Logits")}
    model.reset_head(7, generator=torch.Generator().manual_seed(1))
    assert model.config == I3DConfig(num_classes=7, depth_multiplier=1 / 16)
    assert model(clip(2, 3, 5, 33, 33).double()).shape == (2, 7)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == {
        t.name: t.shape for t in tensors(model.config)
    }
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    assert model.Logits.bias.abs().max() == 0
    assert not model.Logits.training
    first = model.Logits.weight.detach().clone()
    model.reset_head(7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, model.Logits.weight)
    model.reset_head(0)
    assert model.Logits is None
    with pytest.raises(UsageError, match="num_classes"):
        model.reset_head(-1)


def test_two_streams_add_their_logits() -> None:
    rgb = randomise(I3D(NARROW, head_pool="mean"))
    flow = randomise(I3D(I3DConfig(2, 5, 1 / 16), head_pool="mean"), seed=1)
    x, y = clip(2, 3, 5, 33, 40), clip(2, 2, 5, 33, 40)
    torch.testing.assert_close(TwoStreamI3D(rgb, flow)(x, y), rgb(x) + flow(y))
    with pytest.raises(UsageError, match="the RGB network has 5 classes, the flow network 7"):
        TwoStreamI3D(rgb, I3D(I3DConfig(2, 7, 1 / 16)))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 224, 224), "clip too short: T=8, needs at least 9 frames.*head_pool='mean'"),
        ((1, 3, 16, 225, 224), "225x224 in space.*from 193 to 224"),
        ((1, 3, 16, 224, 192), "224x192 in space"),
        ((1, 16, 224, 224, 3), r"NTHWC.*permute\(0, 4, 1, 2, 3\)"),
        ((1, 16, 3, 224, 224), r"NTCHW.*transpose\(1, 2\)"),
        ((1, 2, 16, 224, 224), "has 2 channels.*flow network 2"),
        ((1, 1, 16, 224, 224), r"has 1 channels.*expected floating-point clips \(N, 3, T, H, W\)"),
        ((3, 16, 224, 224), r"has 4 axes.*x\[None\]"),
        ((1, 3, 0, 224, 224), "is empty"),
    ],
    ids=str,
)
def test_a_clip_of_the_wrong_shape_is_refused(narrow: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        narrow(torch.empty(shape))


def test_the_sizes_of_the_release_head_are_those_that_are_named() -> None:
    with torch.device("meta"):
        model = I3D(I3DConfig())
        for t, h, w in [(9, 193, 224), (10, 224, 193), (64, 208, 200)]:
            assert model(torch.empty(1, 3, t, h, w)).shape == (1, 400)
        for t, h, w in [(8, 224, 224), (9, 192, 224), (9, 224, 225)]:
            with pytest.raises(InputError):
                model(torch.empty(1, 3, t, h, w))


def test_a_clip_of_the_wrong_type_is_refused(narrow: Any) -> None:
    x = torch.zeros(1, 3, 9, 224, 224)
    with pytest.raises(InputError, match=r"uint8; expected floating-point.*in \[-1, 1\].*127.5"):
        narrow(x.to(torch.uint8))
    with pytest.raises(InputError, match="float64, the network float32"):
        narrow(x.double())
    with pytest.raises(InputError, match=r"a ndarray, not a torch\.Tensor"):
        narrow(x.numpy())


def test_unknown_endpoints_and_head_pools_are_refused(narrow: Any) -> None:
    with pytest.raises(UsageError, match="'Mixed_6a'; there are: Conv3d_1a_7x7"):
        narrow.features(clip(1, 3, 4, 32, 32), "Mixed_6a")
    with pytest.raises(UsageError, match="head_pool 'release' or 'mean'"):
        I3D(NARROW, head_pool="max")  # type: ignore[arg-type]


# --- export, and the truth ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exports_at_a_fixed_size(narrow: Any) -> None:
    x = clip(1, 3, 9, 193, 200)
    program = torch.export.export(narrow, (x,))
    torch.testing.assert_close(program.module()(x), narrow(x))


@pytest.fixture(scope="module")
def released(shared: Path) -> Any:
    """I3D with DeepMind's `rgb_scratch`, read by TensorFlow."""
    tf = pytest.importorskip("tensorflow")
    from vidweights import dialects
    from vidweights.layout import relayout

    bundle = tf.train.load_checkpoint(str(shared / "deepmind-i3d/rgb_scratch/model.ckpt"))
    weights = {}
    for row in dialects.get("deepmind-rgb").table(I3DConfig()):
        if isinstance(row.place, dialects.Constant):
            array: Any = np.full(row.tensor.shape, row.place.value, np.float32)
        else:
            array = relayout(bundle.get_tensor(row.place.key), row.place.layout, row.tensor.layout)
        weights[row.tensor.name] = torch.from_numpy(np.array(array))
    with torch.device("meta"):
        model = I3D()
    model.load_state_dict(weights, assign=True)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gif", "rand_16_224", "nat_17_200"])
def test_computes_what_the_release_computed(
    released: Any, shared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against DeepMind's own code under TensorFlow 1.15, recorded; logits and 257 samples of each endpoint."""
    monkeypatch.syspath_prepend(str(shared / "truth"))
    monkeypatch.setenv("I3D_GIF", str(shared / "deepmind-i3d/v_CricketShot_g04_c01_rgb.gif"))
    monkeypatch.delitem(sys.modules, "clips", raising=False)
    import clips  # type: ignore[import-not-found]

    truth = np.load(shared / "truth/i3d_rgb_scratch_tf1.15_sonnet1.36.npz")
    x = torch.from_numpy(clips.make(name)).permute(0, 4, 1, 2, 3).contiguous()
    with torch.inference_mode():
        outputs = released.endpoints(x)
    logits = truth[f"{name}/logits"]
    assert np.abs(outputs["Logits"].numpy() - logits).max() <= 1e-5 * np.abs(logits).max()
    for endpoint in ENDPOINTS:
        flat = outputs[endpoint].permute(0, 2, 3, 4, 1).reshape(-1).numpy()
        _, _, largest, size = truth[f"{name}/stat/{endpoint}"]
        sample = truth[f"{name}/sample/{endpoint}"]
        assert flat.size == size
        got = flat[:: max(1, flat.size // 257)][: sample.size]
        assert np.abs(got - sample).max() <= 1e-5 * largest, endpoint
