"""Axis orders and the way between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidweights import layout
from vidweights.layout import relayout, reshape


@st.composite
def arrays_and_layouts(draw: st.DrawFn) -> tuple[np.ndarray, str, str]:
    """An array whose axes all differ, its layout, and another layout of the same letters."""
    letters = draw(st.permutations("OIDHW"))[: draw(st.integers(1, 5))]

    def draw_layout() -> str:
        axes = list(draw(st.permutations(letters)))
        for _ in range(draw(st.integers(0, 2))):
            axes.insert(draw(st.integers(0, len(axes))), "1")
        return "".join(axes)

    source, target = draw_layout(), draw_layout()
    sizes = dict(zip(letters, draw(st.permutations((2, 3, 5, 35, 4)))))
    shape = [sizes.get(axis, 1) for axis in source]
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape), source, target


@given(arrays_and_layouts())
def test_relayout_there_and_back_gives_the_same_array(case: tuple[np.ndarray, str, str]) -> None:
    array, source, target = case
    there = relayout(array, source, target)
    assert there.shape == reshape(array.shape, source, target)
    assert there.flags.c_contiguous
    back = relayout(there, target, source)
    assert back.shape == array.shape
    assert (back == array).all()


@pytest.fixture(params=[False, True], ids=["in one go", "in blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks so small that the arrays of these tests have several, and without."""
    if request.param:
        monkeypatch.setattr(layout, "_LARGE", 0)
        monkeypatch.setattr(layout, "_BLOCK", 8)
        monkeypatch.setattr(layout, "_TILE", 3)


@pytest.mark.usefixtures("blocks")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays_and_layouts())
def test_relayout_agrees_with_einsum(case: tuple[np.ndarray, str, str]) -> None:
    array, source, target = case
    bare_source, bare_target = source.replace("1", ""), target.replace("1", "")
    expected = np.einsum(f"{bare_source}->{bare_target}", array.reshape([n for n in array.shape if n != 1]))
    assert (relayout(array, source, target).ravel() == expected.ravel()).all()


def test_a_tensorflow_kernel_becomes_a_torch_kernel() -> None:
    kernel = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)  # D H W I O
    torch_kernel = relayout(kernel, "DHWIO", "OIDHW")
    assert torch_kernel.shape == (6, 5, 2, 3, 4)
    assert torch_kernel[1, 2, 0, 1, 3] == kernel[0, 1, 3, 2, 1]


@pytest.mark.parametrize(
    ("shape", "source", "target"),
    [((2, 3), "OI", "O"), ((2, 3, 4), "OI", "IO"), ((2, 3), "O1", "O"), ((2, 3), "OI", "OD")],
)
def test_a_layout_that_does_not_fit_is_refused(shape: tuple[int, ...], source: str, target: str) -> None:
    with pytest.raises(ValueError, match="layout"):
        reshape(shape, source, target)
