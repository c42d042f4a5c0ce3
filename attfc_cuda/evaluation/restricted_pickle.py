"""Reads the pickles of verification sets without running what a pickle may say.

A pickle is a program: Python's own reader imports and calls whatever it names. Here the opcodes, taken apart by
`pickletools`, move plain values on a stack, and that is all: bytes, text, numbers, booleans, lists, tuples, and numpy
arrays as the bytes they were made of. Nothing is imported or called; every other opcode or name is an error.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
from dataclasses import dataclass
from typing import Any

from attfc_cuda.data.sources.checked_file import CheckedFile

MAX_BYTES = 2**32

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSH = {
    *_CONSTANTS,
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
# Python 2's strings are bytes; pickletools shows them as text in latin-1.
_PUSH_BYTES = {"SHORT_BINSTRING", "BINSTRING"}
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_NAMES = {
    **{(module, name): name for module in _MODULES[:2] for name in ("_reconstruct", "scalar")},
    **{(module, "_frombuffer"): "_frombuffer" for module in _MODULES[2:]},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",  # how Python 3 writes bytes for protocols 0 to 2
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
}
_CODE = re.compile(r"[<>|=]?([buif][1248]|\?)")


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass
class _Dtype:
    code: str


@dataclass
class Array:
    """A numpy array, or numpy scalar (shape ()), as it stands in the pickle.

    Attributes:
        shape: its sizes.
        code: its type, such as `u1` or `b1`.
        raw: its bytes.
    """

    shape: tuple[int, ...] = ()
    code: str = ""
    raw: bytes = b""


class _Refused(Exception):
    pass


def read_pickle(path: str | os.PathLike) -> Any:
    """What the pickle in a file holds: bytes, str, int, float, bool, None, lists, tuples and `Array`s.

    Raises:
        DamagedFile: naming file and offset for anything else.
        OSError: for a file that cannot be read.
    """
    file = CheckedFile(path)
    if file.size > MAX_BYTES:
        raise file.damaged(MAX_BYTES, "be the end of it", f"{file.size} bytes")
    machine, place = _Machine(), 0
    try:
        for opcode, argument, position in pickletools.genops(io.BytesIO(file.read(0, file.size))):
            place = position
            if opcode.name == "STOP":
                break
            machine.do(opcode.name, argument)
        (value,) = machine.stack
    except _Refused as cause:
        rule = "hold bytes, numbers, lists, tuples or numpy arrays only (nothing was run)"
        raise file.damaged(place, rule, str(cause)) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as cause:
        text = f"{type(cause).__name__}: {' '.join(str(cause).split())[:120]}"
        raise file.damaged(place, "go on as a pickle does", text) from cause
    return value


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSH:
            value = _CONSTANTS.get(name, argument)
            stack.append(bytes(value) if isinstance(value, bytearray) else value)
        elif name in _PUSH_BYTES:
            stack.append(argument.encode("latin-1"))
        elif name in _PUT:
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _GET:
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.outer.append(stack)
            self.stack = []
        elif name in ("EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append([] if name == "EMPTY_LIST" else ())
        elif name == "APPEND":
            value = stack.pop()
            _only(list, stack[-1]).append(value)
        elif name in ("APPENDS", "LIST", "TUPLE"):
            self.stack = self.outer.pop()
            if name == "APPENDS":
                _only(list, self.stack[-1]).extend(stack)
            else:
                self.stack.append(tuple(stack) if name == "TUPLE" else stack)
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError("a tuple of more than there is")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(_known(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_known(module, attribute))
        elif name == "REDUCE":
            arguments, function = _only(tuple, stack.pop()), _only(_Name, stack.pop())
            stack.append(_made(function.name, arguments))
        elif name == "BUILD":
            state = _only(tuple, stack.pop())
            _build(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"the opcode {name}")


def _known(module: Any, attribute: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(attribute, str) and (module, attribute) in _NAMES):
        raise _Refused(f"{str(module)[:60]}.{str(attribute)[:60]}" if isinstance(module, str) else "a name of no text")
    return _Name(_NAMES[module, attribute])


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """What calling the function of this name would have made."""
    if name == "_reconstruct":
        return Array()  # filled by the state that follows
    if name == "dtype":
        return _Dtype(_type_code(arguments[0]))
    if name == "scalar":
        return Array((), _only(_Dtype, arguments[0]).code, _only(bytes, arguments[1]))
    if name == "_frombuffer":
        buffer, dtype, shape = arguments[:3]
        return Array(_shape(shape), _only(_Dtype, dtype).code, _only(bytes, buffer))
    if name == "encode" and arguments[1:] in (("latin1",), ("latin-1",)):
        return _only(str, arguments[0]).encode("latin-1")
    if name == "bytes" and not arguments:
        return b""
    raise _Refused(f"a call of {name}")


def _build(what: Any, state: tuple[Any, ...]) -> None:
    if isinstance(what, Array):
        _, shape, dtype, _, raw = state
        what.shape, what.code, what.raw = _shape(shape), _only(_Dtype, dtype).code, _only(bytes, raw)
    elif isinstance(what, _Dtype):
        if any(part is not None for part in state[2:5]):
            raise _Refused("a numpy type with fields")
        what.code = _type_code(what.code)
    else:
        raise _Refused(f"a state for {type(what).__name__}")


def _type_code(code: Any) -> str:
    text = code.decode("latin-1") if isinstance(code, bytes) else _only(str, code)
    match = _CODE.fullmatch(text)
    if match is None:
        raise _Refused(f"the numpy type {text[:40]!r}")
    return match[1]


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(_only(int, size) for size in _only(tuple, shape))


def _only(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"a {type(value).__name__} where a {kind.__name__.lstrip('_')} belongs")
    return value
