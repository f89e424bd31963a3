"""The files of torch before 1.6, and of `torch.save(..., _use_new_zipfile_serialization=False)`.

Format: torch/serialization.py (`_legacy_save`, `_legacy_load`): five pickles in a row (magic number, protocol
version, facts of the machine, the object, the keys of the storages), then each storage as its count and its bytes.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.formats import pickles
from vidweights.formats.sniff import TORCH_MAGIC
from vidweights.formats.torch_pickle import GLOBALS, Storage, TorchCheckpoint, storage

_VERSION = 1001


class TorchLegacy(TorchCheckpoint):
    """A file of `torch.save` before torch 1.6; tensors are memory-mapped and read one by one.

    Keys are those of the pickle, what is nested joined by dots, as in `TorchZip`.

    Raises:
        FormatError: it is no such file, is damaged, or its pickle asks for anything but data (nothing is run).
    """

    format = "torch-legacy"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        if not path.stat().st_size:
            raise FormatError(f"{path} is empty; download it again.")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._data = np.frombuffer(mapped, np.uint8)
        self._check_head(mapped)
        self._sizes: dict[str, tuple[str, int]] = {}
        tree = pickles.load(mapped, str(path), known=GLOBALS, persistent_load=self._storage)
        keys = pickles.load(mapped, str(path))
        self._records = self._locate(keys, mapped.tell())
        self._adopt(tree, len(self._data))

    def _check_head(self, mapped: mmap.mmap) -> None:
        if self._data[257:262].tobytes() == b"ustar":
            raise FormatError(
                f"{self.path} is a tar archive, as the first versions of torch wrote; if you trust it, load it with "
                "torch.load(..., weights_only=False) and save its state_dict() again."
            )
        magic = pickles.load(mapped, str(self.path))
        if magic != TORCH_MAGIC:
            raise FormatError(f"{self.path} does not begin with the magic number of torch.save.")
        version, machine = (pickles.load(mapped, str(self.path)) for _ in range(2))
        if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise FormatError(
                f"{self.path} was saved with protocol {pickles.describe(version)} on a machine of "
                f"{pickles.describe(machine)}; expected protocol {_VERSION} and little-endian."
            )

    def _storage(self, pid: Any) -> Storage:
        """The storage of a persistent id; the size of the whole record is kept to find the records by."""
        found = storage(pid)
        root = (found.dtype, pid[4])
        if self._sizes.setdefault(found.key, root) != root:
            raise FormatError(f"the storage {found.key[:40]} has two sizes or types")
        return found

    def _locate(self, keys: Any, at: int) -> dict[str, NDArray[np.uint8]]:
        """The bytes of each storage; they begin at `at`."""
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self._sizes):
            raise FormatError(f"{self.path}: the list of storages is not that of the tensors; the file is damaged.")
        records = {}
        for key in map(str, keys):
            dtype, count = self._sizes[key]
            size = count * (np.dtype(dtype) if dtype.startswith("complex") else DTYPES[dtype].storage).itemsize
            stored = int.from_bytes(self._data[at : at + 8].tobytes(), "little", signed=True)
            if stored != count or at + 8 + size > len(self._data):
                raise FormatError(
                    f"{self.path} is cut or damaged: the storage {key[:40]} should have {count:,} elements at byte "
                    f"{at:,}; it says {stored:,}, in a file of {len(self._data):,} bytes. Download it again."
                )
            records[key] = self._data[at + 8 : at + 8 + size]
            at += 8 + size
        return records

    def _record(self, storage: Storage) -> NDArray[np.uint8]:
        return self._records[storage.key]
