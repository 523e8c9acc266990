"""What few sampler steps cost: Table 6 with paired errors, and Figure 3."""

import json

import numpy as np
import pytest
from synthetic import DOZEN, bench_config, score_settings, write_run, write_study
from test_study import all61, sd3  # noqa: F401  fixtures

import analysis
from analysis import sampling, table_pictures
from analysis.study import points
from sd3_jax import records
from sd3_jax.errors import UserError


def write_depths(root, depths=(2, 3, 4, 5), seeds=1):
    for depth in depths:
        for seed in range(seeds):
            run_dir = write_run(root, bench_config(depth, seed, 200))
            score_settings(run_dir, "rf/lognorm(0.00, 1.00)")
    return root


def rewrite(run_dir, change):
    """Every row of a run's scores changed, or left out where the change gives none."""
    path = run_dir / "evals.jsonl"
    rows = [change(row) for row in records.read_rows(path)[0]]
    records.write_rows(path, [row for row in rows if row])


def test_the_loss_is_that_of_the_overall_scores_and_its_error_that_of_a_bootstrap_over_prompts(tmp_path):
    root = write_depths(tmp_path, (3,), seeds=2)
    row = analysis.table6(analysis.load_study(root)).iloc[0]
    rows = [row for run in records.find_runs(root) for row in records.read_rows(run / "evals.jsonl")[0]]
    kept = [row for row in rows if (row["name"], row["guidance"], row["weights"]) == ("scene-geneval-soft", 5, "ema")]
    mean = {
        steps: np.mean([row["value"] for row in kept if (row["group"], row["steps"]) == ("overall", steps)])
        for steps in (5, 10, 25, 50)
    }
    assert row["score"] == pytest.approx(mean[50])
    rng = np.random.default_rng(0)
    for steps in (5, 10, 25):
        assert row[f"loss_{steps}"] == pytest.approx(100 * (mean[50] - mean[steps]) / mean[50])
        prompts = {
            (k, task): np.mean([r["by_prompt"] for r in kept if (r["group"], r["steps"]) == (task, k)], axis=0)
            for k in (steps, 50)
            for task in ("single_object", "counting")
        }
        drawn = rng.integers(0, 6, (2, 20000, 6))
        few, most = (
            sum(
                prompts[k, task][own].mean(axis=1) / 2
                for task, own in zip(("single_object", "counting"), drawn, strict=True)
            )
            for k in (steps, 50)
        )
        # A bootstrap of n prompts is too narrow by sqrt((n - 1) / n).
        error = np.std(100 * (1 - few / most)) * np.sqrt(6 / 5)
        assert row[f"loss_se_{steps}"] == pytest.approx(error, rel=0.03)
    unpaired = 100 * np.hypot(row["score_se"], row["score_se"]) / row["score"]
    assert row["loss_se_5"] < 0.5 * unpaired  # hard prompts are hard at any number of steps


def test_table_6_has_a_row_for_every_depth_with_its_path_and_the_papers(tmp_path):
    root = write_depths(tmp_path)
    table = analysis.table6(analysis.load_study(root))
    assert list(table["model"]) == ["depth 2", "depth 3", "depth 4", "depth 5"]
    assert table["path_length"].tolist() == pytest.approx([189.6, 189.4, 189.2, 189.0])
    assert "path length: falls with depth, as in the paper (Spearman's rho -1.00 over 4 depths" not in str(table.attrs)
    assert (
        "path length: no trend with depth is established (Spearman's rho -1.00 over 4 depths, p 0.083)."
        in table.attrs["sentences"]
    )
    headings = [column.heading for column in table.attrs["columns"]]
    assert headings == ["scene-geneval-soft, 50 steps", "5/50 %", "10/50 %", "25/50 %", "path length"]
    score_settings(
        write_run(root, bench_config(15, 0, 100, **{"optimizer.warmup_steps": 10})), "rf/lognorm(0.00, 1.00)"
    )
    table = analysis.table6(analysis.load_study(root))
    assert table.iloc[-1][["paper_5", "paper_10", "paper_20", "paper_path_length"]].tolist() == [
        4.30,
        0.86,
        0.21,
        191.13,
    ]
    figure, numbers = table_pictures.picture(table)
    assert len(figure.axes) == 2
    assert len(numbers["rows"]) == 5


def test_several_formulations_or_data_sets_have_rows_of_their_own(tmp_path):
    table = analysis.table6(analysis.load_study(write_study(tmp_path, names=DOZEN[:2])))
    assert list(table["model"]) == [
        f"{data_set}, {name}, depth 2" for data_set in ("free", "grid") for name in ("rf", "rf/lognorm(0.00, 1.00)")
    ]
    assert table.attrs["sentences"] == []  # one depth has no trend


def test_what_is_not_measured_is_said(tmp_path):
    root = write_depths(tmp_path, (2, 3))
    for run_dir in records.find_runs(root):
        # Nor is there a distance, which this table does not need.
        rewrite(run_dir, lambda row: row | {"by_prompt": []} if row["name"] == "scene-geneval-soft" else None)
    table = analysis.table6(analysis.load_study(root))
    assert "path length: not measured." in table.attrs["notes"]
    assert "scores that do not say several prompts of each task have no error here." in table.attrs["notes"]
    assert table["loss_se_5"].isna().all()
    assert table["loss_5"].notna().all()
    assert len(table_pictures.picture(table).figure.axes) == 1
    for run_dir in records.find_runs(root):
        rewrite(run_dir, lambda row: row if row["steps"] == 25 else None)
    for make in (analysis.table6, analysis.figure3):
        with pytest.raises(UserError, match="there are scores after 25 alone"):
            make(analysis.load_study(write_depths(tmp_path / "none", (2,)), setting={"steps": 25}))


def test_one_prompt_of_a_task_has_no_spread(tmp_path):
    root = write_depths(tmp_path, (2, 3))
    for run_dir in records.find_runs(root):
        rewrite(run_dir, lambda row: row | {key: row.get(key, [])[:1] for key in ("by_prompt", "images_by_prompt")})
    study = analysis.load_study(root)
    assert analysis.table6(study)["loss_se_5"].isna().all()
    assert points(study)["up_parts"].isna().all()


def test_a_score_of_zero_has_no_share_to_lose():
    assert np.isnan(sampling.relative_loss(np.array([0.1, 0.0]), np.eye(2), 0)).all()
    assert sampling.relative_loss(np.array([0.5, 0.5]), np.ones((2, 2)), 0) == (0.0, 0.0)


# --- figure 3 -------------------------------------------------------------------------------------------------------


def check_layout(figure):
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    texts = [*figure.texts, *figure.legends, *(label for a in figure.axes for label in (a.xaxis.label, a.yaxis.label))]
    boxes = [text.get_window_extent(renderer) for text in texts if not hasattr(text, "get_text") or text.get_text()]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_every_number_drawn_is_in_the_numbers(tmp_path):
    study = analysis.load_study(write_study(tmp_path / "runs", names=DOZEN[:5]))
    figure, numbers = analysis.figure3(study, tmp_path / "three")
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "scene-frechet ↓, free", "scene-geneval-soft ↑, free", "scene-frechet ↓, grid", "scene-geneval-soft ↑, grid",
    ]  # fmt: skip
    assert len(numbers["curves"]) == 2 * 5
    for curve in numbers["curves"]:
        assert curve["steps"] == [5, 10, 25, 50]
        first = 0 if curve["data_set"] == "free" else 2
        for axes, side in zip(figure.axes[first : first + 2], ("down", "up"), strict=True):
            assert any(np.array_equal(line.get_ydata(), curve[side]) for line in axes.lines)
    assert numbers["setting"] == {
        "sampler": "euler",
        "guidance": 5.0,
        "shift": 1.0,
        "grid": "uniform",
        "weights": "ema",
    }
    assert numbers["named"] == sorted(DOZEN[:5])
    check_layout(figure)
    assert json.loads((tmp_path / "three.json").read_text())["figure"] == "3"


def test_of_many_only_the_notable_are_named(all61):  # noqa: F811
    figure, numbers = analysis.figure3(all61)
    named = numbers["named"]
    assert {"rf", "eps/linear", "v/linear", "edm(-1.20, 1.20)", "rf/lognorm(0.00, 1.00)"} <= set(named)
    assert len(named) <= sampling.MANY
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*named, "others"]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.legends[0].get_lines()]
    assert len(set(looks)) == len(looks)
    for axes, side in zip(figure.axes, ("down", "up", "down", "up"), strict=True):
        curves = [
            curve for curve in numbers["curves"] if curve["data_set"] == ("free", "grid")[axes in figure.axes[2:]]
        ]
        best = (max if side == "up" else min)(curves, key=lambda curve: curve[side][-1])
        assert best["formulation"] in named
    check_layout(figure)


def test_the_command_draws_it(tmp_path, sd3):  # noqa: F811
    root = write_study(tmp_path / "runs", data_sets=("grid",), names=DOZEN[:3])
    code, out, err = sd3("figure", "3", root, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith(f"wrote {tmp_path / 'out' / 'runs_figure3.png'}")
