"""Unpickler for files of unknown origin: it builds containers, strings and numbers, and runs and imports nothing.

A class or function of the file becomes a `StubClass`, an instance or the result of a call a `StubObject`; tensors become
`TensorRef`s, which refer to bytes of the file. It is Python's own pickle machine in its Python version, with other
operations for calls, state and keys: the C version reserves memory for any memo index, and keys such as deeply nested
tuples take exponential time to hash. Trade-off: it reads a million operations in some seconds, so it has limits.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_PICKLE_BYTES = 64 << 20
"""Maximum size of a pickle without its tensors, in bytes."""
MAX_OPERATIONS = 1_000_000
"""Maximum number of a pickle's operations, which bounds its memory and time: enough for 300,000 tokens."""
DANGEROUS = frozenset(
    "asyncio bdb code codeop ctypes importlib marshal nt os pdb pickle pip pkgutil posix posixpath profile pty pydoc runpy "
    "shutil signal site smtplib socket socketserver ssl subprocess sys timeit trace urllib venv webbrowser zipimport".split()
)
"""Top-level modules that no model needs: a file that names one is refused, although nothing of it would run."""
DANGEROUS_BUILTINS = frozenset(
    "__import__ apply breakpoint compile delattr eval exec execfile exit file globals help input locals open quit raw_input "
    "reload setattr vars".split()
)
"""Names of builtins that no model needs; fastai's files name others, such as `getattr` for methods and `print`."""
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


class RefusedPickleError(Exception):
    """A pickle that is damaged, too large, or contains what no model needs."""


@dataclass(frozen=True)
class StubClass:
    """A class or function that a file names; it is not imported.

    Attributes:
        name: module and qualified name, such as `collections.OrderedDict`.
    """

    name: str


@dataclass(eq=False)
class StubObject:
    """An instance of a class of the file, or the result of a call in it.

    Attributes:
        name: name of the class or function.
        args: arguments of the call.
        state: state that the pickle sets, usually the `__dict__`.
        items: items that the pickle appends or sets, if it is a container.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class StorageRef:
    """A tensor storage of the file.

    Attributes:
        key: name of its record.
        dtype: name of torch's dtype, such as float32.
        numel: number of elements.
    """

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor of the file, whose elements are not read yet: a strided view of a storage, offset and strides in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Budget(dict[int, Callable[..., None]]):
    """The operations of a pickle machine by opcode, for a limited number of lookups."""

    left = MAX_OPERATIONS

    def __getitem__(self, opcode: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise RefusedPickleError(f"it has more than {MAX_OPERATIONS:,} operations")
        return super().__getitem__(opcode)


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickler that imports and calls nothing.

    Args:
        file: the pickle; whatever follows it is not read.
        make_storage: function from a persistent id to a `StorageRef` or `StubClass`. None: persistent ids are refused.

    Raises:
        RefusedPickleError: from `content`.
    """

    def __init__(self, file: BinaryIO, make_storage: Callable[[Any], Any] | None = None):
        super().__init__(_Limited(file, MAX_PICKLE_BYTES), encoding="utf-8", errors="replace", fix_imports=False)
        self._make_storage = make_storage
        self.dispatch = _Budget(OPERATIONS)  # type: ignore[misc]  # of this instance

    def content(self) -> Any:
        """Return the content of the pickle."""
        try:
            return self.load()
        except RefusedPickleError:
            raise
        except Exception as error:
            raise RefusedPickleError(f"it is damaged ({type(error).__name__}: {error})"[:200]) from None

    def find_class(self, module: str, name: str) -> StubClass:
        top = module.partition(".")[0]
        is_builtin = top in ("builtins", "__builtin__")
        if top in DANGEROUS or (is_builtin and name.partition(".")[0] in DANGEROUS_BUILTINS):
            raise RefusedPickleError(f"it names {module}.{name}"[:200])
        return StubClass(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if self._make_storage is None:
            raise RefusedPickleError("it refers to tensors outside of it")
        return self._make_storage(pid)


class _Limited:
    """A file of which only the first bytes are read."""

    def __init__(self, file: BinaryIO, most: int):
        self._file, self._left = file, most

    def read(self, size: int) -> bytes:
        self._take(size)
        return self._file.read(size)

    def readinto(self, buffer: bytearray) -> int:
        self._take(len(buffer))
        return self._file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._take(len(line))
        return line

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise RefusedPickleError(f"a pickle without its tensors has at most {MAX_PICKLE_BYTES >> 20} MiB")


def _call(function: Any, args: Any) -> Any:
    """Return the result of a call: a dict or tensor for the functions that torch writes, else a stub."""
    if not isinstance(function, (StubClass, StubObject)) or not isinstance(args, tuple):
        raise RefusedPickleError("it calls what is not a class or function")
    known = _CALLS.get(function.name) if isinstance(function, StubClass) else None
    return StubObject(function.name, args) if known is None else known(*args)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise RefusedPickleError("it has an OrderedDict of other things than pairs")
    return {_key(key): value for key, value in pairs}


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
    """Return a tensor that lies within its storage and repeats none of it."""
    if not isinstance(storage, StorageRef):
        raise RefusedPickleError("it has a tensor without a storage")
    numbers = [offset, *_sizes(shape), *_sizes(stride)]
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers) or len(shape) != len(stride):
        raise RefusedPickleError("it has a tensor with invalid sizes")
    numel, last = 1, offset
    for size, step in zip(shape, stride, strict=True):
        numel *= size
        last += max(size - 1, 0) * step
    if numel and (last >= storage.numel or numel > storage.numel):
        raise RefusedPickleError("it has a tensor that is larger than its storage")
    return TensorRef(storage, offset, tuple(shape), tuple(stride))


def _typed_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRef:
    """Return a tensor of `_rebuild_tensor_v3`, whose storage is bytes; its dtype is the third of the other arguments."""
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], StubClass) else StubClass("")
    name = dtype.name.removeprefix("torch.")
    if not isinstance(storage, StorageRef) or name not in ITEM_SIZES:
        raise RefusedPickleError(f"it has a tensor of type {name or 'unknown'}")
    return _tensor(StorageRef(storage.key, name, storage.numel // ITEM_SIZES[name]), offset, shape, stride)


def _sizes(sizes: Any) -> Sequence[Any]:
    if not isinstance(sizes, tuple) or len(sizes) > 8:
        raise RefusedPickleError("it has a tensor with invalid sizes")
    return sizes


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    return tuple(_sizes(sizes))


ITEM_SIZES = {
    **dict.fromkeys(("float64", "int64"), 8),
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
}
"""Bytes of an element by name of torch's dtype."""
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": _size,
}
"""Functions of this module that take the place of those that torch names in its files."""


def _key(key: Any) -> Any:
    """Return a key of a dict or item of a set; other than plain values become strings, as hashing may take forever."""
    if isinstance(key, StubClass):
        return key.name
    is_plain = isinstance(key, _KEY_TYPES) or (isinstance(key, tuple) and all(isinstance(part, _KEY_TYPES) for part in key))
    return key if is_plain else f"<{type(key).__name__}>"


def _reduce(machine: Any) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = _call(machine.stack[-1], args)


def _new_object(machine: Any) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = _call(machine.stack[-1], args)


def _new_object_with_keywords(machine: Any) -> None:
    keywords, args = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = _call(machine.stack[-1], (*args, keywords))


def _instance(machine: Any) -> None:
    module, name = (machine.readline()[:-1].decode("ascii") for _ in range(2))
    machine.append(_call(machine.find_class(module, name), tuple(machine.pop_mark())))


def _object(machine: Any) -> None:
    function, *args = machine.pop_mark()
    machine.append(_call(function, tuple(args)))


def _build(machine: Any) -> None:
    """Set the state of a stub; that of a dict or tensor, such as the versions in a state_dict, is left out."""
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, StubObject):
        target.state = state
    elif not isinstance(target, (dict, TensorRef)):
        raise RefusedPickleError(f"it sets the state of a {type(target).__name__}")


def _append(machine: Any) -> None:
    value = machine.stack.pop()
    _extend(machine.stack[-1], [value])


def _appends(machine: Any) -> None:
    values = machine.pop_mark()
    _extend(machine.stack[-1], values)


def _extend(target: Any, values: list[Any]) -> None:
    if not isinstance(target, (list, StubObject)):
        raise RefusedPickleError(f"it appends to a {type(target).__name__}")
    (target if isinstance(target, list) else target.items).extend(values)


def _set_item(machine: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine.stack[-1], [key, value])


def _set_items(machine: Any) -> None:
    values = machine.pop_mark()
    _update(machine.stack[-1], values)


def _update(target: Any, values: list[Any]) -> None:
    pairs = [(_key(key), value) for key, value in zip(values[::2], values[1::2], strict=True)]
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, StubObject):
        target.items.extend(pairs)
    else:
        raise RefusedPickleError(f"it sets an item of a {type(target).__name__}")


def _make_dict(machine: Any) -> None:
    content: dict[Any, Any] = {}
    _update(content, machine.pop_mark())
    machine.append(content)


def _add_items(machine: Any) -> None:
    values = machine.pop_mark()
    if not isinstance(machine.stack[-1], set):
        raise RefusedPickleError(f"it adds to a {type(machine.stack[-1]).__name__}")
    machine.stack[-1].update(map(_key, values))


def _frozen_set(machine: Any) -> None:
    machine.append(frozenset(map(_key, machine.pop_mark())))


def _byte_array(machine: Any) -> None:
    machine.append(machine.read(int.from_bytes(machine.read(8), "little")))


def _refuse(machine: Any) -> None:
    raise RefusedPickleError("it uses a pickle extension")


OPERATIONS: dict[int, Callable[..., None]] = {
    **pickle._Unpickler.dispatch,
    **{
        opcode[0]: operation
        for opcode, operation in (
            (pickle.REDUCE, _reduce),
            (pickle.NEWOBJ, _new_object),
            (pickle.NEWOBJ_EX, _new_object_with_keywords),
            (pickle.INST, _instance),
            (pickle.OBJ, _object),
            (pickle.BUILD, _build),
            (pickle.APPEND, _append),
            (pickle.APPENDS, _appends),
            (pickle.SETITEM, _set_item),
            (pickle.SETITEMS, _set_items),
            (pickle.DICT, _make_dict),
            (pickle.ADDITEMS, _add_items),
            (pickle.FROZENSET, _frozen_set),
            (pickle.BYTEARRAY8, _byte_array),
            (pickle.NEXT_BUFFER, _refuse),
            (pickle.READONLY_BUFFER, _refuse),
            (pickle.EXT1, _refuse),
            (pickle.EXT2, _refuse),
            (pickle.EXT4, _refuse),
        )
    },
}
"""Operations by opcode: Python's own, and those of this module for calls, state, keys and buffers."""
