"""Which cell is next, and whose: the claims that the workers of a sweep make."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd3_jax import lease, records
from sd3_jax.lease import Lease, Watch
from sd3_jax.sweep.spec import Cell

SETTLED = ("done", "failed")


@dataclass(frozen=True)
class Claim:
    """A cell that this worker is to run, and the lease that says so."""

    cell: Cell
    lease: Lease


def claim_next(
    cells: Sequence[Cell],
    runs_dir: Path,
    watch: Watch,
    tried: Collection[str] = (),
    running: Collection[str] = (),
) -> Claim | bool:
    """Claim the first cell that is neither settled nor held; if there is none, whether one may come free later.

    A branch waits for its parent, and is given up with it: when the parent has failed, or is of those ``tried`` here or
    no cell of ours, and nobody runs it. ``running``: cells of this worker. Raises UserError where it may not claim.
    """
    names, waiting = {cell.name for cell in cells}, False
    for cell in cells:
        run_dir = runs_dir / cell.name
        if cell.name in tried or records.status(run_dir) in SETTLED:
            continue
        if cell.parent and (status := records.status(runs_dir / cell.parent)) != "done":
            over = cell.parent not in running and (cell.parent in tried or cell.parent not in names)
            waiting |= status != "failed" and not (over and not watch.is_alive(runs_dir / cell.parent))
            continue
        waiting = True
        found = lease.claim(run_dir, watch)
        if found is None:
            continue
        if records.status(run_dir) not in SETTLED:
            return Claim(cell, found)
        lease.give_up(found)  # another process settled it since we looked
    return waiting
