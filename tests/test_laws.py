import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from synthetic import TRUTH, bench_config, law_loss

from analysis import forms, frontier, laws, prediction, solvers
from sd3_jax import flops
from sd3_jax.errors import UserError

CHINCHILLA = [
    {"A": 406.4, "B": 410.7, "E": 1.6934, "alpha": 0.3392, "beta": 0.2849},
    {"A": 482.01, "B": 2085.43, "E": 1.8172, "alpha": 0.3478, "beta": 0.3658},
    {"A": 406.4, "B": 410.7, "E": 1.6934, "alpha": 0.465, "beta": 0.155},
]


def surface(truth, sizes=8, lengths=10, noise=0.0, seed=0):
    """A grid over N and D of two decades each; every size is one run."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, params in enumerate(np.geomspace(5e7, 5e9, sizes)):
        for images in np.geomspace(1e9, 2e11, lengths):
            loss = law_loss(truth, params, images) * (1 + noise * rng.standard_normal())
            rows.append((f"r{i}", i, params, images, 6 * params * images, loss))
    return pd.DataFrame(rows, columns=["run", "depth", "params", "images", "flops", "loss"])


def sweep(truth, noise=0.0, seed=0, depths=range(2, 8), seeds=3, lengths=13):
    """An equal-step sweep of the bench family over one decade of steps, with repeats of the smallest depth."""
    rng = np.random.default_rng(seed)
    rows = []
    for depth in depths:
        model = bench_config(depth).model
        params, per_image = flops.parameters(model).total, flops.train_flops(model)
        for repeat in range(seeds if depth == min(depths) else 1):
            for step in np.geomspace(200, 2000, lengths).round():
                images = 64 * step
                loss = law_loss(truth, params, images) * (1 + noise * rng.standard_normal())
                rows.append((f"d{depth}-s{repeat}", depth, params, images, images * per_image, loss))
    return pd.DataFrame(rows, columns=["run", "depth", "params", "images", "flops", "loss"])


def at_bench(floor, of_params, of_images, alpha, beta):
    """Constants that put these shares of the loss at 1e6 parameters and 6e4 images."""
    return {"E": floor, "A": of_params * 1e6**alpha, "B": of_images * 6e4**beta, "alpha": alpha, "beta": beta}


SWEEPS = [
    at_bench(0.2, 0.05, 0.08, 0.6, 0.5),
    at_bench(0.2, 0.06, 0.06, 0.35, 0.37),
    at_bench(0.1, 0.08, 0.10, 0.34, 0.28),
    at_bench(0.2, 0.05, 0.05, 0.465, 0.155),
    at_bench(0.3, 0.03, 0.10, 0.8, 0.4),
]
quick = partial(laws.fit_points, resamples=200)


@pytest.mark.parametrize("truth", CHINCHILLA)
def test_exact_recovery(truth):
    law = laws.fit_points(surface(truth), resamples=0)
    for name, value in truth.items():
        assert law.constants[name] == pytest.approx(value, rel=1e-6)
    assert law.constants["a"] == pytest.approx(truth["beta"] / (truth["alpha"] + truth["beta"]), rel=1e-6)


def test_units_order_and_objective_scale_do_not_matter():
    points = surface(CHINCHILLA[0], noise=0.005)
    law = quick(points)
    shuffled = quick(points.sample(frac=1, random_state=1))
    other = quick(points.assign(params=points["params"] * 1e3, images=points["images"] / 7e5, loss=points["loss"] * 40))
    for name in ("alpha", "beta"):
        assert shuffled.constants[name] == pytest.approx(law.constants[name], rel=1e-8)
        assert other.constants[name] == pytest.approx(law.constants[name], rel=1e-8)
        assert other.ci95[name] == pytest.approx(law.ci95[name], rel=1e-6)
    assert other.constants["E"] == pytest.approx(40 * law.constants["E"], rel=1e-8)
    assert other.constants["A"] == pytest.approx(40 * law.constants["A"] * 1e3 ** law.constants["alpha"], rel=1e-7)

    features, loss = points[["params", "images"]].to_numpy(float).T, points["loss"].to_numpy()
    scaled = [
        solvers.optima(forms.CHINCHILLA, features, loss, np.full(len(loss), scale), 1e-3).theta[0]
        for scale in (1e-3, 1, 1e3)
    ]
    np.testing.assert_allclose(scaled[0], scaled[1], rtol=1e-9)
    np.testing.assert_allclose(scaled[2], scaled[1], rtol=1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_optimum_is_that_of_lbfgs_multistart(delta):
    points = surface(CHINCHILLA[0], sizes=6, lengths=7, noise=0.004, seed=3)
    law = laws.fit_points(points, delta=delta, resamples=0)
    x, y = np.log(points["params"].to_numpy()), np.log(points["images"].to_numpy())
    x, y, z = x - x.mean(), y - y.mean(), np.log(points["loss"].to_numpy())

    def objective(theta):
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * x, b - beta * y, np.full_like(x, e)])
        residual = z - np.logaddexp.reduce(terms)
        shares = np.exp(terms - np.logaddexp.reduce(terms))
        slope = np.stack([shares[0], shares[1], shares[2], -shares[0] * x, -shares[1] * y])
        size = np.abs(residual)
        value = np.where(size < delta, residual**2 / 2, delta * (size - delta / 2)).sum()
        return value * 1e3, -slope @ np.clip(residual, -delta, delta) * 1e3

    starts = [
        (a, b, e, p, q) for a in (-1.5, 0) for b in (-1.5, 0) for e in (-1, 0.5) for p in (0.2, 1) for q in (0.2, 1)
    ]
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    best = min(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun for start in starts) / 1e3
    assert law.objective <= best * (1 + 1e-7)
    assert law.objective == pytest.approx(best, rel=1e-3)
    assert law.grad_norm < 1e-6


@pytest.mark.parametrize("truth", SWEEPS)
@pytest.mark.parametrize("noise", [0.0, 3e-4, 2e-3])
def test_reported_exponents_of_equal_step_sweeps_are_right_or_refused(truth, noise):
    total = truth["alpha"] + truth["beta"]
    true = truth | {"a": truth["beta"] / total, "b": truth["alpha"] / total}
    reported = []
    for seed in range(3 if noise else 1):
        law = laws.fit_points(sweep(truth, noise, seed), resamples=200)
        for name in forms.CHINCHILLA.exponents:
            if law.reported[name]:
                reported.append(name)
                assert law.constants[name] == pytest.approx(true[name], abs=0.01), name
    if noise == 0:
        assert set(reported) == set(forms.CHINCHILLA.exponents)  # refusing everything would pass the rest of this test
        assert not law.flags
    if noise == 2e-3:
        assert len(reported) < 3 * len(forms.CHINCHILLA.exponents)


def test_repeats_share_the_weight_of_one_run():
    points = sweep(TRUTH, noise=2e-3, seeds=1)
    twice = pd.concat([points, points[points["depth"] == 2].assign(run="again")])
    once, repeated = laws.fit_points(points, resamples=0), laws.fit_points(twice, resamples=0)
    assert repeated.constants["alpha"] == pytest.approx(once.constants["alpha"], rel=1e-8)
    assert repeated.n_runs == once.n_runs + 1


def test_huber_resists_outliers():
    points = surface(CHINCHILLA[1], noise=0.003, seed=4)
    spoilt = points.copy()
    spoilt.loc[spoilt.index[::40], "loss"] *= 1.05
    clean, robust = quick(points), quick(spoilt)
    squares = laws.fit_points(spoilt, delta=math.inf, resamples=0)
    for name in ("alpha", "beta"):
        moved = abs(robust.constants[name] - clean.constants[name])
        assert moved < clean.se[name]
        assert moved < abs(squares.constants[name] - clean.constants[name])


def test_floor_of_pure_powers_is_flagged():
    pure = CHINCHILLA[0] | {"E": 0.0}
    assert "E not identified" in quick(surface(pure)).flags
    assert "E not identified" in quick(surface(pure, noise=0.003)).flags
    assert "E not identified" not in quick(surface(CHINCHILLA[0], noise=0.003)).flags
    short = surface(CHINCHILLA[0], noise=0.003).query("params < 4e8 and images < 4e9")
    assert "E not identified" in quick(short).flags


def test_flags_fire_and_refuse():
    few = quick(sweep(TRUTH, depths=(2, 4, 6)))
    assert "too few depths" in few.flags
    assert not any(few.reported.values())
    bent = sweep(TRUTH)
    bent["loss"] *= 1 + 0.03 * np.sin(3 * np.log10(bent["flops"]))
    assert "trend in residuals" in quick(bent).flags
    assert "trend in residuals" not in quick(sweep(TRUTH, noise=2e-3)).flags
    steep = sweep(TRUTH | {"A": TRUTH["A"] * 7e5**3.4, "alpha": 4.0})
    assert "exponent at a bound" in quick(steep).flags
    assert set(laws.REFUSING) < set(laws.FLAGS)


def test_intervals_are_of_runs_and_absent_below_six():
    law = quick(sweep(TRUTH, noise=2e-3))
    assert law.how == f"bootstrap over 8 runs, 200 resamples, {law.failed_resamples} failed"
    assert len(law.draws) == 200 - law.failed_resamples
    assert law.ci95["alpha"][0] < law.ci80["alpha"][0] < law.ci80["alpha"][1] < law.ci95["alpha"][1]
    assert set(law.left_out) == {2, 3, 4, 5, 6, 7}
    five = quick(sweep(TRUTH, noise=2e-3, depths=range(2, 7), seeds=1))
    assert five.ci95 == {}
    assert "no interval (fewer than six runs)" in five.how
    assert set(five.left_out) == {2, 3, 4, 5, 6}
    assert np.isnan(prediction.predict(five, 1e6, 1e5).low)


def test_resamples_with_fewer_than_three_depths_fail_and_are_counted():
    # Of six runs with three depths, two each, a resample lacks a depth with probability 1 - 540/729.
    points = sweep(TRUTH, noise=2e-3, depths=(2, 4, 6), seeds=1)
    law = laws.fit_points(pd.concat([points, points.assign(run=points["run"] + "b")]), resamples=400)
    lacking = 1 - 540 / 729
    assert abs(law.failed_resamples - 400 * lacking) < 5 * math.sqrt(400 * lacking * (1 - lacking))


def test_intervals_cover():
    # 16 runs, noise of points: the 95 % interval of each constant should hold the truth in about 95 % of repeats.
    covered = []
    for seed in range(16):
        law = laws.fit_points(surface(CHINCHILLA[0], sizes=16, lengths=5, noise=0.002, seed=seed), resamples=100)
        covered.append(
            [law.ci95[name][0] <= CHINCHILLA[0][name] <= law.ci95[name][1] for name in ("E", "alpha", "beta")]
        )
    assert np.all(np.mean(covered, axis=0) > 0.75)
    assert np.mean(covered) > 0.85


def test_largest_depth_is_predicted():
    points = sweep(TRUTH, noise=2e-3, seed=5)
    held = prediction.hold_out_largest(points, resamples=200)
    assert held.depth == 7
    assert held.points == 13
    assert held.law.ranges["depth"] == (2, 6)
    assert abs(held.error) < 0.02
    assert held.predicted / held.actual - 1 == held.error
    off = points.copy()
    off.loc[off["depth"] == 7, "loss"] *= 1.10
    missed = prediction.hold_out_largest(off, resamples=200)
    assert missed.error == pytest.approx((1 + held.error) / 1.10 - 1)
    assert missed.z < -3
    assert missed.covered is False


def test_prediction_interval_joins_parameters_and_residuals():
    law = quick(sweep(TRUTH, noise=2e-3))
    near = prediction.predict(law, 1e6, 1e5)
    far = prediction.predict(law, 1e9, 1e8)
    assert near.low < near.loss < near.high
    assert (far.high - far.low) / far.loss > (near.high - near.low) / near.loss
    assert (near.high - near.low) / near.loss > 2 * law.residual_rms
    assert prediction.predict(law, [1e5, 1e6], 1e5).loss.shape == (2,)


def test_too_little_data():
    with pytest.raises(UserError, match="at least 3 depths; there are 2: 2, 3"):
        laws.fit_points(sweep(TRUTH, depths=(2, 3)))
    with pytest.raises(UserError, match="six points"):
        laws.fit_points(sweep(TRUTH, lengths=1, seeds=1))
    rising = sweep(TRUTH)
    rising["loss"] = rising["params"] * rising["images"] ** 2
    assert "exponent at a bound" in quick(rising).flags
    assert not any(quick(rising).reported.values())
    with pytest.raises(UserError, match="finite and positive"):
        laws.fit_points(rising.assign(loss=np.nan))


def test_saturating_curve_of_each_depth():
    points = sweep(TRUTH)
    for depth, curve in laws.curves(points).items():
        params = points.loc[points["depth"] == depth, "params"].iloc[0]
        assert pytest.approx(TRUTH["E"] + TRUTH["A"] * params ** -TRUTH["alpha"], rel=1e-6) == curve.E
        assert pytest.approx(TRUTH["B"], rel=1e-5) == curve.A
        assert curve.a == pytest.approx(TRUTH["beta"], rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 5, 15, 24, 38, 100])
def test_continuous_family_passes_through_its_members(depth):
    model = bench_config(depth).model
    family = frontier.sizes(model, depth, depth + 1, 2)
    assert family.params[0] == pytest.approx(flops.parameters(model).total, rel=1e-9)
    assert family.flops_per_image[0] == pytest.approx(flops.train_flops(model), rel=1e-9)


def test_implied_frontier_is_the_closed_form_where_compute_is_proportional():
    truth = CHINCHILLA[1]
    law = laws.fit_points(surface(truth), resamples=0)
    params = np.geomspace(1e6, 1e13, 800)
    family = frontier.Sizes(params, params, 6 * params)
    budgets = np.array([1e20, 1e22])
    table = frontier.implied(law, budgets, family)
    g = (truth["alpha"] * truth["A"] / (truth["beta"] * truth["B"])) ** (1 / (truth["alpha"] + truth["beta"]))
    best = g * (budgets / 6) ** law.constants["a"]
    np.testing.assert_allclose(table["params"], best, rtol=1e-3)
    np.testing.assert_allclose(table["images"], budgets / 6 / best, rtol=1e-3)
    np.testing.assert_allclose(table["loss"], law_loss(truth, best, budgets / 6 / best), rtol=1e-6)


def test_envelope_of_an_equal_step_sweep_is_censored():
    for truth in SWEEPS:
        found = frontier.envelope(sweep(truth))
        assert found.exponent is None or found.exponent == pytest.approx(
            truth["beta"] / (truth["alpha"] + truth["beta"]), abs=0.01
        )
        for seed in range(3):
            assert frontier.envelope(sweep(truth, noise=3e-3, seed=seed)).exponent is None
    found = frontier.envelope(sweep(SWEEPS[4]))
    assert found.flags == ("frontier censored",)
    first, last = found.table.iloc[0], found.table.iloc[-1]
    assert first["censored"]
    assert last["censored"]
    assert (first["depth"], last["depth"]) == (2, 7)
    assert frontier.envelope(sweep(SWEEPS[1])).exponent is not None  # refusing everything would pass the loop


def test_uncensored_envelope_gives_the_exponent():
    # Long runs of every size: at each C both smaller and larger sizes are in the race.
    truth = CHINCHILLA[1]
    rows = []
    for i, params in enumerate(np.geomspace(1e7, 1e11, 25)):
        compute = np.geomspace(1e19, 1e22, 60)
        images = compute / (6 * params)
        rows.append(pd.DataFrame({"run": str(i), "depth": i, "params": params, "images": images, "flops": compute,
                                  "loss": law_loss(truth, params, images)}))  # fmt: skip
    found = frontier.envelope(pd.concat(rows))
    assert found.flags == ()
    assert found.exponent == pytest.approx(truth["beta"] / (truth["alpha"] + truth["beta"]), abs=0.01)
