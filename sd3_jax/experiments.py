"""Finding and loading experiments and sweeps: shipped ones by name, the user's own by path."""

import difflib
import importlib.util
import json
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

import sd3_jax
from sd3_jax.errors import UserError

# Beside the package, in a checkout and in site-packages alike. They are never imported by name, which would find
# a folder "experiments" in the user's working directory first.
_ROOT = Path(sd3_jax.__file__).parent.parent
EXPERIMENTS = _ROOT / "experiments"
SWEEPS = _ROOT / "sweeps"


def load_experiment(name_or_path: str, relative_to: Path = Path()) -> dict[str, Any]:
    """The overlay that an experiment stands for, as a nested dictionary for :func:`sd3_jax.overlays.resolve`.

    A bare name is shipped (``experiments/NAME.py``); a path, relative to ``relative_to``, is a Python file with
    ``get_config() -> ConfigDict``, or a run's ``config.json``. Raises UserError, in one line, for an unknown name
    and for whatever goes wrong inside the file.
    """
    if Path(name_or_path).suffix not in (".py", ".json"):
        path = EXPERIMENTS / f"{name_or_path}.py"
        if not path.is_file():
            raise UserError(_unknown("experiment", name_or_path, EXPERIMENTS, "*.py"))
    else:
        path = relative_to / name_or_path
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such experiment file; {_shipped(EXPERIMENTS, '*.py')}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    if path.suffix == ".json":
        return _parse_json(path, text)
    return _run_python(path)


def find_sweep(name_or_path: str) -> Path:
    """The YAML of a sweep, given by path, or by the name of a shipped one (``figure8`` or ``figure8.yaml``)."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.name == name_or_path:
        shipped = SWEEPS / f"{name_or_path.removesuffix('.yaml')}.yaml"
        if shipped.is_file():
            return shipped
    raise UserError(_unknown("sweep", name_or_path, SWEEPS, "*.yaml"))


def _parse_json(path: Path, text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no configuration; expected the config.json of a run")
    return tree


def _run_python(path: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"{path}: defines no get_config(); an experiment returns a ConfigDict from it")
        config = get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}:{_line(path, error)}: {_message(error)}") from None
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; expected a ConfigDict")
    return config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)


def _line(path: Path, error: BaseException) -> int:
    """Where in the file it went wrong: the line of a syntax error, else the innermost frame within the file."""
    file = os.path.abspath(path)
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno or 1
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return (frames[-1] if frames else None) or 1


def _message(error: BaseException) -> str:
    """The error in one line of bounded length."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    unknown = re.search(r'Key "(\w+)" does not exist', text)
    if unknown:  # a locked ConfigDict's message lists every field there is
        meant = re.search(r'Did you mean "(\w+)"', text)
        return f"unknown key {unknown[1]}" + (f": did you mean {meant[1]}?" if meant else "")
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0][:300]}".removesuffix(": ")


def _unknown(what: str, name: str, folder: Path, pattern: str) -> str:
    return f"no {what} {name!r}; {_shipped(folder, pattern, name)}; or give a path to a {pattern[1:]} file"


def _shipped(folder: Path, pattern: str, name: str = "") -> str:
    names = sorted(path.stem for path in folder.glob(pattern) if not path.stem.startswith("_"))
    return f"shipped: {', '.join(_nearest_first(names, Path(name).stem)) or 'none'}"


def _nearest_first(names: Iterable[str], name: str) -> list[str]:
    return sorted(names, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
