"""The processes that run one cell together: started, told to stop, and agreed with one another."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sd3_jax.errors import UserError

START_SECONDS = 300  # to find one another; a coordinator that cannot be reached is an error then, not a hang


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Join this process to its group, where it is one of several; call it before anything touches a device.

    Explicit: ``SD3_JAX_COORDINATOR`` (host:port), ``SD3_JAX_PROCESSES`` and ``SD3_JAX_PROCESS``, all three. Else a
    Slurm step of several tasks, a TPU slice of several hosts, or a Kubernetes Job with ``JAX_COORDINATOR_ADDRESS``, of
    which JAX reads the rest.

    Raises UserError for settings that are no group, and where the others cannot be reached.
    """
    if environ.get("SD3_JAX_ALONE"):
        return
    names = ("SD3_JAX_COORDINATOR", "SD3_JAX_PROCESSES", "SD3_JAX_PROCESS")
    given = [name for name in names if environ.get(name)]
    arguments: dict[str, Any] = {}
    if given:
        if len(given) < len(names):
            lacking = ", ".join(name for name in names if name not in given)
            raise UserError(f"{', '.join(given)} without {lacking}: a group takes all three")
        try:
            count, own = int(environ[names[1]]), int(environ[names[2]])
        except ValueError:
            raise UserError(f"{names[1]} and {names[2]}: not whole numbers") from None
        if not 0 <= own < count:
            raise UserError(f"{names[2]}: {own} is not one of {count} processes, 0 to {count - 1}")
        arguments = {"coordinator_address": environ[names[0]], "num_processes": count, "process_id": own}
    elif not is_group(environ):
        return
    if (environ.get("JAX_PLATFORMS") or "").split(",")[0] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(initialization_timeout=START_SECONDS, **arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"the processes of this group did not find one another ({reason})") from None


def is_group(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says that this process is one of several.

    Not so with ``SD3_JAX_ALONE``, which a sweep sets: its workers may be a step of Slurm's, its cells are apart.
    """
    if environ.get("SD3_JAX_ALONE"):
        return False
    if environ.get("SD3_JAX_COORDINATOR") or environ.get("JAX_COORDINATOR_ADDRESS"):
        return True
    hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    return int(environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1 or len(hosts) > 1


def agreed(value: int) -> int:
    """Process 0's value, everywhere: what depends on a clock or on a file is decided once."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


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
