"""The story: a sweep YAML goes in; runs, a law and a figure come out, through the command line alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = """
experiment: scenes_cpu
set: {steps: 40, model.head_dim: 8, batch: 16, log_every: 5, optimizer.warmup_steps: 3,
      evaluation.examples: 32, evaluation.first_step: 4, evaluation.per_decade: 12, evaluation.budgets: [1e9]}
cells:
  - {model.depth: [1, 2, 3], seed: 0}
  - {model.depth: 1, seed: 0, optimizer.cooldown: 0.25}
"""


def sd3_jax(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sd3_jax.cli", *arguments]
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}  # full width
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device; a few steps are not worth optimising
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    (folder / "small.yaml").write_text(SWEEP)
    done = sd3_jax("sweep", "run", "small.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_cell_is_done_and_a_second_command_has_nothing_to_do(swept: Path) -> None:
    names = {path.parent.name for path in swept.glob("runs/small/*/DONE")}
    assert names == {"d01-s0", "d02-s0", "d03-s0", "d01-cooldown0.25-s0"}
    branch = json.loads((swept / "runs/small/d01-cooldown0.25-s0/lives.jsonl").read_text())
    assert branch["resumed_from"] == 30  # not trained twice
    before = {path: path.stat().st_mtime_ns for path in swept.glob("runs/small/*/metrics.jsonl")}
    assert sd3_jax("sweep", "run", "small.yaml", cwd=swept).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_losses_fall(swept: Path) -> None:
    for depth in (1, 2, 3):
        rows = (swept / f"runs/small/d{depth:02d}-s0/metrics.jsonl").read_text().splitlines()
        points = [row for row in map(json.loads, rows) if row["split"] == "validation" and row["weights"] == "raw"]
        assert points[-1]["step"] == 40
        assert points[-1]["loss"] < 0.97 * points[0]["loss"]


def test_the_figure_holds_what_the_runs_recorded(swept: Path) -> None:
    done = sd3_jax("figure", "8", "runs/small", "--out", "figures", cwd=swept)
    assert done.returncode == 0, done.stderr
    assert (swept / "figures/small.png").read_bytes().startswith(b"\x89PNG")
    assert (swept / "figures/small.pdf").read_bytes().startswith(b"%PDF")
    numbers = json.loads((swept / "figures/small.json").read_text())
    rows = [json.loads(line) for line in (swept / "runs/small/d03-s0/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "validation" and row["weights"] == "ema"][-1]
    assert f"{last['loss']:.12g}" in {f"{value:.12g}" for value in _numbers(numbers)}


@pytest.fixture(scope="module")
def evaluated(swept: Path) -> Path:
    arguments = ("--images-per-task", "8", "--sampler-steps", "2", "--no-preference")
    done = sd3_jax("evaluate", "runs/small", *arguments, cwd=swept)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("d01-s0", "d02-s0", "d03-s0", "d01-cooldown0.25-s0"))
    return swept


def test_pictures_of_every_run_are_drawn_judged_and_shown(evaluated: Path) -> None:
    for run in ("d01-s0", "d02-s0", "d03-s0", "d01-cooldown0.25-s0"):
        pictures = evaluated.glob(f"runs/small/{run}/samples/0000040-*/*/samples/*.png")
        assert len(list(pictures)) == 9 * 8
    done = sd3_jax("figure", "8", "runs/small", "--out", "whole", cwd=evaluated)
    assert done.returncode == 0, done.stderr
    drawn = json.loads((evaluated / "whole/small.json").read_text())["scores"]
    assert [one["name"] for one in drawn] == ["scene-geneval", "scene-geneval-soft", "scene-compbench"]
    rows = [json.loads(line) for line in (evaluated / "runs/small/d03-s0/evals.jsonl").read_text().splitlines()]
    soft = [row for row in rows if (row["name"], row["group"]) == ("scene-geneval-soft", "overall")]
    assert soft[-1]["value"] in drawn[1]["value"]
    done = sd3_jax("figure", "12", "runs/small", "--out", "whole", cwd=evaluated)
    assert done.returncode == 0, done.stderr
    assert (evaluated / "whole/small_pictures.png").read_bytes().startswith(b"\x89PNG")


def _numbers(tree) -> list[float]:
    if isinstance(tree, dict):
        return [x for value in tree.values() for x in _numbers(value)]
    if isinstance(tree, list):
        return [x for value in tree for x in _numbers(value)]
    return [float(tree)] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


def test_status_fit_and_prediction_answer(swept: Path) -> None:
    status = sd3_jax("sweep", "status", "small.yaml", "--json", "-", cwd=swept)
    assert status.returncode == 0
    assert {cell["state"] for cell in json.loads(status.stdout)} == {"done"}
    fitted = sd3_jax("fit", "runs/small", "--json", "-", cwd=swept)
    assert fitted.returncode == 0, fitted.stderr
    assert json.loads(fitted.stdout)["n_runs"] == 3
    predicted = sd3_jax("predict", "runs/small", "--flops", "1e12", cwd=swept)
    assert predicted.returncode == 0, predicted.stderr
    assert "1e+12" in predicted.stdout or "1.0e12" in predicted.stdout or "1e12" in predicted.stdout
