"""A real Slurm: jobs are preempted by others of a higher priority, requeued, and the sweep is finished."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from slurm_cluster import ask, cluster, wait_for, why_not

import sd3_jax
from sd3_jax import records
from sd3_jax.sweep import slurm
from sd3_jax.sweep.submission import Submission

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "Slurm is here"),
]

EXPERIMENT = """\
from sd3_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update({"depth": 2, "head_dim": 8, "patch": 1, "latent_size": 3})
    config.model.update({"text_tokens": 6, "text_dim": 24, "pooled_dim": 24})
    config.data.update({"image_size": 24, "downsample": 8, "layout": "grid", "shapes": 4, "colors": 10})
    config.optimizer.warmup_steps = 4
    config.evaluation.examples = 16
    config.update({"batch": 16, "log_every": 10, "steps": 1500, "checkpoint_seconds": 1.0})
    return config
"""

# In its first life it waits to be told to stop, saves for a second, and asks for another start; then it is done.
STAND_IN = """\
import os, signal, sys, time

life, rank = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ["SLURM_PROCID"]


def stop(signum, frame):
    time.sleep(1)
    print("saved", life, rank, flush=True)
    sys.exit(42)


signal.signal(signal.SIGTERM, stop)
print("started", life, rank, os.environ.get("SD3_JAX_HOSTS", "1"), flush=True)
while life == "0":
    time.sleep(0.1)
"""


@pytest.fixture
def slurm_env():
    pytest.importorskip("submitit", reason="needs submitit")
    with cluster() as env:
        path = os.pathsep.join(filter(None, [str(Path(sd3_jax.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
        env |= {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        env.pop("SUBMITIT_LOG_LEVEL", None)
        yield env


def preempt(env: dict[str, str]) -> None:
    """A job of a higher priority, on both nodes; returns when it has run."""
    command = ["srun", "-p", "high", "-N2", "-n2", "--exclusive", "true"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)


def over(env: dict[str, str]) -> bool:
    return ask(env, "squeue", "-h") == ""


def test_a_preempted_sweep_is_requeued_and_finished(slurm_env, tmp_path):
    work = tmp_path / "my work"
    work.mkdir()
    (work / "exp.py").write_text(EXPERIMENT)
    (work / "my sweep.yaml").write_text("experiment: exp.py\ncells: [{model.depth: 2, seed: [0, 1]}]\n")

    def sd3(*arguments: str) -> subprocess.CompletedProcess:
        argv = [sys.executable, "-m", "sd3_jax.cli", "sweep", *arguments]
        return subprocess.run(argv, cwd=work, env=slurm_env, capture_output=True, text=True, timeout=120)

    options = ("--launcher", "slurm", "--count", "2", "--workers", "1", "--cpus", "2", "--time", "2:00:00")
    submitted = sd3("submit", "my sweep.yaml", *options)
    assert submitted.returncode == 0, submitted.stderr
    assert submitted.stdout.startswith("submitted 1_0, 1_1; logs in ")
    runs = work / "runs" / "my sweep"
    cells = [runs / "d02-s0", runs / "d02-s1"]

    def saved(cell: Path) -> list[str]:
        folder = cell / "checkpoints"
        return [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []

    wait_for(lambda: any(saved(cell) for cell in cells), 240, "a checkpoint")
    assert not all((cell / "DONE").exists() for cell in cells)
    preempt(slurm_env)
    logs = [runs / ".submit" / f"1_{task}_0_log.err" for task in (0, 1)]
    wait_for(lambda: over(slurm_env), 300, "the requeued jobs to end")
    for log in logs:
        text = log.read_text()
        assert "Caught signal SIGTERM" in text
        assert "DUE TO JOB REQUEUE" in text or "DUE TO PREEMPTION" in text
    assert "Restarts=1" in ask(slurm_env, "scontrol", "show", "job", "1")
    assert all((cell / "DONE").exists() for cell in cells)
    lives = [records.read_rows(cell / "lives.jsonl")[0] for cell in cells]
    assert max(life["resumed_from"] for rows in lives for life in rows) > 0
    status = sd3("status", "my sweep.yaml")
    assert status.returncode == 0
    assert "2 done" in " ".join(status.stdout.split())


def test_two_nodes_run_a_cell_together_are_preempted_and_finish_it(slurm_env, tmp_path):
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    (tmp_path / "pair.yaml").write_text("experiment: exp.py\nset: {steps: 300}\ncells: [{model.depth: 2, seed: 0}]\n")
    options = ("--launcher", "slurm", "--nodes", "2", "--cpus", "1", "--time", "2:00:00")
    argv = [sys.executable, "-m", "sd3_jax.cli", "sweep", "submit", "pair.yaml", *options]
    subprocess.run(argv, cwd=tmp_path, env=slurm_env, check=True, capture_output=True, timeout=120)
    cell = tmp_path / "runs" / "pair" / "d02-s0"
    wait_for(lambda: records.read_rows(cell / "metrics.jsonl")[0], 240, "the first step")
    preempt(slurm_env)
    wait_for(lambda: over(slurm_env), 400, "the requeued job to end")
    assert "Restarts=1" in ask(slurm_env, "scontrol", "show", "job", "1")
    assert (cell / "DONE").exists()
    lives = records.read_rows(cell / "lives.jsonl")[0]
    assert [life["processes"] for life in lives] == [2, 2]
    assert lives[1]["resumed_from"] > 0
    rows = [row["step"] for row in records.read_rows(cell / "metrics.jsonl")[0] if row["split"] == "train"]
    assert rows == sorted(set(rows))


@pytest.fixture
def stand_in(slurm_env, tmp_path, monkeypatch):
    """Submit the stand-in for a worker; what the task of a rank has said."""
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.chdir(tmp_path)
    for key, value in slurm_env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(slurm, "command", lambda submission: [sys.executable, str(tmp_path / "stand_in.py")])
    folder = tmp_path / "runs" / "figure8_cpu" / ".submit"

    def said(name: str) -> list[str]:
        log = folder / f"{name}_log.out"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.startswith(("started", "saved"))]

    def submit(**options) -> list[str]:
        return slurm.submit(Submission("figure8_cpu", "slurm", time="60", **options))

    return submit, said


def test_a_worker_of_two_nodes_is_requeued_as_one(slurm_env, stand_in):
    submit, said = stand_in
    assert submit(nodes=2) == ["1"]
    wait_for(lambda: said("1_0") and said("1_1"), 60, "both nodes to start")
    preempt(slurm_env)
    wait_for(lambda: over(slurm_env), 120, "the requeued job to end")
    for rank in (0, 1):
        assert said(f"1_{rank}") == [f"started 0 {rank} 2", f"saved 0 {rank}", f"started 1 {rank} 2"]
    job = ask(slurm_env, "scontrol", "show", "job", "1")
    assert "JobState=COMPLETED" in job
    assert "Restarts=1" in job


def test_a_cancelled_job_does_not_come_back(slurm_env, stand_in):
    submit, said = stand_in
    assert submit(count=2) == ["1_0", "1_1"]
    wait_for(lambda: said("1_0_0") and said("1_1_0"), 60, "both workers to start")
    subprocess.run(["scancel", "1_1"], env=slurm_env, check=True)
    wait_for(lambda: "1_1" not in ask(slurm_env, "squeue", "-h", "-r", "-o", "%i"), 60, "the job to end")
    assert said("1_1_0") == ["started 0 0 1", "saved 0 0"]
    assert "JobState=CANCELLED" in ask(slurm_env, "scontrol", "show", "job", "1_1")
    assert ask(slurm_env, "squeue", "-h", "-r", "-o", "%i %T") == "1_0 RUNNING"
    assert said("1_0_0") == ["started 0 0 1"]
