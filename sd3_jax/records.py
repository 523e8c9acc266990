"""The run directory: all that passes between training and analysis.

::

    config.json     the resolved RunConfig
    lives.jsonl     one line per start: versions, device, mesh, plan (steps, images, flops), step resumed from
    metrics.jsonl   one line per measurement, split "train" or "validation"
    evals.jsonl     one line per score of its pictures
    checkpoints/    Orbax
    samples/        pictures in GenEval's layout, a folder for each step and setting, its name beginning with the step
    data_manifest.json, validation_manifest.json   of the prepared sets that it reads, as they were when it began
    DONE | FAILED   DONE: what was planned and spent, as JSON; FAILED: why, in one line

Rows are written whole, one to a line, by process 0; a line cut short by a crash is skipped by readers and
counted. Whole files are replaced, never edited.
"""

import fcntl
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from sd3_jax import config as configs
from sd3_jax import overlays
from sd3_jax.config import RunConfig
from sd3_jax.errors import UserError
from sd3_jax.flops import total_steps

SCORES = "evals.jsonl"
MANIFESTS = {"data": "data_manifest.json", "validation": "validation_manifest.json"}  # of prepared sets
Status = Literal["waiting", "started", "done", "failed"]
DRAWN = ("sampler", "steps", "guidance", "shift", "weights", "seed", "grid", "without")  # of a score: of what pictures
Check = Callable[[], None]  # raises if this process may write no more: it has lost its lease


def _free() -> None:
    """Nobody else can have the run."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The error of a full or forbidden disk names the file that was meant; of its own it names another, or none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def beside(path: Path) -> Path:
    """A hidden name next to ``path`` that nobody else has: containers that share a disk share process numbers too."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to make a file or a folder at, which then takes the place of ``path``; of a failure nothing is left."""
    temporary = beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # where nothing can be written, there is nothing
                temporary.unlink()


def write_atomic(path: Path, content: str | bytes, check: Check = _free) -> None:
    """Replace ``path`` by ``content`` so that a reader, or a crash, sees the old file or the new one."""
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            check()


def append(path: Path, row: Mapping[str, Any], check: Check = _free) -> None:
    """Add one row. Numbers that JSON lacks (nan, inf) become null."""
    line = json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False)
    with _named(path), open(path, "ab+") as file:
        check()  # after opening: a successor replaces the file (cut_after), and what we still write goes to the old one
        if file.tell():  # a crash may have left half a line: start on a fresh one
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode() + b"\n")


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole rows of a JSONL file, and how many lines were not one. A missing file has none."""
    rows, skipped = [], 0
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            elif line.strip():
                skipped += 1
    return rows, skipped


def check_run(run_dir: Path, config: RunConfig) -> None:
    """Raises UserError where :func:`open_run` would; writes nothing."""
    # Looked at first: config.json may appear meanwhile, and its temporary file, which is hidden, before it.
    names = [path.name for path in run_dir.iterdir() if path.name[0] != "."] if run_dir.exists() else []
    if (run_dir / "config.json").exists():
        old = load_config(run_dir)
        changes = configs.difference(config, old)
        if changes:
            raise UserError(f"{run_dir}: holds another run ({'; '.join(changes)}): choose another directory")
        steps, before = total_steps(config), total_steps(old)
        if config.optimizer.cooldown and steps != before:
            raise UserError(f"{run_dir}: a run with a cooldown cannot change its length")
        if steps < before and status(run_dir) != "waiting":
            raise UserError(f"{run_dir}: cannot be made shorter ({before} -> {steps} steps): choose another directory")
    elif names:
        raise UserError(f"{run_dir}: is not a run directory and not empty: choose another")


def open_run(run_dir: Path, config: RunConfig) -> None:
    """Make the directory, or check that it holds this very run, which may be made longer.

    Raises UserError if the directory belongs to a run of another identity, or if a run whose rate has begun to
    cool down would change its length.
    """
    check_run(run_dir, config)
    if (run_dir / "config.json").exists():
        old = load_config(run_dir)
        if old == config:  # a run that is done may lie where nothing can be written
            return
        if total_steps(old) != total_steps(config):
            (run_dir / "DONE").unlink(missing_ok=True)
    write_atomic(run_dir / "config.json", json.dumps(configs.to_dict(config), indent=1) + "\n")


def load_config(run_dir: Path) -> RunConfig:
    """The configuration of a run. Raises UserError if there is none, or if it is not one of ours."""
    path = run_dir / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{run_dir}: not a run directory (it has no config.json)") from None
    except ValueError:  # not JSON, or not UTF-8
        raise UserError(f"{path}: is not JSON") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is not a JSON object")
    try:
        return overlays.resolve(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], lines: Iterable[str] = ()) -> None:
    """Replace a JSONL file by these rows, and lines as they are. Numbers that JSON lacks (nan, inf) become null."""
    plain = ({key: _plain(value) for key, value in row.items()} for row in rows)
    text = [json.dumps(row, allow_nan=False) for row in plain]
    write_atomic(path, "".join(line + "\n" for line in [*text, *lines]))


def read_scores(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The scores in a file of them, and the lines that are none: a score has a name, a group and a value."""
    scores: list[dict[str, Any]] = []
    others: list[str] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        (scores if _is_score(row) else others).append(row if _is_score(row) else line)  # type: ignore[arg-type]
    return scores, others


def _is_score(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("step", 0), int) or isinstance(row.get("step"), bool):
        return False
    named = all(isinstance(row.get(key), str) for key in ("name", "group"))
    return named and isinstance(row.get("value"), int | float) and not isinstance(row["value"], bool)


def put_scores(path: Path, rows: Iterable[Mapping[str, Any]], whole: bool = False) -> None:
    """Write scores in place of older ones of the same score in the same setting; other lines stay as they are.

    ``whole``: they are all groups that a score has, and older ones of other groups go too. Any number of processes may
    do this at once: each holds the file's lock from reading to writing.
    """
    new = {_key(row): dict(row) for row in rows}
    families = {_family(row) for row in new.values()} if whole else set()
    with _locked(path):
        scores, others = read_scores(path)
        kept = [row for row in scores if _key(row) not in new and _family(row) not in families]
        ordered = sorted([*kept, *new.values()], key=lambda row: row.get("step", 0))
        write_rows(path, ordered, others)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (json.dumps(row["group"]), *_family(row))


def _family(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the groups of a score have in common. The mean of T2I-CompBench's categories is one, of however many."""
    drawn = ("step", *DRAWN)
    if row["name"].startswith("compbench") and (row["group"] == "overall" or row["group"].startswith("mean of ")):
        return ("mean of compbench", *(json.dumps(row.get(name)) for name in drawn))
    return tuple(json.dumps(row.get(name)) for name in ("name", *drawn, "prompt_list", "reference"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cut_after(run_dir: Path, step: int, check: Check = _free) -> None:
    """Drop the rows and pictures past ``step``, which a resumed run will make anew: a run never holds two histories."""
    for name in ("metrics.jsonl", SCORES):
        path = run_dir / name
        if path.exists():
            with _locked(path):
                check()
                write_rows(path, (row for row in read_rows(path)[0] if _is_within(row, step)))
    for folder in (run_dir / "samples").glob("[0-9]*-*"):
        if int(folder.name.partition("-")[0]) > step:
            shutil.rmtree(folder)


def _is_within(row: Mapping[str, Any], step: int) -> bool:
    return isinstance(row.get("step"), int) and row["step"] <= step


def finish(run_dir: Path, summary: Mapping[str, Any], check: Check = _free) -> None:
    """Mark the run as done."""
    check()
    (run_dir / "FAILED").unlink(missing_ok=True)
    write_atomic(run_dir / "DONE", json.dumps(dict(summary)) + "\n", check)


def fail(run_dir: Path, why: str, check: Check = _free) -> None:
    """Mark the run as failed, saying why in one line."""
    write_atomic(run_dir / "FAILED", " ".join(why.split()) + "\n", check)


def status(run_dir: Path) -> Status:
    """Where a run stands; ``waiting`` if it was never started."""
    if (run_dir / "DONE").exists():
        return "done"
    if (run_dir / "FAILED").exists():
        return "failed"
    return "started" if (run_dir / "lives.jsonl").exists() else "waiting"


def is_done(run_dir: Path, steps: int) -> bool:
    """Whether a run has ended, and is no longer to be than it is."""
    return status(run_dir) == "done" and total_steps(load_config(run_dir)) == steps


def find_runs(root: Path) -> list[Path]:
    """Every run directory at or under ``root``, sorted by name."""
    if (root / "config.json").exists():
        return [root]
    return sorted(path.parent for path in root.glob("*/config.json"))


def names_of(runs: Sequence[Path]) -> dict[Path, str]:
    """What each run is called in tables: its directory, with as many of those above as tell all runs apart.

    >>> list(names_of([Path("/a/d03-s0"), Path("/b/d03-s0")]).values())
    ['a/d03-s0', 'b/d03-s0']
    """
    parts = [run.resolve().parts for run in runs]
    deep = 1
    while len({part[-deep:] for part in parts}) < len({*parts}):
        deep += 1
    return {run: "/".join(part[-deep:]) for run, part in zip(runs, parts, strict=True)}


def last_row(rows: Iterable[dict[str, Any]], split: str) -> dict[str, Any] | None:
    """The newest row of a split."""
    return max((row for row in rows if row.get("split") == split), key=lambda row: row["step"], default=None)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
