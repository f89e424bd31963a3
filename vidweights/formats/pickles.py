"""Reading pickles as data: nothing that a file names is imported, and nothing of it is run.

A pickle is a program for a small machine. Ours knows the few classes and functions that arrays and tensors need, and
gives the file stand-ins of our own for them; whatever else a pickle asks for ends the reading. The machine itself is
Python's (`pickle.Unpickler`); a first pass over the opcodes (`vidweights.formats.opcodes`) bounds what it may be asked
to allocate, and leaves large bytes where they are.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vidweights.dtypes import DTYPES
from vidweights.errors import FormatError
from vidweights.formats import opcodes
from vidweights.formats.base import checked_key, checked_shape
from vidweights.layout import Array, Shape

# Bounds that no real checkpoint comes near; they keep a small hostile file from filling the memory.
_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 100
_MAX_KEY = 1000


# Where a pickle is read from.
File = io.BytesIO | mmap.mmap

# What stands for a global of the file: a string where only its name matters, a type of ours, or a function of ours.
Globals = Mapping[tuple[str, str], Any]


class NumpyArray:
    """An array of a pickle, checked: its bytes are exactly those of its shape and dtype.

    Attributes:
        dtype: the name of the elements; a key of `vidweights.dtypes.DTYPES`, or another type's (`<U7`).
        shape: the shape that the file gives.
    """

    dtype = "nothing"
    shape: Shape = ()
    _array: Array | None = None

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: str) -> None:
        """Take the bytes `data`, in the order `C` or `F`."""
        self.dtype, self.shape = _checked_dtype(dtype).name, checked_shape(shape, "an array")
        if not dtype.is_number:
            return
        raw = _raw(data)
        expected = math.prod(self.shape) * dtype.numpy.itemsize
        if len(raw) != expected:
            raise FormatError(
                f"an array of shape {self.shape} and type {self.dtype} has {len(raw)} bytes; expected {expected}"
            )
        self._array = np.frombuffer(raw, dtype.numpy).reshape(self.shape, order="F" if order == "F" else "C")

    def transpose(self, axes: Sequence[int]) -> None:
        """Permute the axes."""
        if self._array is not None:
            self._array = self._array.transpose(axes)
            self.shape = self._array.shape

    @property
    def is_tensor(self) -> bool:
        """Whether the elements are numbers."""
        return self._array is not None

    def read(self) -> Array:
        """The array: C-contiguous, little-endian; a view of the pickle's bytes where they are in that order."""
        assert self._array is not None
        return np.asarray(self._array, DTYPES[self.dtype].storage, order="C")

    def __str__(self) -> str:
        return f"an array of {self.dtype}, shape {self.shape}"


class NumpyDtype:
    """The element type of an array or a scalar of a pickle."""

    _codes = {d.storage.str[1:]: d.name for d in DTYPES.values() if d.name != "bfloat16"} | {"bfloat16": "bfloat16"}

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] in ("O", "V"):
            raise FormatError(f"an array has elements of type {code!r} (objects or structures); expected numbers")
        self._code, self._order = code, "<"

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, *_ = state
        if subdtype is not None or names is not None:
            raise FormatError("an array has structured elements; expected numbers")
        self._order = ">" if order == ">" else "<"

    @property
    def is_number(self) -> bool:
        """Whether it is one of `vidweights.dtypes.DTYPES`."""
        return self._code in self._codes

    @property
    def name(self) -> str:
        """The name in `vidweights.dtypes.DTYPES`, or the file's own."""
        return self._codes.get(self._code, self._code[:20])

    @property
    def numpy(self) -> np.dtype:
        """The dtype of the bytes as they are stored."""
        return DTYPES[self.name].storage.newbyteorder(self._order)  # type: ignore[arg-type]


def _checked_dtype(dtype: Any) -> NumpyDtype:
    if not isinstance(dtype, NumpyDtype):
        raise FormatError("an array of the pickle has no element type")
    return dtype


def _raw(data: Any) -> bytes | bytearray | memoryview:
    """Bytes as Python 3 has them; Python 2 wrote them as a string, which arrives here decoded as latin-1 if short."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise FormatError(f"an array of the pickle is stored as {type(data).__name__}; expected bytes")
    return data


def _reconstruct(*_: Any) -> NumpyArray:
    return NumpyArray()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> NumpyArray:
    if order not in ("C", "F", "K") or (order == "K") != (axes is not None):
        raise FormatError(
            f"an array of the pickle is stored in the order {order!r}; expected 'C', 'F' or 'K' with axes"
        )
    array = NumpyArray()
    array.fill(data, dtype, shape, order)
    if axes is not None:
        array.transpose(axes)
    return array


def _scalar(dtype: Any, data: Any = b"") -> Any:
    array = NumpyArray()
    array.fill(data, dtype, (), "C")
    return array.read().item() if array.is_tensor else str(array)


def _jax_array(function: Any, args: Any, state: Any, *_: Any) -> NumpyArray:
    array = function(*args)
    array.__setstate__(state)
    return array  # type: ignore[no-any-return]


def _bytes(*args: Any) -> bytes | memoryview:
    """`_codecs.encode(text, "latin1")`, `bytes()`: how old protocols write bytes."""
    match args:
        case ():
            return b""
        case (bytes() | memoryview() as data,):
            return data
        case (str() as text, "latin1" | "latin-1"):
            return text.encode("latin1")
    raise FormatError("the pickle makes bytes in a way that no checkpoint does; nothing was run")


class Opaque(str):
    """A few words in place of a value that is not a weight."""


class Record(dict[Any, Any]):
    """A mapping, or an object's attributes. What a file attaches beside the entries is dropped."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


class _Ordered(Record):
    def __setstate__(self, state: Any) -> None:
        """Drop attributes: torch hangs version numbers (`_metadata`) on a state dict."""


class _Call:
    """A function of ours, given to a pickle in place of the one that it names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        # Without this a pickle could set attributes on what it was given.
        raise FormatError("the pickle tries to alter a function; nothing was run")


def _both(names: Mapping[str, Any], *modules: str) -> dict[tuple[str, str], Any]:
    return {(module, name): value for module in modules for name, value in names.items()}


DATA: Globals = {
    **_both({"_reconstruct": _reconstruct, "scalar": _scalar}, "numpy.core.multiarray", "numpy._core.multiarray"),
    **_both({"_frombuffer": _frombuffer}, "numpy.core.numeric", "numpy._core.numeric"),
    **_both({"ndarray": "ndarray", "dtype": NumpyDtype}, "numpy"),
    **_both({"bfloat16": "bfloat16"}, "ml_dtypes", "jaxlib.xla_extension"),
    **_both({"_reconstruct_array": _jax_array}, "jax._src.array"),
    **_both({"reconstruct_device_array": _jax_array}, "jax._src.device_array"),
    **_both({"FrozenDict": Record}, "flax.core.frozen_dict"),
    **_both({"OrderedDict": _Ordered, "Counter": _Ordered}, "collections"),
    **_both({"set": set, "frozenset": frozenset, "complex": complex}, "builtins", "__builtin__"),
    **_both({"bytes": _bytes, "bytearray": _bytes}, "builtins", "__builtin__"),
    **_both({"encode": _bytes}, "_codecs"),
    **_both({"Namespace": Record}, "argparse"),
}


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: File, known: Globals, persistent_load: Callable[[Any], Any] | None, buffers: Iterable[memoryview]
    ) -> None:
        super().__init__(file, encoding="latin1", buffers=buffers)
        self._known = known
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str, /) -> Any:
        found = self._known.get((module, name))
        if found is None and module.partition(".")[0] == "__torch__":
            return Record  # a module of a TorchScript archive: its attributes
        if found is None:
            raise FormatError(_refusal(module, name))
        return found if isinstance(found, (str, type)) else _Call(found)

    def persistent_load(self, pid: Any, /) -> Any:
        if self._persistent_load is None:
            raise FormatError("the pickle refers to data outside of it")
        return self._persistent_load(pid)


def _refusal(module: str, name: str) -> str:
    asked = f"{module}.{name}"[:200]
    if name[:1].isupper():
        return (
            f"it holds an object of the class {asked}, which is not data; nothing was imported or run. If this is a "
            "whole pickled network, load it with the code that made it and save its state_dict() instead."
        )
    return (
        f"it asks to call {asked}, which no checkpoint needs; nothing was run. Do not open this file with pickle or "
        "torch.load unless you trust its origin."
    )


def load(file: File, name: str, *, known: Globals = DATA, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """Read the one pickle that begins at the position of `file`, and leave the position behind it.

    Args:
        file: the open file.
        name: how messages call it.
        known: the classes and functions that the pickle may name, and what it gets for them.
        persistent_load: resolves the references to data outside of the pickle.

    Returns:
        dicts (`Record`), lists, tuples, scalars, `NumpyArray`s and whatever `known` builds. Large arrays, and large
        bytes by themselves (a `memoryview`), are views of the file.

    Raises:
        FormatError: it asks for something that is not data, is truncated, or claims more than the file has.
    """
    start = file.tell()
    try:
        program = opcodes.scan(file if isinstance(file, mmap.mmap) else file.getvalue(), start)
        run = file if program.opcodes is None else io.BytesIO(program.opcodes)
        value = _Unpickler(run, known, persistent_load, program.buffers).load()
        file.seek(program.end)
    except FormatError as error:
        raise FormatError(f"{name} was not read: {error}") from None
    except Exception as error:  # a damaged program can fail in any way that Python's operations can
        raise FormatError(
            f"{name} is not a whole pickle ({error or type(error).__name__}); download it again or ask its author."
        ) from error
    return value


def flatten(tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, lists and tuples, in order, each with its path joined by dots.

    A list or tuple of plain values is one leaf. Nothing is escaped: a dot inside of a name stays (torch's own
    names have them).

    Raises:
        FormatError: deeper, longer or more than any checkpoint is, or two leaves have the same path.
    """
    seen: set[str] = set()
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    visited = 0
    while stack:
        key, value, depth = stack.pop()
        visited += 1
        if depth > _MAX_DEPTH or visited > _MAX_ENTRIES or len(key) > _MAX_KEY:
            raise FormatError(f"the entries are nested without end, or too many; the last one was {key[:80]!r}")
        children = _children(value)
        if children:
            stack += [(f"{key}.{name}" if depth else name, child, depth + 1) for name, child in reversed(children)]
            continue
        if key in seen:
            raise FormatError(f"two entries are called {key!r}; it cannot be known which one is meant")
        seen.add(checked_key(key, "the pickle"))
        yield key, value


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(_level(key), child) for key, child in value.items()]
    if isinstance(value, (list, tuple)) and any(not isinstance(child, (*_PLAIN, type(None))) for child in value):
        return [(str(index), child) for index, child in enumerate(value)]
    return []


_PLAIN = (bool, int, float, complex, str, bytes, memoryview)


def _level(key: Any) -> str:
    """A key of a dict as a level of a path; Flax flattens trees into dicts whose keys are tuples of names."""
    match key:
        case str():
            return key
        case bytes():
            return key.decode("latin1")
        case tuple() if all(isinstance(part, str) for part in key):
            return ".".join(key)
        case int() if abs(key) < 2**64:
            return str(key)
        case float() | None:
            return str(key)
    raise FormatError(f"a dict has a key of type {type(key).__name__}; expected a name")


def describe(leaf: Any) -> str:
    """A leaf that is no tensor, in a few words."""
    match leaf:
        case int() if abs(leaf) >= 2**64:
            return "a very large integer"
        case None | int() | float() | complex():
            return repr(leaf)
        case Opaque() | NumpyArray():
            return str(leaf).encode("ascii", "backslashreplace").decode()
        case str():
            return repr(leaf if len(leaf) <= 60 else leaf[:57] + "...")
        case dict() | list() | tuple() | set() | frozenset() | bytes() | bytearray() | memoryview():
            name = {Record: "dict", _Ordered: "dict", memoryview: "bytes"}.get(type(leaf), type(leaf).__name__)
            return f"{name} of {len(leaf)}"
    return type(leaf).__name__


def text(value: str) -> bytes:
    """The opcodes that push a string, for a writer (protocol 1 and later)."""
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    """The opcodes that push an integer of up to 64 bits, for a writer (protocol 2 and later)."""
    data = value.to_bytes(9, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data
