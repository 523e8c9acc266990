"""Orbax checkpoints of a train state: one folder a step, written whole or not at all."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sd3_jax.errors import UserError

NEWEST = 2  # checkpoints that are kept beside those asked for


def saved_steps(directory: Path) -> list[int]:
    """Steps with a committed checkpoint, ascending. (Orbax itself takes an empty stray folder for one.)"""
    if not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if path.name.isdigit() and (path / "_CHECKPOINT_METADATA").exists())
    return sorted(int(path.name) for path in found)


class Saver:
    """Saves in the background, one at a time, and deletes what is neither new nor asked for."""

    def __init__(self, directory: Path, keep_steps: tuple[int, ...]) -> None:
        self.directory, self.keep_steps = directory.absolute(), frozenset(keep_steps)
        self.checkpointer = ocp.StandardCheckpointer()

    def save(self, step: int, state: Any) -> None:
        """Start to save ``state`` as ``step``; what was being saved before is committed first."""
        if step in saved_steps(self.directory):
            return
        with _disk(self.directory):
            self.checkpointer.wait_until_finished()
            self._prune()
            self.checkpointer.save(self.directory / str(step), state, force=True)

    def close(self) -> None:
        """Wait until everything is committed."""
        with _disk(self.directory):
            self.checkpointer.wait_until_finished()
            self._prune()
            self.checkpointer.close()

    def _prune(self) -> None:
        if jax.process_index() == 0:
            for step in saved_steps(self.directory)[:-NEWEST]:
                if step not in self.keep_steps:
                    shutil.rmtree(self.directory / str(step))


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Orbax and TensorStore report a full or forbidden disk as one of several exceptions, at length."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{directory}: cannot save a checkpoint ({reason}); the last good one is kept") from None


def save_weights(directory: Path, step: int, params: Any) -> None:
    """Save one set of weights as ``step``, for :func:`restore_weights` alone: no run goes on from it."""
    path = directory.absolute() / str(step)
    # Neither JAX nor Orbax may copy it all: a large model fits but once. At a time only what the largest leaf needs.
    weights = jax.tree.map(lambda x: jax.device_put(x, may_alias=True), params)
    gigabytes = math.ceil(max(leaf.nbytes for leaf in jax.tree.leaves(weights)) / 10**9)
    with _disk(directory), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(save_concurrent_gb=gigabytes)) as checkpointer:
        checkpointer.save(path, {"step": jnp.int32(step), "params": weights})


def _holds(path: Path) -> frozenset[str]:
    """The fields of a checkpoint; none where it cannot be read."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return frozenset(checkpointer.metadata(path).item_metadata.tree)
    except (ValueError, KeyError, OSError, TypeError, AttributeError):
        return frozenset()


def restore(directory: Path, step: int, shapes: Any, shardings: Any) -> Any:
    """The state saved as ``step``, onto today's shardings, whatever mesh saved it.

    Raises UserError if the checkpoint cannot be read.
    """
    path = directory.absolute() / str(step)
    if _holds(path) == {"step", "params"}:
        raise UserError(
            f"{path}: holds converted weights alone, and training cannot go on from them; "
            "start a run of its own from them, with init_from"
        )
    with _readable(path), ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(path, _target(shapes, shardings))
    _check_step(path, int(state.step), step)
    return state


def restore_weights(directory: Path, step: int, name: str, shapes: Any, shardings: Any) -> Any:
    """One field of the state, ``params`` or ``ema``, without reading the rest; arguments and errors of :func:`restore`.

    ``shapes`` and ``shardings`` are those of the whole state. Of converted weights there is one set, by either name.
    """
    path = directory.absolute() / str(step)
    if _holds(path) == {"step", "params"}:
        name = "params"
    target = _target(shapes, shardings)
    item = {name: getattr(target, name), "step": target.step}
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    advice = "restore it from a copy, or choose another step"
    with _readable(path, advice), ocp.PyTreeCheckpointer() as checkpointer:
        state = checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        )
    _check_step(path, int(state["step"]), step, advice)
    return state[name]


def _target(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings)


_GO_ON = "delete it to go on from the one before"


@contextmanager
def _readable(path: Path, advice: str = _GO_ON) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, TypeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{path}: cannot be restored ({reason}); {advice}") from None


def _check_step(path: Path, found: int, step: int, advice: str = _GO_ON) -> None:
    if found != step:
        raise UserError(f"{path}: holds step {found}, not {step}; {advice}")
