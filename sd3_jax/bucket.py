"""Where a run keeps its checkpoints: in its own directory, or in a bucket that machines without a shared disk share.

With ``checkpoint_root: gs://bucket/sweep`` the checkpoints of ``runs/sweep/d24-s0`` are below
``gs://bucket/sweep/d24-s0``. Records are written locally, and copied there whole before every checkpoint, so that there
is none without its rows; a machine that has none of them, or older ones, takes them from there before it goes on.
Scores may be written by any machine: they go there as soon as they are written here, and those there are the newer.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from sd3_jax import config as configs
from sd3_jax import records
from sd3_jax.config import RunConfig
from sd3_jax.errors import Stopped, UserError

ENDS = ("FAILED", "DONE")
_PASSING = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|TransportError|ServerDisconnected|Connect(ion|or)|[Tt]ime(d )?out|\b50[0234]\b"
)
RECORDS = ("config.json", "lives.jsonl", "metrics.jsonl", *records.MANIFESTS.values(), *ENDS)


def checkpoints(run_dir: Path, config: RunConfig) -> Path:
    """The directory of a run's checkpoints. Of a bucket it is an ``epath.Path``, which has Path's methods.

    Raises UserError where the package for it is missing.
    """
    there = _place(run_dir, config)
    return (there or run_dir.absolute()) / "checkpoints"


def is_bucket(place: Path | str) -> bool:
    """Whether a place is in a bucket, where an object is written at once, and no folder is renamed so."""
    return str(place).startswith("gs://")


def push(run_dir: Path, config: RunConfig) -> None:
    """Copy the records to where the checkpoints are, and drop there what is here no more, or past what is here."""
    there = _place(run_dir, config)
    if there is None:
        return
    with _reachable(there):
        there.mkdir(parents=True, exist_ok=True)
        _take_scores(there, run_dir, _progress(run_dir)[0])
        for name in (*RECORDS, records.SCORES):
            if (run_dir / name).exists():
                _write(there / name, (run_dir / name).read_bytes())
            elif (there / name).exists():
                (there / name).unlink()


def pull(run_dir: Path, config: RunConfig) -> None:
    """Take the records from where the checkpoints are, if the run has come further there than it has here.

    If it ended here, and a kill or the network came between that and its copy, the copy is made now. Raises UserError
    where another run's are there, and where the run's checkpoints were left where ``checkpoint_root`` was before.
    """
    _check_place(run_dir, config)
    there = _place(run_dir, config)
    if there is None:
        return
    with TemporaryDirectory() as temporary:
        copy = Path(temporary)
        with _reachable(there):
            for record in RECORDS:
                if (there / record).exists():
                    (copy / record).write_bytes((there / record).read_bytes())
        if not (copy / "lives.jsonl").exists():
            return
        changes = configs.difference(config, records.load_config(copy))
        if changes:
            raise UserError(f"{there}: holds another run ({'; '.join(changes)}): choose another checkpoint_root")
        if _progress(copy) > _progress(run_dir):
            for record in RECORDS:
                if (copy / record).exists():
                    records.write_atomic(run_dir / record, (copy / record).read_bytes())
                elif record in ENDS:  # of a shorter run, or of a life before
                    (run_dir / record).unlink(missing_ok=True)
        elif any((run_dir / end).exists() and not (copy / end).exists() for end in ENDS):
            push(run_dir, config)
        with _reachable(there):
            _take_scores(there, run_dir, _progress(run_dir)[0])


def put_scores(run_dir: Path, rows: Sequence[Mapping[str, Any]], whole: bool = False) -> None:
    """Write scores where the checkpoints are too, as :func:`records.put_scores` does here, which comes first.

    Where they cannot be written there now, a note says so. ``run_dir`` may be a folder of pictures: it has no other.
    """
    try:
        config = records.load_config(run_dir)
    except UserError:  # no run
        return
    try:
        there = _place(run_dir, config)
        if there is None:
            return
        with TemporaryDirectory() as temporary, _reachable(there):
            source = there if (there / records.SCORES).exists() else run_dir
            copy = Path(temporary) / records.SCORES
            copy.write_bytes((source / records.SCORES).read_bytes())
            records.put_scores(copy, rows, whole)
            there.mkdir(parents=True, exist_ok=True)
            _write(there / records.SCORES, copy.read_bytes())
    except (Stopped, UserError) as error:
        print(f"note: scores are in {run_dir / records.SCORES} alone: {error}", file=sys.stderr)


def _take_scores(there: Path, run_dir: Path, last: int) -> None:
    """Put the scores that are there, up to the step ``last``, in place of older ones here."""
    if not (there / records.SCORES).exists():
        return
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / records.SCORES
        copy.write_bytes((there / records.SCORES).read_bytes())
        rows = [row for row in records.read_scores(copy)[0] if row.get("step", 0) <= last]
    known = {json.dumps(row, sort_keys=True) for row in records.read_scores(run_dir / records.SCORES)[0]}
    if any(json.dumps(row, sort_keys=True) not in known for row in rows):  # a run that is done may be read alone
        records.put_scores(run_dir / records.SCORES, rows, whole=True)


def refuse_passing(there: Path, error: Exception) -> None:
    """Raises Stopped for an error of the network between us and a bucket: nothing is wrong with the run."""
    said = f"{type(error).__name__}: {error}"
    if is_bucket(there) and _PASSING.search(said):
        raise Stopped(f"{there}: cannot be reached now ({said[:200]}); the same command goes on") from None


def _check_place(run_dir: Path, config: RunConfig) -> None:
    """Raises UserError where the run would begin anew and lose its rows: its checkpoints are in another place."""
    if not (run_dir / "config.json").exists():
        return
    before = records.load_config(run_dir)
    if before.checkpoint_root == config.checkpoint_root:
        return
    old, new = checkpoints(run_dir, before), checkpoints(run_dir, config)
    with _reachable(old):
        left = old.exists() and not new.exists()
    if left:
        raise UserError(
            f"{run_dir}: its checkpoints are in {old}, and none in {new}: copy them, or let checkpoint_root be"
        )


def _place(run_dir: Path, config: RunConfig) -> Path | None:
    if not config.checkpoint_root:
        return None
    from etils import epath

    try:
        return cast(Path, epath.Path(config.checkpoint_root) / run_dir.absolute().name)
    except ImportError:
        raise UserError(
            f"checkpoint_root: {config.checkpoint_root} needs the package gcsfs: pip install 'sd3_jax[gcs]'"
        ) from None


def _write(path: Path, content: bytes) -> None:
    """An object of a bucket is replaced at once; a file is, through another."""
    if is_bucket(path):
        path.write_bytes(content)
    else:
        records.write_atomic(path, content)


def _progress(folder: Path) -> tuple[int, int, bool]:
    """Rows first: a checkpoint may be of the last of them, and whoever goes on from it needs them all."""
    rows = records.read_rows(folder / "metrics.jsonl")[0]
    lives = records.read_rows(folder / "lives.jsonl")[0]
    return max((row.get("step", 0) for row in rows), default=0), len(lives), (folder / "DONE").exists()


@contextmanager
def _reachable(there: Path) -> Iterator[None]:
    """Whatever a network and its client raise, in one line: Stopped for what may pass, else UserError."""
    try:
        yield
    except Exception as error:
        refuse_passing(there, error)
        reason = (str(error).partition("\n")[0] or type(error).__name__)[:200]
        raise UserError(f"{there}: cannot be reached ({reason})") from None
