"""The study of formulations from records: which step, which setting, Tables 1 and 2, and what the command prints."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from synthetic import (
    DATA_SETS,
    DOZEN,
    bench_config,
    score_settings,
    write_run,
    write_study,
    write_sweep,
)
from test_ranking import peel

import analysis
from analysis import paper_tables, published, table_pictures
from sd3_jax import cli, formulations, records
from sd3_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(root):
    return analysis.load_study(root)


@pytest.fixture(scope="module")
def all61(tmp_path_factory):
    """The paper's 61, on its two data sets."""
    return analysis.load_study(write_study(tmp_path_factory.mktemp("all61"), formulations.members(), steps=60))


@pytest.fixture
def sd3(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        return stopped.value.code, *capsys.readouterr()

    return call


def test_the_step_of_the_lowest_averaged_loss_is_scored_in_all_settings(tmp_path):
    run_dir = write_run(tmp_path, bench_config(2, 0, 400), name="one")
    score_settings(run_dir, "rf")
    path, metrics = run_dir / "evals.jsonl", run_dir / "metrics.jsonl"
    last = records.read_rows(path)[0]
    validation = [row for row in records.read_rows(metrics)[0] if row["split"] == "validation"]
    early, middle = sorted({row["step"] for row in validation})[-3:-1]
    earlier = [row | {"step": step} for step in (early, middle) for row in last]
    records.write_rows(path, [*(row for row in earlier if row["step"] == middle or row["steps"] == 5), *last])

    def losses(values):
        lines = [
            row | {"loss": values.get((row["step"], row.get("weights")), row["loss"])}
            for row in records.read_rows(metrics)[0]
        ]
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return analysis.load_study(tmp_path)

    end = last[0]["step"]
    found = losses({(early, "ema"): 0.30, (middle, "ema"): 0.20, (end, "ema"): 0.25, (end, "raw"): 0.01})
    assert set(found["step"]) == {middle}
    assert set(found["weights"]) == {"ema", "raw"}
    # The earliest is now the best, but was evaluated at 5 steps alone.
    found = losses({(early, "ema"): 0.10})
    assert set(found["step"]) == {middle}
    assert any(
        "the lowest EMA validation loss of one is at a step that was not eval" in n for n in found.attrs["notes"]
    )


def test_table_1_is_the_mean_front_over_the_24_settings(root, study):
    table = analysis.table1(study, resamples=100)
    ranks = {}
    for label in DATA_SETS:
        rows = []
        for run_dir in records.find_runs(root):
            if run_dir.name.startswith(label):
                name = formulations.name_of(records.load_config(run_dir).flow)
                own = [row for row in records.read_rows(run_dir / "evals.jsonl")[0] if row["group"] == "overall"]
                rows += [row | {"formulation": name} for row in own]
        for _, setting in pd.DataFrame(rows).groupby(["steps", "guidance", "weights"]):
            wide = setting.pivot(index="formulation", columns="name", values="value")
            for name, front in zip(
                wide.index, peel(wide["scene-geneval-soft"].tolist(), wide["scene-frechet"].tolist()), strict=True
            ):
                ranks.setdefault(name, []).append(front)
    assert {len(own) for own in ranks.values()} == {24}
    assert dict(zip(table["formulation"], table["all"], strict=True)) == {n: np.mean(own) for n, own in ranks.items()}
    assert table["all"].is_monotonic_increasing
    assert np.allclose(24 * table["all"] % 1, 0)
    assert np.allclose(4 * table[["fewest", "most"]] % 1, 0)
    assert (table["low"] <= table["all"]).all()
    assert (table["all"] <= table["high"]).all()
    rf = table.set_index("formulation").loc["rf"]
    assert (rf["paper"], rf["paper_fewest"], rf["paper_most"]) == tuple(published.TABLE_1["rf"])
    assert "5 steps" in paper_tables.markdown(table)
    assert table.attrs["sentences"][0].startswith("rank: no agreement with the paper is established (Spearman's rho")


def also(root, runs=slice(None), **changes):
    """Of some runs every score after 10 steps once more, as if it had been drawn in another setting."""
    for run_dir in records.find_runs(root)[runs]:
        path = run_dir / "evals.jsonl"
        rows = records.read_rows(path)[0]
        again = [row | changes for row in rows if (row["steps"], row["weights"]) == (10, "ema")]
        records.write_rows(path, [*rows, *again])


def test_table_1_ranks_over_its_own_settings_alone(tmp_path):
    root = write_study(tmp_path, names=DOZEN[:4], data_sets=("grid",))
    plain = analysis.table1(analysis.load_study(root), resamples=10)
    # What evaluate draws unasked, and what Table 6 takes besides; twice over on a grid of another kind.
    for changes in ({"steps": 25, "guidance": 3.0}, {"steps": 20}, {"grid": "own"}, {"grid": "own", "steps": 5}):
        also(root, **changes)
    table = analysis.table1(analysis.load_study(root), resamples=10)
    assert "mean over 12 settings of 1 data set" in table.attrs["title"]
    numbers = ["formulation", "all", "low", "high", "fewest", "most"]
    pd.testing.assert_frame_equal(table[numbers], plain[numbers])
    told = [note for note in table.attrs["notes"] if note not in plain.attrs["notes"]]
    assert told == [
        "left out, as they are not among Table 1's settings: scenes, 5 euler steps, guidance 5, own grid, ema; scenes, "
        "10 euler steps, guidance 5, own grid, ema and 2 more."
    ]


def test_table_1_says_which_settings_it_lacks_and_what_it_used_in_their_place(tmp_path):
    root = write_study(tmp_path, names=DOZEN[:3], data_sets=("grid",))
    few = analysis.table1(analysis.load_study(root, setting={"steps": 50, "weights": "ema"}), resamples=10)
    assert any(note.startswith("of Table 1's 12 settings scenes has 3:") for note in few.attrs["notes"])
    for run_dir in records.find_runs(root):
        path = run_dir / "evals.jsonl"
        records.write_rows(path, [row | {"guidance": 3.0} for row in records.read_rows(path)[0] if row["steps"] == 25])
    none = analysis.table1(analysis.load_study(root), resamples=10)
    words = "none of Table 1's settings was evaluated: these are scenes, 25 euler steps, guidance 3, ema; scenes, 25"
    assert any(note.startswith(words) for note in none.attrs["notes"])
    assert "mean over 2 settings" in none.attrs["title"]


def test_few_steps_alone_elsewhere_do_not_change_the_grid_of_table_2_or_6(tmp_path):
    """Table 6's four on the uniform grid beside Table 1's on the formulation's own: each takes its own."""
    root = write_study(tmp_path, names=DOZEN[:2], data_sets=("grid",))
    for run_dir in records.find_runs(root):
        path = run_dir / "evals.jsonl"
        rows = records.read_rows(path)[0]
        twenty = [row | {"steps": 20 if row["steps"] == 25 else row["steps"]} for row in rows]
        six = [row for row in twenty if row["guidance"] == 5 and row["weights"] == "ema"]
        records.write_rows(path, [*(row | {"grid": "own"} for row in rows), *six])
    study = analysis.load_study(root)
    assert "after 25 Euler steps" in analysis.table2(study).attrs["title"]
    assert {"loss_5", "loss_10", "loss_20"} <= set(analysis.table6(study).columns)
    assert "loss_25" not in analysis.table6(study).columns
    assert analysis.figure3(study).numbers["setting"]["grid"] == "own"
    assert "12 settings" in analysis.table1(study, resamples=10).attrs["title"]


def test_an_order_like_the_papers_is_told(study):
    x = [rank.all for rank in published.TABLE_1.values()]
    assert paper_tables.agreement("rank", x, np.sqrt(x)).startswith(
        "rank: in the paper's order (Spearman's rho 1.00 over 16"
    )
    assert "against the paper's order (Spearman's rho -1.00" in paper_tables.agreement("rank", x, -np.array(x))
    assert "none in common" in paper_tables.agreement("rank", [1.0], [np.nan])
    assert "does not vary" in paper_tables.agreement("rank", [1, 1, 1], [1, 2, 3])


def of_the_paper():
    """A study whose scores are the paper's own Table 2."""
    rows = []
    for name, row in published.TABLE_2.items():
        for label in ("imagenet", "cc12m"):
            for score, metric in (("clip", "clip"), ("fid", "fid")):
                value = {"name": score, "value": getattr(row, f"{label}_{metric}"), "se": 0.001, "n": 1000}
                whose = {
                    "data_set": label,
                    "formulation": name,
                    "depth": 24,
                    "run": f"{label} {name}",
                    "seed": 0,
                    "step": 1,
                }
                how = {
                    "sampler": "euler",
                    "steps": 25,
                    "guidance": 5.0,
                    "shift": 1.0,
                    "grid": "uniform",
                    "weights": "ema",
                }
                rows.append(whose | how | value | {"group": "overall", "by_prompt": [], "images_by_prompt": []})
    study = pd.DataFrame(rows)
    study.attrs = {"notes": [], "up": "clip", "down": "fid", "differs": {}}
    return study


def test_of_the_papers_scores_table_2_prints_the_papers_rows():
    table = analysis.table2(of_the_paper())
    assert table["shown"].all()  # five representative ones, and the two best of every column are the other five
    assert list(table["formulation"][:5]) == list(paper_tables.REPRESENTATIVE) == list(published.TABLE_2)[:5]
    assert (table["up_1"] == table["paper_imagenet_clip"]).all()
    assert (table["down_0"] == table["paper_cc12m_fid"]).all()
    for sentence in table.attrs["sentences"]:
        assert "in the paper's order (Spearman's rho 1.00 over 10 in common" in sentence
    others = analysis.table2(of_the_paper().query("formulation != 'rf/lognorm(1.00, 0.60)'"))
    assert len(others) == 9


def test_table_2_takes_25_steps_of_averaged_weights_or_says_what_else(study, root):
    table = analysis.table2(study)
    own = study[(study["steps"] == 25) & (study["weights"] == "ema") & (study["group"] == "overall")]
    rf = own[(own["formulation"] == "rf") & (own["data_set"] == "grid")].set_index("name")["value"]
    row = table.set_index("formulation").loc["rf"]
    assert (row["up_1"], row["down_1"]) == (rf["scene-geneval-soft"], rf["scene-frechet"])
    headings = [column.heading for column in table.attrs["columns"]]
    assert headings[:2] == ["scene-geneval-soft ↑, free", "scene-frechet ↓, free"]
    without = analysis.load_study(root)
    attrs, without = without.attrs, without[without["steps"] != 25]
    without.attrs = attrs
    assert any("these are after 50" in note for note in analysis.table2(without).attrs["notes"])
    only = analysis.load_study(root, setting={"guidance": 2.5})
    table = analysis.table2(only)
    assert any(
        note.startswith("Euler's method at guidance 2.5, ema weights: the paper's") for note in table.attrs["notes"]
    )


def test_formulations_are_compared_on_one_model(tmp_path):
    write_study(tmp_path, names=DOZEN[:3], data_sets=("grid",))
    run_dir = write_run(tmp_path, bench_config(2, 1, 400, **{"optimizer.learning_rate": 2e-3}), name="other-rate")
    score_settings(run_dir, "rf")
    longer = write_run(tmp_path, bench_config(2, 2, 600), name="longer")
    score_settings(longer, "rf")
    cooled = write_run(tmp_path, bench_config(2, 3, 400, **{"optimizer.cooldown": 0.2}), name="cooled")
    score_settings(cooled, "rf")
    notes = analysis.table1(analysis.load_study(tmp_path), resamples=10).attrs["notes"]
    assert "the runs of scenes also differ in optimizer.learning_rate, length (steps)." in notes
    assert "runs that end in a cooldown, left out: cooled." in notes
    score_settings(write_run(tmp_path, bench_config(3, 0, 400), name="deeper"), "rf")
    for make in (analysis.table1, analysis.table2, analysis.figure3):
        with pytest.raises(
            UserError, match="the runs of scenes differ in depth: formulations are compared on one model"
        ):
            make(analysis.load_study(tmp_path))


def test_pictures_of_sixty_one_formulations_stay_readable(all61):
    for table in (analysis.table1(all61, resamples=50), analysis.table2(all61)):
        figure, numbers = table_pictures.picture(table)
        assert len(numbers["rows"]) == 61
        figure.draw_without_rendering()
        renderer = figure._get_renderer()
        for axes in figure.axes:
            for labels in (axes.get_yticklabels(), axes.texts):  # the names are the ticks of the ranks
                boxes = [Text.get_window_extent(label, renderer) for label in labels if label.get_text()]
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
                assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        boxes = [text.get_window_extent(renderer) for text in (*figure.texts, *figure.legends)]
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 for box in boxes)


def test_the_command_prints_and_writes_the_table(root, sd3, tmp_path):
    code, out, err = sd3("table", "1", root, "--out", tmp_path)
    assert (code, err) == (0, "")
    stem = f"{root.name}_table1"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}{end}" for end in (".md", ".csv", ".json", ".png", ".pdf")
    }
    title = "Global ranking of 12 formulations on scene-geneval-soft (up) and scene-frechet (down)"
    assert " ".join(out.split()).startswith(title)  # however it is broken into lines
    assert "note: one training seed of each formulation" in out
    assert len(pd.read_csv(tmp_path / f"{stem}.csv")) == 12
    code, out, err = sd3("table", "2", root, "--out", tmp_path, "--where", "weights=raw", "--json", "-")
    assert (code, err.count("\n")) == (0, 1)  # what was written
    assert json.loads(out)["table"] == "2"
    assert json.loads(out)["rows"][0]["formulation"] == "rf"


def test_bad_input_is_one_line(root, sd3, tmp_path):
    for arguments, words in (
        (("table", "5", root), "there is no table '5'; there are 1 (global ranking of formulations), 2 (formul"),
        (
            ("table", "1", root, "--up", "clip"),
            "no score 'clip' in these runs; there are path-length, scene-frechet, sc",
        ),
        (("table", "1", root, "--down", "fid"), "no score 'fid' in these runs; sd3-jax evaluate makes scene-frechet"),
        (("table", "1", root, "--where", "guidance=9"), "no scores with guidance 9; there are 1.0, 2.5, 5.0"),
        (("table", "1", write_sweep(tmp_path / "bare", depths=(2,), seeds=1)), "no scores of pictures in these runs"),
    ):
        code, out, err = sd3(*arguments, "--out", tmp_path / "out")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err
    assert not (tmp_path / "out").exists()
