"""Task by task: the right p-values for having asked of several, saturation said plainly, all of it in the JSON."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic import link, write_scores, write_sweep
from test_cli import assert_one_line, sd3  # noqa: F401

from analysis import by_task
from analysis.scores import load_scores, score_points
from sd3_jax import records
from sd3_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven depths; position is at its ceiling, counting at chance, single_object follows the loss."""
    root = write_scores(
        write_sweep(tmp_path_factory.mktemp("tasks"), depths=range(2, 9), noise=0.001), prompts=12, earlier=1
    )
    for path in root.glob("*/evals.jsonl"):
        rows = records.read_rows(path)[0]
        for row in rows:
            flat = {"counting": [0.0, 0.04] * 6, "position": [1.0, 0.98] * 6}.get(row["group"])
            if row["name"] == "scene-geneval" and flat:
                value = float(np.average(flat, weights=row["images_by_prompt"]))
                row |= {"by_prompt": flat, "value": value, "se": 0.006}
        for row in rows:
            if row["name"] == "scene-geneval" and row["group"] == "overall":
                own = [r for r in rows if r["name"] == row["name"] and r["step"] == row["step"] and r["by_prompt"]]
                row["value"] = float(np.mean([r["value"] for r in own]))
        records.write_rows(path, rows)
    return root


def test_holm_is_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for m in (1, 2, 6, 9):
        p = rng.random(m) ** 3
        adjusted = np.array(by_task.holm(p))
        for level in (0.01, 0.05, 0.2):
            rejected = np.zeros(m, bool)
            for k, i in enumerate(np.argsort(p)):  # Holm 1979: go on while p_(k) <= level / (m - k)
                if p[i] > level / (m - k):
                    break
                rejected[i] = True
            assert ((adjusted <= level) == rejected).all()
    assert by_task.holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])  # as R's p.adjust
    assert np.isnan(by_task.holm([math.nan])).all()


def test_a_task_has_the_points_of_its_own_prompts(root):
    scores = load_scores(root)
    points = score_points(scores, "scene-geneval", "single_object")
    own = scores[(scores["name"] == "scene-geneval") & (scores["group"] == "single_object")]
    assert points["value"].tolist() == own["value"].tolist()
    for point in points.itertuples():
        assert len(point.weight) == 12
        assert point.by_prompt @ point.weight == pytest.approx(point.value)
    with pytest.raises(UserError, match="no score 'scene-geneval' of a task 'size' with prompts of its own"):
        score_points(scores, "scene-geneval", "size")


def test_a_task_that_is_saturated_has_no_trend_whatever_its_p(root):
    tasks = {one.name: one for one in by_task.relate(load_scores(root), "scene-geneval", resamples=50)}
    assert list(tasks) == ["counting", "position", "single_object"]
    assert tasks["counting"].sentence == "at chance at every depth (0.02 to 0.02): there is no trend to speak of."
    assert tasks["position"].sentence.startswith("at its ceiling at every depth (0.99 to 0.99): there is no trend")
    moving = tasks["single_object"]
    ends = moving.relation.points[moving.relation.points["last"]].groupby("depth")[["loss", "value"]].mean()
    rho = stats.spearmanr(ends["loss"], ends["value"]).statistic
    assert moving.relation.correlation.last.spearman.value == pytest.approx(rho)
    p = [one.relation.correlation.last.spearman.p for one in tasks.values()]
    assert moving.holm == pytest.approx(np.nanmin(p) * np.isfinite(p).sum())
    assert moving.sentence.startswith("the score rises as the loss falls")
    loss = moving.relation.points["loss"].to_numpy()
    assert moving.relation.link.constants["L0"] == pytest.approx(0.34, abs=0.01)
    assert link(loss.min()) > 0.8


def test_a_task_that_reaches_its_ceiling_on_the_way_says_at_how_many_depths(root):
    tasks = by_task.relate(load_scores(root), "scene-compbench", resamples=0)
    for one in tasks:
        assert 0 <= one.at_ceiling < one.depths == 7
        near = f"{one.at_ceiling} of 7 depths are at its ceiling"
        assert (near in one.sentence) == (one.at_ceiling > 0)


def test_several_tasks_of_few_depths_can_show_nothing(tmp_path):
    root = write_scores(write_sweep(tmp_path, depths=(2, 3, 4, 5, 6), noise=0.001), noise=0.01)
    tasks = by_task.relate(load_scores(root), "scene-geneval", resamples=0)
    assert by_task.remark(tasks) == (
        "Holm over 3 tasks: even perfect order over these depths has p = 0.05, so no single task can be significant."
    )
    assert all("no rank correlation is established" in one.sentence for one in tasks)


def test_the_command_shows_and_writes_every_task(sd3, root):  # noqa: F811
    code, out, _ = sd3("correlate", str(root), "--score", "scene-geneval", "--by-task", "--json", "c.json")
    assert code == 0
    (found,) = json.loads(Path("c.json").read_text())
    assert found["by_task"]["holm_over"] == 1 + sum(
        one["correlation"]["last"]["spearman"]["p"] is not None for one in found["by_task"]["tasks"][:2]
    )
    for one in found["by_task"]["tasks"]:
        assert f"{one['task']}: {one['sentence']}" in out
        assert {"correlation", "link", "p_holm", "depths_at_chance", "depths_at_ceiling"} <= set(one)
    assert [one["saturated"] for one in found["by_task"]["tasks"]] == ["chance", "its ceiling", None]
    assert found["by_task"]["remark"] in out


def test_one_task_needs_no_correction_and_no_score_is_one_line(sd3, root):  # noqa: F811
    scores = load_scores(root)
    one_only = scores[scores["group"].isin(["overall", "single_object"])]
    (only,) = by_task.relate(one_only, "scene-geneval", resamples=0)
    assert only.holm == only.relation.correlation.last.spearman.p
    with pytest.raises(UserError, match="no run's last checkpoint has a score of counting"):
        by_task.relate(scores[~scores["last"]], "scene-geneval", resamples=0)
    assert_one_line(*sd3("correlate", str(root), "--score", "none", "--by-task"), "no score 'none'")
