"""What a container of tensors offers, whichever format it has: names, shapes, and a lazy read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from vidweights.dtypes import DTYPES
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
        count = 1
        for n in self.shape:
            count *= n
        return count * DTYPES[self.dtype].storage.itemsize


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

    @abstractmethod
    def write(self, key: str, array: Array) -> None:
        """Append a tensor: C-contiguous, of the announced dtype and shape."""

    @abstractmethod
    def finish(self) -> dict[str, str]:
        """Complete the file(s) and return {file name: SHA-256} of each, computed while writing."""

    @abstractmethod
    def abort(self) -> None:
        """Close whatever is open, after a failure; the caller removes the files."""
