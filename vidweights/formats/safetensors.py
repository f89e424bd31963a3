"""The safetensors format, read and written without its library, so that every check has a message of its own.

Format: github.com/huggingface/safetensors, README.md ("Format"); safetensors/src/tensor.rs (order of the tensors,
validation).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from vidweights.dtypes import BY_SAFETENSORS, DTYPES
from vidweights.errors import FormatError
from vidweights.files import HashedFile, map_file
from vidweights.formats.base import Checkpoint, TensorInfo, Writer, checked_key, checked_shape
from vidweights.layout import Array

MAX_HEADER = 100_000_000  # the library's own limit
# The library writes the widest elements first, then by name.
_WRITING_ORDER = (
    "uint64", "int64", "float64", "float32", "uint32", "int32", "bfloat16", "float16", "uint16", "int16", "int8",
    "uint8", "bool",
)  # fmt: skip
_RANK = {dtype: rank for rank, dtype in enumerate(_WRITING_ORDER)}


class SafetensorsFile(Checkpoint):
    """A `.safetensors` file, memory-mapped.

    Attributes:
        metadata: the free text of its header (`__metadata__`).

    Raises:
        FormatError: the header is damaged, or does not describe every byte of the file exactly once.
    """

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        data = map_file(path)
        size = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or size > MAX_HEADER:
            raise FormatError(f"{path} is not a safetensors file: its header would have {size:,} bytes.")
        if 8 + size > len(data):
            raise FormatError(
                f"{path} is cut: it has {len(data):,} bytes and its header alone {8 + size:,}. Download it again."
            )
        header = _parse(data[8 : 8 + size].tobytes(), path)
        self._data = data[8 + size :]
        self.metadata = _metadata(header.pop("__metadata__", {}), path)
        self._places = {checked_key(key, str(path)): _place(key, value, path) for key, value in header.items()}
        _check_places(self._places, len(self._data), path)
        self._adopt(header)

    def _adopt(self, header: Mapping[str, Any]) -> None:
        """Divide the entries into tensors, in the order of their bytes, and others."""
        self.tensors: dict[str, TensorInfo] = {}
        self.others: dict[str, str] = {}
        for key in sorted(header, key=self._places.__getitem__):
            where = f"{self.path}: {key}"
            shape, name = checked_shape(_list(header[key].get("shape"), where), where), header[key].get("dtype")
            begin, end = self._places[key]
            if not isinstance(name, str) or name not in BY_SAFETENSORS:
                self.others[key] = f"a tensor of type {ascii(name)[:20]}, {end - begin:,} bytes"
                continue
            info = TensorInfo(key, shape, BY_SAFETENSORS[name].name)
            if info.nbytes != end - begin:
                raise FormatError(
                    f"{where} has the shape {shape} and type {name}, which is {info.nbytes:,} bytes; the header gives "
                    f"it {end - begin:,}. The file is damaged; download it again."
                )
            self.tensors[key] = info

    def read(self, key: str) -> Array:
        """The tensor, as a read-only view of the mapped file; the format has no checksums."""
        info = self.tensors[key]
        begin, end = self._places[key]
        return self._data[begin:end].view(DTYPES[info.dtype].storage).reshape(info.shape)


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(data, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a damaged header ({str(error)[:80]}). Download it again.") from error
    if not isinstance(header, dict):
        raise FormatError(f"{path} has a header that is no JSON object. Download it again.")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(f"{path}: the __metadata__ of the header must be a JSON object of strings.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{where}: a list is expected in the header, not {str(value)[:40]}. The file is damaged.")
    return value


def _place(key: str, value: Any, path: Path) -> tuple[int, int]:
    """The offsets of a tensor: its first byte, and the byte after its last."""
    where = f"{path}: {key}"
    if not isinstance(value, dict):
        raise FormatError(f"{where}: a JSON object is expected in the header, not {str(value)[:40]}.")
    offsets = _list(value.get("data_offsets"), where)
    if len(offsets) != 2 or any(type(n) is not int for n in offsets) or not 0 <= offsets[0] <= offsets[1]:
        raise FormatError(f"{where} has the offsets {str(offsets)[:80]}, which no tensor has. The file is damaged.")
    return offsets[0], offsets[1]


def _check_places(places: Mapping[str, tuple[int, int]], size: int, path: Path) -> None:
    """Check that the tensors lie one behind the other and fill the file."""
    ordered = [("the header", (0, 0)), *sorted(places.items(), key=lambda item: item[1])]
    for (before, (_, end)), (key, (begin, _)) in pairwise(ordered):
        if begin != end:
            what = "overlap" if begin < end else f"have {begin - end:,} bytes between them"
            raise FormatError(f"{path}: {before} and {key} {what}. The file is damaged; download it again.")
    last = ordered[-1][1][1]
    if last != size:
        what = "is cut" if size < last else "has more bytes than its header knows of"
        raise FormatError(f"{path} {what}: its tensors are {last:,} bytes, found {size:,}. Download it again.")


class SafetensorsWriter(Writer):
    """Writes the bytes that `safetensors.torch.save_file(..., metadata={"format": "pt"})` writes, tensor by tensor."""

    file_name = "model.safetensors"

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        super().__init__(path, tensors)
        if self.order(self.tensors) != self.tensors:
            raise ValueError(f"{path}: announce the tensors in the order of SafetensorsWriter.order")
        header = _header(self.tensors)
        self._file = HashedFile(path)
        self._file.write(len(header).to_bytes(8, "little") + header)

    @classmethod
    def order(cls, tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
        """The widest elements first, so that all are aligned, then by key."""
        return tuple(sorted(tensors, key=lambda info: (_RANK[info.dtype], info.key)))

    def write(self, key: str, array: Array) -> None:
        """Append a tensor."""
        self._take(key, array)
        self._file.write(array)

    def _finish(self) -> dict[str, str]:
        """Close the file."""
        return {self.path.name: self._file.close()}

    def abort(self) -> None:
        """Close the file."""
        self._file.close()


def _header(tensors: Iterable[TensorInfo]) -> bytes:
    """The header, padded with spaces to a multiple of eight."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in tensors:
        end = offset + info.nbytes
        header[info.key] = {
            "dtype": DTYPES[info.dtype].safetensors,
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
