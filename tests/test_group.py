"""Several processes that run one cell are as good as one: real jax.distributed, on CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_resume import final_state
from tiny import tiny

from sd3_jax import config as configs
from sd3_jax import records
from sd3_jax.config import RunConfig
from sd3_jax.errors import UserError
from sd3_jax.training import checkpoint, group

# Parameters of the tiny model are split only if they count as large.
MAIN = "from sd3_jax.training import sharding; sharding.SMALL = 64; from sd3_jax.cli import main; main()"

# The second process alone cannot read its part of checkpoint 6.
BROKEN = """
import os
from orbax.checkpoint import StandardCheckpointer as Checkpointer
restore = Checkpointer.restore
def broken(self, path, *rest):
    if os.environ["SD3_JAX_PROCESS"] == "1" and path.name == "6":
        raise ValueError("DATA_LOSS: mine")
    return restore(self, path, *rest)
Checkpointer.restore = broken
"""


def launch(config: RunConfig, run_dir: Path, processes: int, devices: int, before: str = "") -> list[subprocess.Popen]:
    """Processes of so many devices each, as one group."""
    path = run_dir.parent / f"{run_dir.name}-{processes}.json"
    path.write_text(json.dumps(configs.to_dict(config)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        environ = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        if processes > 1:
            names = ("COORDINATOR", "PROCESSES", "PROCESS")
            values = (f"127.0.0.1:{port}", str(processes), str(number))
            environ |= {f"SD3_JAX_{name}": value for name, value in zip(names, values, strict=True)}
        argv = [sys.executable, "-c", before + MAIN, "train", str(path), "--run", str(run_dir)]
        started.append(subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started


def finish(started: list[subprocess.Popen], status: int = 0) -> list[str]:
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [status] * len(started), errors
    return errors


def losses(run_dir: Path) -> list[float]:
    rows, skipped = records.read_rows(run_dir / "metrics.jsonl")
    assert skipped == 0
    return [row["loss"] for row in rows if row["split"] == "train"]  # a run's end, and so a longer run, adds validation


@pytest.mark.slow
def test_two_processes_of_four_devices_agree_with_one_of_eight_and_go_on_from_one_another(tmp_path: Path) -> None:
    """All four meshes, a checkpoint by each resumed by the other."""
    whole = tmp_path / "one"
    finish(launch(tiny(steps=20), whole, 1, 1))
    for data, fsdp in ((8, 1), (4, 2), (2, 4), (1, 8)):
        mesh = {"mesh.data": data, "mesh.fsdp": fsdp}
        run_dir = tmp_path / f"{data}x{fsdp}"
        finish(launch(tiny(steps=10, **mesh), run_dir, 2, 4))  # saved by two processes ...
        finish(launch(tiny(steps=15, **mesh), run_dir, 1, 8))  # ... resumed by one of eight devices ...
        finish(launch(tiny(steps=20, **mesh | {"mesh.data": 1, "mesh.fsdp": 8}), run_dir, 2, 4))  # ... on another mesh
        np.testing.assert_allclose(losses(run_dir), losses(whole), rtol=1e-5)
        assert [life["processes"] for life in records.read_rows(run_dir / "lives.jsonl")[0]] == [2, 1, 2]
        for ours, theirs in zip(final_state(run_dir), final_state(whole), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_group_of_which_one_process_finds_its_part_of_a_checkpoint_broken_falls_back_together(tmp_path: Path) -> None:
    config = {"mesh.data": 1, "mesh.fsdp": 4, "checkpoint_seconds": 0.0}
    run_dir = tmp_path / "run"
    finish(launch(tiny(steps=6, **config), run_dir, 2, 2))
    said = finish(launch(tiny(steps=8, **config), run_dir, 2, 2, BROKEN))
    assert "set aside as broken-6" in said[0]
    assert "DATA_LOSS: mine" in said[1]
    assert (run_dir / "checkpoints" / "broken-6").is_dir()
    assert [life["resumed_from"] for life in records.read_rows(run_dir / "lives.jsonl")[0]] == [0, 5]
    assert len(losses(run_dir)) == 8


@pytest.mark.slow
def test_a_group_of_which_one_process_is_told_to_stop_saves_and_stops(tmp_path: Path) -> None:
    config, run_dir = tiny(steps=100_000, **{"evaluation.per_decade": 0}), tmp_path / "run"
    started = launch(config, run_dir, 2, 1)
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    finish(started, 42)
    (step,) = checkpoint.saved_steps(run_dir / "checkpoints")
    assert 0 < step < 100_000


@pytest.mark.parametrize(
    "environ, message",
    [
        ({"SD3_JAX_COORDINATOR": "a:1"}, "without SD3_JAX_PROCESSES, SD3_JAX_PROCESS"),
        ({"SD3_JAX_COORDINATOR": "a:1", "SD3_JAX_PROCESSES": "2", "SD3_JAX_PROCESS": "2"}, "2 is not one of 2"),
        ({"SD3_JAX_COORDINATOR": "a:1", "SD3_JAX_PROCESSES": "two", "SD3_JAX_PROCESS": "0"}, "not whole numbers"),
    ],
)
def test_settings_that_are_no_group_are_one_clear_line(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        group.start(environ)


def test_a_process_alone_is_no_group() -> None:
    for environ in (
        {},
        {"SD3_JAX_ALONE": "1", "SLURM_STEP_NUM_TASKS": "4"},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ):
        assert not group.is_group(environ)
        group.start(environ)
    for environ in ({"SLURM_STEP_NUM_TASKS": "4"}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {"JAX_COORDINATOR_ADDRESS": "a:1"}):
        assert group.is_group(environ)
