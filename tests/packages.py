"""Small packages for tests: a narrow network's finished folder, with a report that says it passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from networks import NARROW, canonical, write

from vidweights import dialects
from vidweights.files import sha256_of
from vidweights.folder import CARD, CONFIG, VALIDATION, FolderConfig, SourceRecord, write_json, write_labels

CARD_TEXT = "---\nlicense: apache-2.0\nlibrary_name: vidweights\n---\n\n# A narrow I3D\n\n![kernels](kernels.png)\n"


def package(folder: Path, seed: int = 0, *, network: Any = NARROW, passed: bool | None = True, **fields: Any) -> Path:
    """Write a finished folder; `passed` None leaves its report out, and `fields` are more of its `config.json`."""
    file = write(folder, "safetensors", canonical(network, seed))
    labels = write_labels(folder, [f"class {number}" for number in range(network.num_classes)], "a test")
    config = FolderConfig(
        name=folder.name,
        family="i3d",
        config=network,
        dialect=dialects.native("i3d").name,
        format="safetensors",
        main=file.name,
        files={file.name: sha256_of(file)},
        facts={},
        source=SourceRecord("deepmind-rgb", "tf", {"model.ckpt.index": "0" * 64}, "0" * 64),
        labels=labels,
        **fields,
    )
    write_json(folder / CONFIG, config.to_json())
    (folder / CARD).write_text(CARD_TEXT)
    (folder / "kernels.png").write_bytes(b"\x89PNG\r\n" + bytes(range(64)))
    (folder / "not-shown.png").write_bytes(b"\x89PNG\r\n")
    (folder / "notes.txt").write_text("mine")
    if passed is not None:
        write_json(folder / VALIDATION, {"passed": passed, "weights_sha256": dict(config.files), "failures": []})
    return folder
