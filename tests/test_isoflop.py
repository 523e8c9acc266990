import numpy as np
import pandas as pd
import pytest
from synthetic import TRUTH, law_loss, write_sweep

import analysis
from analysis.isoflop import at_budgets, find_budgets, isoflop_points
from sd3_jax.errors import UserError

SYMMETRIC = {"E": 1.8, "A": 500.0, "B": 500.0, "alpha": 0.35, "beta": 0.35}
BUDGETS = [1e18, 1e19, 1e20, 1e21]


def valleys(truth, budgets=BUDGETS, half_width=2.0, sizes=7, noise=0.0, seed=0, drift=0.0):
    """Sizes spread evenly in log N about the true optimum of each budget; a run is one place in the grid."""
    rng = np.random.default_rng(seed)
    a = truth["beta"] / (truth["alpha"] + truth["beta"])
    g = (truth["alpha"] * truth["A"] / (truth["beta"] * truth["B"])) ** (1 / (truth["alpha"] + truth["beta"]))
    rows = []
    for j, budget in enumerate(budgets):
        centre = np.log(g * (budget / 6) ** a) + drift * j
        for i, params in enumerate(np.exp(centre + np.linspace(-half_width, half_width, sizes))):
            images = budget / (6 * params)
            loss = law_loss(truth, params, images) * (1 + noise * rng.standard_normal())
            rows.append((f"r{i}-{j}", i + 10 * j, params, images, budget, loss))
    return pd.DataFrame(rows, columns=["run", "depth", "params", "images", "flops", "loss"])


def test_symmetric_surface_gives_the_exponent():
    found = isoflop_points(valleys(SYMMETRIC), BUDGETS, resamples=0)
    assert found.exponents["exponent_params"] == pytest.approx(0.5, abs=1e-3)
    assert found.exponents["exponent_data"] == pytest.approx(0.5, abs=1e-3)
    assert found.budgets["interior"].all()
    assert found.flags == ()
    np.testing.assert_allclose(found.budgets["params"] * found.budgets["images"] * 6, BUDGETS, rtol=1e-9)
    np.testing.assert_allclose(found.budgets["params"], (np.array(BUDGETS) / 6) ** 0.5, rtol=1e-3)
    predicted = found.exponents["coefficient_params"] * np.array(BUDGETS) ** found.exponents["exponent_params"]
    np.testing.assert_allclose(predicted, found.budgets["params"], rtol=1e-6)


def test_bias_of_the_intercept_grows_with_the_grid_on_an_asymmetric_surface():
    truth = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.465, "beta": 0.155}
    exact = valleys(truth, sizes=3, half_width=1e-3).groupby("flops")["params"].median().to_numpy()
    bias = []
    for half_width in (0.5, 1.0, 2.0):
        found = isoflop_points(valleys(truth, half_width=half_width), BUDGETS, resamples=0)
        assert found.exponents["exponent_params"] == pytest.approx(0.25, abs=1e-3)
        bias.append(np.abs(np.log(found.budgets["params"] / exact)).mean())
    assert bias[0] < bias[1] < bias[2]
    assert bias[2] > 0.05


def test_interpolation_has_no_such_bias():
    truth = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.465, "beta": 0.155}
    exact = valleys(truth, sizes=3, half_width=1e-3).groupby("flops")["params"].median().to_numpy()
    found = isoflop_points(valleys(truth, sizes=21), BUDGETS, resamples=0, interpolate="akima")
    np.testing.assert_allclose(found.budgets["params"], exact, rtol=0.01)
    assert found.exponents["exponent_params"] == pytest.approx(0.25, abs=1e-3)
    few = isoflop_points(valleys(truth, sizes=4), BUDGETS, resamples=0, interpolate="akima")
    assert set(few.budgets["why"]) == {"4 sizes; an interpolated valley needs 5"}


def test_budgets_are_found():
    rng = np.random.default_rng(0)
    table = valleys(SYMMETRIC)
    spent = table.assign(flops=table["flops"] * np.exp(rng.uniform(-0.02, 0.02, len(table))))
    spent["images"] = spent["flops"] / (6 * spent["params"])
    spent["loss"] = law_loss(SYMMETRIC, spent["params"], spent["images"])
    points, budgets = find_budgets(spent)
    np.testing.assert_allclose(budgets, BUDGETS, rtol=0.02)
    found = isoflop_points(spent, resamples=0)
    assert found.exponents["exponent_params"] == pytest.approx(0.5, abs=0.02)

    compute, sizes = np.geomspace(1e18, 1e21, 100), np.geomspace(2e7, 2e11, 25)
    curves = [pd.DataFrame({"run": f"r{i}", "params": sizes[i], "flops": compute * 1.002**i}) for i in range(25)]
    table = pd.concat(curves).assign(images=lambda t: t["flops"] / (6 * t["params"]))
    table["loss"] = law_loss(SYMMETRIC, table["params"], table["images"])
    found = isoflop_points(table, resamples=0)
    assert len(found.budgets) >= 9
    assert found.exponents["exponent_params"] == pytest.approx(0.5, abs=2e-3)

    scattered = table.groupby("run").head(1).assign(flops=np.geomspace(1e18, 1e23, 25))
    with pytest.raises(UserError, match="no FLOP budget that points of three sizes share"):
        find_budgets(scattered)


def test_minimum_at_the_edge_is_refused():
    table = valleys(SYMMETRIC, drift=0.7)  # the grid runs away from the optimum as C grows
    found = isoflop_points(table, BUDGETS, resamples=0)
    assert list(found.budgets["interior"]) == [True, True, True, False]
    assert found.budgets["why"].iloc[3] == "the lowest loss is at the smallest size"
    assert np.isnan(found.budgets["params"].iloc[3])
    assert found.flags == ("minimum at the edge",)
    only_three = isoflop_points(table, BUDGETS[:3], resamples=0)
    assert found.exponents == only_three.exponents
    assert isoflop_points(table, BUDGETS[2:], resamples=0).exponents == {}
    two_sizes = isoflop_points(table[table["depth"] % 10 < 2], BUDGETS[:1], resamples=0)
    assert two_sizes.budgets["why"].iloc[0] == "2 sizes; a valley needs three"


def test_intervals_need_three_budgets_and_six_runs():
    rows = valleys(SYMMETRIC, noise=1e-3, sizes=9)
    # as in a sweep, one run serves every budget: merge the places of the grid that share an index
    rows["run"] = rows["run"].str.partition("-")[0]
    found = isoflop_points(rows, BUDGETS, resamples=100)
    assert found.how == f"bootstrap over 9 runs, 100 resamples, {found.failed_resamples} failed"
    low, high = found.ci95["exponent_params"]
    assert low < found.exponents["exponent_params"] < high
    assert abs(found.exponents["exponent_params"] - 0.5) < 2 * (high - low) < 0.05
    two = isoflop_points(rows, BUDGETS[:2], resamples=100)
    assert two.ci95 == {}
    assert "no interval" in two.how
    least, most = two.left_out["exponent_params"]
    assert least <= two.exponents["exponent_params"] <= most


def test_loss_is_interpolated_to_exactly_the_budget():
    x = np.geomspace(1e9, 1e11, 41)
    run = pd.DataFrame({"run": "r", "depth": 2, "params": 1e5, "images": x / 1e6, "flops": x, "loss": 3 * x**-0.1})
    table, notes = at_budgets(run, np.array([3.3e9, 5e8, 2e11]))
    assert list(table["flops"]) == [3.3e9]  # the others lie outside what the run has spent
    assert table["loss"].iloc[0] == pytest.approx(3 * 3.3e9**-0.1, rel=1e-12)
    assert table["images"].iloc[0] == pytest.approx(3.3e3)
    assert notes == []
    sparse, notes = at_budgets(run.iloc[::20], np.array([3.3e9]))
    assert sparse.empty
    assert notes == ["1 times a run's nearest point was over 10% from a budget: left out."]


def test_from_run_directories(tmp_path):
    steep = TRUTH | {"A": TRUTH["A"] * 1.5, "B": TRUTH["B"] * 0.5}
    budgets = [3e11, 5e11, 9e11]
    write_sweep(tmp_path, depths=(2, 3, 4, 5), seeds=2, truth=steep, steps=6000, **{"evaluation.budgets": budgets})
    runs = analysis.load(tmp_path)
    assert runs.attrs["budgets"] == budgets
    found = analysis.isoflop(runs, resamples=0)
    assert list(found.budgets["flops"]) == budgets
    per_budget = found.points.groupby("flops")
    assert (per_budget["depth"].nunique() == 4).all()
    assert (per_budget.size() == 5).all()  # two seeds of depth 2
    np.testing.assert_allclose(
        found.points["loss"], law_loss(steep, found.points["params"], found.points["images"]), rtol=2e-3
    )
    with pytest.raises(UserError, match="no FLOP budget"):
        analysis.isoflop(runs, budgets=[])
