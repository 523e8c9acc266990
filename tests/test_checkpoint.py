"""What is left of checkpoints in a process's last moment is cleared away by the next, and by no earlier one."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, Int

from sd3_jax.training.checkpoint import Saver, saved_steps


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
