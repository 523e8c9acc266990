"""A sweep's YAML as a list of cells: reading it is the only effect, all else is a pure function.

::

    experiment: scenes_cpu            # a shipped name, or a path to a .py relative to this file
    set: {steps: 2000}                # laid over the experiment, for every cell
    cells:                            # each entry is the product of its lists; scalars are constants
      - {model.depth: [2, 3, 4], seed: 0}
      - {model.depth: 2, seed: [1, 2]}
      - {model.depth: 3, seed: 0, optimizer.cooldown: 0.2}
      - {model.depth: 4, seed: 1, optimizer.drops: [[[1000, 0.5]]]}  # a list-valued field: a list of its values

A cell's name says its depth, its seed, and what its entry changes: never what other entries do, so that adding
cells to a sweep renames none of those that have run.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3_jax import config as configs
from sd3_jax import formulations, overlays
from sd3_jax.config import RunConfig
from sd3_jax.errors import UserError
from sd3_jax.experiments import load_experiment
from sd3_jax.flops import total_steps

_KEYS = ("experiment", "set", "cells")
_SHORT = {
    "flops": "f",
    "steps": "n",
    "images": "i",
    "batch": "b",
    "optimizer.learning_rate": "lr",
    "optimizer.cooldown": "cooldown",
    "optimizer.drops": "drop",
    "model.architecture": "",
    "model.weight_sets": "sets",
    "model.head_dim": "h",
    "flow": "",
}
_SCIENTIFIC = ("flops", "optimizer.learning_rate")
_NAME_LENGTH = 100


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. ``parent`` names the cell whose checkpoint a cooldown branch starts from."""

    name: str
    config: RunConfig
    parent: str | None = None


def load(path: Path) -> list[Cell]:
    """The cells of a sweep file, parents before their branches, otherwise in the order of the file.

    Raises UserError that names the file for whatever is wrong with it.
    """
    document = read(path)
    try:
        experiment = load_experiment(document["experiment"], path.parent)
    except UserError as error:
        raise UserError(f"{path}: experiment: {error}") from None
    try:
        return cells(experiment, document["set"], document["cells"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def cells(experiment: Mapping[str, Any], common: Mapping[str, Any], entries: list[Mapping[str, Any]]) -> list[Cell]:
    """The cells that entries stand for, on top of an experiment and what all cells have in common.

    Raises UserError for an invalid cell and for two equal ones, naming their entries (counted from 1).
    """
    base = _base(experiment, common)
    found: list[tuple[int, Cell]] = []
    for number, entry in enumerate(entries, 1):
        axes = {key: value if isinstance(value, list) else [value] for key, value in configs.flatten(entry)}
        for key, values in axes.items():
            if not values:
                raise UserError(f"cells: entry {number}: {key}: an empty list leaves no cell")
        for choice in itertools.product(*axes.values()):
            overlay = dict(zip(axes, choice, strict=True))
            try:
                config = overlays.resolve(experiment, common, overlay)
                total_steps(config)
            except UserError as error:
                raise UserError(f"cells: entry {number}: {error}{_hint(error, overlay)}") from None
            named = [key for key in axes if _is_named(key, len(axes[key]), base, _flat(config))]
            found.append((number, Cell(_name(config, named), config)))
    _refuse_duplicates(found)
    return _with_parents([cell for _, cell in found])


def branch_step(config: RunConfig) -> int:
    """The step after which the rate of a run with a cooldown begins to fall."""
    return configs.cooldown_start(config.optimizer, total_steps(config))


def read(path: Path) -> dict[str, Any]:
    """The document, with the types of its three sections checked. Raises UserError that names the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    document = overlays.read_yaml(text, str(path))
    if document is None:
        raise UserError(f"{path}: is empty; a sweep has the keys {', '.join(_KEYS)}")
    if not isinstance(document, dict):
        raise UserError(f"{path}: is a {type(document).__name__}; a sweep has the keys {', '.join(_KEYS)}")
    for key in document:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key {key!r}; a sweep has the keys {', '.join(_KEYS)}")
    if not isinstance(document.get("experiment"), str):
        raise UserError(f"{path}: experiment: expected a shipped name or a path to a .py file")
    common = document.get("set")
    common = {} if common is None else common
    _check_section(common, f"{path}: set")
    entries = document.get("cells")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: cells: expected a list with at least one entry, such as - {{model.depth: [2, 3]}}")
    for number, entry in enumerate(entries, 1):
        _check_section(entry, f"{path}: cells: entry {number}")
    return {"experiment": document["experiment"], "set": common, "cells": entries}


def _check_section(tree: Any, where: str) -> None:
    if not isinstance(tree, dict):
        raise UserError(f"{where}: {tree!r} is not a section of keys and values")
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{where}: {key!r} is not a key such as model.depth")
        if isinstance(value, dict):
            _check_section(value, f"{where}: {key}")


def _base(experiment: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """The values that every cell starts from; empty if only the cells make them valid."""
    for length in ({}, {"steps": 1}):
        try:
            base = _flat(overlays.resolve(experiment, common, length))
        except UserError:
            continue
        return {key: value for key, value in base.items() if not length or key not in configs.LENGTHS}
    return {}


def _flat(config: RunConfig) -> dict[str, Any]:
    """The fields of a run, and the name of its formulation as an entry may give it."""
    return dict(configs.flatten(configs.to_dict(config))) | {"flow": formulations.name_of(config.flow)}


def _is_named(key: str, choices: int, base: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a cell's name says the value: where it departs from the base, or is one of several and not nothing."""
    if key in ("model.depth", "seed") or key not in values:
        return False
    if key.partition(".")[0] in configs.FREE and key not in configs.LENGTHS:  # how it executes: not what it is
        return False
    return key not in base or values[key] != base[key] or (choices > 1 and bool(values[key]))


def _name(config: RunConfig, named: list[str]) -> str:
    values = _flat(config)
    parts = [f"{_SHORT.get(key, key.rpartition('.')[2])}{_text(key, values[key])}".lstrip("_") for key in named]
    name = "-".join([f"d{config.model.depth:02d}", *parts, f"s{config.seed}"])
    if len(name) <= _NAME_LENGTH:
        return name
    return f"d{config.model.depth:02d}-{configs.fingerprint(config)}-s{config.seed}"


def _text(key: str, value: Any) -> str:
    """A value as part of a file name: 1.0e15, 0.2, 300000x0.5, _uniform."""
    if isinstance(value, tuple):
        return "_".join("x".join(f"{x:g}" for x in item) if isinstance(item, tuple) else f"{item:g}" for item in value)
    if isinstance(value, float) and key in _SCIENTIFIC:
        texts = (f"{value:.{digits}e}" for digits in range(1, 18))
        return next(text for text in texts if float(text) == value).replace("e+", "e")
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if key == "flow":  # rf/lognorm(0.00, 1.00): rf-lognorm0.00_1.00
        return re.sub(r"[()]", "", value).replace(", ", "_").replace("/", "-").lower()
    return re.sub(r"[^\w.-]+", "_", f"_{value}".lower())  # of a path too


def _hint(error: UserError, overlay: Mapping[str, Any]) -> str:
    """What to write instead, where a list was taken as an axis but its field is list-valued itself."""
    for key in overlay:
        if str(error).startswith(key) and str(error).endswith("is not a list"):
            return f"; in cells a list is an axis of the product, so give {key} a list of its values"
    return ""


def _refuse_duplicates(found: list[tuple[int, Cell]]) -> None:
    names: dict[str, int] = {}
    contents: dict[tuple[str, int], tuple[int, str]] = {}
    for number, cell in found:
        content = (configs.fingerprint(cell.config), total_steps(cell.config))
        if content in contents:
            other, name = contents[content]
            same = cell.name if cell.name == name else f"{name} and {cell.name}"
            raise UserError(f"cells: entries {other} and {number} give the same cell twice: {same}")
        if cell.name in names:
            raise UserError(f"cells: entries {names[cell.name]} and {number} give two cells of one name: {cell.name}")
        names[cell.name] = number
        contents[content] = (number, cell.name)


def _with_parents(given: list[Cell]) -> list[Cell]:
    """Give each cooldown branch its parent, have the parents keep the checkpoint, and put them first."""
    trunks = {_trunk(cell.config): cell.name for cell in given if not cell.config.optimizer.cooldown}
    parents = {
        cell.name: trunks.get(_trunk(cell.config))
        for cell in given
        if cell.config.optimizer.cooldown and branch_step(cell.config)  # a cooldown from step 0 branches from nothing
    }
    keep: dict[str, set[int]] = {}
    for cell in given:
        parent = parents.get(cell.name)
        if parent is not None:
            keep.setdefault(parent, set()).add(branch_step(cell.config))
    linked = []
    for cell in given:
        steps = sorted(set(cell.config.keep_steps) | keep.get(cell.name, set()))
        config = dataclasses.replace(cell.config, keep_steps=tuple(steps))
        linked.append(Cell(cell.name, config, parents.get(cell.name)))
    return sorted(linked, key=lambda cell: cell.parent is not None)


def _trunk(config: RunConfig) -> tuple[str, int]:
    """What a branch shares with its parent: everything but the cooldown, and the length."""
    constant = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, cooldown=0.0))
    return configs.fingerprint(constant), total_steps(config)
