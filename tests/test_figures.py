import json

import numpy as np
import pytest
from synthetic import bench_config, write_run, write_sweep

import analysis
from analysis import drawing, figures, laws


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    return analysis.load(
        write_sweep(root, noise=0.002, offset=0.002, cooldown=True, **{"evaluation.budgets": [2e11, 5e11]})
    )


@pytest.fixture(scope="module")
def figure8(runs):
    return analysis.figure8(runs, resamples=100)


def lines_of(axes):
    return [tuple(map(np.asarray, line.get_data())) for line in axes.lines]


def is_drawn(axes, x, y):
    return any(len(a) == len(x) and np.allclose(a, x) and np.allclose(b, y, equal_nan=True) for a, b in lines_of(axes))


def test_every_number_drawn_is_in_the_numbers(figure8):
    figure, numbers = figure8
    left, right = figure.axes
    for curve in numbers["curves"]:
        assert is_drawn(left, curve["step"], curve["loss"])
    for curve in numbers["law_curves"]:
        assert is_drawn(right, curve["flops"], curve["loss"])
    assert is_drawn(right, numbers["frontier"]["flops"], numbers["frontier"]["loss"])
    for end in numbers["cooldown_ends"]:
        assert is_drawn(left, [end["step"]], [end["loss"]])
        assert is_drawn(right, [end["flops"]], [end["loss"]])
    known = sum(len(c["step"]) for c in numbers["curves"]) + len(numbers["cooldown_ends"])
    fitted = sum(sum(c["fitted"]) for c in numbers["curves"] if c["seed"] == 0)
    assert sum(len(x) for x, _ in lines_of(left)) == known + fitted
    assert numbers["caption"] in [text.get_text() for text in figure.texts]


def test_law_in_the_numbers_is_the_law_of_the_runs(figure8, runs):
    law = analysis.fit(runs, resamples=100)
    shown = figure8.numbers["law"]
    assert shown["constants"] == {name: law.constants[name] for name in law.form.constants}
    assert shown["intervals"]["alpha"]["ci95"] == list(law.ci95["alpha"])
    assert shown["hold_out"]["depth"] == 7
    table = analysis.implied(law, figure8.numbers["frontier"]["flops"])
    np.testing.assert_allclose(table["loss"], figure8.numbers["frontier"]["loss"])
    np.testing.assert_allclose(table["loss_high"], figure8.numbers["frontier"]["loss_high"])


def test_frontier_is_dashed_where_it_leaves_the_data(figure8):
    front, right = figure8.numbers["frontier"], figure8.figure.axes[1]
    inside = np.where(front["extrapolated"], np.nan, front["loss"])
    solid = [line for line in right.lines if line.get_linestyle() == "-" and line.get_color() == "black"]
    assert len(solid) == 1
    np.testing.assert_allclose(solid[0].get_ydata(), inside)
    assert front["extrapolated"][-1]
    assert not all(front["extrapolated"])


def test_texts_stay_inside_the_page_and_readable(figure8):
    figure = figure8.figure
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == 7.0
    renderer = figure._get_renderer()
    page = figure.bbox
    texts = [*figure.texts, *figure.legends, *(axes.xaxis.label for axes in figure.axes), figure.axes[0].yaxis.label]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for box in boxes:
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    labels = [label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    assert min(label.get_fontsize() for label in labels) >= 7
    assert min(text.get_fontsize() for text in figure.texts) >= 7


def test_saved_whole_and_reproducibly(figure8, tmp_path):
    paths = analysis.save(*figure8, tmp_path / "new" / "figure8")
    assert [path.name for path in paths] == ["figure8.png", "figure8.pdf", "figure8.json"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    stored = json.loads(paths[2].read_text())
    assert stored["law"]["constants"] == figure8.numbers["law"]["constants"]
    assert stored["curves"][0]["loss"] == figure8.numbers["curves"][0]["loss"]
    again = analysis.save(*figure8, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_three_runs_get_a_law_without_interval_and_say_so(tmp_path):
    runs = analysis.load(write_sweep(tmp_path, depths=(2, 3, 4), seeds=1, noise=0.001))
    _, numbers = analysis.figure8(runs, out=tmp_path / "figure8")
    assert numbers["law"]["intervals"] == {}
    caption = " ".join(numbers["caption"].split())
    assert "no interval (fewer than six runs)" in caption
    assert "too few depths" in caption
    assert any("nothing is held out" in note for note in numbers["notes"])
    assert (tmp_path / "figure8.pdf").exists()


def test_one_run_is_drawn_without_a_law(tmp_path):
    write_run(tmp_path, bench_config(3))
    _, numbers = analysis.figure8(analysis.load(tmp_path))
    assert numbers["law"] is None
    assert numbers["caption"].startswith("no law is drawn: a law needs at least 3 depths")
    assert len(numbers["curves"]) == 1


def test_isoflop_figure(runs, tmp_path):
    figure, numbers = analysis.isoflop_figure(runs, out=tmp_path / "isoflop")
    left = figure.axes[0]
    assert [row["flops"] for row in numbers["budgets"]] == [2e11, 5e11]
    for valley in numbers["valleys"]:
        assert is_drawn(left, valley["params"], valley["loss"])
    drawn = sum(len(x) for x, _ in lines_of(left)) - 61 * len(numbers["valleys"])
    assert drawn == len(numbers["points"])
    assert json.loads((tmp_path / "isoflop.json").read_text())["caption"] == numbers["caption"]


def test_colours_are_readable_and_ordered():
    colours = drawing.sequential_colours([7, 2, 4])
    luminance = {depth: float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722))) for depth, colour in colours.items()}
    assert luminance[2] > luminance[4] > luminance[7]
    assert luminance[2] < 0.75  # a line on white paper


@pytest.mark.parametrize("low, high", [(0.23, 0.7), (0.30, 0.34), (50, 2000), (1e3, 5e5), (0.9, 1.1)])
def test_ticks_are_plain_numbers(low, high):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set(yscale="log", ylim=(low, high))
    drawing.plain_log_ticks(axes, "y", (low, high))
    ticks = axes.get_yticks()
    assert 3 <= len(ticks) <= 8
    labels = [axes.yaxis.get_major_formatter()(tick) for tick in ticks]
    assert [float(label.replace(",", "")) for label in labels] == pytest.approx(list(ticks))
    assert not any("e" in label for label in labels)


def test_description_of_a_law(runs):
    law = analysis.fit(runs, resamples=100)
    text = analysis.describe(law, analysis.hold_out_largest(analysis.points_on_law(runs), resamples=100))
    assert f"{law.ci95['E'][0]:.4g} to {law.ci95['E'][1]:.4g}" in text
    assert "depth 7 held out: predicted " in text
    for name, value, *_ in analysis.rows(law):
        shown = law.reported.get(name, True)
        assert value == (f"{law.constants[name]:.4g}" if shown else "not resolved")
    for flag in law.flags:
        assert laws.FLAGS[flag] in text


def test_a_long_caption_makes_the_page_longer(runs, monkeypatch):
    short = analysis.figure8(runs, resamples=20).figure.get_size_inches()[1]
    monkeypatch.setattr(figures, "_caption", lambda *_: "\n".join(["a line of the caption"] * 12))
    figure = analysis.figure8(runs, resamples=20).figure
    assert figure.get_size_inches()[1] > short + 0.9
    figure.draw_without_rendering()
    box = figure.texts[0].get_window_extent(figure._get_renderer())
    assert box.y0 >= figure.bbox.y0
    assert not box.overlaps(figure.legends[0].get_window_extent(figure._get_renderer()))
