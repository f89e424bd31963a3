"""How far two arrays are apart, in the one measure by which this project judges a match."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np


def relative_difference(a: Any, b: Any) -> float:
    """max |a - b| / max |b| of arrays or tensors; infinite where the shapes differ or an element is not a number."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        return math.inf
    difference, largest = float(np.abs(x - y).max()), float(np.abs(y).max())
    if difference == 0:
        return 0.0
    ratio = difference / largest if largest else math.inf
    return ratio if math.isfinite(ratio) else math.inf


def finite(value: float) -> float:
    """The value as JSON can hold it: what is infinite or not a number is as large as a float can be."""
    return float(value) if math.isfinite(value) else sys.float_info.max
