"""`LICENSE` and `NOTICE` of a finished folder, from its `config.json` alone.

The licence is that of the *weights*, with its source. Nothing has a default: where the publisher made no statement, or
a text needs a copyright line that is not recorded, there is no `LICENSE`, and `NOTICE` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from string import Template
from typing import Any

from vidweights.folder import LICENCE, NOTICE, FolderConfig
from vidweights_converters.citation import link

_COPYRIGHT = "$copyright"


def texts(config: FolderConfig) -> dict[str, str]:
    """{file name: text} of what a folder carries."""
    licence = (config.release or {}).get("licence") or {}
    text = text_of(licence)
    found = {LICENCE: text} if text else {}
    return {**found, NOTICE: "\n".join(_notice(config, licence, text)) + "\n"}


def text_of(licence: Mapping[str, Any]) -> str | None:
    """The text of a licence; None if there is none here, or if it lacks the copyright line that belongs into it."""
    file = resources.files(__package__) / "licences" / f"{licence.get('id')}.txt"
    if not licence or not file.is_file():
        return None
    text = file.read_text(encoding="utf-8")
    if _COPYRIGHT not in text:
        return text
    return Template(text).substitute(copyright=licence["copyright"]) if licence.get("copyright") else None


def _notice(config: FolderConfig, licence: Mapping[str, Any], text: str | None) -> Iterator[str]:
    yield config.name
    yield ""
    yield from _origin(config)
    yield ""
    if not licence:
        yield (
            "The numbers were drawn by a seed and come from nobody."
            if config.drawn
            else "No licence of the weights is known. Ask whoever published them before you use them."
        )
        return
    yield f"Licence of the weights: {licence['id']}, as stated in"
    yield f"{link(licence['source'])}"
    if licence.get("note"):
        yield f"({licence['note']})."
    if licence.get("copyright"):
        yield licence["copyright"]
    if text is None:
        yield "Its text, with the copyright line that belongs to it, is there and is not repeated here."
    yield ""
    yield "The data that the network was trained on may have terms of their own."


def _origin(config: FolderConfig) -> Iterator[str]:
    """Where the numbers come from, and that they were changed: section 4 of Apache-2.0 asks for both."""
    release, made = config.release, config.inflation
    done = "inflated from 2D into 3D" if made is not None else "written into another file format"
    if release is None:
        files = ", ".join(config.source.files)
        yield f"These weights were {done} by vidweights" + (f" from {files}." if files else ".")
        return
    where = release.get("repository")
    yield f'These weights are those of "{release["title"]}",'
    yield f"{where} at commit {release['commit']}," if where else f"{link(release['source'])},"
    yield f"{done} by vidweights."
