"""The run of a plan: tensors streamed from the source in the order and layout of the target, and written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import DTYPES
from vidweights.errors import PlanError
from vidweights.formats.base import Checkpoint, TensorInfo, Writer
from vidweights.layout import Array, relayout
from vidweights.plan import Plan, Step
from vidweights.progress import Progress, silent

# Bytes that may be prepared ahead of the writer, beside the largest tensor.
_AHEAD = 32 << 20
# Tensors begin at multiples of so many bytes in the memory that they share: those of a cache line.
_LINE = 64


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
        reuse: for a caller who is done with each array before asking for the next; they share memory.

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
        make: from a step, and memory of the size of its tensor that it may use.
        reuse: for a caller who is done with each array before asking for the next; they share memory.
    """
    waiting = deque((step, step.nbytes) for step in steps)
    ring = _Ring(max((size for _, size in waiting), default=0) + _AHEAD)
    # Fresh memory for each tensor would cost the system more than most are worth.
    memory = np.empty(ring.size, np.uint8) if reuse else None
    pending: deque[tuple[S, Future[Array]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="vidweights-read") as pool:
        try:
            while waiting or pending:
                while waiting and (place := ring.take(waiting[0][1])):
                    step, _ = waiting.popleft()
                    pending.append((step, pool.submit(make, step, None if memory is None else memory[place])))
                step, future = pending.popleft()
                array = future.result()
                yield step, array
                del array, future
                ring.give()
        finally:
            pool.shutdown(cancel_futures=True)


class _Ring:
    """The places of tensors in memory of a fixed size, given back in the order in which they were taken.

    Attributes:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-size // _LINE) * _LINE
        self._held: deque[slice] = deque()

    def take(self, size: int) -> slice | None:
        """A place for so many bytes behind the others, or before them all; None if there is none yet."""
        needed = max(1, -(-size // _LINE)) * _LINE
        first, last = (self._held[0], self._held[-1]) if self._held else (slice(0, 0), slice(0, 0))
        start, end = last.stop, self.size
        if last.start < first.start:  # those at the end of the memory were taken before those at its beginning
            end = first.start
        elif start + needed > end:
            start, end = 0, first.start
        if start + needed > end:
            return None
        self._held.append(slice(start, start + needed))
        return slice(start, start + size)

    def give(self) -> None:
        """Give the place back that was taken first."""
        self._held.popleft()


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


def write(
    outputs: Sequence[TensorInfo],
    arrays: Iterable[tuple[str, Array]],
    writer_type: type[Writer],
    folder: Path,
    progress: Progress = silent,
) -> tuple[str, dict[str, str]]:
    """Write (key, array) pairs into a file of `folder`, in the order of `outputs`, which is the writer's own.

    Returns:
        The name of the file that opens the checkpoint, and {file name: SHA-256} of all that were written.
    """
    total, done = sum(info.nbytes for info in outputs), 0
    writer = writer_type(folder / writer_type.file_name, outputs)
    try:
        for key, array in arrays:
            writer.write(key, array)
            done += array.nbytes
            progress("converting", done, total)
        files = writer.finish()
    except BaseException:
        writer.abort()
        raise
    return next(iter(files)), files
