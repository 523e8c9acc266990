"""Distances between sets of features: direct sums, SciPy, closed forms of Gaussians; bias, errors and memory."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import linalg, stats

from sd3_jax.evaluation import distances, geneval
from sd3_jax.evaluation.distances import gather

RNG = np.random.default_rng(0)


def batched(rows, size=37):
    return (rows[i : i + size] for i in range(0, len(rows), size))


def normal(n, d, numbers=RNG):
    return numbers.standard_normal((n, d)).astype(np.float32)


# --- gathering ------------------------------------------------------------------------------------------------------


def test_moments_in_batches_are_those_of_all_rows_also_far_from_zero():
    rows = (1e4 + RNG.standard_normal((501, 6)) @ RNG.standard_normal((6, 6))).astype(np.float32)
    found = gather(batched(rows)).moments
    assert found.n == 501
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(np.float64).T), rtol=1e-6)


def test_pieces_are_disjoint_whole_and_nearly_equal():
    counted = np.eye(400, dtype=np.float32)  # the mean of a piece says which rows are in it
    pieces = gather(batched(counted, 40)).pieces
    assert [piece.n for piece in pieces] == [100] * 4
    np.testing.assert_allclose(sum(piece.mean * piece.n for piece in pieces), 1)


def test_rows_are_all_kept_or_as_many_as_fit_each_alike():
    rows = np.arange(50, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(gather(batched(rows, 7)).rows, rows)
    kept = [gather(batched(rows, 7), seed, keep=10).rows[:, 0] for seed in range(1000)]
    assert all(len(set(each)) == 10 for each in kept)
    counts = np.bincount(np.concatenate(kept).astype(int), minlength=50)
    assert stats.chisquare(counts).pvalue > 1e-3


MEMORY = """
import resource, numpy as np
from sd3_jax.evaluation.distances import gather
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = np.random.default_rng(0).standard_normal((500, 128)).astype(np.float32)
found = gather((rows for _ in range({batches})), keep=1000)
assert found.moments.n == 500 * {batches} and found.rows.shape == (1000, 128)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_pictures():
    used = [
        int(subprocess.run([sys.executable, "-c", MEMORY.format(batches=b)], capture_output=True, check=True).stdout)
        for b in (20, 400)
    ]  # kB; 200,000 rows are 102 MB
    assert used[1] < used[0] + 8_000


# --- Frechet --------------------------------------------------------------------------------------------------------


def test_frechet_is_scipys():
    x, y = normal(300, 8) @ RNG.standard_normal((8, 8)), 1 + normal(200, 8)
    s, t = np.cov(x.T.astype(np.float64)), np.cov(y.T.astype(np.float64))
    apart = x.astype(np.float64).mean(axis=0) - y.astype(np.float64).mean(axis=0)
    expected = apart @ apart + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert distances.frechet_of(gather(batched(x)), gather(batched(y))).value == pytest.approx(expected, rel=1e-6)


def test_its_extrapolation_is_without_bias_and_the_errors_hold():
    """Two Gaussians, of equal mean or not, whose distance is known; the plain one is biased by several errors."""
    d, n, m = 10, 200, 160
    scales = np.linspace(0.5, 2, d)
    truth = 0.25 * d + np.sum((scales - 1) ** 2)
    plain, line = [], []
    for seed in range(120):
        numbers = np.random.default_rng(seed)
        x, y = normal(n, d, numbers) * scales + 0.5, normal(m, d, numbers)
        one, other = gather(batched(x), seed), gather(batched(y), seed)
        plain.append(distances.frechet_of(one, other))
        line.append(distances.extrapolate(one, other))
    values, errors = np.array([each[:2] for each in line]).T
    standard = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - truth) < 3 * standard
    assert np.mean([each.value for each in plain]) - truth > 5 * standard
    assert np.mean([each.linear for each in line]) > 0.5
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.15)
    assert np.mean(np.abs(values - truth) < 2 * errors) > 0.9


def test_fewer_pictures_than_features_lie_on_no_line():
    one, other = gather([normal(60, 100)]), gather([normal(60, 100)])
    assert not distances.extrapolate(one, other).linear
    assert math.isnan(distances.extrapolate(gather([normal(6, 2)]), other).value)


# --- kernels --------------------------------------------------------------------------------------------------------


def polynomial(x, y):
    return (float(np.dot(x, y)) / len(x) + 1) ** 3


def direct(x, y, kernel, unbiased=True):
    """MMD^2 pair by pair."""
    n, m = len(x), len(y)
    skip = 1 if unbiased else 0
    own = [
        sum(kernel(z[i], z[j]) for i in range(k) for j in range(k) if not skip or i != j) / (k * (k - skip))
        for z, k in ((x, n), (y, m))
    ]
    return sum(own) - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_is_the_double_sum_over_torch_fidelitys_subsets():
    x, y = normal(30, 5), 0.3 + normal(24, 5)
    numbers, expected = np.random.RandomState(2020), []
    for _ in range(4):
        one = x[numbers.choice(30, 11, replace=False)].astype(np.float64)
        expected.append(direct(one, y[numbers.choice(24, 11, replace=False)].astype(np.float64), polynomial))
    found = distances.kid(x, y, subsets=4, size=11)
    assert (found.value, found.deviation) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-6)
    assert math.isnan(distances.kid(x[:1], y).value)


def test_kid_is_without_bias():
    """Of Gaussians shifted by s: E (x.y/d + 1)^3, from the moments of x.y, in closed form."""
    d, shift = 4, 0.5

    def expected(a: float, b: float) -> float:  # means of every coordinate of x and of y; both of variance one
        p, q = d * a * a, d * b * b
        dot, square = d * a * b, d + p + q + (d * a * b) ** 2
        cube = dot**3 + 3 * dot * (d + p + q) + 6 * dot
        return cube / d**3 + 3 * square / d**2 + 3 * dot / d + 1

    truth = expected(0, 0) + expected(shift, shift) - 2 * expected(0, shift)
    numbers = np.random.default_rng(1)
    found = [
        distances.kid(normal(20, d, numbers), shift + normal(20, d, numbers), subsets=1, size=20).value
        for _ in range(2000)
    ]
    assert abs(np.mean(found) - truth) < 3 * np.std(found) / math.sqrt(len(found))


@pytest.mark.parametrize("size", [40, 1000])  # subsets, or the whole sets again and again
def test_kids_error_is_how_far_it_is_off(size):
    numbers, shift = np.random.default_rng(2), 0.8
    found = [
        distances.kid(normal(120, 4, numbers), shift + normal(90, 4, numbers), subsets=20, size=size)
        for _ in range(300)
    ]
    deviation = np.std([one.value for one in found])
    assert np.median([one.se for one in found]) == pytest.approx(deviation, rel=0.2)


def unit(rows):
    return rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def gaussian(x, y):
    return math.exp(-float(np.sum((x - y) ** 2)) / 200)


def test_cmmd_is_the_double_sum_as_published_and_without_bias():
    x, y = normal(30, 6), 0.4 + normal(21, 6)
    found = distances.cmmd(x, 3 * y)  # lengths do not count
    assert found.published == pytest.approx(1000 * direct(unit(x), unit(y), gaussian, unbiased=False), rel=1e-6)
    assert found.unbiased == pytest.approx(1000 * direct(unit(x), unit(y), gaussian), rel=1e-6)
    assert distances.cmmd(x, x).published == pytest.approx(0, abs=1e-9)
    assert math.isnan(distances.cmmd(x[:1], y).unbiased)


def test_cmmd_in_blocks_is_cmmd(monkeypatch):
    x, y = normal(50, 6), 0.4 + normal(41, 6)
    whole = distances.cmmd(x, y)
    monkeypatch.setattr(distances, "_BLOCK", 7)
    assert distances.cmmd(x, y) == pytest.approx(whole, rel=1e-9)


def test_cmmds_error_is_its_deviation_and_it_has_no_bias():
    d, numbers = 5, np.random.default_rng(2)
    many = distances.cmmd(normal(6000, d, numbers), 0.7 + normal(6000, d, numbers))
    found = [distances.cmmd(normal(60, d, numbers), 0.7 + normal(50, d, numbers)) for _ in range(400)]
    values = np.array([each.unbiased for each in found])
    assert abs(values.mean() - many.unbiased) < 3 * math.hypot(values.std() / 20, many.se)
    assert np.mean([each.se for each in found]) == pytest.approx(values.std(), rel=0.1)
    same = [distances.cmmd(normal(20, d, numbers), normal(20, d, numbers)) for _ in range(400)]
    assert abs(np.mean([each.unbiased for each in same])) < 3 * np.std([each.unbiased for each in same]) / 20
    assert min(each.published for each in same) > 0


# --- CLIP score -----------------------------------------------------------------------------------------------------


def test_clip_score_is_a_mean_of_clipped_cosines_clustered_by_prompt():
    images = np.array([[2.0, 0], [0, 3], [-1, 0], [3, 4]], np.float32)
    texts = np.array([[1.0, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    each = distances.clip_scores(images, texts)
    assert each == pytest.approx([100, 0, 0, 60])
    found = geneval.clustered_mean(each, np.array([0, 0, 1, 1]))
    assert found.value == pytest.approx((100 + 0 + 0 + 60) / 4)
    sums = np.array([100 - 80, 60 - 80])
    assert found.se == pytest.approx(math.sqrt(2 * float(sums @ sums)) / 4)
    assert (found.images, found.prompts) == (4, 2)
