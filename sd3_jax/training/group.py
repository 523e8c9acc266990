"""The processes that run one cell together: started, told to stop, and agreed with one another."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sd3_jax import platform
from sd3_jax.errors import Stopped, UserError

START_SECONDS = int(os.environ.get("SD3_JAX_START_SECONDS", "300"))  # to find one another
LEAVE_SECONDS = 20  # that one which ends alone waits for the others, who wait for it in the middle of a step


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Join this process to its group, where it is one of several; call it before anything touches a device.

    Explicit: ``SD3_JAX_COORDINATOR`` (host:port), ``SD3_JAX_PROCESSES`` and ``SD3_JAX_PROCESS``, all three. Else a
    Slurm step of several tasks, a TPU slice of several hosts, or a Kubernetes Job with ``JAX_COORDINATOR_ADDRESS``, of
    which JAX reads the rest. A process has all the GPUs that it sees, but for Slurm tasks that share a node: one each.

    Raises UserError for settings that are no group, and Stopped where the others cannot be reached: the launcher is to
    start them all again.
    """
    arguments = _explicit(environ)
    if not arguments and not is_group(environ):
        return
    if (environ.get("JAX_PLATFORMS") or "").split(",")[0] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    elif arguments or re.match(r"1(\D|$)", environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        arguments["local_device_ids"] = list(range(len(platform.gpus(environ)))) or None  # else JAX takes one of them
    arguments |= {"initialization_timeout": START_SECONDS, "shutdown_timeout_seconds": LEAVE_SECONDS}
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise Stopped(f"the processes of this group did not find one another ({reason})") from None


def _explicit(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that are given explicitly, all of them or none. Raises UserError for anything else."""
    names = ("SD3_JAX_COORDINATOR", "SD3_JAX_PROCESSES", "SD3_JAX_PROCESS")
    given = [name for name in names if environ.get(name)]
    if not given or environ.get("SD3_JAX_ALONE"):
        return {}
    if len(given) < len(names):
        lacking = ", ".join(name for name in names if name not in given)
        raise UserError(f"{', '.join(given)} without {lacking}: a group takes all three")
    try:
        count, own = int(environ[names[1]]), int(environ[names[2]])
    except ValueError:
        raise UserError(f"{names[1]} and {names[2]}: not whole numbers") from None
    if not 0 <= own < count:
        raise UserError(f"{names[2]}: {own} is not one of {count} processes, 0 to {count - 1}")
    return {"coordinator_address": environ[names[0]], "num_processes": count, "process_id": own}


def is_group(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says that this process is one of several that run a cell together.

    Not so with ``SD3_JAX_ALONE``, which a sweep sets: its workers may be a step of Slurm's, its cells are apart.
    """
    if environ.get("SD3_JAX_ALONE"):
        return False
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS") or 1)
    return platform.is_one_of_many(environ) or bool(environ.get("JAX_COORDINATOR_ADDRESS")) or tasks > 1


def agreed(value: int) -> int:
    """Process 0's value, everywhere: what depends on a clock or on a file is decided once."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def together(failure: Exception | None) -> None:
    """Raise ``failure``, and in every other process what says that one of the group has failed; nothing if none has."""
    failed = failure is not None
    if jax.process_count() > 1:
        failed = bool(np.any(multihost_utils.process_allgather(np.int32(failed))))
    if failed:
        raise failure or UserError("another process of this group says why")


def is_broken(error: BaseException) -> bool:
    """Whether an error says that a process of this group is gone, by the status that XLA and gRPC begin it with.

    What a run did wrong itself has other names (and RESOURCE_EXHAUSTED), and is nothing to try again.
    """
    codes = "UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED"
    return jax.process_count() > 1 and re.match(rf"({codes})\b", str(error)) is not None


@contextmanager
def told_to_stop() -> Iterator[Callable[[int], bool]]:
    """``stop(step)``: whether SIGTERM, or the notice that a machine will be taken away, has come to any process.

    All processes of a group are told at the same step.
    """
    if jax.process_count() > 1:  # JAX listens for both in every process, and makes them meet

        def reached(step: int) -> bool:
            with suppress(RuntimeError):  # no such service on this platform
                return bool(multihost_utils.reached_preemption_sync_point(step))
            return False

        yield reached
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    try:
        yield lambda step: told.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
