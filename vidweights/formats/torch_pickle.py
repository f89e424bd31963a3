"""What the two containers of torch share: a pickle of tensors that are views of storages kept outside of it.

Format: torch/_utils.py (`_rebuild_tensor` and its successors), torch/serialization.py (`persistent_id`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.formats import pickles
from vidweights.formats.base import Checkpoint, TensorInfo, checked_shape
from vidweights.layout import Array, Shape

# torch/storage.py: the classes of storages and what their elements are. Those that are not weights are listed so
# that a tensor of them is told apart from the rest, and not read.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

# The bytes of a larger one (an element has up to 8) exceed the 63 bits that numpy counts with.
_MAX_STRIDE = 1 << 60


@dataclass(frozen=True)
class Storage:
    """A run of elements outside of the pickle; `offset` counts elements within the record `key`."""

    key: str
    dtype: str
    count: int
    offset: int = 0

    @property
    def itemsize(self) -> int:
        """The bytes of an element."""
        return DTYPES[self.dtype].storage.itemsize


@dataclass(frozen=True)
class View:
    """A tensor: a strided view of a storage. `offset` and `stride` count elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: Shape
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor when it is contiguous."""
        return math.prod(self.shape) * DTYPES[self.dtype].storage.itemsize

    def of(self, data: NDArray[np.uint8]) -> Array:
        """The tensor, given the bytes of its storage's record."""
        dtype = DTYPES[self.dtype].storage
        start = self.storage.offset * self.storage.itemsize + self.offset * dtype.itemsize
        if not math.prod(self.shape):
            return np.empty(self.shape, dtype)
        return np.ndarray(self.shape, dtype, data.data, start, [n * dtype.itemsize for n in self.stride])


class Parameter:
    """A tensor that was saved as a parameter; only its data matter."""

    def __init__(self, data: Any = None, *_: Any) -> None:
        self.data = data

    def __setstate__(self, state: Any) -> None:
        # torch 0.1 pickled a parameter as (data, creator, hooks, requires_grad, volatile).
        if isinstance(state, tuple) and state and isinstance(state[0], View):
            self.data = state[0]


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View | str:
    return _checked(storage, getattr(storage, "dtype", None), offset, shape, stride)


def _view_of_type(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> View | str:
    return _checked(storage, dtype, offset, shape, stride)


def _checked(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> View | str:
    """The view, if it lies within its storage; a few words, if its elements are not weights."""
    shape, stride = checked_shape(shape, "a tensor"), tuple(stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride):
        raise FormatError(f"a tensor has no storage, or {len(shape)} axes with {len(stride)} strides")
    if not all(type(n) is int and 0 <= n < _MAX_STRIDE for n in (offset, *stride)):
        raise FormatError(
            f"a tensor has the strides {str(stride)[:80]}, offset {str(offset)[:80]}; expected integers from 0 to 2**60"
        )
    if dtype not in DTYPES or storage.dtype not in DTYPES:
        return pickles.Opaque(f"a tensor of {dtype}, shape {shape}")
    end = offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride)) if math.prod(shape) else 0
    if end * DTYPES[dtype].storage.itemsize > storage.count * storage.itemsize:
        raise FormatError(
            f"a tensor of shape {shape}, strides {stride} at {offset} reaches element {end:,} of a storage that has "
            f"{storage.count:,}"
        )
    return View(storage, dtype, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    return function(*args)


def _same(value: Any) -> Any:
    return value


def _device(*_: Any) -> str:
    return pickles.Opaque("a device")


def _globals() -> pickles.Globals:
    named: dict[tuple[str, str], Any] = dict(pickles.DATA)
    rebuild = {
        "_rebuild_tensor": _view,
        "_rebuild_tensor_v2": _view,
        "_rebuild_tensor_v3": _view_of_type,
        "_rebuild_parameter": _parameter,
        "_rebuild_parameter_with_state": _parameter,
    }
    named |= {("torch._utils", name): function for name, function in rebuild.items()}
    named |= {
        (module, name): dtype for module in ("torch", "torch.cuda", "torch.storage") for name, dtype in STORAGES.items()
    }
    named |= {("torch", name): name for name in (*DTYPES, "complex64", "complex128", "Tensor")}
    named |= {("torch", "Size"): tuple, ("torch", "device"): _device}
    named |= {("torch._tensor", "_rebuild_from_type_v2"): _from_type}
    named |= {(module, "Parameter"): Parameter for module in ("torch.nn", "torch.nn.parameter")}
    lists = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    return named | {("torch.jit._pickle", name): _same if name != "restore_type_tag" else _parameter for name in lists}


GLOBALS = _globals()


def storage(pid: Any) -> Storage:
    """The storage that a persistent id describes: `("storage", class, key, location, count)`, and in old files
    the view of it that is meant, `(key, offset, count)`.
    """
    match pid:
        case ("storage", str() as dtype, str() as key, _, int() as count, *rest) if count >= 0:
            match rest:
                case [] | [None]:
                    return Storage(key, dtype, count)
                case [(_, int() as offset, int() as size)] if offset >= 0 and 0 <= size <= count - offset:
                    return Storage(key, dtype, size, offset)
    raise FormatError(f"the pickle refers to data outside of it as {str(pid)[:100]}; expected a storage")


class TorchCheckpoint(Checkpoint):
    """The tensors of a pickle that torch wrote; what is nested is joined by dots (`state_dict.conv.weight`)."""

    def _adopt(self, tree: Any, size: int) -> None:
        """List what the pickle holds; `size` is that of the file, which no tensor can exceed."""
        self.others, self.tensors = {}, {}
        self._leaves: dict[str, View | pickles.NumpyArray] = {}
        for key, found in pickles.flatten(tree):
            leaf = found.data if isinstance(found, Parameter) else found
            if isinstance(leaf, View) and leaf.nbytes > size:
                raise FormatError(f"{self.path}: {key} has {leaf.nbytes:,} bytes by its shape, the file {size:,}")
            if isinstance(leaf, View) or (isinstance(leaf, pickles.NumpyArray) and leaf.is_tensor):
                self._leaves[key] = leaf
                self.tensors[key] = TensorInfo(key, leaf.shape, leaf.dtype)
            else:
                self.others[key] = pickles.describe(leaf)

    @abstractmethod
    def _record(self, storage: Storage) -> NDArray[np.uint8]:
        """The bytes of a storage, checked to be as many as it claims."""

    def read(self, key: str) -> Array:
        """The tensor: a view of the memory-mapped file where the tensor is contiguous, a copy where it is not."""
        leaf = self._leaves[key]
        if isinstance(leaf, pickles.NumpyArray):
            return leaf.read()
        return np.asarray(leaf.of(self._record(leaf.storage)), order="C")
