"""What is left of checkpoints in a process's last moment is cleared away by the next, and by no earlier one."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from jaxtyping import Array, Float, Int

from sd3_jax.training.checkpoint import Saver, restore_newest, saved_steps


class State(NamedTuple):
    step: Int[Array, ""]
    params: Float[Array, " n"]


def state(step: int) -> State:
    return State(jnp.int32(step), jnp.arange(3.0) + step)


def test_who_wakes_clears_away_nothing_of_its_successors(tmp_path: Path) -> None:
    begun = tmp_path / ".000003" / "7"
    begun.mkdir(parents=True)
    Saver(tmp_path, (), owner=2).close()
    assert begun.exists()
    Saver(tmp_path, (), owner=4).close()
    assert os.listdir(tmp_path) == []


def test_a_process_killed_while_it_deletes_leaves_no_half_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path) -> None:
        (path / "_CHECKPOINT_METADATA").unlink()
        raise SystemExit("killed")

    saver = Saver(tmp_path, (), owner=1)
    for step in (1, 2, 3):
        saver.save(step, state(step))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(SystemExit):
            saver.finish()
    Saver(tmp_path, (), owner=2).close()
    assert saved_steps(tmp_path) == [2, 3]
    assert sorted(os.listdir(tmp_path)) == ["2", "3"]


def test_a_checkpoint_that_does_not_fit_into_memory_is_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.")

    saver = Saver(tmp_path, ())
    for step in (1, 2):
        saver.save(step, state(step))
    saver.close()
    mesh = jax.make_mesh((1,), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jax.eval_shape(lambda: state(0))
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", full)
    with pytest.raises(ValueError, match="Out of memory"):
        restore_newest(tmp_path, 2, shapes, State(whole, whole))  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
