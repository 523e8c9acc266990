"""Tensors of a checkpoint of torch before 1.6, read without running it: its pickle is looked at, never unpickled.

The file is five pickles (a magic number, a version, sizes of types, the tensors by name, the order of the storages),
then each storage: its length as int64 and its numbers. Of pickle's operations those few are followed that a dictionary
of tensors is written with, and of names the two that it calls; anything else is an error.
"""

import io
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from sd3_jax.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {"FloatStorage": np.float32, "LongStorage": np.int64, "HalfStorage": np.float16, "DoubleStorage": np.float64}
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_PUSHED = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_MADE: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None}
_MADE |= {"NEWFALSE": lambda: False, "NEWTRUE": lambda: True}
_MARK = object()


def load(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The tensors of a file by their names. Raises UserError for a file that is anything else, or is cut short."""
    try:
        file = io.BytesIO(path.read_bytes())
        magic, version, _, tensors, keys = (_read(file) for _ in range(5))
        if (magic, version) != (_MAGIC, 1001):
            raise ValueError("another format")
        types = {key: kind for kind, key, *_ in tensors.values()}
        stored = {}
        for key in keys:
            (count,), kind = np.frombuffer(file.read(8), "<i8"), np.dtype(_TYPES[types[key]]).newbyteorder("<")
            stored[key] = np.frombuffer(file.read(int(count) * kind.itemsize), kind, int(count))
        return {name: _view(stored[key], *place) for name, (_, key, *place) in tensors.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: is not a checkpoint of tensors alone as torch wrote them before 1.6 ({error})"
        ) from None


def _view(
    storage: Shaped[np.ndarray, " n"], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """A tensor in its storage, whose axes may lie there in any order."""
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if min([offset, *shape, *strides]) < 0 or last >= len(storage):
        raise ValueError("a tensor is larger than its storage")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * storage.itemsize for stride in strides]
    ).copy()


def _read(file: io.BytesIO) -> Any:
    """One pickle of plain values and tensors; of a tensor its type, storage, offset, shape and strides."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        at = len(stack) - 1 - [one is _MARK for one in reversed(stack)].index(True)
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    given: Any
    for operation, given, _ in pickletools.genops(file):
        name = operation.name
        if name in _PUSHED:
            stack.append(given)
        elif name in _MADE:
            stack.append(_MADE[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[given] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[given])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "APPENDS":
            own = marked()
            stack[-1].extend(own)
        elif name in ("SETITEM", "SETITEMS"):
            own = marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(own[::2], own[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_global(given))
        elif name == "BINPERSID":
            _, kind, key, *_ = stack.pop()
            stack.append((kind, key))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            if called == _DICT and not arguments:
                stack.append({})
            elif called == _TENSOR:
                (kind, key), offset, shape, strides, *_ = arguments
                stack.append((kind, key, offset, shape, strides))
            else:
                raise ValueError("it calls what makes no tensor")
        elif name == "BUILD":
            stack.pop()  # what a module says of its version
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"operation {name}")
    raise ValueError("cut short")


def _global(name: str) -> str:
    if name in (_DICT, _TENSOR):
        return name
    module, _, kind = name.partition(" ")
    if module == "torch" and kind in _TYPES:
        return kind
    raise ValueError(f"it names {name}")
