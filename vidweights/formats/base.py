"""What a container of tensors offers, whichever format it has: names, shapes, and a lazy read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.layout import Array, Shape


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a stored tensor before its bytes are read."""

    key: str
    shape: Shape
    dtype: str  # a key of vidweights.dtypes.DTYPES

    @property
    def nbytes(self) -> int:
        """The number of bytes of the tensor in memory."""
        return math.prod(self.shape) * DTYPES[self.dtype].storage.itemsize


def checked_shape(shape: Iterable[Any], where: str) -> Shape:
    """The shape that a file claims, if numpy can hold it.

    Raises:
        FormatError: an axis is not a length, there are more than 32, or the elements cannot be counted in 63 bits.
    """
    axes = tuple(shape)
    lengths = [n for n in axes if type(n) is int and 0 <= n < 1 << 63]
    if len(lengths) < len(axes) or len(axes) > 32 or math.prod(n or 1 for n in lengths) >= 1 << 60:
        raise FormatError(f"{where} has the shape {str(axes)[:80]}, which no tensor has. The file is damaged.")
    return axes


def checked_key(key: str, where: str) -> str:
    """The name that a file gives a tensor or another entry, if it can be printed and written.

    Raises:
        FormatError: it has half of a surrogate pair, which no encoding of Unicode has.
    """
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where} has an entry named {ascii(key)[:80]}, which is not text. It is damaged.") from error
    return key


class Checkpoint(ABC):
    """An open checkpoint: a mapping of keys to tensors that are read one at a time.

    Attributes:
        path: the file that names the checkpoint (for a TensorFlow bundle its `.index`).
        files: every file that its bytes come from, `path` among them.
        tensors: what it holds, in the order of the file.
        others: entries that are not tensors (an epoch, an optimiser's step), each with a few words on what it is.
    """

    format: ClassVar[str]
    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    others: Mapping[str, str]

    @abstractmethod
    def read(self, key: str) -> Array:
        """The tensor as numpy holds it (`vidweights.dtypes.Dtype.storage`), possibly a read-only memory map.

        Raises:
            KeyError: there is no such tensor.
            FormatError: its bytes are missing, or fail their checksum.
        """

    def recorded_crc32c(self, key: str) -> int | None:
        """The CRC32C of the tensor's bytes that the file itself records and `read` checks; None if it has none."""
        return None

    def close(self) -> None:  # noqa: B027  (most formats hold nothing but a memory map)
        """Give the file back; arrays that were read stay valid."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Writer(ABC):
    """Writes one checkpoint, tensor by tensor, in the order that was announced.

    The path given is where the bytes go at once: the caller stages the folder and renames it when all is
    well, so a writer neither cleans up nor renames.

    Attributes:
        file_name: what `port` calls the file of this format; a TensorFlow bundle is named by its prefix.
    """

    file_name: ClassVar[str]

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        self.path = path
        self.tensors = tuple(tensors)
        self._due = deque(self.tensors)

    @classmethod
    def order(cls, tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
        """The order in which the format wants the tensors announced and written; as given if it does not care."""
        return tuple(tensors)

    def _take(self, key: str, array: Array) -> TensorInfo:
        """The announced tensor that `array` must be; for formats whose offsets follow from the announcement.

        Raises:
            ValueError: another tensor is due, or the array has another shape or dtype.
        """
        due = self._due.popleft() if self._due else None
        if due is None or due.key != key or due.shape != array.shape or DTYPES[due.dtype].storage != array.dtype:
            raise ValueError(f"{self.path}: {due} is due; got {key} {array.shape} {array.dtype}")
        return due

    @abstractmethod
    def write(self, key: str, array: Array) -> None:
        """Append a tensor: C-contiguous, of the announced dtype and shape."""

    def finish(self) -> dict[str, str]:
        """Complete the file(s) and return {file name: SHA-256} of each, computed while writing.

        Raises:
            ValueError: an announced tensor was not written.
        """
        if self._due:
            raise ValueError(f"{self.path}: {self._due[0].key} is due, the first of {len(self._due)} not yet written")
        return self._finish()

    @abstractmethod
    def _finish(self) -> dict[str, str]:
        """What `finish` does once every tensor is written."""

    @abstractmethod
    def abort(self) -> None:
        """Close whatever is open, after a failure; the caller removes the files."""
