import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import association, correlation, resampling
from analysis.correlation import correlate
from sd3_jax.errors import UserError

GROUPS = 6


def scored(loss, eta, depth, step=None, seed=None, flops=None, prompts=60, images=4, rng=None, hard=1.0):
    """A table of points whose scores are ``images`` pictures of each prompt, good with logit eta - hardness.

    Without ``rng`` every prompt has the same score, 1 / (1 + exp(-eta)) exactly.
    """
    n = len(loss)
    depth = np.asarray(depth)
    step = np.full(n, 100) if step is None else np.asarray(step)
    seed = np.zeros(n, int) if seed is None else np.asarray(seed)
    flops = 1e9 * depth**3.0 * step if flops is None else flops
    weight, group = np.full(prompts, 1 / prompts), np.arange(prompts) % GROUPS
    chance = 1 / (1 + np.exp(-np.asarray(eta, float)))[:, None] * np.ones(prompts)
    if rng is not None:
        hardness = hard * rng.standard_normal(prompts)
        chance = rng.binomial(images, 1 / (1 + np.exp(hardness - np.asarray(eta)[:, None]))) / images
    runs = [f"d{d}-s{s}" for d, s in zip(depth, seed, strict=True)]
    last = [step[i] == max(step[j] for j in range(n) if runs[j] == runs[i]) for i in range(n)]
    value = chance @ weight
    return pd.DataFrame(
        {
            "run": runs, "depth": depth, "seed": seed, "step": step, "flops": flops, "loss": np.asarray(loss, float),
            "value": value, "se": np.sqrt(value * (1 - value) / (images * prompts)), "last": last,
            "by_prompt": list(chance), "weight": [weight] * n, "group": [group] * n,
        }
    )  # fmt: skip


def sweep(depths=6, steps=5, seed=0, run_sd=0.0, **options):
    """Depths 3.. at log-spaced steps: loss falls with both, and the score's logit is 20 (0.42 - loss) + noise."""
    rng = np.random.default_rng(seed)
    depth, step = (
        one.ravel() for one in np.meshgrid(np.arange(3, 3 + depths), 100 * 2 ** np.arange(steps), indexing="ij")
    )
    loss = 0.35 + 0.25 / depth + 0.6 * step**-0.45 + 0.002 * rng.standard_normal(len(depth))
    eta = 20 * (0.42 - loss) + np.repeat(run_sd * rng.standard_normal(depths), steps)
    return scored(loss, eta, depth, step, rng=rng, **options)


def ends(loss, eta, **options):
    """Last checkpoints only, one for each depth."""
    return scored(loss, eta, np.arange(3, 3 + len(loss)), **options)


@pytest.mark.parametrize("tied", [False, True])
def test_correlations_are_scipys_and_counts_are_repeats(tied):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 15))
    y -= 0.7 * x
    if tied:
        x, y = x.round(), y.round()
    counts = rng.integers(1, 4, (3, 15))
    counts[0] = 1
    found = np.array(association.correlations(x, np.tile(y, (3, 1)), counts.astype(float)))
    for row in range(3):
        a, b = np.repeat(x, counts[row]), np.repeat(y, counts[row])
        expected = [stats.pearsonr(a, b)[0], stats.spearmanr(a, b)[0], stats.kendalltau(a, b)[0]]
        assert found[:, row] == pytest.approx(expected, abs=1e-12)


def test_degenerate_resamples_have_no_correlation():
    x, y = np.arange(5.0), np.array([[1.0, 3, 2, 5, 4]])
    assert np.isnan(association.correlations(x, y, np.array([[3.0, 2, 0, 0, 0]]))).all()  # two points
    assert np.isnan(association.correlations(x, np.ones((1, 5)), np.ones((1, 5)))).all()
    assert np.isfinite(association.correlations(x, y, np.array([[3.0, 1, 1, 0, 0]]))).all()


@pytest.mark.parametrize("tied", [False, True])
def test_permutation_p_is_that_of_every_order(tied):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 5))
    if tied:
        x, y = np.array([1.0, 1, 2, 3, 4]), np.array([5.0, 4, 4, 2, 1])
    measures = (stats.pearsonr, stats.spearmanr, stats.kendalltau)
    expected = []
    for measure in measures:
        observed = measure(x, y)[0]
        orders = np.array([measure(x, np.array(order))[0] for order in itertools.permutations(y)])
        tail = min((orders <= observed + 1e-9).sum(), (orders >= observed - 1e-9).sum())
        expected.append(min(1.0, 2 * tail / 120))
    found = association.permutation_test(x, y)
    assert found[:3] == pytest.approx(expected)
    assert found.how == "exact: all 120 orders of 5 depths"
    assert found.smallest == pytest.approx(2 / 120)


@pytest.mark.parametrize("n", [4, 6, 7, 8])
def test_exact_p_is_scipys(n):
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((2, n))
    y += 0.8 * x
    found = association.permutation_test(x, y)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue)
    if n <= 7:
        for name, measure in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            test = stats.permutation_test(
                (y,), lambda one, measure=measure: measure(x, one)[0], permutation_type="pairings", n_resamples=np.inf
            )
            assert getattr(found, name) == pytest.approx(test.pvalue)


def test_perfect_order_has_the_smallest_p():
    for n in (3, 4, 5, 6, 9):
        found = association.permutation_test(np.arange(float(n)), -np.exp(np.arange(float(n))))
        assert found[:3] == pytest.approx([2 / math.factorial(n)] * 3)
        assert found.smallest == pytest.approx(2 / math.factorial(n))


def test_many_depths_are_drawn_at_random_and_say_so():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 11))
    y -= 0.6 * x
    found = association.permutation_test(x, y)
    exact = stats.kendalltau(x, y, method="exact").pvalue
    assert abs(found.kendall - exact) < 5 * math.sqrt(exact * 2 / association.PERMUTATIONS)
    assert found.how.startswith("Monte Carlo: 19,999 random orders")
    sure = association.permutation_test(np.arange(20.0), np.arange(20.0))
    assert sure[:3] == pytest.approx([2 / 20_000] * 3)  # the observed order is one of them: never zero
    assert sure.smallest == 2 / 20_000


def test_p_values_are_uniform_where_nothing_is_there():
    rng = np.random.default_rng(3)
    p = np.array([association.permutation_test(*rng.standard_normal((2, 6)))[:3] for _ in range(500)])
    for level in (0.05, 0.2):
        assert ((p <= level).mean(axis=0) < level + 3 * math.sqrt(level * (1 - level) / 500)).all()


def test_closed_intervals():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 12))
    r, rho, tau = (measure(x, y)[0] for measure in (stats.pearsonr, stats.spearmanr, stats.kendalltau))
    found = association.closed_intervals(np.array([r, rho, tau]), 12)
    assert found[0] == pytest.approx(tuple(stats.pearsonr(x, y).confidence_interval(0.95)))
    reach = stats.norm.ppf(0.975) * math.sqrt((1 + rho**2 / 2) / 9)
    assert found[1] == pytest.approx((math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach)))
    reach = stats.norm.ppf(0.975) * math.sqrt(0.437 / 8)
    assert found[2] == pytest.approx((math.tanh(math.atanh(tau) - reach), math.tanh(math.atanh(tau) + reach)))
    assert np.isnan(association.closed_intervals(np.array([r, rho, tau]), 5)).all()
    assert np.isnan(association.closed_intervals(np.array([r, -1.0, tau]), 12)[1]).all()


def test_primary_statistics_are_of_last_checkpoints():
    table = sweep(depths=7)
    found = correlate(table, "identity", resamples=100)
    table["value"] = table["value"].round(12)  # equal counts of good pictures are ties, whatever their sums round to
    last = table[table["last"]]
    assert found.last.pearson.value == pytest.approx(stats.pearsonr(last["loss"], last["value"])[0])
    assert found.last.spearman.value == pytest.approx(stats.spearmanr(last["loss"], last["value"])[0])
    assert found.last.kendall.value == pytest.approx(stats.kendalltau(last["loss"], last["value"])[0])
    assert found.every.pearson.value == pytest.approx(stats.pearsonr(table["loss"], table["value"])[0])
    assert found.every.kendall.value == pytest.approx(stats.kendalltau(table["loss"], table["value"])[0])
    assert found.last.spearman.p == association.permutation_test(last["loss"].values, last["value"].values).spearman
    assert np.isnan([one.p for one in found.every]).all()
    assert np.isnan([one.closed for one in found.every]).all()
    assert (found.n_depths, found.n_points, found.n_prompts) == (7, 35, 60)
    for one in (*found.last, *found.every, found.partial, found.within):
        assert -1 <= one.low <= one.value <= one.high <= 1


def test_seeds_of_a_depth_are_one_point():
    rng = np.random.default_rng(5)
    depth, seed = np.array([3, 3, 3, 4, 5, 6, 7]), np.array([0, 1, 2, 0, 0, 0, 0])
    loss = 0.5 - 0.02 * depth + 0.004 * rng.standard_normal(7)
    table = scored(loss, 20 * (0.4 - loss), depth, seed=seed, rng=rng)
    found = correlate(table, "identity", resamples=50)
    means = table.groupby("depth")[["loss", "value"]].mean()
    assert found.n_depths == 5
    assert found.last.pearson.value == pytest.approx(stats.pearsonr(means["loss"], means["value"])[0])
    assert found.p_how == "exact: all 120 orders of 5 depths"


def test_transforms():
    loss = np.array([0.5, 0.45, 0.42, 0.40, 0.37])
    table = ends(loss, 20 * (0.4 - loss), rng=np.random.default_rng(6))
    table.at[0, "by_prompt"] = np.zeros(60)  # a score of zero is as far as half a trial
    table.loc[0, ["value", "se"]] = 0.0
    found = {name: correlate(table, name, resamples=0) for name in correlation.TRANSFORMS}
    value = table["value"].to_numpy()
    n = np.median((value * (1 - value) / table["se"] ** 2)[1:])  # the first has no se: it gets the median of the others
    assert found["logit"].trials == pytest.approx(n)
    expected = {
        "identity": value,
        "logit": np.log((n * value + 0.5) / (n * (1 - value) + 0.5)),
        "log": np.log((n * value + 0.5) / (n + 1)),
    }
    for name, one in found.items():
        assert one.last.pearson.value == pytest.approx(stats.pearsonr(loss, expected[name])[0])
        for rank in ("spearman", "kendall"):
            own, other = getattr(one.last, rank), getattr(found["identity"].last, rank)
            assert (own.value, own.p) == (other.value, other.p)
        assert math.isnan(one.last.pearson.low)


def test_a_score_that_is_no_share_is_taken_as_it_is() -> None:
    """As PickScore's: the same numbers as of the share that it is a line of, but for a transform and a link."""
    table = sweep()
    scaled = table.assign(
        value=20 * table["value"] - 3,
        se=20 * table["se"],
        by_prompt=pd.Series([20 * np.asarray(row) - 3 for row in table["by_prompt"]], index=table.index),
    )
    share, free = correlate(table, "identity", resamples=50), correlate(scaled, resamples=50)
    assert free.transform == "identity"
    assert free.held_out is None
    for name in ("pearson", "spearman", "kendall"):
        one, other = getattr(share.last, name), getattr(free.last, name)
        assert other.value == pytest.approx(one.value)
        assert (other.low, other.high, other.p) == pytest.approx((one.low, one.high, one.p), nan_ok=True)


def test_partial_correlation_is_that_of_residuals():
    table = sweep(depths=5, steps=4, seed=7)
    found = correlate(table, "identity", resamples=50)
    log_flops = np.log(table["flops"])

    def residual(name):
        line = stats.linregress(log_flops, table[name])
        return table[name] - line.intercept - line.slope * log_flops

    assert found.partial.value == pytest.approx(stats.pearsonr(residual("loss"), residual("value"))[0])
    assert math.isnan(association.partial_correlation(np.array(0.9), np.array(1.0), np.array(0.9)))


def test_correlation_within_depths():
    table = sweep(depths=4, steps=4, seed=8)
    table = table[~((table["depth"] == 6) & (table["step"] < 400))]  # depth 6 keeps two checkpoints
    found = correlate(table, "identity", resamples=50)
    followed = table[table["depth"] < 6]
    centred = followed[["loss", "value"]] - followed.groupby("depth")[["loss", "value"]].transform("mean")
    assert found.within.value == pytest.approx(stats.pearsonr(centred["loss"], centred["value"])[0])
    assert set(found.within_depths) == {3, 4, 5}
    own = followed[followed["depth"] == 4]
    assert found.within_depths[4] == pytest.approx(stats.pearsonr(own["loss"], own["value"])[0])
    assert "no depth followed" in correlate(table[table["last"]], resamples=0).flags


def test_resamples_keep_the_weight_of_each_group_and_pair_the_prompts():
    weight = np.array([0.05, 0.15, 0.2, 0.3, 0.2, 0.1])
    group = np.array([0, 0, 0, 1, 1, 2])
    drawn = resampling.draw(np.arange(4), weight, group, 500, np.random.default_rng(9))
    for one in range(3):
        assert drawn.prompts[:, group == one].sum(axis=1) == pytest.approx(weight[group == one].sum())
    assert drawn.prompts[:, 5] == pytest.approx(0.1)  # alone in its group
    assert (drawn.counts.sum(axis=1) == 4).all()
    equal = np.tile(np.random.default_rng(0).random(6), (4, 1))
    values, counts = resampling.resampled(resampling.Table(np.arange(4), *np.zeros((5, 4)), equal), drawn)
    assert np.ptp(values, axis=1) == pytest.approx(0)  # equal points stay equal: the same prompts for all
    assert values.std(axis=0)[0] > 0.01
    assert (counts == drawn.counts).all()


def test_more_prompts_and_depths_narrow_the_interval():
    def width(depths, prompts):
        found = [
            correlate(sweep(depths, steps=1, run_sd=0.1, prompts=prompts, seed=seed), resamples=200).last.pearson
            for seed in range(6)
        ]
        return np.mean([one.high - one.low for one in found])

    wide = width(8, 60)
    assert width(8, 1200) < 0.8 * wide
    assert width(20, 60) < 0.8 * wide


@pytest.mark.parametrize("r", [-0.9, -0.5])
def test_intervals_of_last_checkpoints_cover(r):
    # 14 depths: logits of scores correlate with the losses by r; 200 sweeps with their own prompts.
    rng = np.random.default_rng(10)
    weight, group = np.full(120, 1 / 120), np.arange(120) % GROUPS
    truth = (r, 6 / math.pi * math.asin(r / 2), 2 / math.pi * math.asin(r))
    covered = []
    for _ in range(200):
        z = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], 14)
        table = ends(0.4 + 0.02 * z[:, 0], 0.5 * z[:, 1], prompts=120, rng=rng)
        arrays = resampling.averaged(table, ["depth"])
        drawn = resampling.draw(arrays.depth, weight, group, 200, rng)
        found = correlation._measures(arrays, "logit", 480.0, drawn, None)
        covered.append([one.low <= true <= one.high for one, true in zip(found, truth, strict=True)])
    assert (np.mean(covered, axis=0) >= 0.85).all()


def test_intervals_of_all_points_cover_although_prompts_are_noisy():
    # The score is a function of the loss: without prompt noise r = -1 within depths, and near -1 over all points.
    inside = []
    for seed in range(40):
        table = sweep(depths=8, steps=4, seed=seed, run_sd=0.05, prompts=120)
        found = correlate(table, resamples=100, seed=seed)
        inside.append([found.every.pearson.low <= -0.99, found.within.low <= -0.99, found.within.high < -0.7])
    assert (np.mean(inside, axis=0) >= 0.85).all()


def test_order_is_judged_by_paired_differences():
    rng = np.random.default_rng(11)
    weight, group = rng.dirichlet(np.full(30, 5.0)), np.arange(30) % 3
    easy = rng.random(30) * 0.5
    by_prompt = np.stack([easy, easy + 0.1 + 0.05 * rng.random(30), easy + 0.3, easy + 0.2 + 0.05 * rng.random(30)])
    loss = np.array([0.5, 0.45, 0.40, 0.35])
    found = association.monotone(loss, by_prompt, weight, group)
    z = {}
    for i, j in itertools.combinations(range(4), 2):
        d, variance = by_prompt[j] - by_prompt[i], 0.0
        for one in range(3):
            own, w = d[group == one], weight[group == one]
            variance += 10 / 9 * np.sum((w * (own - np.average(own, weights=w))) ** 2)
        z[i, j] = d @ weight / math.sqrt(max(variance, 1e-24))
    assert found.pairs == 6
    assert found.worst == pytest.approx(z[2, 3], rel=1e-6)  # the last falls although its loss is lower
    assert found.violations == sum(one < -2 for one in z.values()) == 1
    assert found.resolved == 6
    same = association.monotone(loss, np.stack([easy] * 4), weight, group)
    assert (same.resolved, same.violations, same.worst) == (0, 0, 0)
    assert association.monotone(np.full(4, 0.5), by_prompt, weight, group).pairs == 0
    # Differences that all prompts share are certain, however much prompts differ among themselves.
    unpaired = math.sqrt(2 * easy.var() / 30)
    assert 2 * unpaired > 0.02
    assert association.monotone(loss[:2], np.stack([easy, easy + 0.02]), weight, group).resolved == 1


def test_the_isotonic_residual_is_that_of_the_max_min_formula():
    # Barlow et al. 1972: the fit at i is the max over j <= i of the min over k >= i of the weighted mean of j..k.
    rng = np.random.default_rng(3)
    for m in (2, 5, 12):
        loss, value, weights = rng.random(m), rng.random(m), rng.random(m) + 0.1
        order = np.argsort(-loss)  # scores rise along it
        y, w = value[order], weights[order]
        mean = [
            [np.average(y[j : k + 1], weights=w[j : k + 1]) if k >= j else np.nan for k in range(m)] for j in range(m)
        ]
        best = np.array([max(min(mean[j][i:]) for j in range(i + 1)) for i in range(m)])
        expected = math.sqrt(np.average((y - best) ** 2, weights=w))
        assert association.isotonic_residual(loss, value, weights) == pytest.approx(expected, abs=1e-12)
    assert association.isotonic_residual(np.array([2.0, 1, 0]), np.array([0.1, 0.1, 0.7]), np.ones(3)) == 0
    ties = association.isotonic_residual(np.array([1.0, 1.0]), np.array([0.2, 0.6]), np.array([3.0, 1.0]))
    assert ties == pytest.approx(math.sqrt(0.75 * 0.1**2 + 0.25 * 0.3**2))  # one value for one loss: 0.3


def test_the_isotonic_residual_of_noise_is_no_larger_than_the_noise():
    found = correlate(sweep(depths=8, prompts=300, seed=3), resamples=0).monotone_every
    assert 0 < found.residual < found.noise
    odd = sweep(depths=8, prompts=300, seed=3)
    worse = correlate(odd.assign(loss=odd["loss"].to_numpy()[::-1]), resamples=0).monotone_every
    assert worse.residual > 3 * worse.noise
    sure = association.monotone(np.array([0.5, 0.4]), np.ones((2, 4)), np.full(4, 0.25), np.zeros(4, int))
    assert (sure.residual, sure.noise) == (0, 0)  # no score has a spread


def test_violated_order_is_flagged():
    table = sweep(depths=5, steps=1, prompts=300)
    assert "order violated" not in correlate(table, resamples=0).flags
    found = correlate(table.assign(loss=table["loss"].to_numpy()[::-1]), resamples=0)
    assert found.monotone_last.violations > 0
    assert "order violated" in found.flags


def test_largest_depth_is_predicted_from_the_smaller_ones():
    found = correlate(sweep(depths=6, steps=5, prompts=300, seed=1, hard=0.0), resamples=200).held_out
    assert (found.depth, found.covered) == (8, True)
    assert found.link.constants["L0"] == pytest.approx(0.42, abs=0.005)
    assert found.link.constants["s"] == pytest.approx(0.05, rel=0.05)
    assert found.low < found.predicted < found.high
    assert found.high - found.low < 0.3
    assert found.link.clusters == 5
    assert found.link.points.loss.max() > found.loss


def test_hold_out_that_misses_is_flagged():
    table = sweep(depths=6, steps=5, prompts=300, seed=2)
    worse = table.copy()
    for i in worse.index[worse["depth"] == 8]:
        worse.at[i, "by_prompt"] = worse.at[i, "by_prompt"] * 0.3
        worse.loc[i, "value"] *= 0.3
    found = correlate(worse, resamples=200)
    assert found.held_out.covered is False
    assert "hold-out missed" in found.flags
    assert "hold-out missed" not in correlate(table, resamples=200).flags
    assert correlate(table, resamples=0).held_out.covered is None
    three = correlate(table[table["depth"] < 6], resamples=50)
    assert three.held_out is None
    assert "no hold-out" in three.flags


def test_hold_out_covers():
    covered = [
        correlate(
            sweep(depths=6, steps=4, seed=seed, run_sd=0.1, prompts=120), resamples=100, seed=seed
        ).held_out.covered
        for seed in range(40)
    ]
    assert np.mean(covered) >= 0.85


def test_four_depths_cannot_support_a_claim():
    found = correlate(sweep(depths=4, prompts=600), resamples=100)
    assert found.last.spearman.value == -1
    assert found.sentence.startswith(
        "With 4 depths the smallest possible p is 0.083: no rank correlation can be significant (rho = -1.00 ["
    )
    assert {"too few depths", "few depths"} <= set(found.flags)
    assert np.isnan([one.closed for one in found.last]).all()
    assert found.last.pearson.skipped == sum(
        (row > 0).sum() < 3 for row in np.random.default_rng(0).multinomial(4, [0.25] * 4, 100)
    )
    assert "resamples skipped" in found.flags
    three = correlate(sweep(depths=3, prompts=600), resamples=100)
    assert three.smallest_p == pytest.approx(1 / 3)
    assert np.isnan([three.last.pearson.low, three.last.kendall.high]).all()  # three points cannot be resampled
    assert "few depths" in correlate(sweep(depths=5, prompts=600), resamples=0).flags
    assert not {"too few depths", "few depths"} & set(correlate(sweep(depths=6, prompts=600), resamples=0).flags)


def test_compute_alone_may_explain_it():
    # Score and loss follow log C, each with its own noise: nothing is left of the correlation given C.
    rng = np.random.default_rng(12)
    depth, step = np.repeat(np.arange(3, 10), 4), np.tile(100 * 2 ** np.arange(4), 7)
    log_flops = np.log(depth**3.0 * step)
    loss = 0.8 - 0.03 * log_flops + 0.003 * rng.standard_normal(28)
    eta = -4 + 0.5 * log_flops + 0.1 * rng.standard_normal(28)
    found = correlate(scored(loss, eta, depth, step, rng=rng, prompts=600, hard=0.3), resamples=300)
    assert found.last.spearman.p < 0.05
    assert found.partial.low < 0 < found.partial.high
    assert found.sentence.startswith("The score rises as the loss falls: rho = -")
    assert found.sentence.endswith("], so compute alone may explain it.")
    assert "exact p = " in found.sentence
    assert "n = 7 depths" in found.sentence
    assert "compute explains it" in found.flags


def test_what_follows_the_steps_alone_says_nothing_beyond_them():
    # Given C, longer training has the lower loss and any score that grows with it: the partial correlation given C
    # is near -1 although the score knows nothing of the loss. Given size and steps nothing is left.
    rng = np.random.default_rng(17)
    depth, step = np.repeat(np.arange(3, 9), 3), np.tile([150, 300, 1200], 6)
    loss = 0.3 + 0.3 * depth**-1.0 + 3.0 * step**-0.5 + 0.002 * rng.standard_normal(len(depth))
    value = 0.1 * np.log(step / 100) + 0.05 * np.log(depth) + 0.003 * rng.standard_normal(len(depth))
    found = correlate(
        scored(loss, np.log(value / (1 - value)), depth, step, rng=rng, prompts=600, hard=0.3), resamples=300
    )
    assert found.partial.value < -0.8
    assert found.partial.high < 0
    assert "compute explains it" not in found.flags
    assert found.beyond.low <= 0 <= found.beyond.high
    assert "not beyond size and steps" in found.flags


def test_partial_given_two_is_the_correlation_of_residuals():
    rng = np.random.default_rng(5)
    depth, step = np.repeat(np.arange(3, 9), 3), np.tile([150, 300, 1200], 6)
    loss = 0.3 + 0.9 * depth**-1.0 + 1.6 * step**-0.5 + 0.01 * rng.standard_normal(len(depth))
    points = scored(loss, 3 - 8 * loss, depth, step, rng=rng, prompts=200, hard=0.3)
    found = correlate(points, resamples=0)
    table = resampling.averaged(points, ["depth", "step"])
    y = correlation._transformed(table.value, "logit", found.trials)
    controls = np.stack([np.ones(len(y)), table.log_flops, table.log_step], axis=1)
    rest = [one - controls @ np.linalg.lstsq(controls, one, rcond=None)[0] for one in (table.loss, y)]
    assert found.beyond.value == pytest.approx(stats.pearsonr(*rest).statistic, abs=1e-9)


def test_loss_says_more_than_compute():
    # At the same C some depths train better, and score better for it.
    rng = np.random.default_rng(13)
    depth, step = np.repeat(np.arange(3, 10), 4), np.tile(100 * 2 ** np.arange(4), 7)
    loss = 0.8 - 0.03 * np.log(depth**3.0 * step) + 0.03 * np.sin(step / 100.0 + depth) * (step < 800)
    found = correlate(scored(loss, 20 * (0.45 - loss), depth, step, rng=rng, prompts=600, hard=0.3), resamples=300)
    assert found.partial.high < 0
    assert found.beyond.high < 0
    assert found.sentence.endswith("]: the loss says more than size and steps do.")
    assert "compute explains it" not in found.flags


def test_loss_that_is_a_function_of_compute_cannot_be_told_from_it():
    depth, step = np.repeat(np.arange(3, 10), 4), np.tile(100 * 2 ** np.arange(4), 7)
    loss = 0.8 - 0.03 * np.log(depth**3.0 * step)
    found = correlate(scored(loss, 20 * (0.5 - loss), depth, step, rng=np.random.default_rng(0)), resamples=50)
    assert "loss follows compute" in found.flags
    assert math.isnan(found.partial.value)
    assert "compute explains it" not in found.flags
    assert found.sentence.endswith("loss and compute cannot be told apart.")


def test_nothing_there():
    rng = np.random.default_rng(14)
    loss = np.array([0.40, 0.44, 0.41, 0.46, 0.43, 0.45, 0.42])
    random = correlate(ends(loss, [0.0, 0.1, 0.3, 0.2, -0.1, 0.1, 0.05], rng=rng, prompts=300), resamples=50)
    assert random.last.spearman.p > 0.05
    assert random.sentence.startswith("No rank correlation of loss and score is established: rho = ")
    flat = correlate(ends(loss, np.zeros(7)), resamples=50)
    assert "no variation" in flat.flags
    assert math.isnan(flat.last.spearman.value)
    assert math.isnan(flat.last.spearman.p)
    assert flat.sentence == "The loss or the score does not vary over the 7 depths: no correlation is defined."
    assert "no difference resolved" in flat.flags
    wrong = correlate(ends(loss, 30 * (loss - 0.43)), resamples=50)
    assert wrong.sentence.startswith("The score falls as the loss falls: rho = 1.00")


def test_ties_and_uneven_ends_are_flagged():
    loss = np.array([0.5, 0.46, 0.43, 0.43, 0.40])
    tied = correlate(ends(loss, 20 * (0.45 - loss)), resamples=0)
    assert "ties" in tied.flags
    assert "uneven ends" not in tied.flags
    uneven = scored(np.append(loss, 0.49), np.append(20 * (0.45 - loss), -1), [3, 4, 5, 6, 7, 3],
                    step=[100, 100, 100, 100, 100, 200], seed=[0, 0, 0, 0, 0, 1])  # fmt: skip
    assert "uneven ends" in correlate(uneven, resamples=0).flags
    for found in (tied, correlate(sweep(), resamples=20)):
        assert set(found.flags) <= set(correlation.FLAGS)


def test_same_seed_same_numbers_whatever_the_order_of_rows():
    table = sweep(depths=5)
    found, again = correlate(table, resamples=50, seed=3), correlate(table, resamples=50, seed=3)
    assert found.every == again.every
    shuffled = correlate(table.sample(frac=1, random_state=0), resamples=50, seed=3)
    assert shuffled.last == again.last
    assert shuffled.sentence == found.sentence
    assert correlate(table, resamples=50, seed=4).every.pearson.high != found.every.pearson.high


def edited(column, value):
    table = sweep(depths=4, steps=2)
    if column == "row":
        return pd.concat([table, table.iloc[:1]], ignore_index=True)
    if np.ndim(value):
        table.at[3, column] = value
    else:
        table.loc[3, column] = value
    return table


@pytest.mark.parametrize(
    "table, message",
    [
        (sweep().drop(columns=["group", "flops"]), "lack flops, group"),
        (sweep(depths=2), "needs the last checkpoints of 3 depths; there are 2"),
        (edited("loss", np.nan), "must be finite"),
        (edited("flops", 0.0), "flops positive"),
        (edited("value", 0.123), "value must be by_prompt @ weight"),
        (edited("by_prompt", np.full(60, np.nan)), "scores must be finite"),
        (edited("by_prompt", np.zeros(7)), "each of the 60 prompts"),
        (edited("weight", np.full(60, 1 / 30)), "weight of the prompts differs"),
        (edited("group", np.zeros(60, int)), "group of the prompts differs"),
        (edited("row", 0), "two points at one step"),
        (sweep().assign(last=True), "two last checkpoints"),
        (sweep().iloc[:0], "lack rows"),
    ],
)
def test_bad_tables_are_refused_in_one_line(table, message):
    with pytest.raises(UserError, match=message) as caught:
        correlate(table, resamples=10)
    assert "\n" not in str(caught.value)


def test_unknown_transform():
    with pytest.raises(UserError, match="logit, identity, log; not 'probit'"):
        correlate(sweep(), "probit")


def test_negative_resamples():
    with pytest.raises(UserError, match="there are -1"):
        correlate(sweep(), resamples=-1)
