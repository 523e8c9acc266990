import json

import numpy as np
import pytest
from synthetic import TRUTH, bench_config, law_loss, write_run, write_sweep

import analysis
from analysis import runs as records_of
from sd3_jax import flops, records
from sd3_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweep"), depths=(2, 3, 4), seeds=2, cooldown=True, steps=1000)


def test_one_tidy_row_per_validation_point(root):
    runs = analysis.load(root)
    assert runs.groupby(["run", "step", "weights"]).size().max() == 1
    assert set(runs["run"]) == {p.name for p in root.iterdir()}
    assert set(runs["weights"]) == {"raw", "ema"}
    own = runs[(runs["run"] == "d03-s0") & (runs["weights"] == "ema")]
    model = bench_config(3).model
    assert (own["params"] == flops.parameters(model).total).all()
    assert (own["width"] == 48).all()
    assert not own["cooldown"].any()
    assert runs.loc[runs["run"] == "d03-s0-cooldown", "cooldown"].all()
    np.testing.assert_allclose(own["flops"], own["images"] * flops.train_flops(model))
    late = own[own["phase"] == "constant"]
    np.testing.assert_allclose(late["loss"], law_loss(TRUTH, late["params"], late["images"]), rtol=1e-12)
    np.testing.assert_allclose(own[[f"loss_t{k}" for k in range(8)]].mean(axis=1), own["loss"])
    assert runs.attrs["configs"]["d03-s0"] == bench_config(3, steps=1000)


def test_training_rows(root):
    train = analysis.load_train(root)
    assert (train["grad_norm"] == 0.5).all()
    assert train["mfu"].isna().all()
    assert len(train) == len(analysis.load(root)) / 2


def test_runs_that_began_from_weights_are_said_to_lie_on_no_law(root):
    runs = analysis.load(root)
    with pytest.raises(UserError, match="the runs began from weights"):
        analysis.points_on_law(runs.assign(phase="fine-tune"))


def test_points_on_the_law(root):
    runs = analysis.load(root)
    points = analysis.points_on_law(runs)
    assert set(points["weights"]) == {"ema"}
    assert not points["cooldown"].any()
    assert points["step"].min() >= 100
    assert (points["last_step"] == 1000).all()
    assert analysis.points_on_law(runs, skip=0.0)["step"].min() >= 50  # the warm-up goes in any case
    assert analysis.points_on_law(runs, skip=0.5)["step"].min() >= 500
    assert set(analysis.points_on_law(runs, weights="raw")["weights"]) == {"raw"}
    without = analysis.points_on_law(runs, with_zero=False)
    np.testing.assert_allclose(without["loss"], (8 * points["loss"] - points["loss_t0"]) / 7)
    with pytest.raises(UserError, match="no point on the law"):
        analysis.points_on_law(runs[runs["cooldown"]])
    with pytest.raises(UserError, match="skip: 1"):
        analysis.points_on_law(runs, skip=1)
    with pytest.raises(UserError, match="of the ema weights; there are: raw"):
        analysis.points_on_law(runs[runs["weights"] == "raw"])


def test_cooldown_ends(root):
    ends = analysis.cooldown_ends(analysis.load(root))
    assert list(ends["depth"]) == [2, 3, 4]
    assert (ends["step"] == 1000).all()
    runs = analysis.load(root)
    for end in ends.itertuples():
        same = (runs["run"] == f"d{end.depth:02d}-s{end.seed}") & (runs["step"] == 1000) & (runs["weights"] == "ema")
        assert end.offset == pytest.approx(end.loss - runs[same]["loss"].item())


def test_points_after_a_drop_are_flagged(tmp_path):
    for depth in (2, 3, 4):
        drops = {"optimizer.drops": [[600, 0.5]]} if depth == 4 else {}
        write_run(tmp_path, bench_config(depth, 0, 1000, **drops))
    runs = analysis.load(tmp_path)
    points = analysis.points_on_law(runs)
    assert points.loc[points["lr_drop"], "step"].min() > 600
    assert set(points.loc[points["lr_drop"], "depth"]) == {4}
    assert not analysis.points_on_law(runs, with_drops=False)["lr_drop"].any()
    law = analysis.fit(runs, resamples=0)
    assert "learning-rate drop" in law.flags
    assert "mixed schedules" not in law.flags
    assert "learning-rate drop" not in analysis.fit(runs, with_drops=False, resamples=0).flags
    table = analysis.sensitivity(runs)
    assert table.loc["without points after a drop", "points"] < table.loc["as reported", "points"]


def test_mixed_schedules_are_flagged_and_mixed_data_refused(tmp_path):
    for depth in (2, 3, 4):
        write_run(tmp_path, bench_config(depth, **({"optimizer.learning_rate": 1e-3} if depth == 4 else {})))
    assert "mixed schedules" in analysis.fit(analysis.load(tmp_path), resamples=0).flags
    write_run(tmp_path, bench_config(5, **{"data.shapes": 4}))
    with pytest.raises(UserError, match="differ in data.shapes"):
        analysis.fit(analysis.load(tmp_path))
    runs = analysis.load(tmp_path)
    assert analysis.fit(runs[runs["depth"] < 5], resamples=0).n_runs == 3


def test_broken_lines_are_skipped_and_counted(tmp_path):
    run_dir = write_run(tmp_path, bench_config(2))
    before = len(analysis.load(tmp_path))
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    validation = [i for i, line in enumerate(lines) if json.loads(line)["split"] == "validation"]
    lines[validation[0]] = json.dumps(json.loads(lines[validation[0]]) | {"loss": None})
    lines[-1] = lines[-1][:40]
    metrics.write_text("\n".join(lines))
    runs = analysis.load(tmp_path)
    assert len(runs) == before - 2
    assert "1 line of metrics.jsonl cut short or not JSON, skipped." in runs.attrs["notes"]
    assert "1 validation point without a finite positive loss, dropped." in runs.attrs["notes"]


def test_only_finished_runs_unless_asked(tmp_path):
    write_run(tmp_path, bench_config(2))
    write_run(tmp_path, bench_config(3), finished=False)
    records.fail(write_run(tmp_path, bench_config(4), finished=False), "loss is not finite")
    records.open_run(tmp_path / "d05-s0", bench_config(5))
    runs = analysis.load(tmp_path)
    assert set(runs["depth"]) == {2}
    assert runs.attrs["notes"] == [
        "1 run not finished, left out: d03-s0.",
        "1 run failed, left out: d04-s0.",
        "1 run not started, left out: d05-s0.",
    ]
    assert set(analysis.load(tmp_path, unfinished=True)["depth"]) == {2, 3}
    assert set(analysis.load(tmp_path / "d02-s0")["run"]) == {"d02-s0"}


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        analysis.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no run"):
        analysis.load(tmp_path)
    write_run(tmp_path, bench_config(2), finished=False)
    records.fail(write_run(tmp_path, bench_config(3), finished=False), "loss is not finite")
    with pytest.raises(UserError, match=r"no finished run among 2 \(1 not finished, 1 failed\)"):
        analysis.load(tmp_path)


def test_unreadable_run_is_named_and_the_others_read(tmp_path):
    write_run(tmp_path, bench_config(2))
    broken = write_run(tmp_path, bench_config(3))
    (broken / "config.json").write_text("{")
    runs = analysis.load(tmp_path)
    assert set(runs["depth"]) == {2}
    assert any("d03-s0" in note and "not JSON" in note for note in runs.attrs["notes"])
    empty = write_run(tmp_path, bench_config(4))
    (empty / "metrics.jsonl").write_text("")
    assert "run d04-s0 has no validation point." in analysis.load(tmp_path).attrs["notes"]


def test_filters_keep_what_the_analysis_needs(root):
    runs = analysis.load(root)
    some = runs[runs["depth"] > 2].copy()
    assert records_of.differences(some) == []
    assert analysis.points_on_law(some).attrs["configs"] == runs.attrs["configs"]
