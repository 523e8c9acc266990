"""What runs have learnt, without a judge of pictures: their loss on another set, and what they know by heart."""

import sys
from pathlib import Path
from typing import Any

from sd3_jax import terminal
from sd3_jax.cli.pictures import progress
from sd3_jax.errors import UserError


def show_losses(
    runs: list[Path],
    folders: list[Path],
    where: Path,
    levels: str,
    weights: Any,
    steps: list[int] | None,
    json_file: str | None,
) -> None:
    """The validation loss of runs on a prepared set, beside the one published number of its kind."""
    from sd3_jax.evaluate import write_scores
    from sd3_jax.evaluation import likeness

    if levels not in ("every", "round-robin"):
        raise UserError(f"--levels: {levels!r} is not one of every, round-robin")
    if folders:
        raise UserError(f"{folders[0]}: a folder of pictures has no loss; --validation-loss takes runs")
    rows = []
    for run, own in due_steps(runs, steps, None).items():
        found = likeness.loss_rows(run, where, levels, weights, own)  # type: ignore[arg-type]
        write_scores(run, found)
        rows += [{"run": run.resolve().name, **row} for row in found]
    cells = [["run", "step", "loss", "examples", *(f"t {k}/8" for k in range(8))]]
    for row in rows:
        each = [f"{row[f'loss_t{k}']:.4f}" for k in range(8)]
        cells.append([row["run"], f"{row['step']:,}", f"{row['value']:.4f}±{row['se']:.4f}", f"{row['n']:,}", *each])
    beside = (
        "MLPerf Training's FLUX.1 target on COCO 2014, 29,696 pictures at 256 px, levels round-robin: 0.586. Only 16 "
        "channels at f = 8 of about unit variance are on its scale."
    )
    terminal.show([terminal.chart(f"{weights} weights on {where}, {levels} level", cells), beside], rows, json_file)


def show_memorised(
    runs: list[Path], steps: list[int] | None, sampler: Any, captions: int, json_file: str | None
) -> None:
    """The share of captions whose pictures come out alike, by run."""
    from sd3_jax.evaluate import write_scores
    from sd3_jax.evaluation import likeness, memorisation

    rows = []
    for run, own in due_steps(runs, steps, None).items():
        with progress(run.resolve().name, 2 * len(own) * captions * memorisation.EACH) as report:
            found = [likeness.memorisation_row(run, step, sampler, captions, report) for step in own]
        write_scores(run, found)
        rows += [{"run": run.resolve().name, **row} for row in found]
    cells = [["run", "step", "memorised", "of held out", "near the trained", "of held out", "captions"]]
    for row in rows:
        shares = [f"{100 * row[key]:.1f} %" for key in ("value", "chance", "near", "near_held_out")]
        cells.append([row["run"], f"{row['step']:,}", *shares, str(row["prompts"])])
    title = (
        f"{memorisation.CLIQUE} of {memorisation.EACH} pictures of a caption within {memorisation.NEAR} of one another"
    )
    terminal.show(terminal.chart(title, cells), rows, json_file)


def due_steps(runs: list[Path], steps: list[int] | None, reference: Path | None) -> dict[Path, list[int]]:
    """Which steps of each run are evaluated: those that are due, or those asked for that have a checkpoint."""
    from sd3_jax import evaluate
    from sd3_jax.evaluation.generate import steps_saved

    if not steps:
        return {run: evaluate.due_steps(run) for run in runs}
    found = {run: sorted(set(steps) & set(steps_saved(run))) for run in runs}
    for run, own in found.items():
        if not own and run == reference:
            found[run] = evaluate.due_steps(run)[-1:]
        elif not own:
            lacking = f"{run}: has no checkpoint of step {', '.join(map(str, steps))}"
            if len(runs) == 1:
                raise UserError(f"{lacking}; there are {', '.join(map(str, steps_saved(run)))}")
            print(f"note: {lacking}, and is left out", file=sys.stderr)
    if not any(found.values()):
        raise UserError(f"{runs[0]}: has no checkpoint of step {', '.join(map(str, steps))}, nor has any other run")
    return {run: own for run, own in found.items() if own}
