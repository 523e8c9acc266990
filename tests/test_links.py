import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from analysis import links, propagation
from sd3_jax.errors import UserError

LOSS = np.linspace(0.30, 0.60, 12)


def logistic(loss, middle=0.44, scale=0.05, lo=0.0, hi=1.0):
    return lo + (hi - lo) / (1 + np.exp((np.asarray(loss) - middle) / scale))


def exponential(loss, eps, k, g):
    return 1 - eps + k * np.exp(-g * np.asarray(loss))


def fisher(loss, trials, middle, scale, lo=0.0, hi=1.0):
    """Information on (L0, s) from derivatives by central differences: no shared code with the module."""
    steps = 1e-6 * np.eye(2)
    slopes = [
        (logistic(loss, middle + a, scale + b, lo, hi) - logistic(loss, middle - a, scale - b, lo, hi)) / 2e-6
        for a, b in steps
    ]
    mean = logistic(loss, middle, scale, lo, hi)
    jacobian = np.stack(slopes, axis=1)
    return jacobian.T @ (jacobian * (trials / (mean * (1 - mean)))[:, None])


@pytest.mark.parametrize("lo, hi", [(0.0, 1.0), (0.5, 1.0), (0.1, 0.8)])
def test_fixed_logistic_is_recovered_and_its_error_is_the_inverse_information(lo, hi):
    trials = np.linspace(200, 900, len(LOSS))
    link = links.fit_link(LOSS, logistic(LOSS, lo=lo, hi=hi), trials, lo, hi, kind="logistic")
    assert link.constants["L0"] == pytest.approx(0.44, rel=1e-7)
    assert link.constants["s"] == pytest.approx(0.05, rel=1e-6)
    expected = np.sqrt(np.diag(np.linalg.inv(fisher(LOSS, trials, 0.44, 0.05, lo, hi))))
    assert [link.se["L0"], link.se["s"]] == pytest.approx(expected, rel=1e-5)
    assert link.dispersion < 1e-10
    assert link.flags == ()


def test_standard_errors_are_the_spread_of_repeated_fits():
    rng = np.random.default_rng(0)
    fits = [links.fit_link(LOSS, rng.binomial(300, logistic(LOSS)) / 300, np.full(12, 300.0), kind="logistic")
            for _ in range(1000)]  # fmt: skip
    expected = np.sqrt(np.diag(np.linalg.inv(fisher(LOSS, np.full(12, 300.0), 0.44, 0.05))))
    for name, se in zip(("L0", "s"), expected, strict=True):
        spread = np.std([link.constants[name] for link in fits], ddof=1)
        assert spread == pytest.approx(se, rel=0.08)  # 1000 repeats know a spread to 2 %
    covered = [low <= logistic(0.25) <= high for _, low, high in (propagation.predict(link, 0.25) for link in fits)]
    assert 0.935 < np.mean(covered) < 0.985  # 1000 repeats know a share of 0.96 to 0.006


def test_likelihood_is_maximised():
    rng = np.random.default_rng(1)
    trials = rng.uniform(50, 400, len(LOSS))
    value = np.clip(logistic(LOSS, lo=0.2) + 0.03 * rng.standard_normal(12), 0, 1)

    def missing(constants):
        mean = logistic(LOSS, *constants, lo=0.2)
        return -np.sum(trials * (special.xlogy(value, mean) + special.xlogy(1 - value, 1 - mean)))

    best = optimize.minimize(missing, [0.4, 0.1], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12})
    link = links.fit_link(LOSS, value, trials, lo=0.2, kind="logistic")
    assert [link.constants["L0"], link.constants["s"]] == pytest.approx(best.x, rel=1e-5)


def test_scatter_beyond_the_errors_widens_them_by_the_dispersion():
    rng = np.random.default_rng(2)
    value = np.clip(logistic(LOSS) + 0.08 * rng.standard_normal(12), 0.01, 0.99)
    link = links.fit_link(LOSS, value, np.full(12, 900.0), kind="logistic")
    mean = propagation.predict(link, LOSS).value
    dispersion = np.sum(900 * (value - mean) ** 2 / (mean * (1 - mean))) / 10
    assert link.dispersion == pytest.approx(dispersion, rel=1e-9)
    assert dispersion > 3
    information = fisher(LOSS, np.full(12, 900.0), link.constants["L0"], link.constants["s"])
    assert link.se["L0"] == pytest.approx(math.sqrt(dispersion * np.linalg.inv(information)[0, 0]), rel=1e-5)
    assert "overdispersed" in link.flags


def test_free_asymptotes_are_recovered_where_they_are_identified():
    link = links.fit_link(LOSS, logistic(LOSS, lo=0.15, hi=0.7), np.full(12, 4000.0))
    assert link.kind == "free"
    assert link.why.startswith("free: AICc lower by")
    for name, value in {"L0": 0.44, "s": 0.05, "lo": 0.15, "hi": 0.7}.items():
        assert link.constants[name] == pytest.approx(value, rel=1e-5)
    assert link.flags == ()


@pytest.mark.parametrize("eps, k, g", [(0.9, 2.4, 8.0), (0.1, -0.0018, -8.0)])
def test_exponential_takes_the_place_of_a_sigmoid_seen_from_one_side(eps, k, g):
    value = exponential(LOSS, eps, k, g)
    link = links.fit_link(LOSS, value, np.full(12, 4000.0))
    assert link.kind == "exponential"
    for name, constant in {"eps": eps, "k": k, "g": g}.items():
        assert link.constants[name] == pytest.approx(constant, rel=1e-4)
    assert link.flags == ("asymptotes not identified",)
    assert propagation.predict(link, LOSS).value == pytest.approx(value, rel=1e-6)


def test_exponential_error_is_the_spread_of_repeated_fits():
    rng = np.random.default_rng(3)
    mean = exponential(LOSS, 0.95, 8.0, 8.0)
    fits = [links.fit_link(LOSS, rng.binomial(4000, mean) / 4000, np.full(12, 4000.0), kind="exponential")
            for _ in range(200)]  # fmt: skip
    exact = links.fit_link(LOSS, mean, np.full(12, 4000.0), kind="exponential")
    assert np.std([link.constants["g"] for link in fits], ddof=1) == pytest.approx(exact.se["g"], rel=0.15)


def test_fixed_asymptotes_are_kept_where_nothing_better_is_identified():
    rng = np.random.default_rng(4)
    below = LOSS[LOSS > 0.44]
    kinds = []
    for _ in range(40):
        for loss in (LOSS, below):
            value = rng.binomial(500, logistic(loss)) / 500
            kinds.append(links.fit_link(loss, value, np.full(len(loss), 500.0)).kind)
    assert np.mean([kind == "logistic" for kind in kinds]) > 0.85  # a gain of 2 by chance is rare, not impossible
    exact = links.fit_link(LOSS, logistic(LOSS), np.full(12, 500.0))
    assert (exact.kind, exact.why) == ("logistic", "fixed asymptotes: no richer form is identified and better")
    few = links.fit_link(LOSS[:4], logistic(LOSS[:4], lo=0.3), np.full(4, 500.0))
    assert (few.kind, few.why) == ("logistic", "fixed asymptotes: too few points for another form")


def test_each_flag_is_raised_by_its_case():
    trials = np.full(12, 400.0)

    def flags(value, loss=LOSS, kind=None, lo=0.0, hi=1.0):
        return links.fit_link(loss, value, trials[: len(loss)], lo, hi, kind).flags

    below, above = logistic(LOSS, middle=0.2), logistic(LOSS, middle=0.7)
    assert flags(logistic(LOSS)) == ()
    assert flags(below, kind="logistic") == ("asymptotes not identified",)
    assert flags(above, kind="logistic") == ("asymptotes not identified",)
    assert "asymptotes not identified" in flags(below, kind="free")
    assert "value outside asymptotes" in flags(logistic(LOSS), lo=0.25, kind="logistic")
    assert "value outside asymptotes" in flags(logistic(LOSS), hi=0.75, kind="logistic")
    assert "slope zero" in flags(np.full(12, 0.3), kind="logistic")
    assert "score rises with loss" in flags(logistic(LOSS)[::-1], kind="logistic")
    assert "too few points" in flags(logistic(LOSS[:3]), LOSS[:3])
    assert "too few points" not in flags(logistic(LOSS[:4]), LOSS[:4])
    assert "not converged" in flags(np.zeros(12))  # the inflection runs away
    assert "not converged" in flags((LOSS < 0.45).astype(float))  # the slope does
    raised = {flag for value in (below, np.zeros(12)) for flag in flags(value)}
    assert raised <= set(links.FLAGS)


def test_draws_are_refits_and_keep_their_rows():
    rng = np.random.default_rng(5)
    value = rng.binomial(400, logistic(LOSS)) / 400
    link = links.fit_link(LOSS, value, np.full(12, 400.0), kind="logistic")
    weights = rng.multinomial(12, np.full(12, 1 / 12), 50).astype(float)
    weights[0] = 1
    weights[7] = 0
    weights[7, 3] = 12  # one loss cannot fix two constants
    drawn = propagation.with_draws(link, weights)
    assert drawn.draws[0] == pytest.approx(link.vector, rel=1e-6)
    assert np.isnan(drawn.draws[7]).all()
    assert np.isfinite(np.delete(drawn.draws, 7, axis=0)).all()
    assert drawn.clusters == 12
    assert "link resamples failed" not in drawn.flags
    place = np.repeat(np.arange(12), weights[3].astype(int))
    again = links.fit_link(LOSS[place], value[place], np.full(12, 400.0), kind="logistic")
    loss = np.array([0.3, 0.5])
    expected = propagation.predict(again, loss).value
    assert propagation.score_draws(drawn, np.tile(loss, (50, 1)))[3] == pytest.approx(expected, rel=1e-6)

    others = np.clip(np.tile(value, (50, 1)) + 0.01 * rng.standard_normal((50, 12)), 0, 1)
    moved = propagation.with_draws(link, np.ones((50, 12)), others, clusters=4)
    alone = links.fit_link(LOSS, others[9], np.full(12, 400.0), kind="logistic")
    assert propagation.score_draws(moved, np.tile(loss, (50, 1)))[9] == pytest.approx(
        propagation.predict(alone, loss).value
    )
    assert moved.clusters == 4
    empty = propagation.with_draws(link, np.eye(12))
    assert "link resamples failed" in empty.flags
    assert np.isnan(propagation.predict(empty, 0.4).low)


def test_draws_of_loss_and_link_are_joined_row_by_row():
    rng = np.random.default_rng(6)
    value = rng.binomial(400, logistic(LOSS)) / 400
    link = links.fit_link(LOSS, value, np.full(12, 400.0), kind="logistic")
    link = propagation.with_draws(link, rng.multinomial(12, np.full(12, 1 / 12), 400).astype(float))
    losses = 0.4 + 0.01 * rng.standard_normal((400, 2))
    low, high = propagation.propagate(link, losses)
    a, b = link.draws[:, :1], link.draws[:, 1:]
    scores = special.expit(a + b * (losses - link.form.centre))
    tail = stats.norm.cdf(-math.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    assert low == pytest.approx(np.quantile(scores, tail, axis=0))
    assert high == pytest.approx(np.quantile(scores, 1 - tail, axis=0))
    fixed = propagation.predict(link, [0.4, 0.4])
    assert ((high - low) > (fixed.high - fixed.low)).all()  # the uncertainty of the loss comes on top
    with pytest.raises(UserError, match="3 draws of the loss and 400 of the link"):
        propagation.propagate(link, losses[:3])
    with pytest.raises(UserError, match="column for each of the 12 points"):
        propagation.with_draws(link, np.ones((5, 11)))


def test_interval_of_the_draws_is_that_of_the_covariance_where_both_hold():
    rng = np.random.default_rng(7)
    loss = np.linspace(0.3, 0.6, 200)
    value = rng.binomial(50, logistic(loss)) / 50
    link = links.fit_link(loss, value, np.full(200, 50.0), kind="logistic")
    closed = propagation.predict(link, [0.25, 0.44])
    drawn = propagation.predict(
        propagation.with_draws(link, rng.multinomial(200, np.full(200, 1 / 200), 1000).astype(float)), [0.25, 0.44]
    )
    assert drawn.value == pytest.approx(closed.value)
    assert drawn.high - drawn.low == pytest.approx(closed.high - closed.low, rel=0.15)
    assert (closed.low > 0).all()
    assert (closed.high < 1).all()
    assert propagation.predict(link, 0.4).value.shape == ()


def test_percentiles_are_expanded_for_few_clusters():
    draws = np.random.default_rng(8).standard_normal((200_000, 1))
    for clusters in (6, 30):
        low, high = propagation.percentiles(draws, clusters)
        reach = math.sqrt(clusters / (clusters - 1)) * stats.t.ppf(0.975, clusters - 1)
        assert [low[0], high[0]] == pytest.approx([-reach, reach], rel=0.03)
    assert propagation.percentiles(draws, None)[1] == pytest.approx([1.96], rel=0.01)
    assert np.isnan(propagation.percentiles(draws[:19], None)[0]).all()
    assert np.isnan(propagation.percentiles(draws, 1)[0]).all()


def test_trials_are_those_with_the_same_standard_error():
    value = np.array([0.5, 0.2, 0.0, 1.0, 0.3])
    se = np.array([0.05, 0.04, 0.0, 0.0, 0.0])
    trials = links.effective_trials(value, se)
    assert trials == pytest.approx([100, 100, 100, 100, 100])
    assert links.effective_trials([0.0, 1.0], [0.0, 0.0], default=7) == pytest.approx([7, 7])
    assert links.effective_trials([0.3], [0.07], default=7) == pytest.approx([0.21 / 0.0049])  # not a whole number
    with pytest.raises(UserError, match="give the number of trials"):
        links.effective_trials([0.0, 1.0], [0.0, 0.0])
    mean = logistic(LOSS)
    by_se = links.fit_link(LOSS, mean, np.sqrt(mean * (1 - mean) / 250))
    assert by_se.se == pytest.approx(links.fit_link(LOSS, mean, np.full(12, 250.0)).se, rel=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"value": np.full(12, 1.2)}, "scores lie in"),
        ({"loss": np.full(12, np.nan)}, "must be finite"),
        ({"loss": np.full(12, 0.4)}, "losses that differ"),
        ({"value": np.full(3, 0.5)}, "one loss, score and error"),
        ({"se_or_n": np.array([0.5] * 6 + [100.0] * 6)}, "either standard errors"),
        ({"lo": 0.9, "hi": 0.2}, "0 <= lo < hi <= 1"),
        ({"kind": "probit"}, "not 'probit'"),
        ({"loss": np.repeat([0.3, 0.4, 0.5], 4), "kind": "free"}, "4 constants; there are 3 different losses"),
    ],
)
def test_bad_input_is_one_line(change, message):
    given = {"loss": LOSS, "value": logistic(LOSS), "se_or_n": np.full(12, 100.0)} | change
    with pytest.raises(UserError, match=message) as caught:
        links.fit_link(**given)
    assert "\n" not in str(caught.value)
