"""One cell of a sweep, trained by the processes of a group: claimed by the first of them, and said to the others."""

import itertools
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import jax

from sd3_jax import lease, records
from sd3_jax.errors import LeaseLost, RunFailed, Stopped, UserError
from sd3_jax.lease import Watch
from sd3_jax.sweep.claims import Claim, claim_next
from sd3_jax.sweep.hosts import EXIT_AGAIN, EXIT_BROKEN
from sd3_jax.sweep.run import by_priority, prepare
from sd3_jax.sweep.spec import Cell
from sd3_jax.train import train
from sd3_jax.training import group

POLL_SECONDS = 5.0  # between two looks for a cell, while other workers run those that are left
_WAIT, _DONE, _LEFT, _REFUSED = -1, -2, -3, -4  # in place of the number of a cell


def turn(cells: Sequence[Cell], runs_dir: Path) -> int:
    """Train the next cell of a sweep, in every process of a group; returns the exit status that all of them end with.

    EXIT_AGAIN after a cell, however it ended; EXIT_BROKEN if a process is gone; 0 if no cell is left and all are done,
    1 if some are not.

    Raises UserError, in every process, where the run directories hold something else, and Stopped as ``train`` does.
    """
    group.start()
    try:
        return _turn(cells, runs_dir)
    except Exception as error:
        if not group.is_broken(error):
            raise
        print(f"a process of this group is gone ({str(error)[:200]})", file=sys.stderr, flush=True)
        return EXIT_BROKEN


def _turn(cells: Sequence[Cell], runs_dir: Path) -> int:
    cells, watch = by_priority(cells), Watch()
    claim: Claim | None = None
    refusal: Exception = UserError("the first process of the group says why")
    with group.told_to_stop() as stop:
        for look in itertools.count(1):
            choice = _WAIT
            if jax.process_index() == 0:
                try:
                    if look == 1:
                        prepare(cells, runs_dir)
                    choice, claim = _choose(cells, runs_dir, watch)
                except (UserError, OSError) as error:  # a disk that is full or forbidden: the others must not wait
                    choice, refusal = _REFUSED, error
            choice = group.agreed(choice)
            if choice != _WAIT:
                break
            if stop(look):
                raise Stopped(f"{runs_dir}: told to stop while other workers run what is left")
            time.sleep(POLL_SECONDS)
        if choice == _REFUSED:
            raise refusal
        if choice in (_DONE, _LEFT):
            return 0 if choice == _DONE else 1
        _train(cells[choice], runs_dir, claim)
    return EXIT_AGAIN


def _choose(cells: Sequence[Cell], runs_dir: Path, watch: Watch) -> tuple[int, Claim | None]:
    claim = claim_next(cells, runs_dir, watch)
    if isinstance(claim, Claim):
        return [cell.name for cell in cells].index(claim.cell.name), claim
    if claim:
        return _WAIT, None
    return _DONE if all(records.status(runs_dir / cell.name) == "done" for cell in cells) else _LEFT, None


def _train(cell: Cell, runs_dir: Path, claim: Claim | None) -> None:
    """Train a cell, and where it fails, have the first process say why in its directory. Raises Stopped."""
    run_dir, parent = runs_dir / cell.name, runs_dir / cell.parent if cell.parent else None
    with lease.held(claim.lease) if claim else nullcontext() as own:
        try:
            train(cell.config, run_dir, parent, own)
            _say(own, f"{run_dir}: done")
        except Stopped:
            raise
        except (LeaseLost, RunFailed) as error:
            _say(own, str(error))
        except Exception as error:
            if group.is_broken(error):
                raise
            if not isinstance(error, UserError):
                traceback.print_exc()
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            _say(own, f"{run_dir}: {why}")
            if own:
                with suppress(OSError, LeaseLost):  # the reason may be a full disk
                    records.fail(run_dir, " ".join(why.split())[:500], own.check)


def _say(own: lease.Lease | None, line: str) -> None:
    if own:
        print(line, file=sys.stderr, flush=True)
