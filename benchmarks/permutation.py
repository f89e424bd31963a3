"""The permutation of kernels in blocks (`vidweights.layout.relayout`) beside numpy's own copy, in one run.

python benchmarks/permutation.py
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from vidweights.layout import Array, relayout

SHAPES = {"released I3D, Mixed_5c": (3, 3, 3, 192, 384), "6 times as wide": (3, 3, 3, 1200, 2400)}


def seconds(call: Callable[[], Array]) -> float:
    """The time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


for name, shape in SHAPES.items():
    kernel = np.random.default_rng(0).random(shape, dtype=np.float32)
    for source, target, order in (("DHWIO", "OIDHW", (4, 3, 0, 1, 2)), ("OIDHW", "DHWIO", (2, 3, 4, 1, 0))):
        array = kernel if source == "DHWIO" else relayout(kernel, target, source)
        numpy_copy = partial(lambda a, axes: np.ascontiguousarray(a.transpose(axes)), array, order)
        ours = partial(relayout, array, source, target)
        pairs = [(seconds(numpy_copy), seconds(ours)) for _ in range(5)]
        plain, blocked = (statistics.median(times) for times in zip(*pairs))
        rate = array.nbytes / blocked / 1e9
        print(
            f"{name:24} {source} -> {target}   {rate:5.2f} GB/s   {plain / blocked:.2f} times as fast as numpy's copy"
        )
