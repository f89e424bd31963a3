"""The pictures of a card: first kernels as a filmstrip over time, and the errors that the validation measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vidweights.folder import FolderConfig

if TYPE_CHECKING:
    from vidweights_converters.equality_report import EqualityReport
    from vidweights_converters.pictures.png import Image
    from vidweights_converters.report import Report

KERNELS, LAYERS, FRAMES = "kernels.png", "layers.png", "frames.png"
TITLES = {KERNELS: "First kernels over time", LAYERS: "Error of each layer", FRAMES: "Error of each output frame"}


def write(folder: Path, config: FolderConfig, report: Report | EqualityReport) -> None:
    """Draw the pictures of a folder that was validated; those of an earlier validation go."""
    from vidweights_converters.pictures import png

    drawn = dict(_drawn(folder, config, report))
    for name in (KERNELS, LAYERS, FRAMES):
        if name in drawn:
            (folder / name).write_bytes(png.encode(drawn[name]))
        else:
            (folder / name).unlink(missing_ok=True)


def _drawn(folder: Path, config: FolderConfig, report: Report | EqualityReport) -> Iterator[tuple[str, Image]]:
    from vidweights_converters.pictures import bars, filmstrip

    kernels = filmstrip.first_kernels(folder, config)
    if kernels is not None:
        yield KERNELS, filmstrip.draw(kernels)
    panels = bars.panels(report)
    if panels:
        yield FRAMES if config.inflation is not None else LAYERS, bars.draw(panels)


def captions(config: FolderConfig, report: Report | EqualityReport) -> Mapping[str, str]:
    """What the card says of each picture that `write` draws."""
    from vidweights_converters.pictures import bars, filmstrip

    found = {}
    if (tensor := filmstrip.first_tensor(config)) is not None:
        found[KERNELS] = filmstrip.caption(tensor)
    if bars.panels(report):
        found[FRAMES if config.inflation is not None else LAYERS] = bars.caption(report)
    return found
