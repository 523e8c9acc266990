"""How far two sets of pictures are apart, from their features alone: Frechet, KID, CMMD; and CLIP scores.

Features come in batches and are gathered once, in memory that does not grow with the number of pictures. Distances of
few pictures are biased unless said otherwise; each is named by its estimator, and its numbers go beside it.
"""

import math
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sd3_jax.evaluation import fidelity
from sd3_jax.evaluation.fidelity import Moments, frechet

PIECES = 4  # of a set, by lot: what the extrapolation compares
KEEP = 30_000  # rows that are kept for what needs more than moments; of more, as many by lot
SUBSETS, SUBSET, SEED = 100, 1000, 2020  # torch-fidelity's of KID
SIGMA, SCALE = 10.0, 1000.0  # of CMMD as published
_BLOCK = 512  # rows of a matrix of a kernel at once


class Gathered(NamedTuple):
    """A set of pictures as its features are gathered: moments of all, and rows, all of them or ``KEEP`` by lot."""

    pieces: tuple[Moments, ...]  # disjoint, of nearly equal numbers
    rows: Float[np.ndarray, "n d"]  # float32

    @property
    def moments(self) -> Moments:
        """Of the whole set."""
        return _join(self.pieces)


class Estimate(NamedTuple):
    """A distance and its standard error; nan where it cannot be told."""

    value: float
    se: float


class Extrapolated(NamedTuple):
    """Frechet's distance at infinitely many pictures, and whether the smaller pieces lie on the same line."""

    value: float
    se: float
    linear: bool


# --- gathering ------------------------------------------------------------------------------------------------------


def gather(batches: Iterable[Float[np.ndarray, "_ d"]], seed: int = 0, keep: int = KEEP) -> Gathered:
    """Moments and rows of features that come in batches, each looked at once.

    Moments are merged, the mean's square never subtracted, so that a mean far from zero costs no digits. Which rows are
    kept is Vitter's algorithm R (1985). Memory: ``PIECES`` matrices d x d of float64 and ``keep`` rows of float32.
    Raises ValueError if there is no row.
    """
    numbers = np.random.default_rng(seed)
    pieces: list[Moments] | None = None
    rows: Float[np.ndarray, "keep d"] | None = None
    seen = 0
    for batch in batches:
        if not len(batch):
            continue
        if pieces is None or rows is None:
            d = batch.shape[1]
            pieces = [Moments(0, np.zeros(d), np.zeros((d, d))) for _ in range(PIECES)]
            rows = np.empty((keep, d), np.float32)
        turns = numbers.permuted(np.tile(np.arange(PIECES), (-(-len(batch) // PIECES), 1)), axis=1).ravel()[
            : len(batch)
        ]
        for k in range(PIECES):
            if (own := batch[turns == k]).size:
                pieces[k] = fidelity.merge(pieces[k], fidelity.moments(own))
        for i, place in enumerate(numbers.integers(0, np.arange(seen, seen + len(batch)) + 1)):
            place = seen + i if seen + i < keep else place
            if place < keep:
                rows[place] = batch[i]
        seen += len(batch)
    if pieces is None or rows is None:
        raise ValueError("no features")
    return Gathered(tuple(pieces), rows[: min(seen, keep)])


def _join(parts: Iterable[Moments]) -> Moments:
    first, *others = parts
    for other in others:
        first = fidelity.merge(first, other)
    return first


# --- Frechet --------------------------------------------------------------------------------------------------------


def frechet_of(one: Gathered, other: Gathered) -> Estimate:
    """The squared distance of the Gaussians of two sets, biased upwards; its error is the infinitesimal jackknife's.

    Both sets vary. Directions in which a set of fewer pictures than features does not vary carry no error.
    """
    there = one.moments, other.moments
    parts = [_variance(rows, own, far) for rows, own, far in ((one.rows, *there), (other.rows, *there[::-1]))]
    return Estimate(frechet(*there), math.sqrt(sum(parts)))


def _variance(rows: Float[np.ndarray, "n d"], own: Moments, far: Moments) -> float:
    """Of the distance, from the rows of one set."""
    if own.n < 2:
        return math.nan
    slope, bend = fidelity.gradient(own, far)
    each = np.concatenate(
        [fidelity.influence_of(rows[i : i + _BLOCK], own, slope, bend) for i in range(0, len(rows), _BLOCK)]
    )
    return float(each.var(ddof=1) / own.n)


def extrapolate(one: Gathered, other: Gathered, whole: Estimate | None = None) -> Extrapolated:
    """Frechet's distance without its bias of order 1 / n: a line in 1 / n through the whole sets and their halves.

    ``F(n, m) = F + a / n + b / m + ...``, so halves of both sets are as far again from F as the wholes (Chong and
    Forsyth 2020, FID-infinity, who halve and so on one of the two alone and fit through random subsets; here both,
    disjoint, in the three ways that four pieces pair, and no set is drawn from again). The remaining bias is of order
    1 / n^2: it is small where there are several times more pictures than features. ``linear`` says whether the quarters
    lie within a tenth of where the line has them: elsewhere the value is not to be trusted. nan for fewer than two
    pictures to a piece. The error is that of :func:`frechet_of` (``whole``, where it is known), equal to first order.
    """
    if min(piece.n for piece in (*one.pieces, *other.pieces)) < 2:
        return Extrapolated(math.nan, math.nan, False)
    value, se = whole or frechet_of(one, other)
    ways = [pair for pair in combinations(range(PIECES), 2) if 0 in pair]
    halves = float(np.mean([_between(one, other, half) for pair in ways for half in (pair, _rest(pair))]))
    quarters = float(np.mean([_between(one, other, (k,)) for k in range(PIECES)]))
    step = halves - value
    return Extrapolated(value - step, se, bool(abs(quarters - (value + 3 * step)) <= 0.1 * abs(quarters - value)))


def _rest(pair: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(k for k in range(PIECES) if k not in pair)


def _between(one: Gathered, other: Gathered, pieces: tuple[int, ...]) -> float:
    return frechet(*(_join(own.pieces[k] for k in pieces) for own in (one, other)))


# --- kernels --------------------------------------------------------------------------------------------------------


class Kid(NamedTuple):
    """KID, its standard error, and the deviation of its subsets, which is what is published beside it."""

    value: float
    se: float
    deviation: float


def kid(
    one: Float[np.ndarray, "n d"],
    other: Float[np.ndarray, "m d"],
    subsets: int = SUBSETS,
    size: int = SUBSET,
    seed: int = SEED,
) -> Kid:
    """The kernel distance of Binkowski et al. (2018): unbiased MMD^2 with ``(x . y / d + 1)^3``, over random subsets.

    The mean over the subsets and their deviation as torch-fidelity has them, subsets included. The error is the
    first-order one of a two-sample U-statistic of all rows, and what the drawing of subsets adds. Sets of fewer than
    ``size`` give subsets of as many as the smaller has; nan for fewer than two.
    """
    numbers, size = np.random.RandomState(seed), min(size, len(one), len(other))
    if size < 2:
        return Kid(math.nan, math.nan, math.nan)
    found = []
    for _ in range(subsets):
        x = one[numbers.choice(len(one), size, replace=False)].astype(np.float64)
        y = other[numbers.choice(len(other), size, replace=False)].astype(np.float64)
        within = [_cubic(z, z) for z in (x, y)]
        unlike = sum(k.sum() - np.trace(k) for k in within) / (size * (size - 1))
        found.append(unlike - 2 * _cubic(x, y).mean())
    rows = [np.asarray(each, np.float64) for each in (one, other)]
    error = math.hypot(_error_of_mmd(*rows), float(np.std(found)) / math.sqrt(subsets))
    return Kid(float(np.mean(found)), error, float(np.std(found)))


def _error_of_mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The standard error of unbiased MMD^2 with the cubic kernel, to first order."""
    each = []
    for rows, others in ((x, y), (y, x)):
        unlike = np.empty(len(rows))
        for i in range(0, len(rows), _BLOCK):
            block = rows[i : i + _BLOCK]
            itself = (np.sum(block * block, axis=1) / x.shape[1] + 1) ** 3
            own = (_cubic(block, rows).sum(axis=1) - itself) / (len(rows) - 1)
            unlike[i : i + _BLOCK] = 2 * (own - _cubic(block, others).mean(axis=1))
        each.append(unlike.var(ddof=1) / len(rows))
    return math.sqrt(sum(each))


def _cubic(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


class Cmmd(NamedTuple):
    """CMMD as published, which is biased upwards, and without bias, with the standard error of both."""

    published: float
    unbiased: float
    se: float


def cmmd(one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]) -> Cmmd:
    """MMD^2 of directions of CLIP embeddings with ``exp(-|x - y|^2 / (2 sigma^2))``, times 1000.

    Jayasumana et al. (2024). Rows are scaled to length one, sigma is 10. Published is the mean over all pairs, an
    embedding with itself among them; unbiased leaves those out (Gretton et al. 2012, eq. 3), and may fall below zero.
    The error is the first-order one of a two-sample U-statistic; where both sets are of one distribution it is too
    large. Needs two rows each, else nan.
    """
    x, y = (np.asarray(rows, np.float64) for rows in (one, other))
    x, y = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (x, y))
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return Cmmd(math.nan, math.nan, math.nan)
    # 1 - k, so that what is left of nearly equal numbers keeps its digits
    (xx, _), (yy, _), (xy, yx) = (_far(*pair) for pair in ((x, x), (y, y), (x, y)))
    published = 2 * xy.mean() / m - xx.mean() / n - yy.mean() / m
    own_x, own_y, cross_x, cross_y = xx / (n - 1), yy / (m - 1), xy / m, yx / n
    each = [2 * (cross - own) for cross, own in ((cross_x, own_x), (cross_y, own_y))]
    variance = sum(values.var(ddof=1) / len(values) for values in each)
    unbiased = 2 * cross_x.mean() - own_x.mean() - own_y.mean()
    return Cmmd(SCALE * float(published), SCALE * float(unbiased), SCALE * math.sqrt(variance))


def _far(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Of each x the sum over all y of ``1 - k(x, y)``, and of each y that over all x; rows are of length one."""
    sums, others = np.empty(len(x)), np.zeros(len(y))
    for i in range(0, len(x), _BLOCK):
        apart = np.maximum(2 - 2 * (x[i : i + _BLOCK] @ y.T), 0)
        if x is y:  # a row is at no distance from itself, rounding or not
            apart[np.arange(len(apart)), np.arange(i, i + len(apart))] = 0
        apart /= -2 * SIGMA**2
        far = np.negative(np.expm1(apart, out=apart), out=apart)
        sums[i : i + _BLOCK] = far.sum(axis=1)
        others += far.sum(axis=0)
    return sums, others


def clip_scores(images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """``100 max(cos, 0)`` of each picture's embedding and its text's (Hessel et al. 2021, as torchmetrics scales it).

    The score of a set is their mean, the pictures of a prompt one cluster: :func:`geneval.clustered_mean`.
    """
    x, y = (np.asarray(rows, np.float64) for rows in (images, texts))
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return 100 * np.maximum(np.sum(x * y, axis=1) / np.maximum(lengths, 1e-12), 0)
