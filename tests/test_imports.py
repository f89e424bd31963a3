"""Which modules load when, and that imports run one way: cli -> converters -> vidweights."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"torch", "tensorflow", "jax", "flax", "keras", "h5py", "av"}
PACKAGES = {
    "vidweights": ROOT / "vidweights",
    "vidweights_converters": ROOT / "converters" / "vidweights_converters",
    "vidweights_cli": ROOT / "cli" / "vidweights_cli",
}


def loaded(code: str) -> set[str]:
    """The top-level modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import vidweights",
        "import vidweights; vidweights.list_weights()",
        "import vidweights.formats, vidweights.plan, vidweights.run, vidweights.identity",
        "import vidweights.remote_hub, vidweights.folder_hub, vidweights.bundle, vidweights.pretrained",
        "import vidweights_converters.port",
        "import vidweights_converters.publish, vidweights_cli.push, vidweights_cli.download",
        "import vidweights_converters.references.images",
        "import vidweights_cli.main, vidweights_cli.port, vidweights_cli.validate, vidweights_cli.inspect",
        "import vidweights.video, vidweights.prediction, vidweights_cli.predict",
    ],
)
def test_no_framework_is_imported_before_it_is_needed(code: str) -> None:
    assert not loaded(code) & FRAMEWORKS


def test_the_help_text_imports_neither_numpy_nor_a_framework() -> None:
    code = """
import sys
sys.argv = ["vidweights", "--help"]
from vidweights_cli.main import main
try:
    main()
except SystemExit:
    pass
"""
    assert not loaded(code) & (FRAMEWORKS | {"numpy", "rich", "huggingface_hub"})


def test_the_hub_s_client_is_imported_when_a_hub_is_asked() -> None:
    code = "import vidweights_cli.push, vidweights_cli.download, vidweights_cli.list, vidweights.remote_hub"
    assert "huggingface_hub" not in loaded(code)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_imports_run_from_the_command_line_to_the_library_and_never_back() -> None:
    allowed_down = ROOT / "vidweights" / "_converters.py"
    for path in PACKAGES["vidweights"].rglob("*.py"):
        if path != allowed_down:
            assert not _imports(path) & {"vidweights_converters", "vidweights_cli"}, path
    assert "vidweights_cli" not in _imports(allowed_down)
    for path in PACKAGES["vidweights_converters"].rglob("*.py"):
        assert "vidweights_cli" not in _imports(path), path


def test_the_core_imports_no_framework_at_all() -> None:
    for folder in ("families", "dialects", "catalog"):
        for path in (PACKAGES["vidweights"] / folder).rglob("*.py"):
            assert not _imports(path) & FRAMEWORKS, path
