"""A worker that spans hosts: each runs the same ``sweep run``, and all of them one cell at a time, together.

On every host a supervisor, which touches no device, starts one process after another (:mod:`sd3_jax.sweep.turn`).
The processes of a turn find one another as a group of ``jax.distributed``, train one cell and end. So every cell begins
with fresh processes on all hosts, and what kills one of them ends a turn, not the worker.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sd3_jax.errors import Stopped
from sd3_jax.sweep.run import GRACE_SECONDS, worker_environments
from sd3_jax.sweep.status import EXIT_STOPPED
from sd3_jax.sweep.stopping import held, stoppable

EXIT_AGAIN = 43  # of a turn: its cell has ended, and there may be another
EXIT_BROKEN = 44  # of a turn: another of its processes is gone
STEADY_SECONDS = 1800.0  # of a turn that came some way before it broke
MOST_BROKEN = 3  # turns in a row, before the launcher is asked to start all hosts anew


def supervise(turn: Sequence[str], runs_dir: Path) -> int:
    """Start turns until one finds no cell; returns its exit status: 0 all cells are done, 1 some are not, 2 bad input.

    Raises Stopped where this process or a turn was told to stop, and where turn after turn is killed.
    """
    environ = os.environ | worker_environments(1, runs_dir)[0]
    broken = 0
    with stoppable():
        while True:
            began = time.monotonic()
            process = None
            try:
                with held():
                    process = subprocess.Popen(turn, stdin=subprocess.DEVNULL, env=environ, start_new_session=True)
                status = process.wait()
            finally:
                if process is not None:
                    _stop(process)
            if status in (EXIT_STOPPED, -signal.SIGTERM):
                raise Stopped("told to stop; the same command goes on")
            if status not in (EXIT_AGAIN, EXIT_BROKEN) and status >= 0:
                return status
            if status < 0:  # its own end, or JAX's, which ends the processes of a group that has lost one
                print(f"a process of this group was ended by {signal.Signals(-status).name}", file=sys.stderr)
            steady = status == EXIT_AGAIN or time.monotonic() - began > STEADY_SECONDS
            broken = (status != EXIT_AGAIN) + (0 if steady else broken)
            if broken == MOST_BROKEN:
                raise Stopped(
                    f"a group broke {broken} times in a row; the same command goes on from the last checkpoint"
                )


def _stop(process: subprocess.Popen) -> None:
    """Ask a turn that still runs to save and end; insist after a while."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, request)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
