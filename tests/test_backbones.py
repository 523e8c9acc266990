"""Figure 4: backbones against one another, from records alone."""

import json

import numpy as np
import pytest
from synthetic import BACKBONES, HALVED, bench_config, write_backbones, write_run, write_sweep

import analysis
from analysis import backbones, quality
from analysis.runs import LABELS
from sd3_jax import cli, records
from sd3_jax.config import to_dict
from sd3_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_backbones(tmp_path_factory.mktemp("figure4"), seeds=2)


@pytest.fixture(scope="module")
def figure4(root):
    return analysis.figure4(analysis.load(root), analysis.load_scores(root))


@pytest.fixture
def sd3(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        return stopped.value.code, *capsys.readouterr()

    return call


def test_runs_are_told_apart_by_their_configuration(root):
    found = analysis.load(root).drop_duplicates("run").set_index("run")
    for name, label in zip(BACKBONES, LABELS.values(), strict=True):
        row = found.loc[f"{name}-s0"]
        assert LABELS[row["architecture"], row["weight_sets"]] == label


def test_records_older_than_the_fields_are_of_two_sets(tmp_path):
    write_run(tmp_path, bench_config(3))
    path = next(tmp_path.iterdir()) / "config.json"
    config = json.loads(path.read_text())
    for key in ("architecture", "weight_sets", "clip_tokens"):
        del config["model"][key]
    path.write_text(json.dumps(config))
    assert backbones.backbones(analysis.load(tmp_path)) == {("mmdit", 2): "MM-DiT, 2 sets"}


def test_every_number_drawn_is_in_the_numbers(figure4):
    figure, numbers = figure4
    assert list(numbers["curves"]) == [panel.name for panel in backbones.PANELS]
    for axes, (name, curves) in zip(figure.axes, numbers["curves"].items(), strict=True):
        drawn = [tuple(map(np.asarray, line.get_data())) for line in axes.lines]
        for curve in curves:
            own = [other for other in curves if other["backbone"] == curve["backbone"]]
            mean = np.mean([other["value"] for other in own], axis=0)
            for values in (curve["value"], mean):  # each seed, and their mean
                assert any(len(x) == len(values) and np.allclose(y, values) for x, y in drawn), name
    final = {row["backbone"]: row for row in numbers["final"][0]["order"]}
    for curve in numbers["curves"]["validation loss"]:
        assert curve["value"][-1] in final[curve["backbone"]]["by_seed"]
    json.dumps(analysis.drawing.jsonable(numbers), allow_nan=False)


def test_the_order_is_that_of_the_runs_and_noise_is_said(figure4):
    _, numbers = figure4
    for one, panel in zip(numbers["final"], backbones.PANELS, strict=True):
        values = [row["value"] for row in one["order"]]
        assert values == sorted(values, reverse=panel.rises)
        assert one["order"][-1]["backbone"] == "DiT"
        assert one["seed_freedom"] == 5
    loss = numbers["final"][0]
    assert {row["backbone"] for row in loss["order"][:2]} == {"MM-DiT, 2 sets", "MM-DiT, 3 sets"}
    assert loss["told_apart"][1:] == [True, True, True]
    words = " ".join(numbers["caption"].split())
    assert "validation loss, best first: MM-DiT" in words
    assert "2 seeds (faint) of each; total FLOPs within 0.0% of each other" in words
    assert "scene-frechet of 600 pictures" in words


def test_one_seed_of_each_has_no_error_between_seeds(tmp_path):
    write_backbones(tmp_path, seeds=1)
    _, numbers = analysis.figure4(analysis.load(tmp_path), analysis.load_scores(tmp_path), out=tmp_path / "four")
    assert not any(numbers["final"][0]["told_apart"])
    assert any(note.startswith("one seed of each backbone") for note in numbers["notes"])
    assert "one seed each, so no error" in " ".join(numbers["caption"].split())
    stored = json.loads((tmp_path / "four.json").read_text())
    assert stored["final"][0]["order"][0]["error"] is None
    assert (tmp_path / "four.pdf").exists()


def test_what_makes_the_comparison_unfair_is_said(tmp_path):
    write_backbones(tmp_path, seeds=1)
    steps = records.load_config(tmp_path / "dit-s0").steps * 6 // 5
    longer = bench_config(4, 0, steps, **HALVED, **{"model.weight_sets": 1, "optimizer.learning_rate": 2e-3})
    records.write_atomic(tmp_path / "dit-s0" / "config.json", json.dumps(to_dict(longer)))
    write_run(tmp_path, longer, name="dit-s0")
    path = tmp_path / "uvit-s0" / "evals.jsonl"
    rows = [row | ({"n": 300} if row["name"] == "scene-frechet" else {}) for row in records.read_rows(path)[0]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, numbers = analysis.figure4(analysis.load(tmp_path), analysis.load_scores(tmp_path))
    assert numbers["flops_spread"] == pytest.approx(0.2, abs=0.01)
    text = " ".join(numbers["caption"].split())
    assert "training FLOPs differ by 20.0%: they are not matched (within 5%)" in text
    assert "the runs also differ in optimizer.learning_rate" in text
    assert "scene-frechet is of different numbers of pictures" in text
    assert "the last scene-frechet of dit-s0 is not of its last step" in text


def test_a_run_that_was_not_scored_is_named(tmp_path):
    write_backbones(tmp_path, seeds=2)
    path = tmp_path / "uvit-s1" / "evals.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records.read_rows(path)[0] if "compbench" in row["name"]))
    _, numbers = analysis.figure4(analysis.load(tmp_path), analysis.load_scores(tmp_path))
    for one in numbers["final"][1:]:
        assert f"{one['name']} is missing for the runs uvit-s1." in numbers["notes"]
        assert {row["backbone"]: row["seeds"] for row in one["order"]} == {
            label: 1 if label == "UViT" else 2 for label in LABELS.values()
        }


def test_texts_stay_inside_the_page_and_apart(figure4):
    figure = figure4.figure
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    texts = [*figure.texts, *figure.legends, *(label for a in figure.axes for label in (a.xaxis.label, a.yaxis.label))]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    for axes in figure.axes:
        ticks = [label.get_window_extent(renderer) for label in axes.get_xticklabels() if label.get_text()]
        assert len(ticks) >= 2
        assert not any(a.overlaps(b) for i, a in enumerate(ticks) for b in ticks[i + 1 :])


def test_without_scores_only_the_loss_is_drawn_over_steps_too(root):
    figure, numbers = analysis.figure4(analysis.load(root), x="step")
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xlabel() == "training steps"
    assert sum("its panel is left out" in note for note in numbers["notes"]) == 2


def test_the_command_writes_the_figure_and_says_what_it_shows(root, sd3, tmp_path):
    code, out, err = sd3("figure", "4", root, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("validation loss, best first: MM-DiT")
    assert out.splitlines()[-1].startswith(f"wrote {tmp_path / root.name}.png")
    assert json.loads((tmp_path / f"{root.name}.json").read_text())["figure"] == "4"


def test_bad_input_is_one_line(sd3, tmp_path):
    sweep, two = tmp_path / "sweep", tmp_path / "two"
    write_sweep(sweep, depths=(2, 3), seeds=1)
    code, out, err = sd3("figure", "4", sweep, "--out", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 2)  # that there are no scores, and the error
    assert "figure 4 compares backbones, and there is MM-DiT, 2 sets; it needs two of DiT, CrossDiT" in err
    write_sweep(two, depths=(2, 3), seeds=1)
    write_run(two, bench_config(3, **{"model.weight_sets": 1}), name="dit")
    with pytest.raises(UserError, match=r"^MM-DiT, 2 sets has 2 sizes \("):
        analysis.figure4(analysis.load(two))
    write_run(two, bench_config(3, **{"model.weight_sets": 1, "model.text_dim": 96}), name="other")
    with pytest.raises(UserError, match=r"differ in model\.text_dim: their losses are not comparable"):
        analysis.figure4(analysis.load(two))
    code, out, err = sd3("figure", "5", sweep)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "there are 3 (scores against sampler steps), 4 (backbones at matched FLOPs)" in err


def test_several_backbones_are_no_family(root, sd3):
    runs, scores = analysis.load(root), analysis.load_scores(root)
    for refused in (
        lambda: analysis.fit(runs),
        lambda: analysis.figure8(runs, scores),
        lambda: analysis.isoflop(runs, [1e11]),
        lambda: quality.relate(scores, "scene-geneval"),
    ):
        with pytest.raises(UserError, match=r"^the runs are of 5 backbones \(DiT, CrossDiT, UViT, MM-DiT, 2 sets, "):
            refused()
    code, out, err = sd3("correlate", root)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "laws and correlations are of one" in err
