import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from synthetic import TRUTH, bench_config, law_loss

from analysis import flags, forms, frontier, laws, prediction, resampling, solvers
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


def against_flops(loss, decades=(17, 23), noise=0.0, seed=0, number=60):
    """Points of one run each at log-spaced FLOPs."""
    compute = np.geomspace(10.0 ** decades[0], 10.0 ** decades[1], number)
    factor = 1 + noise * np.random.default_rng(seed).standard_normal(number)
    return pd.DataFrame({"run": [f"r{i}" for i in range(number)], "flops": compute, "loss": loss(compute) * factor})


def saturating(compute, floor=1.7, amplitude=300.0, exponent=0.12):
    return floor + amplitude * compute**-exponent


def broken(compute, floor=1.5, amplitude=2e2, exponent=0.1, *breaks):
    """L = E + A x^-c0 prod (1 + (x/d)^(1/f))^(-c f) as it is written, in longdouble."""
    x = np.asarray(compute, np.longdouble)
    loss = amplitude * x**-exponent
    for change, place, width in breaks:
        loss = loss * (1 + (x / place) ** (1 / np.longdouble(width))) ** (-change * width)
    return np.asarray(floor + loss, float)


ONE_BREAK = (0.2, 1e20, 0.5)
TWO_BREAKS = ((-0.05, 1e19, 0.3), (0.3, 1e21, 0.4))
OVER_TRAINED = {"E": 1.7, "A": 50.0, "B": 90.0, "h": 0.15}


def over_trained():
    points = surface(CHINCHILLA[0])
    ratio, compute = points["images"] / points["params"], points["flops"]
    h = OVER_TRAINED["h"]
    terms = OVER_TRAINED["A"] * ratio**h + OVER_TRAINED["B"] * ratio**-h
    return points.assign(loss=OVER_TRAINED["E"] + terms * compute**-h)


@pytest.mark.parametrize(
    "law, breaks, points, truth",
    [
        ("power", 1, against_flops(lambda c: 30 * c**-0.07), {"A": 30, "a": 0.07}),
        ("saturating", 1, against_flops(saturating), {"E": 1.7, "A": 300, "a": 0.12}),
        ("equal-exponent", 1, over_trained(), OVER_TRAINED | {"alpha": 0.3, "beta": 0.3, "a": 0.5}),
        (
            "bnsl",
            1,
            against_flops(lambda c: broken(c, 1.5, 2e2, 0.1, ONE_BREAK)),
            {"E": 1.5, "A": 2e2, "c0": 0.1, "c1": 0.2, "d1": 1e20, "f1": 0.5},
        ),
        (
            "bnsl",
            2,
            against_flops(lambda c: broken(c, 0.5, 2e2, 0.1, *TWO_BREAKS)),
            {"E": 0.5, "c0": 0.1, "c1": -0.05, "d1": 1e19, "f1": 0.3, "c2": 0.3, "d2": 1e21, "f2": 0.4},
        ),
    ],
    ids=["power", "saturating", "equal-exponent", "one break", "two breaks"],
)
def test_exact_recovery_of_the_other_laws(law, breaks, points, truth):
    found = laws.fit_points(points, law, resamples=0, breaks=breaks)
    for name, value in truth.items():
        assert found.constants[name] == pytest.approx(value, rel=1e-6)
    assert not set(found.flags) - {"too few depths"}


@pytest.mark.parametrize("name", ["power", "saturating", "chinchilla", "equal-exponent", "bnsl"])
def test_derivatives_are_those_of_differences(name):
    one = forms.form(name)
    rng = np.random.default_rng(0)
    theta = rng.uniform(0.1, 0.6, (3, len(one.constants)))
    features = rng.uniform(-1, 1, (2 if "params" in one.columns else 1, 7))
    slopes = one.evaluate(theta, features)[1]
    for i in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[i]
        change = one.evaluate(theta + step, features)[0] - one.evaluate(theta - step, features)[0]
        np.testing.assert_allclose(slopes[:, i], change / 2e-6, atol=1e-8)


def test_equal_exponents_are_the_joint_law_with_one_exponent():
    # Gadre et al. 2024: with C = 6 N D it is Chinchilla's form with alpha = beta = 2h
    found = laws.fit_points(over_trained(), resamples=0)
    assert found.constants["alpha"] == pytest.approx(0.3, rel=1e-6)
    assert found.constants["A"] == pytest.approx(OVER_TRAINED["A"] * 6 ** -OVER_TRAINED["h"], rel=1e-5)


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
    other_grid = solvers.solve(forms.CHINCHILLA, features, loss, np.ones((1, len(loss)))).theta[0]
    np.testing.assert_allclose(other_grid, scaled[1], rtol=1e-6)


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
    assert law.objective <= best * (1 + 1e-10)
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


@pytest.mark.parametrize("seed", range(4))
def test_huber_resists_outliers_that_move_least_squares(seed):
    points = surface(CHINCHILLA[1], sizes=12, lengths=20, noise=0.002, seed=seed)
    spoilt = points.copy()
    spoilt.loc[np.random.default_rng(seed).choice(len(points), 5, replace=False), "loss"] *= 1.05  # 2 % of them
    shifts = {}
    for delta in (1e-3, math.inf):
        clean, moved = quick(points, delta=delta), laws.fit_points(spoilt, delta=delta, resamples=0)
        shifts[delta] = [
            abs(moved.constants[name] - clean.constants[name]) / clean.se[name] for name in ("alpha", "beta")
        ]
    assert max(shifts[1e-3]) < 1
    assert max(shifts[math.inf]) > 1


def test_floor_of_pure_powers_is_flagged():
    pure = CHINCHILLA[0] | {"E": 0.0}
    assert "E not identified" in quick(surface(pure)).flags
    assert "E not identified" in quick(surface(pure, noise=0.003)).flags
    assert "E not identified" not in quick(surface(CHINCHILLA[0], noise=0.003)).flags
    short = surface(CHINCHILLA[0], noise=0.003).query("params < 4e8 and images < 4e9")
    assert "E not identified" in quick(short).flags


def test_floor_of_a_curve():
    pure = against_flops(lambda c: 30 * c**-0.07, noise=0.003)
    assert "E not identified" in quick(pure, "saturating").flags
    assert quick(pure, "saturating").ci95["E"][0] < 1e-3
    assert "E not identified" in quick(against_flops(saturating, (20, 20.5), 0.003), "saturating").flags
    wide = quick(against_flops(saturating, noise=0.001), "saturating")
    assert wide.flags == ()
    assert wide.ci95["E"][0] < 1.7 < wide.ci95["E"][1]
    assert quick(against_flops(lambda c: 30 * c**-0.07, noise=0.001), "power").flags == ()


def test_a_bend_is_seen_in_the_residuals_of_laws_without_one():
    bent = against_flops(lambda c: broken(c, 0.0, 2e2, 0.02, (0.15, 1e20, 0.2)), noise=0.002)
    assert "trend in residuals" in quick(bent, "power").flags
    assert "trend in residuals" in quick(bent, "saturating").flags
    spread = surface(CHINCHILLA[0], noise=0.002)
    spread["loss"] *= broken(spread["flops"], 0.0, 1.0, 0.0, (-0.05, 1e20, 0.2))
    assert "trend in residuals" in quick(spread).flags
    law = laws.fit_points(bent, "bnsl", resamples=100)
    assert not {"trend in residuals", "break not identified"} & set(law.flags)
    assert law.ci95["c1"][0] < 0.15 < law.ci95["c1"][1]
    straight = laws.fit_points(against_flops(saturating, noise=0.002), "bnsl", resamples=100)
    assert "break not identified" in straight.flags


def test_a_resample_of_a_broken_law_finds_its_own_optimum():
    # From the point estimate alone several resamples stay in a worse optimum: each against the best of 16 own starts.
    points = against_flops(lambda c: broken(c, 1.2, 20.0, 0.05, (0.15, 1e18, 0.5)), (15, 21), noise=0.02, seed=2)
    points["run"] = np.repeat(np.arange(12), 5)
    form, loss = forms.form("bnsl"), points["loss"].to_numpy()
    features, weights = form.features(points), resampling.clusters(points["run"], 30, seed=2).weights.astype(float)
    near = solvers.optima(form, features, loss, np.ones(len(loss)), 1e-3).theta[0]
    best = [solvers.optima(form, features, loss, row, 1e-3).objective[0] for row in weights]
    warm = solvers.solve(form, features, loss, weights, 1e-3, near).objective
    found, elsewhere = solvers.refits(form, features, loss, weights, 1e-3, near)
    assert (found.objective <= warm).all()
    assert elsewhere == (found.objective < (1 - solvers.LOWER) * warm).mean()
    stuck = [(one > 1.001 * np.array(best)).mean() for one in (warm, found.objective)]
    assert stuck[1] <= 0.05 < stuck[0], stuck
    residual = np.log(loss) - form.predict_log(found.theta, features)
    size = np.minimum(np.abs(residual), 1e-3)
    np.testing.assert_allclose((weights * size * (np.abs(residual) - size / 2)).sum(axis=1), found.objective, rtol=1e-9)


def test_resamples_that_choose_between_optima_are_flagged():
    points = against_flops(lambda c: broken(c, 1.2, 2e2, 0.05, (0.15, 1e20, 0.5)), noise=0.005)
    assert "resamples choose between optima" in laws.fit_points(points, "bnsl", resamples=40, breaks=2).flags
    assert "resamples choose between optima" not in laws.fit_points(points, "bnsl", resamples=40).flags


def test_flops_counted_in_two_ways_are_flagged():
    points = surface(CHINCHILLA[0], noise=0.002)
    far = surface(CHINCHILLA[0], sizes=5)
    macs = far.assign(flops=far["flops"].where(far["depth"] > 2, far["flops"] / 2))
    some = points.assign(flops=points["flops"].where(points.index % 3 > 0, points["flops"] * 1.2))
    sparse = surface(CHINCHILLA[0], sizes=12)  # neighbours within a factor of two
    assert not flags.mixed_flops(points)
    assert flags.mixed_flops(some)
    assert "mixed FLOP definitions" in quick(some).flags
    assert not flags.mixed_flops(macs)  # sizes a factor of two apart may differ so
    assert flags.mixed_flops(sparse.assign(flops=sparse["flops"].where(sparse["depth"] > 5, sparse["flops"] / 2)))
    assert not flags.mixed_flops(sweep(TRUTH, depths=range(1, 12)))


def test_a_solver_that_stays_where_it_began_is_flagged(monkeypatch):
    monkeypatch.setattr(solvers, "ITERATIONS", 0)
    law = laws.fit_points(surface(CHINCHILLA[0], noise=0.003), resamples=0)
    assert {"optimum equals start", "gradient not small"} <= set(law.flags)
    assert not any(law.reported.values())


def test_schedules_and_terms_are_flagged():
    points = surface(CHINCHILLA[0], noise=0.002)
    assert "mixed schedules" in quick(points.assign(schedule=["cosine", "constant"] * 40)).flags
    assert "mixed schedules" not in quick(points.assign(schedule="cosine")).flags
    flat = surface(CHINCHILLA[0] | {"B": 1e-3}, noise=0.002)
    assert {"term vanishes", "exponent at a bound", "E not identified"} & set(quick(flat).flags)


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
    assert set(flags.REFUSING) < set(flags.FLAGS)


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


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    truth = CHINCHILLA[1]
    params, images = (grid.ravel() for grid in np.meshgrid(np.geomspace(5e7, 1.6e10, 16), np.geomspace(1e9, 5e11, 15)))
    features, exact, number = np.stack([params, images]), law_loss(truth, params, images), len(params)
    compute = 10 * 3e21 / 6

    def reported(constants):
        """alpha, beta, E, a, and the least loss at ten times Hoffmann's largest budget, in closed form."""
        floor, a, b, alpha, beta = constants
        g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        least = (a * g**-alpha + b * g**beta) * compute ** (-alpha * beta / (alpha + beta))
        return np.array([alpha, beta, floor, beta / (alpha + beta), floor + least])

    true = reported([truth[name] for name in ("E", "A", "B", "alpha", "beta")])
    covered = []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        loss = exact * np.exp(0.005 * rng.standard_normal(number))
        drawn = resampling.clusters(np.arange(number), 200, seed).weights
        theta = solvers.solve(forms.CHINCHILLA, features, loss, drawn).theta
        ends = [resampling.interval(values, 0.95) for values in reported(forms.CHINCHILLA.linear(theta).T)]
        covered.append([low <= value <= high for (low, high), value in zip(ends, true, strict=True)])
    shares = np.mean(covered, axis=0)
    assert ((shares >= 0.93) & (shares <= 0.97)).all(), shares


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


def test_runs_of_most_flops_are_predicted_where_there_are_no_depths():
    points = against_flops(saturating, noise=0.001)
    held = prediction.hold_out_largest(points, 5, law="saturating", resamples=200)
    assert (held.what, held.points, held.law.n_points) == ("the 5 runs of most FLOPs", 5, 55)
    assert held.law.ranges["flops"][1] < points["flops"].nlargest(5).min()
    assert held.actual == points.loc[points["flops"].idxmax(), "loss"]
    assert held.covered
    power = prediction.hold_out_largest(points, 5, law="power", resamples=200)
    assert power.error < -0.01  # without a floor the prediction is too low
    with pytest.raises(UserError, match="60 of 60 runs cannot be held out"):
        prediction.hold_out_largest(points, 60, law="power")
    with pytest.raises(UserError, match="function of flops, not of N and D"):
        prediction.predict(held.law, 1e9, 1e9)


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
    with pytest.raises(UserError, match="at least 4 different FLOPs; there are 3 of 3 points"):
        laws.fit_points(against_flops(saturating, number=3), "saturating")
    with pytest.raises(UserError, match="needs columns params, data"):
        laws.fit_points(against_flops(saturating))
    with pytest.raises(UserError, match="no law 'cubic'; there are power, saturating, chinchilla"):
        laws.fit_points(rising, "cubic")
    with pytest.raises(UserError, match="of 4 breaks; valid: 1 to 3"):
        laws.fit_points(rising, "bnsl", breaks=4)


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
