"""Figures of residuals, of what was held out, of levels, of the frontier, and of what others published."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from synthetic import bench_config, write_backbones, write_run, write_scores, write_sweep
from test_cli import assert_one_line, sd3  # noqa: F401
from test_figures import is_drawn, lines_of
from test_isoflop import SYMMETRIC, valleys
from test_laws import CHINCHILLA, surface

import analysis
from analysis import diagnostics, drawing, flags, frontier, laws, prediction, published
from sd3_jax import flops
from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scores(write_sweep(tmp_path_factory.mktemp("sweep"), noise=0.002, offset=0.002))


@pytest.fixture(scope="module")
def runs(root):
    return analysis.load(root)


@pytest.fixture(scope="module")
def points(runs):
    return analysis.points_on_law(runs)


@pytest.fixture(scope="module")
def law(points):
    return laws.fit_points(points, resamples=60)


@pytest.fixture(scope="module")
def csv():
    """A table of 63 runs of one point each, at nine budgets."""
    found = valleys(CHINCHILLA[1], budgets=np.geomspace(6e18, 3e21, 9).tolist(), noise=2e-3)
    return found.drop(columns="depth")


@pytest.fixture(scope="module")
def figures(root, runs, points, law, csv, tmp_path_factory):
    """Every figure that there is."""
    scores, joint = analysis.load_scores(root), laws.fit_points(csv, resamples=60)
    official = scores.assign(name=scores["name"].replace("scene-geneval", "geneval"))
    backbones = write_backbones(tmp_path_factory.mktemp("backbones"))
    near = valleys(SYMMETRIC, budgets=[1e18, 1.5e18, 2e18, 3e18], noise=1e-3)
    one = csv[["run", "flops", "loss"]]
    sizes = surface(CHINCHILLA[1], sizes=7, noise=3e-3)
    long = sizes[["flops", "loss"]].assign(run="$a run$ whose name says all of it, " + sizes["run"])
    compared = analysis.compare_approaches(csv, joint, 40)
    return {
        "4": analysis.figure4(analysis.load(backbones), analysis.load_scores(backbones)),
        "8": analysis.figure8(runs, scores, resamples=40),
        "residuals of runs": analysis.residual_figure(law, points),
        "residuals of a table": analysis.residual_figure(joint, csv),
        "residuals of sizes": analysis.residual_figure(joint, sizes.drop(columns="depth")),
        "residuals of names": analysis.residual_figure(laws.fit_points(long, law="power", resamples=0), long),
        "residuals along FLOPs": analysis.residual_figure(laws.fit_points(one, law="saturating", resamples=0), one),
        "rolling": analysis.held_out_figure(analysis.rolling(points, resamples=40)),
        "held out together": analysis.held_out_figure([analysis.hold_out_largest(csv, 9, resamples=40)]),
        "levels": analysis.levels_figure(runs),
        "frontier of runs": analysis.frontier_figure(law, points, at=[1e13, 2e13]),
        "frontier of a table": analysis.frontier_figure(joint, csv, at=1e23),
        "isoflop": analysis.isoflop_figure(csv),
        "isoflop within a decade": analysis.isoflop_figure(near),
        "isoflop without a minimum": analysis.isoflop_figure(analysis.isoflop(runs, [3e11], resamples=0)),
        "exponents": analysis.exponents_figure(compared),
        "geneval": analysis.geneval_by_depth(official),
    }


def tick_labels(figure):
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    yield from (label for label in (tick.label1, tick.label2) if label.get_visible())


def test_no_tick_labels_overlap_and_no_text_leaves_the_page(figures):
    for name, (figure, numbers) in figures.items():
        figure.draw_without_rendering()
        assert figure.get_size_inches()[0] == 7.0
        boxes = [(label.get_text(), label.get_window_extent()) for label in tick_labels(figure) if label.get_text()]
        for (one, box), (other, beside) in itertools.combinations(boxes, 2):
            assert not box.overlaps(beside), (name, one, other)
        ticks = set(map(id, (text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
                             for tick in axis.get_major_ticks() for text in (tick.label1, tick.label2))))  # fmt: skip
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        boxes += [(text.get_text(), text.get_window_extent()) for text in texts if id(text) not in ticks]
        for text, box in boxes:
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, (name, text)
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, (name, text)
        assert len(numbers["caption"].splitlines()) <= (6 if name not in "48" else 30), name


def test_axes_keep_two_labels(figures):
    for name, (figure, _) in figures.items():
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log" and any(tick.label1.get_visible() for tick in axis.get_major_ticks()):
                    low, high = sorted(axis.get_view_interval())
                    assert sum(low <= place <= high for place in axis.get_majorticklocs()) >= 2, (
                        name,
                        axis.get_label_text(),
                    )


def test_numbers_of_every_figure_are_json_and_are_saved_with_it(figures, runs, tmp_path):
    for _, numbers in figures.values():
        assert json.loads(json.dumps(drawing.jsonable(numbers), allow_nan=False))["caption"] == numbers["caption"]
    numbers = analysis.levels_figure(runs, out=tmp_path / "levels").numbers
    assert json.loads((tmp_path / "levels.json").read_text()) == drawing.jsonable(numbers)
    assert (tmp_path / "levels.pdf").exists()


@pytest.mark.parametrize("of", ["runs", "a table"])
def test_residuals_are_those_of_the_law(figures, law, csv, of):
    figure, numbers = figures[f"residuals of {of}"]
    residuals = np.array(numbers["points"]["residual"])
    fitted = law if of == "runs" else laws.fit_points(csv, resamples=0)
    np.testing.assert_allclose(residuals, fitted.residuals, atol=1e-12)
    assert len(figure.axes) == 3
    for axes, key in zip(figure.axes, ("params", "images", "flops"), strict=True):
        dots = [(x, y) for x, y in lines_of(axes) if len(x) != 2 or not np.allclose(y, 0)]
        drawn = sorted(zip(*(np.concatenate(part) for part in zip(*dots, strict=True)), strict=True))
        np.testing.assert_allclose(drawn, sorted(zip(numbers["points"][key], 100 * residuals, strict=True)))
        (band,) = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
        assert band.y1 == pytest.approx(100 * fitted.residual_rms)
        assert band.y0 == pytest.approx(-band.y1)
    assert f"Durbin-Watson {numbers['durbin_watson']:.2f}" in " ".join(numbers["caption"].split())
    assert ("trend in residuals" in fitted.flags) == (numbers["trend"]["z"] < -3)


def test_the_p_value_of_a_trend_is_how_often_shuffled_residuals_have_as_few_runs():
    rng = np.random.default_rng(0)
    residuals = np.convolve(rng.standard_normal(62), [1, 0.5, 0.2], "valid")
    along = np.arange(60.0)
    found = flags.trend(residuals, along)
    z = np.array([flags.trend(rng.permutation(residuals), along).z for _ in range(4000)])
    as_few = float(np.mean(z <= found.z + 1e-9))
    assert 1e-3 < found.p < 0.2
    assert found.p == pytest.approx(as_few, abs=0.35 * as_few + 3 * math.sqrt(as_few / 4000))  # normal, so about
    assert not flags.has_trend(residuals, along)
    assert flags.has_trend(np.sort(residuals), along)
    assert math.isnan(flags.trend(residuals[:8], along[:8]).p)


def test_durbin_and_watson_of_noise_is_two_and_of_a_walk_nothing():
    noise = np.random.default_rng(0).standard_normal(20_000)
    along = np.random.default_rng(1).permutation(20_000)
    assert diagnostics.durbin_watson(noise, along) == pytest.approx(2, abs=0.05)
    assert diagnostics.durbin_watson(np.cumsum(noise), np.arange(20_000)) < 0.01


def test_held_out_points_are_drawn_with_their_intervals(figures, points):
    figure, numbers = figures["rolling"]
    left, right = figure.axes
    rolled = analysis.rolling(points, resamples=40)
    assert [one["what"] for one in numbers["held_out"]] == [one.what for one in rolled]
    for one, place in zip(rolled, numbers["places"], strict=True):
        assert place == pytest.approx(one.reach, rel=0.05)
        assert is_drawn(left, [one.actual], [one.predicted])
        assert is_drawn(right, [place], [100 * one.error])
        if one.ci95:
            assert is_drawn(left, [one.actual] * 2, one.ci95)
            assert is_drawn(left, [one.actual] * 2, one.ci80)
            # the bar of the error crosses zero just where the interval holds what was measured
            (bar,) = [y for x, y in lines_of(right) if len(y) == 2 and x[0] == place and max(y) == pytest.approx(
                100 * (one.ci95[1] / one.actual - 1))]  # fmt: skip
            assert (min(bar) <= 0 <= max(bar)) == one.covered
    with pytest.raises(UserError, match="nothing was held out"):
        analysis.held_out_figure([])


def test_points_of_equal_reach_are_drawn_side_by_side(figures, csv):
    numbers = figures["held out together"].numbers
    held = analysis.hold_out_largest(csv, 9, resamples=0).each
    assert len(numbers["places"]) == len(set(numbers["places"])) == len(held) == 9
    np.testing.assert_allclose(numbers["places"], [one.reach for one in held], rtol=0.1)
    assert "9 were held out of one fit together" in " ".join(numbers["caption"].split())


def test_levels_are_those_whose_mean_is_the_loss(figures, runs):
    figure, numbers = figures["levels"]
    for curve in numbers["curves"]:
        levels = np.array([curve[f"loss_t{k}"] for k in range(9)])
        np.testing.assert_allclose(levels[:8].mean(axis=0), curve["loss"])
        for axes, level in zip(figure.axes, levels, strict=False):
            assert is_drawn(axes, curve["flops"], level)
        assert is_drawn(figure.axes[9], np.arange(9) / 8, levels[:, -1])
    assert len(numbers["curves"]) == runs["run"].nunique()
    with pytest.raises(UserError, match="a loss for each level"):
        analysis.levels_figure(runs.assign(loss_t3=np.nan))


def test_a_power_law_falls_by_its_exponent_as_compute_doubles():
    spent = pd.Series(np.geomspace(1e10, 1e12, 20))
    assert diagnostics._per_doubling(spent, 3 * spent**-0.1) == pytest.approx(2**-0.1 - 1)
    assert math.isnan(diagnostics._per_doubling(spent[-2:], spent[-2:]))


@pytest.mark.parametrize("of", ["runs", "a table"])
def test_the_frontier_lies_in_its_bands_and_is_that_of_the_law(figures, law, csv, of):
    figure, numbers = figures[f"frontier of {of}"]
    front = {key: np.array(values) for key, values in numbers["frontier"].items()}
    for axes, name in zip(figure.axes, ("params", "images", "loss"), strict=False):
        assert is_drawn(axes, front["flops"], front[name])
        ends = [front[f"{name}{end}"] for end in ("_low", "_low80", "_high80", "_high")]
        assert (np.diff(ends, axis=0) >= 0).all()
        assert (ends[0] <= front[name] * 1.001).all()
        assert (front[name] <= ends[3] * 1.001).all()
        assert len(axes.collections) == 2
    if of == "runs":
        table = analysis.implied(law, front["flops"])
        np.testing.assert_allclose(table["depth_high"], front["depth_high"])
        assert not numbers["minima"]["flops"]
    else:
        np.testing.assert_allclose(front["params"] * front["images"] * 6, front["flops"], rtol=1e-6)
        minima = analysis.isoflop_points(csv, resamples=0).budgets
        assert numbers["minima"]["params"] == minima.loc[minima["interior"], "params"].tolist()
        assert not numbers["envelope"]["flops"]  # runs of one point, each of its own size, make no curve


def test_what_is_marked_on_the_frontier_is_the_outlook(figures, law, points):
    figure, numbers = figures["frontier of runs"]
    for one, said in zip(analysis.outlook(law, points, [1e13, 2e13]), numbers["at"], strict=True):
        for axes, name in zip(figure.axes, ("params", "images", "loss"), strict=False):
            assert said[name] == one.best[name].value
            assert is_drawn(axes, [one.flops], [one.best[name].value])
            assert is_drawn(axes, [one.flops] * 2, one.best[name].ci95)
    depths = [tick.get_loc() for tick in figure.axes[3].yaxis.get_major_ticks()]
    written = [figure.axes[3].yaxis.get_major_formatter()(place) for place in depths]
    family = {str(depth): flops.parameters(bench_config(depth).model).total for depth in (1, 2, 3, 4, 6, 8, 12, 16)}
    for place, depth in zip(depths, written, strict=True):
        assert place == pytest.approx(family[depth], rel=1e-3)


def test_one_exponent_for_both_terms_is_the_same_law_where_it_is_true():
    points = surface(SYMMETRIC).drop(columns="depth")
    joint, tied = (laws.fit_points(points, law=name, resamples=0) for name in ("chinchilla", "equal-exponent"))
    budgets = [1e20, 1e22]
    family = frontier.sizes_in(points)
    one, other = (frontier.implied(law, budgets, family) for law in (joint, tied))
    for name in ("params", "images", "loss"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
    n, d = one["params"], one["images"]
    np.testing.assert_allclose(prediction.predict(tied, n, d, flops=budgets).loss, one["loss"], rtol=1e-5)
    with pytest.raises(UserError, match="function of flops, params, images, not of N and D"):
        prediction.predict(tied, n, d)


def test_published_exponents_stand_below_those_of_the_approaches(figures, csv):
    figure, numbers = figures["exponents"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:4] == [one["name"] for one in numbers["approaches"]]
    for place, one in enumerate([*numbers["approaches"], *numbers["published"]]):
        if one["a"] is not None:
            assert is_drawn(figure.axes[0], [one["a"]], [place])
        if one["ci80"]:
            assert is_drawn(figure.axes[0], one["ci80"], [place] * 2)
    assert {one["name"] for one in numbers["published"]} == set(published.ALLOCATION)
    assert any(one["ci95"] for one in numbers["approaches"])


def test_only_the_official_score_has_the_official_axis(figures, root):
    assert analysis.geneval_by_depth(analysis.load_scores(root)) is None
    figure, numbers = figures["geneval"]
    assert numbers["paper"] == {18: 0.58, 24: 0.62, 30: 0.64, 38: 0.68}
    assert is_drawn(figure.axes[0], list(numbers["paper"]), list(numbers["paper"].values()))
    assert len(numbers["runs"]["depth"]) == 8


def test_an_isoflop_result_a_table_and_runs_are_drawn_alike(csv, tmp_path):
    found = analysis.isoflop_points(csv, resamples=0)
    one, other = analysis.isoflop_figure(found), analysis.isoflop_figure(csv)
    assert one.numbers["valleys"] == other.numbers["valleys"]
    assert len(one.numbers["valleys"]) == 9
    for depth in (2, 3, 4):
        write_run(tmp_path, bench_config(depth, **{"evaluation.budgets": [3e10]}))
    runs = analysis.load(tmp_path)
    assert analysis.isoflop_figure(runs).numbers["budgets"] == analysis.isoflop_figure(
        analysis.isoflop(runs)
    ).numbers["budgets"]  # fmt: skip


def test_the_command_line_draws_what_it_prints(sd3, tmp_path, csv):  # noqa: F811
    path, stem = tmp_path / "table.csv", tmp_path / "out" / "t"
    csv.rename(columns={"images": "data"}).to_csv(path, index=False)
    path, stem = str(path), str(stem)
    code, out, err = sd3("fit", path, "--bootstrap", "20", "--figure", stem, "--json", "-")
    assert code == 0
    assert json.loads(out)["law"] == "chinchilla"
    assert "t-residuals.png" in err
    assert "t-frontier.json" in err
    arguments = ["--flops", "1e22", "--bootstrap", "20", "--figure", stem, "--hold-out-largest", "2"]
    code, out, _ = sd3("predict", path, "--law", "equal-exponent", *arguments)
    assert code == 0
    drawn = json.loads((tmp_path / "out" / "t-frontier.json").read_text())
    assert (drawn["law"]["law"], drawn["at"][0]["flops"]) == ("equal-exponent", 1e22)
    assert f"{drawn['at'][0]['loss']:.4g}" in out
    assert len(json.loads((tmp_path / "out" / "t-held-out.json").read_text())["held_out"]) == 2
    code, *_ = sd3("isoflop", path, "--figure", stem)
    assert code == 0
    assert len(json.loads((tmp_path / "out" / "t.json").read_text())["valleys"]) == 9
    assert_one_line(*sd3("predict", path, "--flops", "1e22", "--law", "power"), "--law: 'power'", "equal-exponent")


def test_a_law_of_compute_alone_has_residuals_and_no_frontier(sd3, tmp_path, csv):  # noqa: F811
    path, stem = tmp_path / "table.csv", tmp_path / "t"
    csv[["flops", "loss"]].to_csv(path, index=False)
    code, *_ = sd3("fit", str(path), "--law", "saturating", "--bootstrap", "0", "--figure", str(stem))
    assert code == 0
    assert {one.name for one in tmp_path.glob("t-*.png")} == {"t-residuals.png"}


def test_sizes_and_compute_beside_the_papers():
    rows = published.beside().set_index("depth")
    assert rows.loc[15, "params"] == 496_066_624
    assert rows.loc[15, "paper_params"] == published.SIZES[15]
    assert "1.10 times" in rows.loc[15, "why"]
    assert rows.loc[38, "flops"] == 2_048_000_000 * flops.train_flops(ModelConfig(depth=38))
    assert rows.loc[38, "paper_flops"] == 5e22
    assert "3.6 times ours" in rows.loc[38, "why"]
    assert rows.loc[[18, 21, 24, 30], ["paper_params", "paper_flops"]].isna().all(axis=None)
    assert (rows.loc[[18, 21, 24, 30], "why"] == "").all()
