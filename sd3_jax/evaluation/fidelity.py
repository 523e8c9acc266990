"""How far a set of pictures is from true ones: Frechet's distance between Gaussians fitted to features.

``d^2 = |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2)`` (Dowson and Landau 1982), the squared 2-Wasserstein distance
of N(m, S) and N(m', S'). Features are any function of pictures; those of scenes need no trained network, so this is
``scene-frechet`` and no FID. A distance of few pictures is biased upwards, more for more features: compare distances
of equal numbers of pictures, and with that of as many true ones, the ceiling.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from sd3_jax.data.autoencoder import OPPONENT, cosines
from sd3_jax.evaluation.geneval import clustered_mean, unweighted

NAME = "scene-frechet"
VERSION = "scene-1"  # of the features: distances of other features are not comparable
Features = Callable[[UInt8[np.ndarray, "n H W 3"]], Float[np.ndarray, "n d"]]

SIDE = 4  # of the thumbnail
PATCH = 8  # pixels on a side of the patches whose cosines are measured
BANDS = (0.5, 1.5, 2.5, 4.0, 6.0)  # lower ends of the bands, in half waves to a patch; below is its mean
BLOCKS = (3 * SIDE**2, 3 * len(BANDS))  # features that weigh as one: the thumbnail, the bands


class Moments(NamedTuple):
    """A Gaussian as it is gathered, float64: how many, their mean, and the sum of squared deviations."""

    n: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased covariance; nan with fewer than two."""
        return self.scatter / (self.n - 1) if self.n > 1 else np.full_like(self.scatter, np.nan)


class Distance(NamedTuple):
    """A squared distance and its standard error, and of how many pictures and prompts."""

    value: float
    se: float
    n: int
    prompts: int


def moments(features: Float[np.ndarray, "n d"]) -> Moments:
    """The moments of some features."""
    rows = np.asarray(features, np.float64)
    mean = rows.mean(axis=0)
    return Moments(len(rows), mean, (rows - mean).T @ (rows - mean))


def merge(one: Moments, other: Moments) -> Moments:
    """The moments of both sets together (Chan, Golub and LeVeque 1979)."""
    n, apart = one.n + other.n, other.mean - one.mean
    if not n:
        return one
    mean = one.mean + apart * (other.n / n)
    return Moments(n, mean, one.scatter + other.scatter + np.outer(apart, apart) * (one.n * other.n / n))


def frechet(one: Moments, other: Moments) -> float:
    """The squared distance of the Gaussians, at least 0; symmetric.

    >>> frechet(moments(np.array([[0.0], [2.0]])), moments(np.array([[3.0], [5.0]])))
    9.0
    """
    root = _root(one.covariance)
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other.covariance @ root), 0)).sum()
    apart = one.mean - other.mean
    return float(max(apart @ apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * shared, 0))


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def influence(features: Float[np.ndarray, "n d"], reference: Moments) -> Float[np.ndarray, " n"]:
    """The derivative of the distance by the weight of each row: its mean over the rows is 0, nearly."""
    own = moments(features)
    return influence_of(features, own, *gradient(own, reference))


def gradient(own: Moments, reference: Moments) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """The derivative of the distance by the mean, ``2 (m - m')``, and by the covariance, ``1 - T``.

    T is the linear map that carries the one Gaussian to the other. Directions in which the rows do not vary carry
    nothing.
    """
    root = _root(reference.covariance)
    values, vectors = np.linalg.eigh(root @ own.covariance @ root)
    kept = values > 1e-10 * max(values.max(), 1e-300)
    inverse = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    return 2 * (own.mean - reference.mean), np.eye(len(root)) - root @ inverse @ root


def influence_of(
    rows: Float[np.ndarray, "n d"], own: Moments, slope: Float[np.ndarray, " d"], bend: Float[np.ndarray, "d d"]
) -> Float[np.ndarray, " n"]:
    """The influence of rows of a set whose moments are ``own``, from the gradient of the distance."""
    apart = np.asarray(rows, np.float64) - own.mean
    return apart @ slope + np.sum((apart @ bend) * apart, axis=1) - np.trace(bend @ own.covariance)


def distance(
    features: Float[np.ndarray, "n d"],
    reference: Moments,
    prompt: Int[np.ndarray, " n"],
    group: Sequence[str],
    blocks: Sequence[int] = BLOCKS,
) -> Distance:
    """The distance of features from a reference, in units of the reference's variance, with its standard error.

    Each of the ``blocks`` of features is scaled so that the reference's variance in it is ``1 / len(blocks)``: a set
    that is the mean picture over and over is at 1. The error is the infinitesimal jackknife's over prompts within
    each ``group`` (the task of each picture): it says how the distance varies with prompts and noise, not its bias.
    """
    scale = _scale(reference, blocks)
    rows = np.asarray(features, np.float64) * scale
    there = Moments(reference.n, reference.mean * scale, reference.scatter * np.outer(scale, scale))
    value, each, groups = frechet(moments(rows), there), influence(rows, there), np.asarray(group)
    own = [clustered_mean(each[groups == name], np.asarray(prompt)[groups == name]) for name in dict.fromkeys(group)]
    share = np.array([mean.images for mean in own]) * len(own) / len(rows)  # tasks may differ in their pictures
    weighted = [mean._replace(se=mean.se * weight) for mean, weight in zip(own, share, strict=True)]
    return Distance(value, unweighted(weighted).se, len(rows), len(np.unique(prompt)))


def _scale(reference: Moments, blocks: Sequence[int]) -> Float[np.ndarray, " d"]:
    variance = np.split(np.diag(reference.covariance), np.cumsum(blocks)[:-1])
    return np.repeat([(len(blocks) * max(own.sum(), 1e-300)) ** -0.5 for own in variance], blocks)


def scene_features(images: UInt8[np.ndarray, "n H W 3"]) -> Float[np.ndarray, "n 63"]:
    """Where a picture has which colour, and how much of it is how fine.

    The mean colour of each of 4 x 4 parts; then the root mean square, over patches of 8 pixels, of the fixed cosines of
    each band of frequencies and each of three opponent colours. The first sees places, colours and their variety, the
    second blur, noise, and objects that lack or are too many (``tests/test_fidelity.py``).
    """
    pixels = np.asarray(images, np.float32) / 127.5 - 1
    edges = np.linspace(0, pixels.shape[1], SIDE + 1).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(pixels, edges[:-1], axis=1), edges[:-1], axis=2)
    area = np.outer(np.diff(edges), np.diff(edges))[:, :, None]
    thumbnail = (sums / area) @ (OPPONENT.T).astype(np.float32)
    n, g = len(pixels), pixels.shape[1] // PATCH
    patches = pixels[:, : g * PATCH, : g * PATCH].reshape(n, g, PATCH, g, PATCH, 3).swapaxes(2, 3)
    energy = np.square(patches.reshape(n, g * g, -1) @ cosines(PATCH).astype(np.float32)).mean(axis=1)
    return np.concatenate([thumbnail.reshape(n, -1), np.sqrt(energy @ _bands())], axis=1)


@functools.lru_cache
def _bands() -> Float[np.ndarray, "192 15"]:
    """Which cosines belong to each band and colour, in the order of :func:`sd3_jax.data.autoencoder.cosines`."""
    i, j, k = (index.ravel() for index in np.indices((PATCH, PATCH, 3)))
    cost = (1 + i**2 + j**2) * np.array([1, 1, 2])[k]
    order = np.argsort(cost, kind="stable")
    band = np.digitize(np.hypot(i, j), BANDS)[order]
    wanted = np.repeat(np.arange(1, len(BANDS) + 1), 3), np.tile(np.arange(3), len(BANDS))
    return ((band[:, None] == wanted[0]) & (k[order][:, None] == wanted[1])).astype(np.float32)
