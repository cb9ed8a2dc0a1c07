"""Pickles of ``torch.save``, run without calling anything.

A pickle is a program. torch's reader, even when it is held to weights, calls functions for it that fill memory of any
size: a copy of a tensor that was expanded from one number, the set of its rows. Here the program makes lists, tuples,
dicts, numbers and strings and nothing else. Of a tensor it is noted where in the file it lies; any other call, for what
a training keeps beside its weights, leaves a mark in place of its result, and what is put into it is dropped. No class
is even looked up. So a pickle costs what it is long, and at most ``_MOST_STEPS`` small objects.
"""

import io
import math
import pickletools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

_MOST_STEPS = 4_000_000
_MOST_DIMENSIONS = 64
_LARGEST = 2**63 - 1
_SHOWN = 80  # characters of a name in a message

_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_STORAGE_TYPES = {f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGES.items()}
_STORAGE_TYPES |= {"torch.storage.UntypedStorage": torch.uint8}
_PLAIN = frozenset(
    (
        *_STORAGES.values(),
        *(torch.uint16, torch.uint32, torch.uint64),
        *(dtype for name, dtype in _DTYPES.items() if name.startswith("torch.float8")),
    )
)

_ORDERED = "collections.OrderedDict"
_TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_TENSOR = "torch._utils._rebuild_tensor"
_TENSOR_V2 = "torch._utils._rebuild_tensor_v2"
_TENSOR_V3 = "torch._utils._rebuild_tensor_v3"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_REBUILDS = (_TENSOR, _TENSOR_V2, _TENSOR_V3, *_PARAMETERS)
_TYPED = "torch._tensor._rebuild_from_type_v2"
_OTHER_TENSORS = (
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_wrapper_subclass",
)

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"))
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class TorchFileError(Exception):
    """A file that cannot be read as weights; what is wrong with it and what to do."""


@dataclass(frozen=True)
class StoredStorage:
    """Memory of tensors in the file.

    Args:
        key: Of its record.
        start: Where it begins in the record, in elements.
        length: In elements.
    """

    dtype: torch.dtype
    key: str
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file, whose numbers have not been read.

    Args:
        offset: In ``storage``, in elements; so are ``strides``.
    """

    storage: StoredStorage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What it would take on its own; more than its storage has when it was expanded."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Unread:
    """What a call in the file would have made; it was not made.

    Args:
        name: Of what would have been called, with its module.
    """

    name: str

    @property
    def is_tensor(self) -> bool:
        return self.name in (_TYPED, *_REBUILDS, *_OTHER_TENSORS)


_OTHER_KEY = Unread("a key that is no name")


@dataclass(frozen=True)
class _Name:
    """A class or function, by name alone."""

    name: str


class TorchPickle:
    """Runs one pickle, with the opcodes that ``torch.save`` writes.

    Args:
        stream: Is left behind the pickle's end.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        self.storages: dict[str, torch.dtype] = {}
        self._stream = stream
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def run(self) -> object:
        for opcode, argument, _ in pickletools.genops(self._stream):
            self._count(1)
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise TorchFileError("not a readable state dict (it does not end)")

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise TorchFileError(
                f"holds more than {_MOST_STEPS:,} things beside its numbers; save model.state_dict() alone"
            )

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case _ if name in _LITERALS:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "TUPLE":
                items = self._marked()
                self._stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._popped(_SHORT_TUPLES[name])))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND":
                self._extend(self._popped(1))
            case "APPENDS":
                self._extend(self._marked())
            case "SETITEM":
                self._set_items(self._popped(2))
            case "SETITEMS":
                self._set_items(self._marked())
            case "GLOBAL":
                stack.append(_Name(argument.replace(" ", ".", 1)))
            case "BINPERSID":
                stack.append(self._by_key(stack.pop()))
            case "NEWOBJ":
                stack.append(_made(*self._popped(2)))
            case "REDUCE":
                function, arguments = self._popped(2)
                stack.append(self._call(function, arguments))
            case "BUILD":
                self._set_state(stack.pop())
            case "PROTO":
                pass
            case _:
                raise TorchFileError(
                    f"not a readable state dict ({name} is no step of pickle protocol 2, in which torch.save "
                    "writes; save it without pickle_protocol)"
                )

    def _popped(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("a pickle takes more than it has")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unread):
            return
        if not isinstance(target, list):
            raise TypeError("a pickle appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unread):
            return
        if not isinstance(target, dict):
            raise TypeError("a pickle sets keys of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set_item(target, key, value)

    def _set_state(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, OrderedDict) and isinstance(state, dict):
            if "_metadata" in state:
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif not isinstance(target, Unread):
            raise TypeError("a pickle sets the state of what has none")

    def _by_key(self, told: Any) -> StoredStorage | _Name:
        """What stands outside the pickle: a storage, or, before torch 1.6, the class of a module with its source."""
        match told:
            case ("storage", _Name(kind), str(key), _, int(length), *view) if kind in _STORAGE_TYPES:
                dtype = _STORAGE_TYPES[kind]
                self.storages.setdefault(key, dtype)
                match view:
                    case [(_, int(start), int(part))] if _are_sizes(length, start, part) and start + part <= length:
                        return StoredStorage(dtype, key, start, part)
                    case [] | [None] if _are_sizes(length):
                        return StoredStorage(dtype, key, 0, length)
            case ("module", _Name() as kind, *_):
                return kind
            case ("storage", _Name(kind), *_) if kind not in _STORAGE_TYPES:
                raise TorchFileError(
                    f"holds {ascii(kind)[:_SHOWN]}, which no state dict has; save model.state_dict() alone"
                )
        raise TorchFileError("not a readable state dict (a storage is none)")

    def _call(self, function: Any, arguments: Any) -> object:
        """The result where it is a tensor of the file or a dict, else a mark."""
        mark = _made(function, arguments)
        if isinstance(function, Unread):
            return mark
        if function.name == _ORDERED:
            return self._ordered(arguments)
        match function.name, arguments:
            case name, (_Name(inner), _Name(kind), tuple(values), _) if (
                name == _TYPED and inner in _REBUILDS and kind in _TENSOR_TYPES
            ):
                found = _rebuilt(inner, values)
            case name, values:
                found = _rebuilt(name, values)
        return found or mark

    def _ordered(self, arguments: tuple[Any, ...]) -> OrderedDict[Any, Any]:
        """Empty, or of a list of pairs, as Python 2 wrote it."""
        result: OrderedDict[Any, Any] = OrderedDict()
        match arguments:
            case ():
                pass
            case (list(pairs),):
                self._count(len(pairs))  # the same list can be named again and again
                for pair in pairs:
                    if not (isinstance(pair, list | tuple) and len(pair) == 2):
                        raise TypeError("a pickle makes a dict of what are no pairs")
                    _set_item(result, *pair)
            case _:
                raise TorchFileError(
                    "holds an OrderedDict made of other things than pairs; save model.state_dict() alone"
                )
        return result


def _made(function: Any, arguments: Any) -> Unread:
    """A mark. What is called may be one, too: a class within a class is the result of ``getattr``."""
    if not isinstance(function, _Name | Unread) or not isinstance(arguments, tuple):
        raise TypeError("a pickle calls what is no function")
    return Unread(function.name)


def _set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Names are keys, and all else is one mark: hashing a tuple can take for ever, and many numbers have one hash."""
    target[key if isinstance(key, str) else _OTHER_KEY] = value


def _rebuilt(name: str, values: tuple[Any, ...]) -> StoredTensor | None:
    """The tensor that one of torch's functions makes; None when it is none that lies in the file as it is."""
    match name, values:
        case _, (StoredTensor() as tensor, _, _, *_) if name in _PARAMETERS:
            return tensor
        case _, (StoredStorage() as storage, offset, shape, strides, *more) if name in (_TENSOR, _TENSOR_V2):
            return _placed(storage, storage.dtype, (offset, shape, strides), more[2:])
        case _, (StoredStorage() as storage, offset, shape, strides, _, _, _Name(kind), *more) if name == _TENSOR_V3:
            return _placed(storage, _DTYPES.get(kind), (offset, shape, strides), more)
    return None


def _placed(
    storage: StoredStorage, dtype: torch.dtype | None, where: tuple[Any, Any, Any], metadata: list[Any]
) -> StoredTensor | None:
    """Args:
    metadata: Bits of tensors that are to be conjugated or negated when they are read; none of a plain one.
    """
    offset, shape, strides = where
    if dtype not in _PLAIN or any(metadata) or (dtype != storage.dtype and storage.start):
        return None
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        return None
    if len(shape) > _MOST_DIMENSIONS or not _are_sizes(offset, *shape, *strides):
        return None
    return StoredTensor(storage, dtype, offset, shape, strides)


def _are_sizes(*numbers: Any) -> bool:
    return all(type(number) is int and 0 <= number <= _LARGEST for number in numbers)
