"""The run of a plan: tensors streamed from the source in the order and layout of the target."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vidweights.dtypes import DTYPES
from vidweights.errors import PlanError
from vidweights.formats.base import Checkpoint
from vidweights.layout import Array, relayout
from vidweights.plan import Plan, Step

# Bytes that may be prepared ahead of the writer, beside the largest tensor of the checkpoint.
_AHEAD = 64 << 20


def stream(plan: Plan, source: Checkpoint, order: Callable[[Step], int] | None = None) -> Iterator[tuple[Step, Array]]:
    """The tensors of a plan's target, one at a time.

    A second thread reads, checks and permutes the next tensors while the caller writes this one. Tensors that
    the target does not store are compared with their constant and not yielded.

    Args:
        plan: what becomes what.
        source: the checkpoint that the plan was made for.
        order: sorts the steps; the plan's own order if not given.

    Raises:
        FormatError: a tensor's bytes are damaged.
        PlanError: a tensor that the target cannot store differs from the constant that it would be read as.
    """
    steps = deque(plan.steps if order is None else sorted(plan.steps, key=order))
    budget = _AHEAD + max(map(_nbytes, steps), default=0)
    pending: deque[tuple[Step, Future[Array]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="vidweights-read") as pool:
        try:
            held = 0
            while steps or pending:
                while steps and held + _nbytes(steps[0]) <= budget:
                    held += _nbytes(steps[0])
                    pending.append((steps[0], pool.submit(produce, steps.popleft(), source)))
                step, future = pending.popleft()
                array = future.result()
                if step.target is not None:
                    yield step, array
                del array, future
                held -= _nbytes(step)
        finally:
            pool.shutdown(cancel_futures=True)


def _nbytes(step: Step) -> int:
    count = 1
    for n in step.tensor.shape:
        count *= n
    return count * DTYPES[step.dtype].storage.itemsize


def produce(step: Step, source: Checkpoint) -> Array:
    """The tensor of one step, as the target stores it (or as the source does, where the target has no place for it)."""
    if step.source is None:
        assert step.constant is not None
        return np.full(step.target_shape, constant(step.constant, step.dtype))
    stored = source.read(step.source.key)
    if step.target is None:
        _check_constant(step, stored)
        return stored
    return relayout(stored, step.source.layout, step.target.layout)


def constant(value: float, dtype: str) -> Array:
    """One element of that value, as numpy holds the dtype."""
    if dtype == "bfloat16":  # the upper half of the float32 pattern
        return np.array((np.float32(value).view(np.uint32) >> np.uint32(16)).astype(np.uint16))
    return np.array(value, DTYPES[dtype].storage)


def _check_constant(step: Step, stored: Array) -> None:
    assert step.source is not None
    assert step.constant is not None
    off = int(np.count_nonzero(stored != constant(step.constant, step.dtype)))
    if off:
        raise PlanError(
            f"{step.source.key} has {off} of {stored.size} elements that are not {step.constant}",
            {},
            "The target dialect does not store this tensor and reads it as that constant, so it would lose them. "
            "Nothing was written. Choose a dialect that stores it.",
        )
