"""Pickled trees of numpy arrays: how the variables of Flax, the blobs of Caffe2 and many older checkpoints are kept.

Format: Lib/pickletools.py of CPython (the opcodes); numpy/_core/src/multiarray/methods.c (`array_reduce`,
`array_setstate`: how an array is pickled).
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.files import HashedFile
from vidweights.formats import pickles
from vidweights.formats.base import Checkpoint, TensorInfo, Writer
from vidweights.formats.pickles import integer, text
from vidweights.layout import Array


class PickleTree(Checkpoint):
    """A pickle of nested dicts, lists and tuples of numpy arrays; protocols 0 to 5, Python 2's among them.

    A key is the path to the array, its levels joined by dots, since a level of a Flax tree may have slashes in its
    name: `params.Mixed_5b.Branch_2/Conv3d_0b_3x3.Conv_0.kernel`. Elements of a list or tuple count from 0.

    Large arrays are memory-mapped. (Python 3 wrote them as text in protocols 0 to 2, and protocol 0 always did; those
    are held in memory.)

    Raises:
        FormatError: the pickle asks for anything but data (nothing is run), is truncated, or is inconsistent.
    """

    format = "pickle"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        self.others = {}
        self._arrays: dict[str, pickles.NumpyArray] = {}
        for key, leaf in pickles.flatten(_load(path)):
            if isinstance(leaf, pickles.NumpyArray) and leaf.is_tensor:
                self._arrays[key] = leaf
            else:
                self.others[key] = pickles.describe(leaf)
        self.tensors = {key: TensorInfo(key, array.shape, array.dtype) for key, array in self._arrays.items()}

    def read(self, key: str) -> Array:
        """The tensor, a read-only view where the file has it in C order and little-endian; it may not be aligned."""
        return self._arrays[key].read()


def _load(path: Path) -> Any:
    if not path.stat().st_size:
        raise FormatError(f"{path} is empty; download it again.")
    with path.open("rb") as file:
        return pickles.load(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))


class FlaxPickleWriter(Writer):
    """Writes nested dicts of numpy arrays as a pickle of protocol 4, one array at a time.

    The dots of a key are the levels of the tree. The dicts are made first, in the order in which the keys announce
    them, and kept in the pickle's memo; each array is then put into its own, so that no array is held.
    """

    file_name = "model.pkl"

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        super().__init__(path, tensors)
        self._memo = {"": 0}
        self._file = HashedFile(path)
        self._file.write(pickle.PROTO + b"\x04" + pickle.EMPTY_DICT + pickle.MEMOIZE)
        for info in self.tensors:
            self._make_dicts(info.key.split(".")[:-1])

    def _make_dicts(self, levels: list[str]) -> None:
        for depth in range(1, len(levels) + 1):
            path, parent = ".".join(levels[:depth]), ".".join(levels[: depth - 1])
            if path not in self._memo:
                made = pickle.EMPTY_DICT + pickle.MEMOIZE
                self._put(parent, text(levels[depth - 1]), made)
                self._memo[path] = len(self._memo)

    def _put(self, parent: str, *entry: Any) -> None:
        """Emit: fetch the dict, push a key and a value, set the item, drop the dict."""
        self._file.write(pickle.LONG_BINGET + struct.pack("<I", self._memo[parent]))
        for part in (*entry, pickle.SETITEM + pickle.POP):
            self._file.write(part)

    def write(self, key: str, array: Array) -> None:
        """Append an array."""
        parent, _, leaf = key.rpartition(".")
        head, tail = _array_opcodes(self._take(key, array))
        self._put(parent, text(leaf), head, array, tail)

    def _finish(self) -> dict[str, str]:
        """End the pickle with its root."""
        self._file.write(pickle.LONG_BINGET + struct.pack("<I", 0) + pickle.STOP)
        return {self.path.name: self._file.close()}

    def abort(self) -> None:
        """Close the file."""
        self._file.close()


def _global(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def _array_opcodes(info: TensorInfo) -> tuple[bytes, bytes]:
    """The opcodes before and after an array's bytes: `_reconstruct(ndarray, (0,), b"b")` and its state
    (version, shape, dtype, is Fortran, bytes).

    numpy 1 and 2 both know the old module name.
    """
    new = _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray") + integer(0) + pickle.TUPLE1
    new += pickle.SHORT_BINBYTES + b"\x01b" + pickle.TUPLE3 + pickle.REDUCE
    shape = pickle.MARK + b"".join(integer(n) for n in info.shape) + pickle.TUPLE
    state = pickle.MARK + integer(1) + shape + _dtype_opcodes(info.dtype) + pickle.NEWFALSE
    size = pickle.BINBYTES8 + struct.pack("<Q", info.nbytes)
    return new + state + size, pickle.TUPLE + pickle.BUILD


def _dtype_opcodes(name: str) -> bytes:
    """`dtype(code, False, True)` and its state (version, byte order, and no structure)."""
    storage = DTYPES[name].storage
    kind = _global("ml_dtypes", name) if name == "bfloat16" else text(storage.str[1:])
    order = "<" if storage.itemsize > 1 else "|"
    new = _global("numpy", "dtype") + kind + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE
    sizes = (2, 2, 64) if name == "bfloat16" else (-1, -1, 0)
    facts = text(order) + pickle.NONE * 3 + b"".join(integer(n) for n in sizes)
    state = pickle.MARK + integer(3) + facts + pickle.TUPLE
    return new + state + pickle.BUILD
