import re

import pandas as pd
import pytest
from synthetic import bench_config, write_sweep

import analysis
from analysis import findings
from analysis.checklist import GROUPS, Evidence, checklist
from analysis.runs import load_records
from sd3_jax import records

LIFE = {
    "dtype": "bfloat16",
    "device": "TPU v6e",
    "devices": 4,
    "revision": "0123456789abcdef",
    "sd3_jax": "9.9",
    "jax": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "python": "3.11.7",
}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    """All that a sweep of six depths can say, of records as training writes them."""
    root = write_sweep(tmp_path_factory.mktemp("runs"), noise=0.002, seeds=2)
    for run_dir in records.find_runs(root):
        records.append(run_dir / "lives.jsonl", LIFE)
    runs = analysis.load(root)
    points = analysis.points_on_law(runs)
    law = analysis.fit_points(points, resamples=40)
    return Evidence(
        points=points,
        records=load_records(root),
        law=law,
        hold_out=analysis.hold_out_largest(points, resamples=0),
        compared=analysis.compare_approaches(points, law, 20),
        sensitivity=analysis.sensitivity(runs),
        rivals=findings.rivals_of(law, points),
        reach=[2.0, 10.0],
        notes=["3 points left out."],
    )


def answers(evidence: Evidence) -> dict[str, str | None]:
    return {item.question: item.answer for item in checklist(evidence)}


def changed(evidence: Evidence, **fields) -> Evidence:
    return Evidence(**{**vars(evidence), **fields})


def test_every_group_of_the_survey_is_asked(evidence):
    items = checklist(evidence)
    assert tuple(dict.fromkeys(item.group for item in items)) == GROUPS
    assert len({item.question for item in items}) == len(items)
    assert all(item.where for item in items)


def test_answers_are_those_of_the_configuration(evidence):
    said = answers(evidence)
    config = bench_config(2)
    assert said["depth and width of every run"].startswith("7 runs of depth 2 to 7, width 32 to 112")
    assert said["steps and batch"] == "2,000 steps in batches of 64"
    assert said["learning rate"] == f"{config.optimizer.learning_rate:g}"
    assert said["schedule and warm-up"] == "linear warm-up of 50 steps, then constant"
    assert f"weight decay {config.optimizer.weight_decay:g}" in said["optimizer and weight decay"]
    assert f"{config.optimizer.ema_relative_width:g}" in said["averaged weights (EMA)"]
    assert said["seeds"] == "seeds of depth 2: 0, 1; depth 3: 0; depth 4: 0; depth 5: 0; depth 6: 0; depth 7: 0"
    assert said["precision and device"].startswith("matmuls in bfloat16, on 4 TPU v6e")
    assert "the rate the same for all" in said["how hyper-parameters scale with size"]
    assert said["how hyper-parameters were tuned"] is None  # one rate at each depth
    assert f"of {config.data.image_size} px" in said["data set and filtering"]
    assert f"{2000 * 64:,} images at most" in said["epochs"]
    assert said["validation set"].startswith(f"{config.evaluation.examples} fixed examples (seed 0)")
    assert "3F x images" in said["FLOP formula and what it counts"]


def test_answers_are_those_of_the_fit(evidence):
    said, law = answers(evidence), evidence.law
    assert said["number of points and of independent runs"] == f"{law.n_points} points of 7 runs"
    assert law.form.formula in said["exact form, units and base of logarithms"]
    assert f"{law.objective:.6g}" in said["objective, delta, sum or mean, weights"]
    assert f"{law.grad_norm:.1e}" in said["optimiser, tolerance, starts, bounds, convergence"]
    assert law.how in said["intervals, resampling unit, failures"]
    assert f"{evidence.hold_out.error:+.1%}" in said["held-out error on the largest compute"]
    assert "at 2, 10 times" in said["extrapolation ratio"]
    assert "3 points left out." in said["exclusions and outliers, with reasons"]
    assert said["Monte-Carlo error of the loss"].startswith("median standard error 0.002")
    assert re.match("trained with revision 0123456789ab, sd3_jax 9.9, jax 0.10.2", said["code, seed, versions"])


FIELDS = {
    "batch": "steps and batch",
    "steps": "steps and batch",
    "optimizer.learning_rate": "learning rate",
    "optimizer.warmup_steps": "schedule and warm-up",
    "optimizer.weight_decay": "optimizer and weight decay",
    "optimizer.ema": "averaged weights (EMA)",
    "seed": "seeds",
    "model.head_dim": "depth and width of every run",
    "data.held_out": "data set and filtering",
    "data.source": "epochs",
    "evaluation.examples": "validation set",
    "dtype": "precision and device",
    "revision": "code, seed, versions",
}


@pytest.mark.parametrize("field, question", FIELDS.items())
def test_a_field_that_is_not_recorded_is_named(evidence, field, question):
    name = "d04-s0"
    kept = {run: one._replace(config=dict(one.config), lives=[*one.lives]) for run, one in evidence.records.items()}
    kept[name].config.pop(field, None)
    kept[name].lives[-1] = {key: value for key, value in kept[name].lives[-1].items() if key != field}
    items = {item.question: item for item in checklist(changed(evidence, records=kept))}
    assert items[question].answer is None
    assert field in items[question].where
    assert name in items[question].where
    assert sum(item.answer is None for item in items.values()) > sum(one is None for one in answers(evidence).values())


def test_defaults_of_whoever_reads_are_no_records(tmp_path):
    root = write_sweep(tmp_path, depths=(2,), seeds=1)
    path = root / "d02-s0" / "config.json"
    path.write_text(re.sub(r'"weight_decay": [^,]+,', "", path.read_text()))
    assert "optimizer.weight_decay" not in load_records(root)["d02-s0"].config
    assert load_records(root)["d02-s0"].config["optimizer.beta1"] == 0.9


def test_what_was_not_measured_or_fitted_is_missing(evidence):
    no_errors = evidence.points.assign(loss_se=float("nan"))
    assert answers(changed(evidence, points=no_errors))["Monte-Carlo error of the loss"] is None
    parts = {"hold_out": None, "sensitivity": None, "rivals": pd.DataFrame(), "compared": None, "reach": ()}
    for question in (
        "held-out error on the largest compute",
        "sensitivity table",
        "why this form, rivals tried",
        "whether other approaches agree",
        "extrapolation ratio",
    ):
        assert answers(changed(evidence, **parts))[question] is None
    nothing = checklist(Evidence())
    assert len(nothing) == len(checklist(evidence))
    assert all(item.answer is None for item in nothing)


def test_a_table_says_little_of_training(evidence):
    points = evidence.points[["run", "params", "images", "flops", "loss"]]
    law = analysis.fit_points(points, resamples=0)
    said = answers(Evidence(points=points, law=law, notes=["no flops: C = 6 N D."]))
    assert said["learning rate"] is None
    assert said["definition of the loss"] is None
    assert said["final or intermediate checkpoints"] is None
    assert said["FLOP formula and what it counts"].startswith("no flops: C = 6 N D.")
    assert said["raw table published"] == f"{len(points)} rows at full precision"


def test_rates_that_were_tried_are_an_answer(tmp_path):
    for rate in (2e-3, 4e-3, 8e-3):
        write_sweep(tmp_path / f"{rate}", depths=(2,), seeds=1, **{"optimizer.learning_rate": rate})
        (tmp_path / f"{rate}" / "d02-s0").rename(tmp_path / f"d02-lr{rate}")
    said = answers(Evidence(records=load_records(tmp_path)))
    assert said["how hyper-parameters were tuned"] == "rates tried among these runs: depth 2 0.002, 0.004, 0.008"
