"""The one door into the schema: overlays are read, laid over the defaults, coerced and checked.

Three ways of writing a configuration meet in :func:`resolve`: an experiment file (a locked
``ml_collections.ConfigDict``), ``--set key=value`` strings, and a sweep's YAML. Whatever comes in, a
validated, frozen :class:`RunConfig` comes out, or a :class:`UserError` that names the key, the value and
what would be valid.
"""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from sd3_jax import formulations
from sd3_jax.checks import check
from sd3_jax.config import LENGTHS, RunConfig, flatten, to_dict
from sd3_jax.errors import UserError


def resolve(*overlays: Mapping[str, Any]) -> RunConfig:
    """The defaults with each overlay laid over them in turn, coerced and validated.

    Keys are dotted (``model.depth``) or nested. A length (steps, images or flops) replaces the length that an
    earlier overlay gave, and ``flow`` with a name, such as eps/linear, all of the flow but its shift.

    >>> resolve({"steps": 10}, {"model.depth": "4", "flops": "1e15"}).flops
    1000000000000000.0
    """
    values: dict[str, Any] = {}
    for overlay in overlays:
        flat = {key: value for key, value in flatten(overlay) if key not in LENGTHS or value is not None}
        lengths = [key for key in LENGTHS if key in flat]
        if len(lengths) > 1:
            raise UserError(f"{' and '.join(lengths)} are both set: give exactly one of steps, images and flops")
        if lengths:
            values = {key: value for key, value in values.items() if key not in LENGTHS}
        if isinstance(name := flat.get("flow"), str):
            fields = {f"flow.{key}": value for key, value in formulations.parse(name).items()}
            flat = fields | {key: value for key, value in flat.items() if key != "flow"}
        values |= flat
    config = _build(RunConfig, _nest(values), "")
    check(config)
    return config


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the last of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """Safe-loaded YAML. Raises UserError that says where for anything that is not: tags, equal keys, broken text."""
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: broken YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise UserError(f"{where}: broken YAML: nested too deeply") from None
    except (ValueError, KeyError, IndexError, AttributeError):  # a scalar that is not what its tag or form says
        raise UserError(
            f"{where}: broken YAML: a value is not what its form says, such as the date 2020-13-45"
        ) from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``["model.depth=4", "seed=1"]`` as an overlay; values are read as YAML scalars or lists."""
    overlay = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment!r}: expected key=value, for example --set model.depth=4")
        overlay[key.strip()] = read_yaml(text, f"--set {assignment!r}")
    return overlay


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{key}: {parent} is both a value and a section")
        node[leaf] = value
    return tree


def _build(kind: type, tree: Any, path: str) -> Any:
    """A dataclass from a nested dictionary, every value coerced to its field's type."""
    if not isinstance(tree, dict):
        raise UserError(f"{path.rstrip('.')}: {tree!r} is not a section; its keys are {', '.join(_names(kind))}")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise UserError(f"unknown key {path}{key}: {_nearest(path + str(key))}")
    values = {}
    for spec in dataclasses.fields(kind):
        if spec.name not in tree:
            continue
        value, name = tree[spec.name], path + spec.name
        if dataclasses.is_dataclass(hints[spec.name]):
            values[spec.name] = _build(hints[spec.name], value, name + ".")
        else:
            values[spec.name] = _in_range(_coerce(hints[spec.name], value, name), spec, name)
    return kind(**values)


def _names(kind: type) -> list[str]:
    return [spec.name for spec in dataclasses.fields(kind)]


def _nearest(key: str) -> str:
    valid = [name for name, _ in flatten(to_dict(RunConfig()))]
    leaf = key.rpartition(".")[2]
    close = [name for name in valid if name.rpartition(".")[2] == leaf]  # the right name in the wrong section
    close += difflib.get_close_matches(key, _names(RunConfig), n=1, cutoff=0.7)
    close += difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"the sections are {', '.join(_names(RunConfig))}"


def _coerce(kind: Any, value: Any, name: str) -> Any:
    """``value`` as ``kind``, without guessing: a bool is no int, and 2.5 is no int; "1e15" is a float."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{name}: {value!r} is not one of {', '.join(map(str, arguments))}")
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _coerce(arguments[0], value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{name}: {value!r} is not a list")
        return tuple(_coerce(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise UserError(f"{name}: {value!r} is not true or false")
    if kind is str:
        if isinstance(value, str):
            return value
        raise UserError(f"{name}: {value!r} is not text")
    number = None
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        with contextlib.suppress(ValueError, OverflowError):
            number = value if isinstance(value, int) and abs(value) < 1e300 else float(value)
    if number is None or not math.isfinite(number):
        raise UserError(f"{name}: {value!r} is not {'a whole' if kind is int else 'a finite'} number")
    if kind is int and number != int(number):
        raise UserError(f"{name}: {value!r} is not a whole number")
    return kind(number)


def _in_range(value: Any, spec: dataclasses.Field, name: str) -> Any:
    low, high = spec.metadata.get("low", -math.inf), spec.metadata.get("high", math.inf)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise UserError(f"{name}: {number} is out of range; valid: {low:,g} to {high:,g}")
    return value
