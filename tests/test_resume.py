"""A run that is killed ends with the numbers of a run that was not, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from sd3_jax import bucket, overlays, records
from sd3_jax import config as configs
from sd3_jax.config import RunConfig
from sd3_jax.errors import LeaseLost, UserError
from sd3_jax.evaluation import generate
from sd3_jax.lease import Lease
from sd3_jax.train import Diverged, train
from sd3_jax.training import checkpoint, sharding
from sd3_jax.training.step import make_init

ENVIRON = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}  # one device


def command(config: RunConfig, run_dir: Path, folder: Path) -> list[str]:
    path = folder / f"{run_dir.name}.json"
    path.write_text(json.dumps(configs.to_dict(config)))
    return [sys.executable, "-m", "sd3_jax.cli", "train", str(path), "--run", str(run_dir)]


def final_state(run_dir: Path, step: int | None = None) -> list[np.ndarray]:
    config = records.load_config(run_dir)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    shapes = jax.eval_shape(make_init(config, 8), jnp.uint32(0))
    folder = bucket.checkpoints(run_dir, config)
    step = step or checkpoint.saved_steps(folder)[-1]
    state = checkpoint.restore(folder, step, shapes, sharding.state_shardings(mesh, shapes))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def history(run_dir: Path) -> list[dict]:
    rows, skipped = records.read_rows(run_dir / "metrics.jsonl")
    assert skipped == 0
    timing = ("seconds", "images_per_second", "mfu")
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


# Killed at any moment once the third checkpoint is there.
DYING = """
import os, pathlib, signal, sys, threading, time

def die():
    while not (checkpoints / "3").exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoints = pathlib.Path(sys.argv[-1]) / "checkpoints"
threading.Thread(target=die, daemon=True).start()
from sd3_jax.cli import main
main(sys.argv[1:])
"""


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(tmp_path: Path) -> None:
    config = tiny(steps=7, checkpoint_seconds=0.0)  # a checkpoint after every step
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(config, whole, tmp_path), env=ENVIRON, check=True, capture_output=True)

    dying = [sys.executable, "-c", DYING, *command(config, broken, tmp_path)[3:]]
    killed = subprocess.run(dying, env=ENVIRON, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert records.status(broken) == "started"
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"split": "train", "step": 9')  # and its last line is half a line

    subprocess.run(command(config, broken, tmp_path), env=ENVIRON, check=True, capture_output=True)
    lives, _ = records.read_rows(broken / "lives.jsonl")
    assert len(lives) == 2
    assert 3 <= lives[1]["resumed_from"] < 7
    assert history(broken) == history(whole)
    for ours, theirs in zip(final_state(broken), final_state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "constant"
    train(tiny(keep_steps=[6], **{"evaluation.budgets": [5e7, 1e15]}), run_dir)
    return run_dir


def test_records_say_what_was_planned_and_spent(finished: Path) -> None:
    rows = history(finished)
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 9))
    cost = rows[0]["flops"]
    measured = {row["step"]: row["budgets"] for row in rows if row["split"] == "validation"}
    last_within = int(5e7 // cost)
    assert measured[last_within] == [5e7]  # the last step within the budget; the other lies beyond the run
    assert [step for step, budgets in measured.items() if budgets] == [last_within]
    assert {row["weights"] for row in rows if row["split"] == "validation"} == {"raw", "ema"}
    summary = json.loads((finished / "DONE").read_text())
    assert summary["flops"] == summary["flops_planned"] == 8 * cost


def test_a_finished_run_is_left_alone(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    train(records.load_config(finished), finished)
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert len(records.read_rows(finished / "lives.jsonl")[0]) == 1


@pytest.mark.slow
def test_a_branch_equals_the_run_that_cools_down_from_the_start(finished: Path, tmp_path: Path) -> None:
    config = tiny(**{"evaluation.budgets": [5e7, 1e15], "optimizer.cooldown": 0.25})
    branch, whole = tmp_path / "branch", tmp_path / "whole"
    train(config, branch, branch_from=finished)
    train(config, whole)
    assert records.read_rows(branch / "lives.jsonl")[0][0]["resumed_from"] == 6
    late = [row for row in history(whole) if row["step"] > 6]
    assert history(branch) == late
    assert {row["phase"] for row in late if row["split"] == "validation"} == {"cooldown"}
    for ours, theirs in zip(final_state(branch), final_state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="not the same run"):
        train(tiny(**{"optimizer.cooldown": 0.25, "seed": 1}), tmp_path / "other", branch_from=finished)


def test_a_longer_run_goes_on_and_another_run_is_refused(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = tiny(steps=4)
    train(config, run_dir)
    train(tiny(), run_dir)
    assert [row["step"] for row in history(run_dir) if row["split"] == "train"] == list(range(1, 9))
    assert [life["resumed_from"] for life in records.read_rows(run_dir / "lives.jsonl")[0]] == [0, 4]
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(UserError, match="batch: 16 -> 32"):
        train(tiny(batch=32), run_dir)
    assert (run_dir / "config.json").read_bytes() == before
    for ours, theirs in zip(final_state(run_dir), final_state(finished), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_divergence_stops_the_run_says_why_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = tiny(checkpoint_seconds=0.0, **{"optimizer.learning_rate": 10.0, "optimizer.clip_norm": 0, "steps": 400})
    config = overlays.resolve(configs.to_dict(config), {"model.qk_norm": False, "optimizer.drops": [[5, 1e30]]})
    with pytest.raises(Diverged, match="not finite"):
        train(config, tmp_path / "run")
    assert records.status(tmp_path / "run") == "failed"
    assert "not finite" in (tmp_path / "run" / "FAILED").read_text()
    assert all(np.isfinite(leaf).all() for leaf in final_state(tmp_path / "run"))


def test_a_run_that_is_lost_while_it_saves_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"

    class Lost(Lease):
        def check(self) -> None:
            if checkpoint.saved_steps(folder):
                raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        train(tiny(checkpoint_seconds=0.0), tmp_path / "run", lease=Lost(tmp_path / "run", 3))
    assert os.listdir(folder) == ["1"]
    assert not [thread for thread in threading.enumerate() if thread.name == "commit"]


def flip(path: Path, place: float) -> None:
    """Change one byte of a file, in every bit."""
    content = bytearray(path.read_bytes())
    if content:
        content[int(place * (len(content) - 1))] ^= 0xFF
        path.write_bytes(content)


@pytest.mark.parametrize(
    "files, places",
    [("_METADATA manifest.ocdbt d", (0.5,)), pytest.param("every", (0.0, 0.1, 0.3, 0.5, 1.0), marks=pytest.mark.slow)],
)
def test_a_flipped_byte_gives_the_right_numbers_or_the_checkpoint_before_and_is_never_silent(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, files: str, places: tuple[float, ...]
) -> None:
    """In each file of a checkpoint in turn."""
    config = records.load_config(finished)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    shapes = jax.eval_shape(make_init(config, 8), jnp.uint32(0))
    shardings = sharding.state_shardings(mesh, shapes)
    whole = finished / "checkpoints"
    before, newest = checkpoint.saved_steps(whole)[-2:]
    truth = {step: jax.tree.leaves(checkpoint.restore(whole, step, shapes, shardings)) for step in (before, newest)}
    names = [path.relative_to(whole) for path in sorted((whole / str(newest)).rglob("*")) if path.is_file()]
    assert len(names) > 5
    if files != "every":  # one of each kind: description, index, numbers
        names = [next(name for name in names if part in name.parts) for part in files.split()]
    fallen_back = 0
    for number, (name, place) in enumerate((name, place) for name in names for place in places):
        broken = tmp_path / str(number)
        shutil.copytree(whole, broken)
        flip(broken / name, place)
        capsys.readouterr()
        state, step = checkpoint.restore_newest(broken, 8, shapes, shardings)
        said = capsys.readouterr().err
        for ours, theirs in zip(jax.tree.leaves(state), truth[step], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        if step == before:
            fallen_back += 1
            assert f"warning: {(broken / str(newest)).absolute()}: " in said
            assert (broken / f"broken-{newest}").is_dir()
            assert checkpoint.saved_steps(broken)[-1] == before
    assert fallen_back


@pytest.mark.slow
def test_weights_that_are_not_what_was_saved_are_never_drawn_with(finished: Path, tmp_path: Path) -> None:
    config = records.load_config(finished)
    broken = tmp_path / "run"
    shutil.copytree(finished, broken)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    truth = jax.tree.leaves(generate.load_weights(broken, config, mesh, 8, "ema"))
    caught = 0
    for path in filter(Path.is_file, (broken / "checkpoints" / "8").rglob("*")):
        content = path.read_bytes()
        flip(path, 0.6)
        try:
            found = jax.tree.leaves(generate.load_weights(broken, config, mesh, 8, "ema"))
        except UserError as error:
            caught += "choose another step" in str(error)
        else:  # the byte was of something else
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, truth, strict=True))
        path.write_bytes(content)
    assert caught


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(tiny(steps=8), whole)
    train(tiny(steps=6, checkpoint_seconds=0.0), broken)
    (broken / "checkpoints" / "6" / "_METADATA").write_text("{")
    train(tiny(steps=8), broken)
    assert records.read_rows(broken / "lives.jsonl")[0][-1]["resumed_from"] == 5
    assert history(broken) == history(whole)
    for ours, theirs in zip(final_state(broken), final_state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_checkpoints_of_which_none_can_be_read_are_one_clear_line_and_kept(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(tiny(steps=4), run_dir)
    (run_dir / "checkpoints" / "4" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="no checkpoint can be restored"):
        train(tiny(), run_dir)
    assert (run_dir / "checkpoints" / "broken-4").is_dir()


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_exits_42_and_ends_as_if_it_had_not(tmp_path: Path) -> None:
    config = tiny(steps=400, log_every=50, **{"evaluation.per_decade": 0})
    run_dir, whole = tmp_path / "told", tmp_path / "whole"
    process = subprocess.Popen(command(config, run_dir, tmp_path), env=ENVIRON, stderr=subprocess.PIPE, text=True)
    while not (run_dir / "metrics.jsonl").exists():  # it is at work
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 42, errors
    (step,) = checkpoint.saved_steps(run_dir / "checkpoints")
    assert f"told to stop, and saved at step {step}" in errors
    assert 0 < step < 400
    assert not (run_dir / "FAILED").exists()
    subprocess.run(command(config, run_dir, tmp_path), env=ENVIRON, check=True, capture_output=True)
    subprocess.run(command(config, whole, tmp_path), env=ENVIRON, check=True, capture_output=True)
    assert records.read_rows(run_dir / "lives.jsonl")[0][-1]["resumed_from"] == step
    for ours, theirs in zip(final_state(run_dir), final_state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
