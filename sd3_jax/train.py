"""The story of a run, told in sections: from a configuration to a directory of records.

Running the same command again resumes: the state is restored from the newest checkpoint, and since keys and
batches are functions of (seed, step), the numbers are those of a run that was never interrupted.
"""

import importlib.metadata
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sd3_jax import bucket, flops, initial, records, trackers
from sd3_jax import config as configs
from sd3_jax.config import RunConfig, cooldown_start
from sd3_jax.errors import RunFailed, Stopped, UserError
from sd3_jax.evaluation import validation
from sd3_jax.lease import Lease
from sd3_jax.training import checkpoint, encoded, group, optimizer, sharding
from sd3_jax.training.step import compute_dtype, jit_step, make_begin, make_draw, make_init, make_model


class Diverged(RunFailed):
    """The loss stopped being a number. FAILED is written; the last good checkpoint is kept."""


def train(
    config: RunConfig, run_dir: Path, branch_from: Path | None = None, lease: Lease | None = None
) -> Mapping[str, Any]:
    """Run, or resume, one run; returns the summary that is its DONE file. All processes of a group call it.

    ``branch_from``: the directory of a run that differs only in having no cooldown; what it has done up to the
    cooldown is taken over from its newest checkpoint there. ``lease``: process 0's claim on the run, which is looked at
    before anything is written.

    Raises UserError for bad input, Diverged for a loss that is not finite, Stopped after saving, at SIGTERM or a notice
    of preemption, and LeaseLost if another process has taken the run over.
    """
    # --- what is asked for -----------------------------------------------------------------------------------
    steps = flops.total_steps(config)
    trackers.check(config.trackers)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    writes = jax.process_index() == 0
    check = lease.check if lease else lambda: None
    if writes:
        bucket.pull(run_dir, config)
        records.check_run(run_dir, config)
    prepared = None
    if config.data.source == "encoded" and not group.agreed(records.is_done(run_dir, steps)):
        prepared = encoded.find(config, run_dir, branch_from)  # before anything of the run is changed
    if writes:
        records.open_run(run_dir, config)
    if group.agreed(records.status(run_dir) == "done"):
        return records.read_rows(run_dir / "DONE")[0][0] if writes else {}  # the others may share no disk with it
    if writes:
        (run_dir / "FAILED").unlink(missing_ok=True)
        if prepared:
            encoded.keep(prepared, config, run_dir)
    image_flops = flops.image_flops(config)
    budgets = {budget: flops.steps_within(config, budget) for budget in config.evaluation.budgets}
    budget_steps = frozenset(step for step in budgets.values() if 1 <= step <= steps)

    # --- the state, made or restored directly onto the mesh ---------------------------------------------------
    init = make_init(config, steps)
    seed = np.uint32(config.seed)
    shapes = jax.eval_shape(init, seed)
    shardings = sharding.state_shardings(mesh, shapes)
    source, start = _resume_point(config, run_dir, branch_from, steps)
    given = initial.find(config) if config.init_from and source is None else None
    if branch_from and source != run_dir and start < cooldown_start(config.optimizer, steps):
        print(f"note: {branch_from} has no checkpoint at the cooldown: {run_dir} starts at {start}", file=sys.stderr)
    if source:
        own = source == run_dir
        state, start = checkpoint.restore_newest(
            bucket.checkpoints(source, config), start, shapes, shardings, set_aside=own
        )
    elif given:
        params = initial.parameters(given, config.model, mesh)
        state = jax.jit(make_begin(config, steps), out_shardings=shardings, donate_argnums=0)(params)
    else:
        state = jax.jit(init, out_shardings=shardings)(seed)
    seconds_before = 0.0
    if writes:
        records.cut_after(run_dir, start, check)
        rows, _ = records.read_rows(run_dir / "metrics.jsonl")
        seconds_before = max((row.get("seconds", 0.0) for row in rows), default=0.0)
        life = (
            _life(config, mesh, steps, start) | (given.origin if given else {}) | (prepared.origin if prepared else {})
        )
        records.append(run_dir / "lives.jsonl", life, check)

    # --- the functions of the loop ----------------------------------------------------------------------------
    draw = encoded.make_draw(config, mesh, prepared.train) if prepared else make_draw(config, mesh)
    train_step = jit_step(config, steps, mesh, shardings)
    evaluate = validation.make_eval(config, make_model(config.model, config.mesh), mesh, prepared and prepared.held)
    owner, folder = group.agreed(lease.number if lease else 0), bucket.checkpoints(run_dir, config)
    saver = checkpoint.Saver(folder, config.keep_steps, owner, check, lambda: bucket.push(run_dir, config))
    rate_of = optimizer.schedule(config.optimizer, config.model.width, steps)
    peak = flops.peak_flops(jax.devices()[0].device_kind)
    began = saved = time.monotonic()

    def record(step: int, split: str, values: Mapping[str, Any]) -> None:
        if writes:
            images = step * config.batch
            spent = {"step": step, "images": images, "flops": float(images * image_flops)}
            seconds = round(seconds_before + time.monotonic() - began, 3)
            row = {"split": split, **spent, "seconds": seconds, **values}
            records.append(run_dir / "metrics.jsonl", row, check)
            track(row)

    # --- the loop ---------------------------------------------------------------------------------------------
    pending: list[dict[str, jax.Array]] = []  # metrics of steps since the last row, still on the device
    tick, waited = time.monotonic(), 0.0  # ... and the seconds that reading what was prepared has kept them
    copies = trackers.tracking(config.trackers if writes else (), run_dir, configs.to_dict(config))
    bar, signals = _progress(run_dir.name, steps, start), group.told_to_stop()
    with copies as track, bar as report, signals as stop, closing(saver):  # what is being saved is saved
        for step in range(start + 1, steps + 1):
            asked = time.monotonic()
            drawn = draw(seed, np.int32(step - 1))
            waited += time.monotonic() - asked
            state, metrics = train_step(state, drawn)
            pending.append(metrics)
            if len(pending) > 1:  # two steps in flight keep the device busy; more would only pile up batches
                jax.block_until_ready(pending[-2])
            due = validation.due(config, step, steps, budget_steps)
            # By the clock only where a row is due anyway: rows do not depend on when a checkpoint was saved.
            row_due, stopping = due or step % config.log_every == 0, stop(step)
            save = step == steps or step in config.keep_steps or stopping
            save |= row_due and bool(group.agreed(time.monotonic() - saved > config.checkpoint_seconds))
            if row_due or save:
                values = {key: float(np.mean([float(m[key]) for m in pending])) for key in metrics}
                now = time.monotonic()
                rate = len(pending) * config.batch / (now - tick)
                mfu = rate * image_flops / (peak * jax.device_count()) if peak else None
                speed = {"learning_rate": float(rate_of(step - 1)), "images_per_second": round(rate, 1), "mfu": mfu}
                if prepared:
                    speed["data_wait"] = round(waited / (now - tick), 4)
                record(step, "train", values | speed)
                report(step, values["loss"], rate, mfu)
                scores = {}
                if due:
                    scores = {"raw": evaluate(state.params), "ema": evaluate(state.ema)}
                if not all(math.isfinite(x) for x in (*values.values(), *(s["loss"] for s in scores.values()))):
                    saver.finish()
                    why = f"loss is not finite between steps {step - len(pending) + 1} and {step}"
                    if writes:
                        records.fail(run_dir, why, check)
                        bucket.push(run_dir, config)
                    raise Diverged(f"{run_dir}: {why}")
                pending = []
                if due:
                    labels = {
                        # Points that began from weights lie on no law of size and images seen.
                        "phase": "fine-tune" if config.init_from else optimizer.phase(config.optimizer, step, steps),
                        "budgets": [budget for budget, at in budgets.items() if at == step],
                    }
                    for weights, measured in scores.items():
                        record(step, "validation", {"weights": weights, **measured, **labels})
                if save:  # after the records of this step, which a resumed run would not write again
                    saver.save(step, state)
                    saved = time.monotonic()
                if stopping and step < steps:
                    raise Stopped(f"{run_dir}: told to stop, and saved at step {step}; the same command goes on")
                tick, waited = time.monotonic(), 0.0

    # --- the end ----------------------------------------------------------------------------------------------
    rows, _ = records.read_rows(run_dir / "metrics.jsonl")
    final = {row["weights"]: row["loss"] for row in rows if row["split"] == "validation" and row["step"] == steps}
    summary = {
        "steps": steps,
        "images": steps * config.batch,
        "flops": float(steps * config.batch * image_flops),
        "flops_planned": config.flops if config.flops is not None else float(steps * config.batch * image_flops),
        "seconds": round(seconds_before + time.monotonic() - began, 3),
        **{f"loss_{weights}": loss for weights, loss in final.items()},
    }
    if writes:
        records.finish(run_dir, summary, check)
        bucket.push(run_dir, config)
    return summary


def _resume_point(config: RunConfig, run_dir: Path, branch_from: Path | None, steps: int) -> tuple[Path | None, int]:
    """Whose checkpoint to start from, and its step: our own newest, else the parent's before the cooldown."""
    own = [step for step in checkpoint.saved_steps(bucket.checkpoints(run_dir, config)) if step <= steps]
    newest = group.agreed(own[-1] if own else 0)
    if newest:
        return run_dir, newest
    if branch_from is None:
        return None, 0
    if jax.process_index() == 0:  # the others may share no disk with it
        changes = configs.difference(config, records.load_config(branch_from))
        if [change.partition(":")[0] for change in changes] != ["optimizer.cooldown"]:
            said = "; ".join(changes) or "no difference"
            raise UserError(f"{branch_from}: not the same run without a cooldown ({said})")
    limit = cooldown_start(config.optimizer, steps)
    parents = [step for step in checkpoint.saved_steps(bucket.checkpoints(branch_from, config)) if step <= limit]
    newest = group.agreed(parents[-1] if parents else 0)
    return (branch_from, newest) if newest else (None, 0)


def _life(config: RunConfig, mesh: jax.sharding.Mesh, steps: int, start: int) -> dict[str, Any]:
    """What the records say of one start of the run."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        revision = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        revision = None
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "resumed_from": start,
        "steps": steps,
        "images": steps * config.batch,
        "flops": float(steps * config.batch * flops.image_flops(config)),
        "flops_per_image": flops.image_flops(config),
        "flops_per_image_exact": flops.image_flops(config, flops.exact_train_flops),  # without gradients to the inputs
        "parameters": flops.parameters(config.model).total,
        "identity": configs.fingerprint(config),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "dtype": jnp.dtype(compute_dtype(config.mesh)).name,
        "cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "revision": revision,
        "python": sys.version.partition(" ")[0],
        **{name: importlib.metadata.version(name) for name in ("sd3_jax", "jax", "flax", "optax", "orbax-checkpoint")},
    }


@contextmanager
def _progress(name: str, steps: int, start: int) -> Iterator[Any]:
    """A bar with rate, loss and time left on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda step, loss, rate, mfu: None
        return
    from rich.console import Console

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}")]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=steps, completed=start, now="compiling")

        def report(step: int, loss: float, rate: float, mfu: float | None) -> None:
            share = "" if mfu is None else f", MFU {mfu:.1%}"
            bar.update(task, completed=step, now=f"loss {loss:.4f}, {rate:,.0f} images/s{share}")

        yield report
