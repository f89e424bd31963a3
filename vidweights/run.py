"""The run of a plan: tensors streamed from the source in the order and layout of the target."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import DTYPES
from vidweights.errors import PlanError
from vidweights.formats.base import Checkpoint
from vidweights.layout import Array, relayout
from vidweights.plan import Plan, Step

# From how many bytes on a tensor is large: one is held at a time, in memory that all of them share. Fresh memory for
# each would cost the system more than the permutation does.
_LARGE = 32 << 20
# Bytes of other tensors that may be prepared ahead of the writer.
_AHEAD = 64 << 20


class Sized(Protocol):
    """A step of a plan, which knows how many bytes its tensor has."""

    @property
    def nbytes(self) -> int:
        """The number of bytes of the tensor in memory."""
        ...


S = TypeVar("S", bound=Sized)
Scratch = NDArray[np.uint8]


def stream(
    plan: Plan, source: Checkpoint, order: Callable[[Step], int] | None = None, *, reuse: bool = False
) -> Iterator[tuple[Step, Array]]:
    """The tensors of a plan's target, one at a time; see `ahead`.

    Tensors that the target does not store are compared with their constant and not yielded.

    Args:
        plan: what becomes what.
        source: the checkpoint that the plan was made for.
        order: sorts the steps; the plan's own order if not given.
        reuse: for a caller who is done with each array before asking for the next; large ones share their memory.

    Raises:
        FormatError: a tensor's bytes are damaged.
        PlanError: a tensor that the target cannot store differs from the constant that it would be read as.
    """
    steps = plan.steps if order is None else sorted(plan.steps, key=order)
    for step, array in ahead(steps, lambda step, scratch: produce(step, source, scratch), reuse=reuse):
        if step.target is not None:
            yield step, array


def ahead(
    steps: Iterable[S], make: Callable[[S, Scratch | None], Array], *, reuse: bool = False
) -> Iterator[tuple[S, Array]]:
    """What `make` gives for each step, in order; a second thread makes the next ones while the caller uses this one.

    Args:
        steps: what to make.
        make: from a step, and memory that it may use for a large tensor.
        reuse: for a caller who is done with each array before asking for the next; large ones share their memory.
    """
    waiting = deque(steps)
    large = [step for step in waiting if step.nbytes > _LARGE]
    scratch = np.empty(max((step.nbytes for step in large), default=0), np.uint8) if reuse else None
    pending: deque[tuple[S, Future[Array]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="vidweights-read") as pool:
        try:
            held: list[S] = []
            while waiting or pending:
                while waiting and _fits(waiting[0], held):
                    step = waiting.popleft()
                    held.append(step)
                    place = scratch if step.nbytes > _LARGE else None
                    pending.append((step, pool.submit(make, step, place)))
                step, future = pending.popleft()
                array = future.result()
                yield step, array
                del array, future
                held.remove(step)
        finally:
            pool.shutdown(cancel_futures=True)


def _fits(step: Sized, held: Sequence[Sized]) -> bool:
    """Whether a tensor may be prepared beside those that are held: one large one, and `_AHEAD` bytes of others."""
    if step.nbytes > _LARGE:
        return all(other.nbytes <= _LARGE for other in held)
    return sum(other.nbytes for other in held if other.nbytes <= _LARGE) + step.nbytes <= _AHEAD


def produce(step: Step, source: Checkpoint, scratch: Scratch | None = None) -> Array:
    """The tensor of one step, as the target stores it (or as the source does, where the target has no place for it)."""
    if step.source is None:
        assert step.constant is not None
        return np.full(step.target_shape, constant(step.constant, step.dtype))
    stored = source.read(step.source.key)
    if step.target is None:
        _check_constant(step, stored)
        return stored
    return relayout(stored, step.source.layout, step.target.layout, scratch)


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
