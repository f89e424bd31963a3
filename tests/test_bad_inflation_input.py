"""Bad input to `vidweights inflate`, and to what reads its folders: one clear message, and nothing partial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from networks import canonical, stored, write

import vidweights
from vidweights import dialects, folder, images
from vidweights.errors import FormatError, IntegrityError, OutputError, PlanError, UsageError
from vidweights.families.i3d import InceptionConfig
from vidweights.families.resnet import ResNetConfig
from vidweights.layout import Array
from vidweights_cli import main as cli
from vidweights_converters import inflate as inflating
from vidweights_converters import revalidate

NARROW = ResNetConfig(depth=18, width=8)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))


def resnet(config: ResNetConfig = NARROW, dialect: str = "torchvision-resnet") -> dict[str, Array]:
    return stored(dialects.get(dialect), config, canonical(config))


def keras(num_classes: int = 1000) -> dict[str, Array]:
    settings = dialects.get("keras-resnet").settings
    return resnet(ResNetConfig(depth=50, width=8, num_classes=num_classes, **settings), "keras-resnet")


def googlenet() -> dict[str, Array]:
    config = InceptionConfig(num_classes=7, depth_multiplier=1 / 32, padding="symmetric")
    return stored(dialects.get("torchvision-googlenet"), config, canonical(config))


def inflate(tmp_path: Path, arrays: dict[str, Array], name: str, **options: Any) -> Path:
    file = write(tmp_path / "source", "safetensors", arrays)
    return vidweights.inflate(name, weights=file, out=tmp_path / "out", validate=False, **options)


def test_a_file_of_another_family_than_was_named_is_refused_whatever_the_target(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"is one of resnet\nGive .* vidweights inflate inception --weights FILE"):
        inflate(tmp_path, googlenet(), "resnet")
    with pytest.raises(PlanError, match=r"is one of inception\nGive .* vidweights inflate resnet --weights FILE"):
        inflate(tmp_path / "other", resnet(), "inception", into="s3d")
    assert not list(tmp_path.rglob("out"))


@pytest.mark.parametrize("num_classes", [0, 5])
def test_a_file_without_a_head_is_enough_where_the_head_is_not_kept(num_classes: int, tmp_path: Path) -> None:
    made = inflate(tmp_path, keras(num_classes=0), "keras-resnet50", num_classes=num_classes)
    assert folder.read_config(made).config.num_classes == num_classes
    with pytest.raises(PlanError, match="num_classes: found 0, expected 1000"):
        inflate(tmp_path / "kept", keras(num_classes=0), "keras-resnet50")


def test_a_file_in_the_naming_of_another_code_has_that_codes_input(tmp_path: Path) -> None:
    made = inflate(tmp_path, keras(), "resnet50")
    assert (folder.read_config(made).input or {})["channels"] == "bgr"
    probs = {key.replace("predictions", "probs"): a for key, a in keras().items()}
    own = folder.read_config(inflate(tmp_path / "probs", probs, "keras-resnet50"))
    assert own.source.dialect == "keras-resnet-probs"
    assert (own.input or {})["channels"] == "bgr"
    torch = resnet(ResNetConfig(depth=50, width=8))
    # timm's weights in that naming do not share one.
    assert folder.read_config(inflate(tmp_path / "torch", torch, "keras-resnet50")).input is None


def test_the_naming_of_another_code_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "source", "safetensors", keras())
    said = "in the naming keras-resnet, which is not that of resnet50"
    arguments = ["--weights", str(file), "--no-validate", "--out", str(tmp_path)]
    assert said in CliRunner().invoke(cli.group, ["inflate", "resnet50", *arguments]).output
    assert "in the naming" not in CliRunner().invoke(cli.group, ["inflate", "keras-resnet50", *arguments]).output


def test_the_input_of_three_channels_is_not_claimed_for_a_grey_network(tmp_path: Path) -> None:
    made = inflate(tmp_path, resnet(ResNetConfig(depth=18, width=8, in_channels=1)), "resnet18")
    assert folder.read_config(made).input is None


@pytest.mark.parametrize("options", [{"stem_planes": 45}, {"planes": "block"}], ids=str)
@pytest.mark.parametrize("into", ["i3d-resnet", "f-r2d"])
def test_middle_planes_are_refused_where_there_are_none(into: str, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{into} has no middle planes"):
        inflate(tmp_path, resnet(), "resnet18", into=into, **options)


@pytest.mark.parametrize("seed", ["1", 1.5, True, -1])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an integer from 0 on"):
        vidweights.inflate("resnet18", random_init=seed, out=tmp_path, validate=False)


@pytest.mark.parametrize("name", [None, 5])
def test_a_name_that_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(UsageError, match="is no name of 2D weights"):
        images.get(name)


def test_the_name_of_2d_weights_is_told_from_that_of_a_video_network() -> None:
    for function in (vidweights.load, vidweights.weights):
        with pytest.raises(UsageError, match="vidweights inflate resnet18"):
            function("resnet18")


def test_a_hidden_file_gives_a_folder_whose_name_says_something(tmp_path: Path) -> None:
    file = write(tmp_path, "safetensors", resnet()).rename(tmp_path / ".mine.safetensors")
    assert inflating.request("resnet", weights=file).name == "mine-i3d-resnet-mean"


def test_a_full_disk_for_drawn_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vidweights.run.write", full)
    with pytest.raises(OutputError, match=r"drawn weights .* No space left on device. Set TMPDIR"):
        vidweights.inflate("resnet18", random_init=0, out=tmp_path, validate=False)
    assert not list(tmp_path.iterdir())


# What a damaged or altered config.json says, and the error it ends in.
ALTERED: list[tuple[Callable[[dict[str, Any]], object], type[Exception], str]] = [
    (lambda c: c.update(inflation="x"), FormatError, "Make the folder again"),
    (lambda c: c["inflation"].pop("method"), FormatError, "lacks or misnames 'method'"),
    (lambda c: c["inflation"].update(random_init="x"), FormatError, "random_init 'x'"),
    (lambda c: c["input"].update(mean=[0.0, 0.0, 0.0]), IntegrityError, "states another input than its source"),
]


@pytest.mark.parametrize(("alter", "error", "says"), ALTERED)
def test_an_altered_record_of_the_inflation_is_told_and_is_no_traceback(
    alter: Callable[[dict[str, Any]], object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    made = inflate(tmp_path, resnet(), "resnet18")
    config = json.loads((made / folder.CONFIG).read_text())
    alter(config)
    (made / folder.CONFIG).write_text(json.dumps(config))
    with pytest.raises(error, match=says):
        revalidate.validate_folder(made, next((tmp_path / "source").iterdir()))


def test_the_weights_file_in_a_folder_is_what_its_configuration_says(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = inflate(tmp_path, resnet(), "resnet18", time_padding="zero", stem_pool=False)
    for path in (made, made / "model.safetensors"):
        with pytest.warns(vidweights.UnvalidatedWarning):
            model: Any = vidweights.load(path)
        assert (model.config.time_padding, model.config.stem_pool) == ("zero", False)
        output = CliRunner().invoke(cli.group, ["inspect", str(path)], catch_exceptions=False).output
        assert "time_padding zero, stem_pool False" in output


def test_another_programs_config_beside_a_file_does_not_matter(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = inflate(tmp_path, resnet(), "resnet18")
    (made / folder.CONFIG).write_text('{"architecture": "resnet18"}')
    with pytest.warns(vidweights.UnvalidatedWarning):
        assert vidweights.load(made / "model.safetensors") is not None
    arguments = ["inspect", str(made / "model.safetensors")]
    assert "variant i3d-resnet" in CliRunner().invoke(cli.group, arguments, catch_exceptions=False).output


def test_a_dtype_that_is_not_torchs_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = inflate(tmp_path, resnet(), "resnet18")
    with pytest.warns(vidweights.UnvalidatedWarning), pytest.raises(UsageError, match="expected one of torch's"):
        vidweights.load(made, dtype="float16")  # type: ignore[arg-type]


def test_files_keep_their_names_in_the_facts_of_2d_weights() -> None:
    output = CliRunner().invoke(cli.group, ["info", "slim-inception-v1"], catch_exceptions=False).output
    assert "inception_v1_2016_08_28.tar.gz:" in output


def test_a_wrong_argument_is_json_too_where_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vidweights", "inflate", "resnet18", "--num-classes", "0", "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    captured = capsys.readouterr()
    assert left.value.code == 2
    assert "not in the range" in json.loads(captured.out)["error"]["message"]
    assert "Usage: vidweights inflate" in captured.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_while_torch_is_imported_waits_for_its_end(tmp_path: Path) -> None:
    """Torch's import calls Python from C++, where an exception aborts the process: a staged folder would stay."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(1)\nprint('imported')\n"
    )
    (tmp_path / "run.py").write_text(
        "import sys, time, click\n"
        "from vidweights_cli import main as cli\n"
        "@cli.group.command('slow')\n"
        "def slow():\n"
        "    import torch\n"
        "    time.sleep(20)\n"
        "cli.group.get_command = lambda context, name: slow\n"
        "sys.argv = ['vidweights', 'slow']\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "run.py")]
    # A job in the background of a shell inherits that the signal is ignored.
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "importing\n"
        run.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = run.communicate(timeout=15)
    assert (run.returncode, out) == (130, "imported\n"), err
    assert time.monotonic() - start < 10
    assert "interrupted" in err


def test_the_card_names_the_3d_network_and_where_its_figures_are_explained(tmp_path: Path) -> None:
    made = vidweights.inflate("resnet18", random_init=0, out=tmp_path, validate=False)
    text = (made / folder.CARD).read_text()
    assert "# resnet18-i3d-resnet-mean-random0" in text
    assert "ask whoever trained it" not in text
    assert np.all([word in text for word in ("Not pretrained", "drawn by a seed")])
