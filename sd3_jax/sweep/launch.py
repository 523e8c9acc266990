"""Submitting a sweep: the same command to every worker, through the engine that has the machines."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sd3_jax.errors import RunFailed
from sd3_jax.experiments import find_sweep
from sd3_jax.sweep import jobset, slurm, spec, tpu_vm
from sd3_jax.sweep.run import worker_environments
from sd3_jax.sweep.status import read_state, summary
from sd3_jax.sweep.stopping import held, stoppable
from sd3_jax.sweep.submission import RESTARTS, Submission, check, command, runs_dir

_GRACE_SECONDS = 30.0  # for a worker to stop its cells, which has a grace of its own


def preview(submission: Submission) -> str:
    """Exactly what would be submitted, as text; needs none of the engines. Raises UserError for bad input."""
    check(submission)
    if submission.launcher == "slurm":
        return slurm.script(submission)
    if submission.launcher == "jobset":
        return jobset.to_yaml(submission)
    if submission.launcher == "tpu-vm":
        return tpu_vm.script(submission)
    return f"{shlex.join(command(submission))}\n" * submission.count


def submit(submission: Submission) -> str:
    """Submit, and say so in a line or a few; the local launcher returns when its workers have ended.

    Raises UserError for bad input and a missing engine, RunFailed if an engine or a local worker fails.
    """
    check(submission)
    if submission.launcher == "slurm":
        return f"submitted {', '.join(slurm.submit(submission))}; logs in {slurm.log_folder(submission)}"
    if submission.launcher == "jobset":
        return jobset.submit(submission).strip()
    if submission.launcher == "tpu-vm":
        tpu_vm.submit(submission)
        return f"{submission.count} x {submission.hardware} at work"
    return _run_here(submission)


@dataclass
class _Local:
    """A worker on this machine."""

    process: subprocess.Popen
    environment: dict[str, str]
    log: Path
    restarts: int = 0


def _run_here(submission: Submission) -> str:
    """Run the workers side by side, each on its share of the cores or GPUs, until all have ended."""
    runs = runs_dir(submission)
    argv = command(submission)
    folder = runs / ".submit"
    folder.mkdir(parents=True, exist_ok=True)
    workers: list[_Local] = []
    with stoppable():
        try:
            for number, environment in enumerate(worker_environments(submission.count, runs)):
                log = folder / f"worker-{number}.log"
                with held():
                    workers.append(_Local(_start(argv, environment, log), environment, log))
            print(f"{len(workers)} workers at work; logs in {folder}", file=sys.stderr)
            while [worker for worker in workers if _runs_on(worker, argv, submission.restarts)]:
                time.sleep(0.2)
        finally:
            _stop(workers)
    failed = [worker for worker in workers if worker.process.returncode]
    states = [read_state(cell, runs) for cell in spec.load(find_sweep(submission.file))]
    # A worker speaks of the moment of its end, when another may still have been at a cell: the runs have the last word.
    if failed and any(state.state != "done" for state in states):
        status, log = failed[0].process.returncode, failed[0].log
        raise RunFailed(f"{len(failed)} of {len(workers)} workers failed, the first with status {status}; see {log}")
    return f"{len(workers)} workers have ended: {summary(states)}"


def _start(argv: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Start a worker where it may use its share alone: it counts the cores that it was born with."""
    cores = environment.get("SD3_JAX_CPUS")
    before = os.sched_getaffinity(0) if cores and hasattr(os, "sched_setaffinity") else None
    try:
        if before is not None and cores:
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
        with open(log, "ab") as file:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the workers
            )
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def _runs_on(worker: _Local, argv: list[str], restarts: int) -> bool:
    """Whether a worker is at work; one that asked for another start gets it."""
    status = worker.process.poll()
    if status in RESTARTS and worker.restarts < restarts:
        worker.restarts += 1
        print(f"{worker.log.stem}: exit status {status}, started again", file=sys.stderr)
        with held():
            worker.process = _start(argv, worker.environment, worker.log)
        return True
    return status is None


def _stop(workers: list[_Local]) -> None:
    """Ask the workers that still run to end; insist after a while."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        for worker in workers:
            if worker.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, request)
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline and any(worker.process.poll() is None for worker in workers):
            time.sleep(0.05)
