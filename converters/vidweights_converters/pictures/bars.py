"""Errors as bars on a logarithmic scale, beside the tolerance: one for each layer, or for each output frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidweights_converters.equality_report import EqualityReport
from vidweights_converters.pictures.canvas import BLUE, GREY, LETTER, LIGHT, LINE, ORANGE, RED, Canvas, width_of

if TYPE_CHECKING:
    from vidweights_converters.pictures.canvas import Colour
    from vidweights_converters.pictures.png import Image
    from vidweights_converters.report import Report

_WIDTH = 960
_ROW = LINE + 4
_MARGIN = 12
_HIGHEST = 100.0  # what is further off than this fills its row
_VALUE = width_of("0.0e-00") + 2 * _MARGIN


@dataclass(frozen=True)
class Panel:
    """One bar for each row.

    Attributes:
        rows: {what: error}, from top to bottom.
        tolerance: where the red line stands.
    """

    title: str
    rows: Mapping[str, float]
    tolerance: float
    colour: Colour = BLUE


def panels(report: Report | EqualityReport) -> tuple[Panel, ...]:
    """What a report has to show: each layer beside each reference's, or each output frame of a still clip."""
    if isinstance(report, EqualityReport):
        return _frames(report)
    return tuple(
        Panel(f"{one.name}, {one.clips[0].name}", one.layers, one.tolerance) for one in report.references if one.layers
    )


def _frames(report: EqualityReport) -> tuple[Panel, ...]:
    """The still clips that leave the network with the most frames."""
    found = []
    if report.references:
        reference = report.references[0]
        clips = [clip for clip in reference.clips if clip.inputs is None and clip.each]
        for clip in sorted(clips, key=lambda clip: -len(clip.each))[:1]:
            title = f"{clip.name}, ends repeated ({reference.name})"
            found.append(Panel(title, _numbered(clip.each), report.tolerance))
    for zero in sorted(report.zero_padding, key=lambda zero: -len(zero.frames))[:1]:
        title = f"{zero.name}, zeros in time"
        found.append(Panel(title, _numbered(zero.frames), report.tolerance, ORANGE))
    return tuple(found)


def _numbered(errors: Sequence[float]) -> dict[str, float]:
    return {f"frame {index}": error for index, error in enumerate(errors)}


def caption(report: Report | EqualityReport) -> str:
    """What `draw` shows of a report."""
    if isinstance(report, EqualityReport):
        return (
            "How far each output frame of a still clip is off the 2D network, relative to the largest of its "
            f"{report.compared}: with its ends repeated in time, and with zeros. The red line is the tolerance."
        )
    return (
        "The largest difference of each layer's output from the reference's, both networks run from the clip on, "
        "relative to the reference's largest value there. The red line is the tolerance for the logits."
    )


def draw(shown: Sequence[Panel]) -> Image:
    """The panels one below the other, on one scale."""
    scale = _Scale.of(shown)
    label = _MARGIN + max(width_of(name) for panel in shown for name in panel.rows) + _MARGIN
    heights = [_MARGIN + 2 * _ROW + len(panel.rows) * _ROW + _ROW for panel in shown]
    canvas, top = Canvas(sum(heights) + _MARGIN, _WIDTH), 0
    for panel, height in zip(shown, heights):
        _draw(canvas, panel, scale, top + _MARGIN, label)
        top += height
    return canvas.image


@dataclass(frozen=True)
class _Scale:
    """Powers of ten from left to right."""

    low: int
    high: int

    @classmethod
    def of(cls, shown: Sequence[Panel]) -> _Scale:
        values = [v for panel in shown for v in (*panel.rows.values(), panel.tolerance) if 0 < v < math.inf]
        # A bar of the smallest error is to be seen as a bar.
        low, high = math.floor(math.log10(min(values)) - 0.2), math.ceil(math.log10(min(max(values), _HIGHEST)))
        return cls(low, max(high, low + 1))

    def place(self, value: float, width: int) -> int:
        """Where a value stands on an axis of so many pixels; what is not a number stands at its end."""
        if value <= 0:
            return 0
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(min(max(share, 0.0), 1.0) * width)

    @property
    def ticks(self) -> range:
        """The powers of ten that are labelled."""
        return range(self.low, self.high + 1, max(1, -(-(self.high - self.low) // 8)))


def _figure(error: float) -> str:
    if error > _HIGHEST:
        return f">{_HIGHEST:g}"
    return f"{error:.1e}" if error else "0"


def _draw(canvas: Canvas, panel: Panel, scale: _Scale, top: int, left: int) -> None:
    width = _WIDTH - left - _VALUE
    canvas.text(top, _MARGIN, panel.title)
    told = f"tolerance {panel.tolerance:.1e}"
    canvas.text(top, _WIDTH - _MARGIN - width_of(told), told, RED)
    top += _ROW + _MARGIN // 2
    height = len(panel.rows) * _ROW
    for power in scale.ticks:
        x = left + scale.place(10.0**power, width)
        canvas.fill(top, x, height, 1, LIGHT)
        canvas.text(top + height + 4, x - LETTER * 2, f"1e{power}" if power else "1", GREY)
    for row, (name, error) in enumerate(panel.rows.items()):
        y = top + row * _ROW
        canvas.text(y, left - _MARGIN - width_of(name), name)
        canvas.fill(y, left, LINE - 2, max(scale.place(error, width), 1), panel.colour)
        canvas.text(y, _WIDTH - _VALUE + _MARGIN, _figure(error))
    canvas.fill(top - 2, left + scale.place(panel.tolerance, width), height, 2, RED)
