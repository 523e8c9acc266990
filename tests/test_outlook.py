"""What a budget not yet spent would give: right where the law is known, with intervals that hold what they say."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats
from synthetic import TRUTH, bench_config, law_loss, link, write_run, write_scores, write_sweep
from test_cli import assert_one_line, sd3  # noqa: F401
from test_isoflop import BUDGETS, SYMMETRIC, valleys
from test_laws import CHINCHILLA, surface
from test_tables import table

import analysis
from analysis import frontier, laws, prediction, report
from sd3_jax.errors import UserError

LAW = CHINCHILLA[1]


def best_size(truth, flops, k=6.0):
    """Hoffmann et al.'s closed form for C = k N D."""
    total = truth["alpha"] + truth["beta"]
    scale = (truth["alpha"] * truth["A"] / (truth["beta"] * truth["B"])) ** (1 / total)
    return scale * (flops / k) ** (truth["beta"] / total)


def as_table(points):
    return points.drop(columns="depth")


def test_the_best_size_of_a_table_is_the_closed_form_and_the_ratio_is_to_its_largest_compute():
    points = as_table(surface(LAW, sizes=8, lengths=6))
    law = laws.fit_points(points, resamples=0)
    most = points["flops"].max()
    near, far = analysis.outlook(law, points, [0.1 * most, 1e3 * most])
    for found, times in ((near, 0.1), (far, 1e3)):
        flops = times * most
        params = best_size(LAW, flops)
        assert found.reach == pytest.approx(times)
        assert found.best["params"].value == pytest.approx(params, rel=1e-3)
        assert found.best["images"].value == pytest.approx(flops / 6 / params, rel=1e-3)
        assert found.best["loss"].value == pytest.approx(law_loss(LAW, params, flops / 6 / params), rel=1e-6)
        assert np.isnan(found.best["loss"].ci95).all()  # no draws, no interval
        assert not found.at_edge
    assert "more than two decades" not in report.outlook_lines(near)[0]
    assert "1e+03 times the most of any run: more than two decades" in report.outlook_lines(far)[0]
    assert (near.extrapolated, far.extrapolated) == (False, True)


def test_intervals_of_a_new_run_hold_it_as_often_as_they_say():
    # 60 tables with 0.5 % noise, a new run at ten times their compute: the share of runs inside each interval is
    # binomial, and 50 resamples are few; three standard deviations of 60 trials.
    inside = []
    for seed in range(60):
        points = as_table(surface(LAW, sizes=16, lengths=4, seed=seed))
        noise = np.random.default_rng([seed, 1]).standard_normal(len(points) + 1)
        points["loss"] *= np.exp(0.005 * noise[1:])
        points["run"] = [f"p{i}" for i in range(len(points))]
        flops = 10 * points["flops"].max()
        (found,) = analysis.outlook(laws.fit_points(points, resamples=50), points, [flops])
        params, images = found.best["params"].value, found.best["images"].value
        measured = law_loss(LAW, params, images) * math.exp(0.005 * noise[0])
        ends = (found.best["loss"].ci80, found.best["loss"].ci95, found.best["params"].ci95)
        truth = (measured, measured, best_size(LAW, flops))
        inside.append([low <= value <= high for (low, high), value in zip(ends, truth, strict=True)])
    for share, level in zip(np.mean(inside, axis=0), (0.80, 0.95, 0.95), strict=True):
        assert abs(share - level) < 3 * math.sqrt(level * (1 - level) / 60), np.mean(inside, axis=0)


def test_a_held_out_run_has_the_error_that_a_fit_by_hand_has():
    points = as_table(surface(LAW, noise=0.003))
    held = prediction.hold_out_largest(points, 2, resamples=50)
    law = laws.fit_points(points[~points["run"].isin(["r6", "r7"])], resamples=50)
    assert [one.what for one in held.each] == ["r6", "r7"]
    for one in held.each:
        last = points[points["run"] == one.what].nlargest(1, "flops").iloc[0]
        by_hand = law_loss(law.constants, last["params"], last["images"]) / last["loss"] - 1
        assert one.error == pytest.approx(by_hand, rel=1e-9)
        assert one.reach == pytest.approx(last["flops"] / points.loc[points["run"] == "r5", "flops"].max())
        new = prediction.predict(law, last["params"], last["images"])
        assert one.ci95 == pytest.approx((float(new.low), float(new.high)))
        assert one.covered == (new.low <= last["loss"] <= new.high)
    assert held.error == held.each[1].error
    assert held.points == sum(one.points for one in held.each)


def test_rolling_over_depths_sees_smaller_depths_alone():
    points = surface(LAW, noise=0.003)
    rolled = prediction.rolling(points, resamples=40)
    assert [one.depth for one in rolled] == [3, 4, 5, 6, 7]  # three sizes are needed first
    for one in rolled:
        law = laws.fit_points(points[points["depth"] < one.depth], resamples=0)
        last = points[points["depth"] == one.depth].nlargest(1, "images").iloc[0]
        by_hand = law_loss(law.constants, last["params"], last["images"]) / last["loss"] - 1
        assert one.error == pytest.approx(by_hand, rel=1e-6)
        assert (one.covered is None) == (one.depth < laws.MIN_RUNS)
    assert prediction.hold_out_largest(points, resamples=40).error == pytest.approx(rolled[-1].error)


def test_rolling_over_budgets_predicts_the_best_size_of_the_next():
    points = valleys(SYMMETRIC, noise=1e-3)
    points = points.drop(columns="depth", errors="ignore")
    rolled = prediction.rolling(points, resamples=0)
    budgets = [float(one.what.split()[0]) for one in rolled]
    assert budgets == pytest.approx(BUDGETS[-len(budgets) :], rel=1e-2)
    last = rolled[-1]
    below = points[points["flops"] < 0.9 * max(BUDGETS)]
    assert last.law.n_points == len(below)
    assert last.reach == pytest.approx(max(BUDGETS) / below["flops"].max(), rel=1e-6)
    here = points[points["flops"] > 0.9 * max(BUDGETS)]
    expected = law_loss(last.law.constants, here["params"], here["images"])
    assert last.predicted == pytest.approx(expected.min())
    assert last.actual == here["loss"][expected.idxmin()]


def test_nothing_can_be_rolled_over_too_few_sizes():
    with pytest.raises(UserError, match="from those below it: a law needs at least 3 depths; there are 2"):
        prediction.rolling(surface(LAW, sizes=3))


def test_a_draw_is_the_fit_to_its_resample():
    points = as_table(surface(LAW, noise=0.003))
    law = laws.fit_points(points, resamples=30)
    assert law.drawn.shape == (len(law.draws), 8)
    assert (law.drawn.sum(axis=1) == 8).all()
    names = np.unique(points["run"])
    again = [points[points["run"] == name] for name, n in zip(names, law.drawn[0], strict=True) for _ in range(n)]
    # other FLOPs make another cell: else copies would share the weight of one
    apart = pd.concat([part.assign(flops=part["flops"] * (1 + 1e-9 * i)) for i, part in enumerate(again)])
    np.testing.assert_allclose(laws.fit_points(apart, resamples=0).vector, law.draws[0], rtol=1e-6)


def test_a_score_follows_from_the_loss_with_the_uncertainty_of_both(tmp_path):
    write_scores(write_sweep(tmp_path / "runs", noise=0.002), noise=0.005, prompts=20, chance=0.0)
    runs, scores = analysis.load(tmp_path / "runs"), analysis.load_scores(tmp_path / "runs")
    points = analysis.points_on_law(runs)
    law = laws.fit_points(points, resamples=100)
    flops = points["flops"].max()
    (found,) = analysis.outlook(law, points, [flops], scores)
    assert set(found.scores) == {"scene-geneval", "scene-geneval-soft", "scene-compbench", "proxy-preference"}
    params = found.best["params"].value
    assert found.best["steps"].value == pytest.approx(found.best["images"].value / 64)
    truth = link(law_loss(TRUTH, params, found.best["images"].value))
    for one in found.scores.values():
        assert one.ci95[0] <= one.ci80[0] < one.value < one.ci80[1] <= one.ci95[1]
        assert one.ci95[0] < truth < one.ci95[1]
    # an interval of the loss alone, through the link as it was fitted, is narrower
    alone = [link(end) for end in found.best["loss"].ci95]
    wide = found.scores["scene-geneval"].ci95
    assert wide[1] - wide[0] > abs(alone[1] - alone[0])
    (without,) = analysis.outlook(laws.fit_points(points, resamples=0), points, [flops], scores)
    assert np.isnan(without.scores["scene-geneval"].ci95).all()


def own_noise(mean, noise, number, rng):
    """Four pictures of each prompt, good with the same probability: prompts have nothing in common."""
    return rng.binomial(4, mean, number) / 4


def shared_hardness(k):
    """The same, but prompts differ in how hard they are, in every run alike; their mean is the link's."""
    hard = np.random.default_rng([k, 5]).random((3, 20))
    tasks = itertools.cycle(range(3))

    def about(mean, noise, number, rng):
        return rng.binomial(4, stats.beta.ppf(hard[next(tasks)], 3 * mean, 3 * (1 - mean))) / 4

    return about


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_intervals_of_a_score_hold_it_as_often_as_they_say(tmp_path, monkeypatch, shared):
    # 60 sweeps of eight runs that differ by 0.4 %, and a new run at twice their compute: its expected score, as the
    # pictures' noise is not in the interval. Three standard deviations. Noise of single pictures is in the resamples
    # of runs and once more in those of prompts, so where there is no other, intervals hold more than they say.
    monkeypatch.setattr(synthetic, "TASKS", {"scene-geneval": synthetic.TASKS["scene-geneval"]})
    inside = []
    for k in range(60):
        root = tmp_path / str(k)
        monkeypatch.setattr(synthetic, "_about", shared_hardness(k) if shared else own_noise)
        for depth in range(2, 8):
            for seed in range(3 if depth == 2 else 1):
                name = f"d{depth}-s{seed}-{'x' * k}"  # scores draw their noise from the name
                write_run(root, bench_config(depth, 1000 * k + seed), noise=0.003, offset=0.004, name=name)
        write_scores(root, prompts=20, chance=0.0)
        points = analysis.points_on_law(analysis.load(root))
        law = laws.fit_points(points, resamples=200)
        flops = 2 * points["flops"].max()
        (found,) = analysis.outlook(law, points, [flops], analysis.load_scores(root))
        offset, noise = np.random.default_rng([k, 1]).standard_normal(2) * (0.004, 0.003)
        exact = law_loss(TRUTH, found.best["params"].value, found.best["images"].value)
        loss = exact * (1 + offset) * (1 + noise)
        score = found.scores["scene-geneval"]
        ends = (found.best["loss"].ci80, found.best["loss"].ci95, score.ci80, score.ci95)
        truth = (loss, loss, link(loss), link(loss))
        inside.append([low <= value <= high for (low, high), value in zip(ends, truth, strict=True)])
    shares = np.mean(inside, axis=0)
    for share, level, most in zip(shares, (0.80, 0.95) * 2, (False, False, not shared, not shared), strict=True):
        apart = share - level if not most else min(share - level, 0)
        assert abs(apart) < 3 * math.sqrt(level * (1 - level) / 60), shares


def test_the_command_says_and_writes_every_number(sd3, tmp_path):  # noqa: F811
    write_scores(write_sweep(tmp_path / "runs", noise=0.002))
    options = ("--bootstrap", "100", "--hold-out-largest", "2", "--rolling")
    code, out, _ = sd3("predict", "runs", "--flops", "1e12", *options, "--json", "p.json")
    assert code == 0
    for word in ("depth ", "steps ", "loss of a run", "scene-geneval ", "the largest 2 depths held out", "mean error"):
        assert word in out
    found = json.loads((tmp_path / "p.json").read_text())
    (one,) = found["predictions"]
    assert f"{one['reach']:.3g} times the most of any run" in out
    assert f"{one['depth']:.4g}" in out
    assert set(one["intervals"]) == {"depth", "params", "images", "steps", "loss", *one["scores"]}
    assert [held["what"] for held in found["law"]["hold_out"]["each"]] == ["depth 6", "depth 7"]
    assert [held["depth"] for held in found["rolling"]] == [5, 6, 7]


def test_a_table_goes_through_the_same_door(sd3):  # noqa: F811
    table(0.002).rename(columns={"params": "N"}).to_csv("t.csv", index=False)
    code, out, _ = sd3(
        "predict", "t.csv", "--columns", "params=N", "--flops", "1e23", "--bootstrap", "50", "--json", "-"
    )
    assert code == 0
    (one,) = json.loads(out)["predictions"]
    assert one["params"] == pytest.approx(best_size(LAW, 1e23), rel=0.2)
    assert one["data"] == pytest.approx(1e23 / 6 / one["params"])
    assert {"depth", "steps", "images"}.isdisjoint(one)
    assert one["reach"] == pytest.approx(1e23 / (6 * 1e10 * 5e11))


@pytest.mark.parametrize(
    "text, arguments, words",
    [
        ("params,data,loss\n1,2,3\n", ["--flops=-1"], ["--flops: a budget is a positive number"]),
        ("params,data,loss\n1,2,3\n", ["--flops", "nan"], ["--flops: a budget is a positive number"]),
        ("flops,loss\n1e18,3\n1e19,2\n", ["--flops", "1e20"], ["needs columns params, data (images)"]),
        ("params,data,loss\n1,2,3\n", ["--flops", "1", "--where", "guidance=3"], ["--where: is for runs"]),
        ("flops,params,data,loss\n12,1,2,3\n", ["--flops", "1", "--bootstrap", "5"], ["5 resamples give no interval"]),
        ("data,loss\n1e18,3\n1e19,2\n", ["--flops", "1e20"], ["needs columns params"]),
    ],
)
def test_bad_tables_and_budgets_are_one_line(sd3, tmp_path, text, arguments, words):  # noqa: F811
    (tmp_path / "t.csv").write_text(text)
    assert_one_line(*sd3("predict", "t.csv", *arguments), *words)


def test_a_law_of_flops_alone_says_nothing_of_sizes():
    points = as_table(surface(LAW))
    law = laws.fit_points(points, "saturating", resamples=0)
    with pytest.raises(UserError, match="the law saturating says nothing of sizes"):
        analysis.outlook(law, points, [1e22])
    assert frontier.sizes_in(points).flops_per_image / frontier.sizes_in(points).params == pytest.approx(6.0)
