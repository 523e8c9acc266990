"""A proposed sweep: read back, it brackets every valley, costs what was asked for, and plans without warnings."""

import pytest

from sd3_jax import experiments
from sd3_jax.errors import UserError
from sd3_jax.sweep import plan as plans
from sd3_jax.sweep import propose, spec


def proposed(tmp_path, total: float, sweep: str = "isoflop", *rest) -> tuple[str, plans.Plan]:
    text = propose.proposal(experiments.find_sweep(sweep), total, *rest)
    path = tmp_path / "proposed.yaml"
    path.write_text(text)
    return text, plans.plan(spec.load(path), plans.speed())


@pytest.mark.parametrize("total", [1e21, 3e22])
def test_every_valley_is_bracketed_and_the_total_is_kept(tmp_path, total):
    text, result = proposed(tmp_path, total)
    assert 0.9 * total < result.flops <= total
    assert result.warnings == []
    parameters = {cell.depth: cell.parameters for cell in result.cells}
    assert len(result.passes) == propose.BUDGETS
    for budget, passed in result.passes.items():
        best = 0.0009 * (2.85 * budget) ** 0.5681  # C6 of the paper's sizes, 2.81 to 2.92 C
        assert sum(parameters[depth] < 1.02 * best for depth, _ in passed) >= propose.SIDE
        assert sum(parameters[depth] > 0.98 * best for depth, _ in passed) >= propose.SIDE
    budgets = list(result.passes)
    assert [b / a for a, b in zip(budgets, budgets[1:], strict=False)] == pytest.approx([2] * 4)
    assert all(line.startswith("#") for line in text.splitlines()[:9])


def test_a_law_of_ones_own_moves_the_depths(tmp_path):
    law = propose.Optimum(lambda _, budget: 1e9, "my runs")
    text, result = proposed(tmp_path, 1e22, "isoflop", law)
    assert "# my runs." in text
    assert sorted(cell.depth for cell in result.cells) == [15, 17, 20, 23]
    assert 0.9 * 1e22 < result.flops <= 1e22


def test_the_setting_is_that_of_the_sweep(tmp_path):
    law = propose.Optimum(lambda _, budget: 3e5, "my runs")
    _, result = proposed(tmp_path, 1e13, "figure8_cpu", law)
    before = spec.load(experiments.find_sweep("figure8_cpu"))[0].config
    after = spec.load(tmp_path / "proposed.yaml")[0].config
    assert (after.data, after.batch, after.optimizer) == (before.data, before.batch, before.optimizer)
    assert result.cells


def test_an_experiment_of_ones_own_is_found_from_anywhere(tmp_path):
    (tmp_path / "mine.py").write_text((experiments.EXPERIMENTS / "figure8.py").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text("experiment: mine.py\ncells: [{model.depth: 15}]\n")
    assert f"experiment: {tmp_path.resolve() / 'mine.py'}" in propose.proposal(path, 1e21)


@pytest.mark.parametrize("total", [0.0, -1.0, float("nan"), float("inf"), 1e6])
def test_what_makes_no_sweep_is_one_line(total):
    with pytest.raises(UserError, match="^--propose: [^\n]+$"):
        propose.proposal(experiments.find_sweep("isoflop"), total)
