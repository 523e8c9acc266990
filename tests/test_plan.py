import dataclasses
import json

import pytest

from sd3_jax import experiments
from sd3_jax.errors import UserError
from sd3_jax.overlays import resolve
from sd3_jax.sweep import plan as plans
from sd3_jax.sweep import spec
from sd3_jax.training import checkpoint

SHIPPED = sorted(path.stem for path in experiments.SWEEPS.glob("*.yaml"))


def train_flops_by_hand(depth: int) -> int:
    """3F of the paper's family at 256 px, block by block: 256 image tokens, 154 of text, patches of 64 numbers."""
    d, image, text = 64 * depth, 256, 154
    both = image + text
    block = 24 * d * d * both + 4 * both * both * d + 24 * d * d
    last = 24 * d * d * image + 6 * d * d * text + 4 * both * both * d + 16 * d * d
    ends = 128 * d * image + 2 * 4096 * d * text + 2 * (256 * d + d * d) + 2 * (2048 * d + d * d) + 4 * d * d
    return 3 * ((depth - 1) * block + last + ends + 128 * d * image)


def plan_of(name: str, **speed) -> plans.Plan:
    return plans.plan(spec.load(experiments.find_sweep(name)), plans.speed(**speed))


def test_figure8_costs_what_arithmetic_says():
    result = plan_of("figure8")
    assert [cell.depth for cell in result.cells] == [15, 18, 21, 24, 30, 38]
    for cell in result.cells:
        assert cell.flops == train_flops_by_hand(cell.depth) * 4096 * 500_000
        assert cell.images == 2_048_000_000
    assert result.cells[0].flops == pytest.approx(8.894e20, rel=1e-4)
    assert result.flops == sum(train_flops_by_hand(depth) for depth in (15, 18, 21, 24, 30, 38)) * 4096 * 500_000
    assert result.chip_hours == pytest.approx(result.flops / (0.4 * 989e12) / 3600, rel=1e-12)
    assert result.cells[-1].checkpoint_bytes == 16 * 8_056_617_792
    assert result.cells[-1].stored_bytes == checkpoint.NEWEST * 16 * 8_056_617_792


def test_hardware_sets_time_and_price():
    slow, fast = plan_of("figure8", hardware="v5e-256"), plan_of("figure8", hardware="v6e-256", mfu=0.5, price=2.0)
    assert slow.chip_hours / fast.chip_hours == pytest.approx(918 * 0.5 / (197 * 0.4))
    assert plans.to_json(fast)["total"]["hours"] == pytest.approx(fast.chip_hours / 256)
    assert fast.cost == pytest.approx(2 * fast.chip_hours) == sum(cell.cost for cell in fast.cells)
    measured = plan_of("figure8_cpu", flops_per_second=3e10)
    assert measured.chip_hours * 3600 == pytest.approx(measured.flops / 3e10)


def test_the_units_of_a_slice_are_chips():
    result = plan_of("figure8", hardware="v5p-128")
    assert result.speed.chips == 64
    assert {cell.mesh for cell in result.cells} == {(4, 16)}


def test_isoflop_runs_end_at_the_largest_budget_they_serve():
    result = plan_of("isoflop")
    for cell, budget in zip(result.cells, [1e21, 2e21, 4e21, 8e21, 8e21, 8e21, 8e21, 8e21], strict=True):
        step = train_flops_by_hand(cell.depth) * 4096
        assert budget - step < cell.flops <= budget
    for budget, passed in result.passes.items():
        for depth, step in passed:
            assert step == budget // (train_flops_by_hand(depth) * 4096)


def test_isoflop_valleys_are_bracketed_around_the_published_optimum():
    result = plan_of("isoflop")
    parameters = {cell.depth: cell.parameters for cell in result.cells}
    assert list(result.passes) == [5e20, 1e21, 2e21, 4e21, 8e21]
    for budget, passed in result.passes.items():
        best = 0.0009 * (2.85 * budget) ** 0.5681
        below = [depth for depth, _ in passed if parameters[depth] < best]
        assert len(below) >= 2
        assert len(passed) - len(below) >= 2


def test_a_branch_pays_only_for_its_cooldown():
    result = plan_of("figure8_cpu")
    costs = {cell.name: cell for cell in result.cells}
    branches = [name for name in costs if "cooldown" in name]
    assert branches
    for name in branches:
        parent = costs[name.replace("-cooldown0.2", "")]
        assert costs[name].steps * 5 == parent.steps
        assert costs[name].flops * 5 == parent.flops
    assert result.flops == sum(cell.flops for cell in result.cells)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweeps_plan_without_warnings(name):
    result = plan_of(name)
    assert result.warnings == []
    assert result.cells
    assert json.loads(json.dumps(plans.to_json(result)))["total"]["flops"] == result.flops


def test_gpu_sweeps_take_about_1e17_flops_together():
    assert plan_of("figure8_gpu").flops + plan_of("isoflop_gpu").flops == pytest.approx(1e17, rel=0.1)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"steps": 999}, "999 steps, fewer than 1000"),
        ({"steps": 5000, "optimizer.warmup_steps": 501}, "5000 steps, fewer than 10 times its warm-up of 501"),
    ],
)
def test_short_cells_are_named_with_the_rule(fields, words):
    config = resolve({"model.depth": 2, "optimizer.warmup_steps": 10}, fields)
    fine = dataclasses.replace(config, steps=5010)
    result = plans.plan([spec.Cell("short", config), spec.Cell("fine", fine)], plans.speed())
    assert result.warnings == [f"short is too short to mean anything: {words}"]


def test_a_budget_with_two_depths_is_named():
    cells = spec.cells(
        {"optimizer.warmup_steps": 100, "evaluation.budgets": [3e17]}, {}, [{"model.depth": [2, 3], "flops": 3e17}]
    )
    assert [line for line in plans.plan(cells, plans.speed()).warnings if "budget 3e+17: only 2 depths" in line]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"hardware": "h1000"}, "h1000"),
        ({"mfu": 0.0}, "--mfu"),
        ({"mfu": 40.0}, "--mfu"),
        ({"mfu": float("nan")}, "--mfu"),
        ({"hardware": "v5p-100"}, "nearest: v5p-128, v5p-64"),
        ({"flops_per_second": 0.0}, "--flops-per-second"),
        ({"price": -1.0}, "--price"),
        ({"price": float("inf")}, "--price"),
    ],
)
def test_impossible_hardware_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        plans.speed(**options)
