"""Orbax checkpoints of a train state: one folder a step, written whole or not at all."""

import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from sd3_jax import bucket
from sd3_jax.errors import UserError
from sd3_jax.training import group
from sd3_jax.training.checksums import checksums, differing

NEWEST = 2  # checkpoints that are kept beside those asked for
COMMITTED = "commit_success.txt"  # of Orbax's, in a checkpoint that is whole; of a bucket's alone
SUMS = "checksums"  # of every array, saved beside the fields of the state


def saved_steps(directory: Path) -> list[int]:
    """Steps with a committed checkpoint, ascending. (Orbax itself takes an empty stray folder for one.)"""
    if not directory.is_dir():
        return []
    mark = COMMITTED if bucket.is_bucket(directory) else "_CHECKPOINT_METADATA"
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and (path / mark).exists())


def _absolute(path: Path) -> Path:
    return path if bucket.is_bucket(path) else path.absolute()


class Saver:
    """Saves in the background, one at a time, and deletes what is neither new nor asked for.

    A checkpoint is written in a folder of ``owner``'s own, and renamed once it is whole and ``check`` has let it pass:
    a process that was taken for dead, and wakes, spoils nothing that its successor saves. In a bucket, where a rename
    is not one act and whose runs have one worker each, Orbax marks a checkpoint as whole. Process 0 calls ``before`` as
    one is begun.
    """

    def __init__(
        self,
        directory: Path,
        keep_steps: tuple[int, ...],
        owner: int = 0,
        check: Callable[[], None] = lambda: None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory, self.keep_steps = _absolute(directory), frozenset(keep_steps)
        self.check, self.before = check, before
        self.private = None if bucket.is_bucket(directory) else self.directory / f".{owner:06d}"
        self.checkpointer = ocp.StandardCheckpointer()
        self.committing: threading.Thread | None = None
        self.failure: Exception | None = None
        if jax.process_index() == 0 and self.private:
            for old in self.directory.glob(".[0-9]*"):  # what those before had begun, and nobody after
                if int(old.name[1:]) <= owner:
                    shutil.rmtree(old, ignore_errors=True)

    def save(self, step: int, state: NamedTuple) -> None:
        """Start to save ``state`` as ``step``; what was being saved before is committed first.

        Raises UserError where the disk does not take it, and whatever ``check`` raises.
        """
        self.finish()
        if group.agreed(step in saved_steps(self.directory)):
            return
        if jax.process_index() == 0:
            self.check()
            self.before()
        fields = state._asdict()
        with _disk(self.directory):
            path = (self.private or self.directory) / str(step)
            self.checkpointer.save(path, {**fields, SUMS: checksums(fields)}, force=True)
        self.committing = threading.Thread(target=self._commit, args=(step,), name="commit")
        self.committing.start()

    def _commit(self, step: int) -> None:
        try:
            with _disk(self.directory):
                self.checkpointer.wait_until_finished()
                if jax.process_index() == 0:
                    self.check()
                    if self.private:
                        os.rename(self.private / str(step), self.directory / str(step))
        except Exception as error:
            self.failure = error

    def finish(self) -> None:
        """Wait until what was being saved is committed; errors of :meth:`save`."""
        if self.committing is not None:
            self.committing.join()
            self.committing = None
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if jax.process_index() == 0:
            for step in saved_steps(self.directory)[:-NEWEST]:
                if step not in self.keep_steps:
                    self.check()
                    self._delete(step)

    def _delete(self, step: int) -> None:
        """So that a process which is killed meanwhile leaves no half of a checkpoint behind."""
        path = self.directory / str(step)
        if self.private:
            self.private.mkdir(parents=True, exist_ok=True)
            gone = self.private / f"old-{step}"
            os.rename(path, gone)
            shutil.rmtree(gone)
        else:
            (path / COMMITTED).unlink()
            epath.Path(path).rmtree()

    def close(self) -> None:
        """Wait until everything is committed; errors of :meth:`save`."""
        try:
            with _disk(self.directory):
                try:
                    self.finish()
                finally:
                    self.checkpointer.close()  # which may be what meets the full disk
        finally:
            if jax.process_index() == 0 and self.private:
                shutil.rmtree(self.private, ignore_errors=True)


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Orbax and TensorStore report a full or forbidden disk as one of several exceptions, at length."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if group.is_broken(error):
            raise
        bucket.refuse_passing(directory, error)
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{directory}: cannot save a checkpoint ({reason}); the last good one is kept") from None


def save_weights(directory: Path, step: int, params: Any) -> None:
    """Save one set of weights as ``step``, for :func:`restore_weights` alone: no run goes on from it."""
    path = _absolute(directory) / str(step)
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
    except Exception:
        return frozenset()


def restore(directory: Path, step: int, shapes: Any, shardings: Any) -> Any:
    """The state saved as ``step``, onto today's shardings, whatever mesh saved it.

    Raises UserError, in every process of a group, if one of them cannot read it, or it is not what was saved.
    """
    path = _absolute(directory) / str(step)
    held = _holds(path)
    _refuse_weights_alone(path, held)
    item = _target(shapes, shardings)._asdict()
    if group.agreed(SUMS in held):  # checkpoints older than the sums have none
        item |= {SUMS: _sums_of(item)}
    # Each process reads by itself, and none waits for another that found its part broken, until all say how it went.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={jax.process_index()}, barrier_sync_key_prefix=f"of{jax.process_index()}"
    )
    failure = None
    try:
        with _readable(path), ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            found = checkpointer.restore(path, item)
    except UserError as error:
        failure = error
    group.together(failure)
    try:
        _check(path, found, step)
    except UserError as error:
        failure = error
    group.together(failure)
    return type(shapes)(**{name: found[name] for name in shapes._fields})


def _refuse_weights_alone(path: Path, held: frozenset[str]) -> None:
    if held == {"step", "params"}:
        raise UserError(
            f"{path}: holds converted weights alone, and training cannot go on from them; "
            "start a run of its own from them, with init_from"
        )


def restore_newest(directory: Path, limit: int, shapes: Any, shardings: Any, set_aside: bool = True) -> tuple[Any, int]:
    """The newest whole state up to step ``limit``, and its step. What cannot be restored is said, and set aside.

    Raises UserError if there are checkpoints and not one can be restored.
    """
    while step := group.agreed(max((step for step in saved_steps(directory) if step <= limit), default=0)):
        _refuse_weights_alone(directory / str(step), _holds(_absolute(directory) / str(step)))
        try:
            return restore(directory, step, shapes, shardings), step
        except UserError as error:
            and_then = f"it is set aside as broken-{step}" if set_aside else "an older one is taken"
            print(f"warning: {error}; {and_then}", file=sys.stderr, flush=True)
            if set_aside and jax.process_index() == 0:
                _set_aside(directory, step)
            limit = step - 1
    raise UserError(f"{directory}: no checkpoint can be restored; delete the run's directory to begin anew")


def _set_aside(directory: Path, step: int) -> None:
    """Keep a broken checkpoint for whoever wants to look at it, but as none."""
    if bucket.is_bucket(directory):
        (directory / str(step) / COMMITTED).rename(directory / str(step) / "broken.txt")
    else:
        aside = directory / f"broken-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(directory / str(step), aside)


def restore_weights(directory: Path, step: int, name: str, shapes: Any, shardings: Any) -> Any:
    """One field of the state, ``params`` or ``ema``, without reading the rest; arguments and errors of :func:`restore`.

    ``shapes`` and ``shardings`` are those of the whole state. Of converted weights there is one set, by either name.
    """
    path = _absolute(directory) / str(step)
    held = _holds(path)
    if held == {"step", "params"}:
        name = "params"
    target = _target(shapes, shardings)
    item = {name: getattr(target, name), "step": target.step}
    if SUMS in held:
        item |= {SUMS: _sums_of(item)}
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    advice = "restore it from a copy, or choose another step"
    with _readable(path, advice), ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        )
    _check(path, found, step, advice)
    return found[name]


def _sums_of(item: Any) -> Any:
    """The places of the checksums of what is restored, whole on every device."""
    mesh = item["step"].sharding.mesh
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole), item)


def _check(path: Path, found: dict[str, Any], step: int, advice: str = "") -> None:
    """Raises UserError for a state of another step, and for numbers that are not those that were saved."""
    if int(found["step"]) != step:
        raise UserError(f"{path}: holds step {int(found['step'])}, not {step}" + (f"; {advice}" if advice else ""))
    if SUMS in found:
        sums = found[SUMS]
        bad = differing({name: found[name] for name in sums}, sums)
        if bad:
            more = f" and {len(bad) - 1} more arrays" if len(bad) > 1 else ""
            raise UserError(
                f"{path}: is not what was saved, by the checksum of {bad[0]}{more}" + (f"; {advice}" if advice else "")
            )


def _target(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings)


@contextmanager
def _readable(path: Path, advice: str = "") -> Iterator[None]:
    """Whatever Orbax and TensorStore raise at a broken checkpoint, in one line; there is no end to what that is."""
    try:
        yield
    except Exception as error:
        short = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)  # of memory, of open files
        if short or group.is_broken(error):  # nothing is wrong with the checkpoint
            raise
        bucket.refuse_passing(path, error)
        reason = (str(error).partition("\n")[0] or type(error).__name__)[:200]
        raise UserError(f"{path}: cannot be restored ({reason})" + (f"; {advice}" if advice else "")) from None
