"""An image to draw on: rectangles, and text in the letters of `font.txt`."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from vidweights_converters.pictures.png import Image

Colour = tuple[int, int, int]

WHITE, BLACK, GREY, LIGHT = (255, 255, 255), (40, 40, 40), (120, 120, 120), (225, 225, 225)
BLUE, ORANGE, RED = (52, 110, 175), (221, 132, 40), (190, 40, 40)

_SCALE = 2  # pixels of a dot of a letter
_ROWS = 8  # dots of a letter from top to bottom, one of them below the line
LINE = _ROWS * _SCALE  # height of a line of text
LETTER = 6 * _SCALE  # width of a letter and the gap behind it


class Canvas:
    """An image of `height` x `width`, white at first."""

    def __init__(self, height: int, width: int) -> None:
        self.image: Image = np.full((height, width, 3), WHITE, np.uint8)

    def fill(self, top: int, left: int, height: int, width: int, colour: Colour) -> None:
        """Fill a rectangle."""
        self.image[top : top + height, left : left + width] = colour

    def text(self, top: int, left: int, text: str, colour: Colour = BLACK) -> None:
        """Write a line of text; a letter that `font.txt` lacks comes as a question mark."""
        for index, letter in enumerate(text):
            if letter != " ":
                dots = _letters().get(letter, _letters()["?"]).repeat(_SCALE, 0).repeat(_SCALE, 1)
                x = left + index * LETTER
                self.image[top : top + dots.shape[0], x : x + dots.shape[1]][dots] = colour


def width_of(text: str) -> int:
    """Pixels that a line of text takes."""
    return len(text) * LETTER


@cache
def _letters() -> dict[str, NDArray[np.bool_]]:
    """The dots (8, 5) of each letter: blocks of a line with letters and eight lines of dots."""
    lines = resources.files(__package__).joinpath("font.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for start in range(0, len(lines), _ROWS + 1):
        rows = [line.split() for line in lines[start + 1 : start + 1 + _ROWS]]
        for index, letter in enumerate(lines[start]):
            found[letter] = np.array([[dot == "#" for dot in row[index]] for row in rows])
    return found
