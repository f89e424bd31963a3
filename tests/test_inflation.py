"""Inflation without its proof: plans, folders, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from networks import NETWORKS, InMemory, canonical, stored, write

import vidweights
from vidweights import dialects, folder, formats, inflation
from vidweights.dtypes import narrowed, widened
from vidweights.errors import OutputError, PlanError, UnavailableError, UsageError
from vidweights.families.i3d import InceptionConfig
from vidweights.families.resnet import ResNetConfig
from vidweights.inflation import TARGETS, Options
from vidweights.kernels import Inflate
from vidweights.layout import Array
from vidweights_cli.main import group

TORCHVISION = dialects.get("torchvision-resnet")
RESNET18 = ResNetConfig(depth=18, num_classes=7, width=8)
RESNET50 = ResNetConfig(depth=50, num_classes=7, width=8)
INCEPTION = InceptionConfig(num_classes=7, depth_multiplier=1 / 32, padding="symmetric")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))


def resnet(config: ResNetConfig = RESNET18, dialect: str = "torchvision-resnet") -> dict[str, Array]:
    return stored(dialects.get(dialect), config, canonical(config))


def googlenet() -> dict[str, Array]:
    return stored(dialects.get("torchvision-googlenet"), INCEPTION, canonical(INCEPTION))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", "torch", resnet())


def inflate(source: Path, out: Path, name: str = "resnet", **options: Any) -> Path:
    return vidweights.inflate(name, weights=source, out=out, validate=False, **options)


def read(path: Path) -> dict[str, Array]:
    with formats.open_checkpoint(path) as checkpoint:
        return {key: np.array(checkpoint.read(key)) for key in checkpoint.tensors}


CASES = [
    (source, into, method)
    for into, (family, _) in TARGETS.items()
    for source in (("googlenet",) if family != "resnet3d" else ("resnet18", "resnet50"))
    for method in (("mean", "exact") if into in ("r2plus1d", "s3d") else ("mean", "center"))
]
SOURCES = {"googlenet": googlenet(), "resnet18": resnet(), "resnet50": resnet(RESNET50)}


@pytest.mark.parametrize(("name", "into", "method"), CASES)
def test_every_2d_tensor_is_used_and_every_3d_tensor_is_made_once(name: str, into: str, method: Any) -> None:
    source = InMemory(SOURCES[name])
    planned = inflation.make(source.tensors, Options(into=into, method=method))
    made = [key for key, _ in inflation.stream(planned, source)]
    assert Counter(made) == Counter(t.name for t in planned.family.tensors(planned.config))
    used = Counter(stored.key for step in planned.steps for stored, _ in step.sources)
    assert set(used) == set(source.tensors)
    if into not in ("r2plus1d", "s3d"):
        assert set(used.values()) == {1}


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    one, two = (inflate(source, tmp_path / n, into="r2plus1d", method="exact") for n in ("one", "two"))
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_the_folder_says_what_it_was_made_of_and_loads(source: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    made = inflate(source, tmp_path, time_padding="zero")
    config = folder.read_config(made)
    assert (config.family, config.config.variant, config.config.time_padding) == ("resnet3d", "i3d-resnet", "zero")
    assert config.inflation is not None
    assert (config.inflation["method"], config.inflation["random_init"]) == ("mean", None)
    assert config.source.dialect == "torchvision-resnet"
    assert config.source.files == {source.name: hashlib.sha256(source.read_bytes()).hexdigest()}
    with pytest.warns(vidweights.UnvalidatedWarning):
        model: Any = vidweights.load(made)
    assert model.config.time_padding == "zero"
    assert not model.stem.conv.rule.replicate
    assert model(torch.randn(1, 3, 8, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_port_of_an_inflated_folder_keeps_what_no_tensor_tells(source: Path, tmp_path: Path, given: str) -> None:
    made = inflate(source, tmp_path, time_padding="zero", stem_pool=False)
    weights = made if given == "folder" else made / "model.safetensors"
    ported = vidweights.port("resnet3d", weights=weights, out=tmp_path / "out", format="torch", validate=False)
    config = folder.read_config(next(iter(ported.values()))).config
    assert (config.time_padding, config.stem_pool) == ("zero", False)


def test_an_inflated_i3d_does_not_go_into_a_code_that_pads_otherwise(tmp_path: Path) -> None:
    made = inflate(write(tmp_path / "source", "torch", googlenet()), tmp_path, "inception")
    with pytest.raises(PlanError, match="time_padding: found replicate, expected zero"):
        vidweights.port("i3d", weights=made, to="piergiaj", out=tmp_path / "out", validate=False)
    assert not (tmp_path / "out").exists()


def test_a_network_that_was_inflated_here_loads_by_its_name(source: Path) -> None:
    pytest.importorskip("torch")
    made = vidweights.inflate("resnet", weights=source, validate=False, into="r3d", method="center")
    assert made.name == "model-r3d-center"
    with pytest.warns(vidweights.UnvalidatedWarning):
        model: Any = vidweights.load("model-r3d-center")
    assert model.config.variant == "r3d"


@pytest.mark.parametrize(
    "dialect", ["torchvision-resnet", "keras-resnet", "keras-resnet-probs", "slim-resnet"], ids=str
)
def test_what_a_released_code_does_goes_into_the_3d_configuration(dialect: str, tmp_path: Path) -> None:
    settings = dialects.get(dialect).settings
    config = ResNetConfig(**{**RESNET50.to_json(), **settings})
    prefix = "resnet_v1_50/" if dialect == "slim-resnet" else ""
    source = InMemory({prefix + key: a for key, a in resnet(config, dialect).items()})
    planned = inflation.make(source.tensors, Options())
    assert {key: planned.config.to_json()[key] for key in settings} == dict(settings)
    names = {info.key for info in planned.outputs}
    assert ("stem.conv.bias" in names) == config.conv_bias


def test_googlenets_padding_goes_into_the_3d_configuration() -> None:
    assert inflation.make(InMemory(googlenet()).tensors, Options()).config.padding == "symmetric"


def test_a_head_is_kept_dropped_or_drawn_anew(source: Path, tmp_path: Path) -> None:
    kept = read(inflate(source, tmp_path / "kept") / "model.safetensors")
    np.testing.assert_array_equal(kept["fc.weight"], resnet()["fc.weight"])
    dropped = inflate(source, tmp_path / "dropped", num_classes=0)
    assert "fc.weight" not in read(dropped / "model.safetensors")
    left = folder.read_config(dropped).inflation
    assert left is not None
    assert [list(pair) for pair in left["left"]] == [
        ["fc.weight", "the head was dropped"],
        ["fc.bias", "the head was dropped"],
    ]
    new = [read(inflate(source, tmp_path / str(s), num_classes=5, seed=s) / "model.safetensors") for s in (0, 1)]
    assert new[0]["fc.weight"].shape == (5, 64)
    assert np.abs(new[0]["fc.weight"]).max() <= 64**-0.5
    assert (new[0]["fc.weight"] != new[1]["fc.weight"]).any()


def test_the_first_convolution_of_a_flow_network_holds_the_mean_over_rgb(source: Path, tmp_path: Path) -> None:
    made = read(inflate(source, tmp_path, in_channels=10, method="center") / "model.safetensors")["stem.conv.weight"]
    assert made.shape == (8, 10, 7, 7, 7)
    mean = resnet()["conv1.weight"].mean(axis=1, dtype=np.float64)
    for channel in range(10):
        np.testing.assert_allclose(made[:, channel, 3], mean, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_stay_of_the_dtype_that_they_are(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {key: torch.from_numpy(a).to(getattr(torch, dtype)) for key, a in resnet().items()}
    torch.save(state, tmp_path / "half.pth")
    made = inflate(tmp_path / "half.pth", tmp_path / "out") / "model.safetensors"
    with formats.open_checkpoint(made) as checkpoint:
        assert {info.dtype for info in checkpoint.tensors.values()} == {dtype}
        stem = widened(checkpoint.read("stem.conv.weight"), dtype)
    wide = state["conv1.weight"].to(torch.float64).numpy()
    expected = widened(narrowed((wide / 7).astype(np.float64 if dtype == "float64" else np.float32), dtype), dtype)
    np.testing.assert_array_equal(stem[:, :, 0], expected)


@pytest.mark.parametrize("wrapper", ["module.", "model.", "state_dict.", "state_dict.module."])
def test_a_wrapped_file_is_unwrapped_and_that_is_said(wrapper: str, tmp_path: Path) -> None:
    arrays = {wrapper + key: a for key, a in resnet().items()}
    file = write(tmp_path / "source", "safetensors", {**arrays, "epoch": np.array(3, np.int64)})
    arguments = ["inflate", "resnet", "--weights", str(file), "--no-validate", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert f"wrapped in {wrapper!r}" in result.output
    assert f"1 tensors of the source were left: outside the network's prefix {wrapper!r}" in result.output
    plain = inflate(write(tmp_path / "plain", "safetensors", resnet()), tmp_path / "out2")
    made = next((tmp_path / "out").iterdir())
    assert (made / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def refused(tmp_path: Path, arrays: dict[str, Array], name: str = "resnet", **options: Any) -> str:
    """The message with which an inflation is refused; nothing is left behind."""
    file = write(tmp_path / "source", "safetensors", arrays)
    with pytest.raises((PlanError, UsageError)) as error:
        inflate(file, tmp_path / "out", name, **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    return str(error.value)


def test_a_file_of_another_depth_is_refused(tmp_path: Path) -> None:
    for depth in (34, 50):
        message = refused(tmp_path / str(depth), resnet(ResNetConfig(depth=depth)), "resnet18")
        assert f"depth: found {depth}, expected 18" in message


def test_a_file_of_another_family_is_refused(tmp_path: Path) -> None:
    assert "resnet18 is one of resnet" in refused(tmp_path, googlenet(), "resnet18")


def test_a_head_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, resnet(ResNetConfig(depth=18, num_classes=10)), "resnet18")
    assert "num_classes: found 10, expected 1000" in message


@pytest.mark.parametrize("family", ["i3d", "s3d", "resnet3d"])
def test_a_file_that_is_inflated_already_is_refused(family: str, tmp_path: Path) -> None:
    config = NETWORKS[family]
    message = refused(tmp_path, stored(dialects.native(family), config, canonical(config)))
    assert f"is a 3D network already (family {family}" in message


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    assert "not those of a known network" in refused(tmp_path, {"weight": np.ones((3, 4), np.float32)})


def test_quantised_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    arrays = {key: a.astype(np.int8) if a.ndim == 4 else a for key, a in resnet().items()}
    message = refused(tmp_path, arrays)
    assert "conv1.weight: found int8" in message
    assert "the scale of quantised weights" in message


def test_weights_of_several_dtypes_are_refused(tmp_path: Path) -> None:
    arrays = {key: a.astype(np.float16) if a.ndim == 4 else a for key, a in resnet().items()}
    assert "of several dtypes: float16, float32" in refused(tmp_path, arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_element_that_is_not_finite_is_refused_by_name_unless_allowed(value: float, tmp_path: Path) -> None:
    arrays = resnet()
    arrays["layer2.1.bn1.running_var"][3] = value
    assert "layer2.1.bn1.running_var has 1 of 16 elements that are not finite" in refused(tmp_path, arrays)
    made = inflate(write(tmp_path / "again", "safetensors", arrays), tmp_path / "out", allow_nan=True)
    vector = read(made / "model.safetensors")["layer2.1.conv1.bn.running_var"]
    assert np.array_equal(vector, arrays["layer2.1.bn1.running_var"], equal_nan=True)


def test_a_missing_and_an_unexpected_tensor_are_refused(tmp_path: Path) -> None:
    arrays = resnet()
    arrays["layer9.weight"] = arrays.pop("layer3.0.bn2.bias")
    message = refused(tmp_path, arrays)
    assert "missing (1):\n    layer3.0.bn2.bias (32,)" in message
    assert "unexpected (1):\n    layer9.weight (32,)" in message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "exact"}, "use --method center"),
        ({"method": "center", "into": "r2plus1d"}, "Use --method exact"),
        ({"into": "i3d"}, "cannot be inflated into i3d; it can into: i3d-resnet"),
        ({"into": "r4d"}, "nothing can be inflated into 'r4d'"),
        ({"method": "median"}, "no method is called 'median'"),
        ({"frames": 3}, "no option frames"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path, resnet(), **options)


def test_a_folder_that_holds_the_source_is_not_replaced(tmp_path: Path) -> None:
    made = inflate(write(tmp_path / "source", "torch", resnet()), tmp_path)
    file = made / "model.pt"
    (tmp_path / "source" / file.name).rename(file)
    with pytest.raises(OutputError, match="would replace the --weights"):
        inflate(file, tmp_path, overwrite=True)
    assert file.exists()


def test_an_existing_folder_is_kept_unless_it_may_be_replaced(source: Path, tmp_path: Path) -> None:
    made = inflate(source, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        inflate(source, tmp_path / "out")
    assert inflate(source, tmp_path / "out", overwrite=True) == made


def test_drawn_weights_are_the_same_everywhere_and_say_that_they_are_not_pretrained(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = vidweights.inflate("resnet18", random_init=7, out=tmp_path, validate=False)
    assert made.name == "resnet18-i3d-resnet-mean-random7"
    config = folder.read_config(made)
    assert config.inflation is not None
    assert config.inflation["random_init"] == 7
    assert (config.release, config.source.format) == (None, "random")
    # PCG64's raw output and float32 arithmetic that rounds once are the same on every machine; so is this hash.
    assert next(iter(config.files.values())) == GOLDEN_RANDOM


GOLDEN_RANDOM = "1ea69a0dab02446e4b30caad132405336bb31d048cea013c848f732959946687"


def test_weights_are_read_or_drawn_and_not_both(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        vidweights.inflate("resnet18", weights=source, random_init=1)
    with pytest.raises(UsageError, match="family"):
        vidweights.inflate("resnet", random_init=1)


def test_without_reachable_weights_nothing_is_written_and_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    for name in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(UnavailableError, match="--random-init") as error:
        vidweights.inflate("resnet18", out=tmp_path / "out")
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "home").exists()


def test_the_plan_is_printed_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    arguments = ["inflate", "resnet", "--weights", str(source), "--out", str(tmp_path / "out"), "--dry-run"]
    text = CliRunner().invoke(group, arguments, catch_exceptions=False).output
    assert "layer1.0.conv1.weight" in text
    assert "Inflate length=3 taps=mean" in text
    fields = json.loads(CliRunner().invoke(group, [*arguments, "--json"], catch_exceptions=False).output)
    assert fields["plan_sha256"] in text
    assert len(fields["plan"]["steps"]) == 102
    assert not (tmp_path / "out").exists()


def test_the_command_says_first_what_it_does_by_default(source: Path, tmp_path: Path) -> None:
    arguments = ["inflate", "resnet", "--weights", str(source), "--out", str(tmp_path / "out"), "--no-validate"]
    lines = CliRunner().invoke(group, arguments, catch_exceptions=False).output.splitlines()
    assert lines[1:5] == [
        "into          i3d-resnet (every kernel inflated, time strided as space)",
        "method        mean",
        "time padding  replicate",
        "head          kept",
    ]


def test_an_edited_card_is_kept_and_the_command_says_so(source: Path, tmp_path: Path) -> None:
    arguments = ["inflate", "resnet", "--weights", str(source), "--out", str(tmp_path / "out"), "--no-validate"]
    CliRunner().invoke(group, arguments, catch_exceptions=False)
    (card,) = (tmp_path / "out").glob("*/README.md")
    card.write_text(
        card.read_text(encoding="utf-8").replace("## Use", "## My notes\n\nmine\n\n## Use"), encoding="utf-8"
    )
    again = CliRunner().invoke(group, [*arguments, "--overwrite"], catch_exceptions=False)
    assert "edited by hand and is kept" in again.output
    assert "## My notes" in card.read_text(encoding="utf-8")


def test_the_3d_kernel_is_not_larger_than_the_source_by_the_time_steps() -> None:
    """The mistake of gluoncv 0.10.5, which repeats without dividing: steps that sum to N times the kernel."""
    source = InMemory(resnet())
    planned = inflation.make(source.tensors, Options())
    rules = {step.tensor.name: step for step in planned.steps if isinstance(step.rule, Inflate)}
    for name, array in inflation.stream(planned, source):
        if name in rules:
            ((kernel, _),) = rules[name].sources
            assert np.allclose(array.sum(axis=2, dtype=np.float64), source.read(kernel.key), rtol=1e-6)
