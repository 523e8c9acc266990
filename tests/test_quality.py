"""Scores of pictures as tables, in figures and on contact sheets."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic import link, write_pictures, write_scores, write_sweep

import analysis
from analysis import quality, sheets
from analysis.scores import load_scores, score_points
from sd3_jax import records
from sd3_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    return write_pictures(write_scores(write_sweep(root, noise=0.002, cooldown=True)))


@pytest.fixture(scope="module")
def scores(root):
    return load_scores(root)


@pytest.fixture(scope="module")
def figure8(root, scores):
    return analysis.figure8(analysis.load(root), scores, resamples=100)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_every_score_has_the_loss_of_its_own_weights_and_step(root, scores):
    for run in ("d02-s1", "d07-s0"):
        rows, _ = records.read_rows(root / run / "metrics.jsonl")
        loss = {row["step"]: row["loss"] for row in rows if row["split"] == "validation" and row["weights"] == "ema"}
        own = scores[scores["run"] == run]
        assert len(own) == len(records.read_rows(root / run / "evals.jsonl")[0])
        for row in own.itertuples():
            assert row.loss == loss[row.step]
            assert row.last == (row.step == 2000)
            assert (row.seed, row.depth) == (int(run[-1]), int(run[1:3]))


def test_points_of_a_score_carry_their_prompts(scores):
    points = score_points(scores, "scene-geneval")
    assert not points["cooldown"].any()
    assert len(points) == 8 * 3
    for point in points.itertuples():
        assert point.weight.sum() == pytest.approx(1)
        assert point.by_prompt @ point.weight == pytest.approx(point.value)
        assert [point.weight[point.group == task].sum() for task in range(3)] == pytest.approx([1 / 3] * 3)
    assert len({tuple(group) for group in points["group"]}) == 1


def test_runs_that_began_from_weights_are_no_points_of_the_others_curve(scores):
    mixed = scores.copy()
    mixed.loc[mixed["run"] == mixed["run"].iloc[0], "phase"] = "fine-tune"
    with pytest.raises(UserError, match="some runs began from weights and others did not"):
        score_points(mixed, "scene-geneval")
    mixed["phase"] = "fine-tune"  # a study of its own
    assert len(score_points(mixed, "scene-geneval")) == len(score_points(scores, "scene-geneval"))


def test_scores_of_other_settings_and_broken_lines_are_said(root, tmp_path):
    other = tmp_path / "runs"
    shutil.copytree(root, other)
    path = other / "d03-s0" / "evals.jsonl"
    rows, _ = records.read_rows(path)
    odd = [row | {"guidance": 5.0, "value": 0.9} for row in rows[:4]]
    partial = [rows[0] | {"partial": "x is missing"}, *rows[1:]]
    records.write_rows(path, [*partial, *odd, {"step": "late"}, rows[0] | {"value": None}])
    (other / "d04-s0" / "evals.jsonl").unlink()
    table = load_scores(other)
    notes = " ".join(table.attrs["notes"])
    assert "scores left out, of another setting: guidance 5.0" in notes
    assert "2 lines of evals.jsonl without a score" in notes
    assert "1 scores are partial" in notes
    assert "d04-s0 has no scores" in notes
    assert (table["guidance"] == 3.0).all()
    assert table.attrs["setting"]["guidance"] == 3.0
    assert set(load_scores(other, setting={"guidance": 5.0})["value"]) == {0.9}
    with pytest.raises(UserError, match=r"no scores with guidance 7; there are 3.0, 5.0"):
        load_scores(other, setting={"guidance": 7})
    with pytest.raises(UserError, match="guidence: is not part of a setting"):
        load_scores(other, setting={"guidence": 3})


def test_win_rates_against_two_references_are_never_pooled(root, tmp_path):
    other = tmp_path / "runs"
    shutil.copytree(root, other)
    for run in ("d03-s0", "d04-s0"):
        path = other / run / "evals.jsonl"
        rows = records.read_rows(path)[0]
        old = [row | {"reference": "d02-s0@2000"} for row in rows if row["name"] == "proxy-preference"]
        new = [row | {"reference": "d03-s0@2000", "value": 0.9} for row in old]
        records.write_rows(path, [row for row in rows if row["name"] != "proxy-preference"] + old + new)
    for path in other.glob("*/evals.jsonl"):
        rows = records.read_rows(path)[0]
        named = [row | {"reference": row.get("reference", "d02-s0@2000")} for row in rows]
        records.write_rows(
            path, [b if a["name"] == "proxy-preference" else a for a, b in zip(rows, named, strict=True)]
        )
    table = load_scores(other)
    preference = table[table["name"] == "proxy-preference"]
    assert set(preference["reference"]) == {"d02-s0@2000"}
    assert not preference.duplicated(["run", "step", "group"]).any()
    assert any("proxy-preference left out: reference d03-s0@2000" in note for note in table.attrs["notes"])


def test_a_reference_against_itself_weighs_no_more_than_others(root, tmp_path):
    other = tmp_path / "runs"
    shutil.copytree(root, other)
    path = other / "d02-s0" / "evals.jsonl"
    rows = records.read_rows(path)[0]
    records.write_rows(path, [row | ({"se": 0.0} if row["name"] == "proxy-preference" else {}) for row in rows])
    relation = quality.relate(load_scores(other), "proxy-preference", resamples=20)
    assert (relation.points["se"] == 0).any()  # drawn as it is
    errors = quality.errors(relation.points)  # and fitted so
    assert (errors > 0).all()
    assert errors[relation.points["run"] == "d02-s0"].max() == pytest.approx(errors.median(), rel=0.5)


def test_runs_that_are_not_comparable_have_no_scores_in_common(root, tmp_path):
    other = tmp_path / "runs"
    shutil.copytree(root, other)
    path = other / "d03-s0" / "config.json"
    tree = json.loads(path.read_text())
    tree["data"]["held_out"] = 0.2
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"the runs differ in data\.held_out"):
        load_scores(other)


def test_what_cannot_be_read_is_one_error(root, tmp_path):
    bare = write_sweep(tmp_path / "bare", depths=(2, 3, 4), seeds=1)
    with pytest.raises(UserError, match=r"no scores of pictures in these runs; sd3-jax evaluate .* makes them"):
        load_scores(bare)
    with pytest.raises(UserError, match="no pictures in these runs"):
        analysis.contact_sheet(bare)
    with pytest.raises(
        UserError, match="no score 'fid' with prompts of its own; there are proxy-preference, scene-compbench"
    ):
        score_points(load_scores(root), "fid")
    other = tmp_path / "other"
    shutil.copytree(root, other)
    path = other / "d03-s0" / "evals.jsonl"
    rows = [
        row | {"by_prompt": row["by_prompt"][:2], "images_by_prompt": row["images_by_prompt"][:2]}
        for row in records.read_rows(path)[0]
    ]
    records.write_rows(path, rows)
    with pytest.raises(UserError, match="different prompts"):
        score_points(load_scores(other), "scene-geneval")


# --- the lower half of the figure -----------------------------------------------------------------------------------


def test_every_point_is_drawn_with_its_bars(figure8, scores):
    _, _, *lower = figure8.figure.axes
    assert [axes.get_ylabel() for axes in lower] == ["scene-geneval", "scene-compbench", "proxy-preference"]
    for axes, names in zip(lower, quality.PANELS, strict=True):
        places = [tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1]
        bars = [tuple(map(tuple, path)) for bar in axes.collections for path in bar.get_segments()]
        for name in names:
            own = scores[(scores["name"] == name) & (scores["group"] == "overall")]
            for row in own[~own["cooldown"] | own["last"]].itertuples():
                assert any(np.allclose(place, (row.loss, row.value)) for place in places)
                up = ((row.loss, row.value - row.se), (row.loss, row.value + row.se))
                across = ((row.loss - row.loss_se, row.value), (row.loss + row.loss_se, row.value))
                assert any(np.allclose(bar, up) for bar in bars)
                assert any(np.allclose(bar, across) for bar in bars)


def test_the_numbers_are_those_of_the_correlation(figure8, scores):
    drawn = {one["name"]: one for one in figure8.numbers["scores"]}
    assert set(drawn) == {"scene-geneval", "scene-geneval-soft", "scene-compbench", "proxy-preference"}
    for name, one in drawn.items():
        points = score_points(scores, name)
        low = 0.0 if name == "proxy-preference" else 0.02
        found = analysis.correlate(points, resamples=100, lo=low, hi=1.0)
        assert one["correlation"]["last"]["spearman"]["value"] == found.last.spearman.value
        assert one["correlation"]["sentence"] == found.sentence
        assert sorted(one["value"]) == sorted(points["value"])
    json.dumps(analysis.drawing.jsonable(figure8.numbers), allow_nan=False)
    caption = " ".join(figure8.numbers["caption"].split())
    assert "scene-geneval: ρ = -1.00" in caption
    assert "depth 7 held out" in caption


def test_the_link_is_the_one_that_made_the_scores(root, tmp_path):
    exact = tmp_path / "runs"
    shutil.copytree(root, exact)
    write_scores(exact, noise=1e-4, chance=0.0, ceiling=1.0)
    relation = quality.relate(load_scores(exact), "scene-compbench", resamples=50)
    for loss in relation.points["loss"]:
        assert analysis.propagation.predict(relation.link, np.array([loss])).value[0] == pytest.approx(
            link(loss), abs=2e-3
        )


def test_the_words_hold_the_numbers(scores):
    relation = quality.relate(scores, "scene-compbench", resamples=50)
    text = "\n".join(quality.describe("scene-compbench", relation))
    found = relation.correlation
    assert found.sentence in text
    assert f"{found.partial.value:.2f}" in text
    assert f"predicted {found.held_out.predicted:.3f}" in text
    assert all(f"  {flag}: " in text for flag in (*found.flags, *relation.link.flags))
    low, high = found.last.pearson.closed
    reach = 1.959964 / math.sqrt(found.n_depths - 3)  # Fisher's z
    z = math.atanh(found.last.pearson.value)
    assert (low, high) == pytest.approx((math.tanh(z - reach), math.tanh(z + reach)), abs=1e-6)
    assert f"closed form [{low:.2f}, {high:.2f}]" in text
    written = quality.numbers("scene-compbench", relation)["correlation"]
    assert written["last"]["pearson"]["closed95"] == [low, high]
    assert written["within_each_depth"].keys() == {str(depth) for depth in found.within_depths}


def test_the_committed_sweep_says_what_the_readme_says():
    """The records of the CPU sweep: softly above chance by five standard errors in every task."""
    results = Path(analysis.__file__).parents[1] / "experiments" / "results" / "figure8_cpu"
    table = load_scores(results)
    largest = table[(table["run"] == "d08-s0") & table["last"]]
    soft = largest[(largest["name"] == "scene-geneval-soft") & ~largest["group"].str.contains("overall|unseen")]
    assert len(soft) == 6
    assert (soft["above_chance"] > 5 * soft["above_chance_se"]).all()
    strict = {run: table[(table["run"] == run) & table["last"]] for run in ("d03-s0", "d08-s0")}
    overall = {
        run: own[(own["name"] == "scene-geneval") & (own["group"] == "overall")]["value"].item()
        for run, own in strict.items()
    }
    assert overall == pytest.approx({"d03-s0": 0.135, "d08-s0": 0.245}, abs=5e-4)
    for name in ("scene-geneval", "scene-geneval-soft", "scene-compbench", "proxy-preference"):
        found = quality.relate(table, name).correlation
        assert found.last.spearman.p < 0.05
        assert found.partial.high < 0


def test_with_two_depths_there_is_no_correlation_and_it_is_said(tmp_path):
    root = write_scores(write_sweep(tmp_path, depths=(2, 3), seeds=1, noise=0.002))
    drawing = analysis.figure8(analysis.load(root), load_scores(root), resamples=20)
    assert all(one["correlation"] is None for one in drawing.numbers["scores"])
    assert any("no correlation" in note for one in drawing.numbers["scores"] for note in one["notes"])


def test_only_scores_that_are_there_have_a_panel(root, scores):
    some = scores[scores["name"] == "scene-geneval-soft"]
    some.attrs = scores.attrs
    drawing = analysis.figure8(analysis.load(root), some, resamples=20)
    assert len(drawing.figure.axes) == 3
    assert len(analysis.figure8(analysis.load(root), resamples=20).figure.axes) == 2


# --- contact sheets -------------------------------------------------------------------------------------------------


def test_a_sheet_shows_each_depth_and_the_largest_ones_steps(root):
    drawing = sheets.contact_sheet(root, prompts=2)
    columns = [(column["depth"], column["step"]) for column in drawing.numbers["columns"]]
    steps = sorted({row["step"] for row in records.read_rows(root / "d07-s0" / "evals.jsonl")[0]})
    assert columns == [*((depth, 2000) for depth in range(2, 8)), *((7, step) for step in steps[:-1])]
    assert drawing.numbers["prompts"] == ["a photo of a ring", "a photo of two crosses"]  # one of each task
    assert {column["run"] for column in drawing.numbers["columns"]} == {f"d{depth:02d}-s0" for depth in range(2, 8)}
    panels = [axes for axes in drawing.figure.axes if axes.images]
    assert len(panels) == 2 * len(columns)
    for axes, (column, number) in zip(
        panels, [(column, number) for number in range(2) for column in columns], strict=True
    ):
        colour = np.asarray(axes.images[0].get_array())[0, 0, :3] * 255
        assert np.allclose(colour, (column[1] % 256, number * 40, 100))


def test_a_sheet_is_written_and_a_broken_picture_is_said(root, tmp_path):
    other = tmp_path / "runs"
    shutil.copytree(root, other)
    analysis.contact_sheet(other, tmp_path / "sheet")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    step = records.read_rows(other / "d07-s0" / "evals.jsonl")[0][-1]["step"]
    (other / "d07-s0" / "samples" / f"{step:07d}-ema" / "00000" / "samples" / "0000.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"0000\.png: cannot be read as a picture"):
        analysis.contact_sheet(other)


def test_a_missing_score_has_no_bar_and_no_nan_in_json(tmp_path):
    root = write_sweep(tmp_path, depths=(2, 3, 4), seeds=1, noise=0.002)
    write_scores(root, prompts=2)
    for path in root.glob("*/evals.jsonl"):
        rows = [row | {"se": math.nan} for row in records.read_rows(path)[0]]
        records.write_rows(path, rows)
    drawing = analysis.figure8(analysis.load(root), load_scores(root), resamples=20)
    json.dumps(analysis.drawing.jsonable(drawing.numbers), allow_nan=False)
