"""Which pictures of a set are duplicates of others, exactly or nearly (paper section 6.5: its appendix, Algorithm 1).

A descriptor for each picture; clusters of descriptors; within each cluster all pairs at or above a similarity, by
FAISS; and then, in the order of the set, every neighbour of a picture that is kept is marked. The paper uses SSCD
descriptors, 16,000 clusters and a threshold of 0.5. The descriptor here needs no network, and sees shapes and colours
and no meaning: of it, 0.9 finds copies, and 0.5 would also take pictures that are merely alike.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.fft import dctn

from sd3_jax.data.autoencoder import OPPONENT
from sd3_jax.errors import UserError

SIDE = 32  # pixels of the thumbnails that are described
WAVES = (8, 4, 4)  # of brightness and the two colours: the lowest cosines, as many on a side
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # at which duplicates are counted
TO_CLUSTER = 1000  # pictures, roughly
MOST_CLUSTERS = 16_000  # the paper's
_ROUNDING = 1e-6  # by which the cosine of equal descriptors may miss 1
_RIDGE = 0.03  # of the mean variance: directions in which hardly any picture varies are not blown up


class Pairs(NamedTuple):
    """Similar pictures: the first comes before the second in the set, and the pairs are in the order of the first."""

    first: Int[np.ndarray, " p"]
    second: Int[np.ndarray, " p"]
    similarity: Float[np.ndarray, " p"]


def describe(images: UInt8[np.ndarray, "b 32 32 3"]) -> Float[np.ndarray, "b 95"]:
    """Low cosines of brightness (without its mean) and colour, each by the root of its size: what changes of light,
    size and compression leave alone. To be whitened over a set."""
    colours = (images.astype(np.float32) / 127.5 - 1) @ OPPONENT.T.astype(np.float32)
    parts = []
    for channel, side in enumerate(WAVES):
        waves = dctn(colours[..., channel], axes=(1, 2), norm="ortho")[:, :side, :side].reshape(len(images), -1)
        parts.append(waves[:, 1:] if channel == 0 else waves)
    raw = np.concatenate(parts, axis=1)
    return np.sign(raw) * np.sqrt(np.abs(raw))


def whiten(raw: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Unit vectors without mean or correlation over the set: those of unlike pictures are orthogonal, nearly."""
    rows = raw.astype(np.float64) - raw.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    white = rows @ (vectors / np.sqrt(np.maximum(values, 0) + _RIDGE * max(values.mean(), 1e-12)))
    return (white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def cluster(unit: Float[np.ndarray, "n d"], clusters: int | None = None, seed: int = 0) -> Int[np.ndarray, " n"]:
    """The cluster of each descriptor, by k-means; as many clusters as leave a thousand to each unless told."""
    count = clusters or int(np.clip(len(unit) / TO_CLUSTER, 1, MOST_CLUSTERS))
    if count == 1:
        return np.zeros(len(unit), int)
    means = _faiss().Kmeans(
        unit.shape[1], count, niter=20, seed=seed, spherical=True, min_points_per_centroid=1, verbose=False
    )
    means.train(unit)
    return means.index.search(unit, 1)[1][:, 0].astype(int)


def find_pairs(unit: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], least: float) -> Pairs:
    """All pairs within a cluster whose similarity, the cosine, is at least ``least``; in order."""
    faiss = _faiss()
    found = []
    order = np.argsort(labels, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit[own])
        limits, similarity, other = index.range_search(unit[own], least - _ROUNDING)
        one = np.repeat(np.arange(len(own)), np.diff(limits).astype(int))
        keep = own[one] < own[other]
        found.append(np.stack([own[one[keep]], own[other[keep]], similarity[keep]], axis=1, dtype=np.float64))
    table = np.concatenate(found) if found else np.zeros((0, 3))
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    return Pairs(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2])


def mark(count: int, pairs: Pairs, threshold: float) -> Int[np.ndarray, " n"]:
    """Of which picture each is a duplicate, -1 for those that are kept (Algorithm 1).

    In the order of the set: a picture that is not marked marks each of its neighbours that is not marked yet. One that
    is marked marks none, so that a chain of small changes is not followed to its end.
    """
    of = np.full(count, -1)
    near = pairs.similarity >= threshold - _ROUNDING
    first, second = pairs.first[near], pairs.second[near]
    starts = np.flatnonzero(np.diff(first, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(first)], strict=False):
        if of[first[start]] < 0:  # and so no neighbour before it is kept: only later ones are left to mark
            later = second[start:end]
            of[later[of[later] < 0]] = first[start]
    return of


def counts(count: int, pairs: Pairs, thresholds: Iterable[float] = THRESHOLDS) -> dict[str, int]:
    """How many pictures would go at each threshold that the pairs reach."""
    return {f"{threshold:g}": int((mark(count, pairs, threshold) >= 0).sum()) for threshold in thresholds}


class Found(NamedTuple):
    """Why pictures are left out, by id, and how many would be at other thresholds."""

    left_out: dict[str, str]
    counts: dict[str, int]
    pairs: list[tuple[str, str, float]]  # of the pictures that are left out: which, of which, how similar


def find(ids: Sequence[str], unit: Float[np.ndarray, "n d"], threshold: float) -> Found:
    """The duplicates among pictures with these descriptors, in their order."""
    pairs = find_pairs(unit, cluster(unit), min(threshold, *THRESHOLDS))
    of = mark(len(ids), pairs, threshold)
    gone = [(int(i), int(of[i]), float(unit[i] @ unit[of[i]])) for i in np.flatnonzero(of >= 0)]
    named = [(ids[i], ids[j], round(similarity, 3)) for i, j, similarity in gone]
    why = {own: f"is a duplicate of {other} (similarity {similarity:.2f})" for own, other, similarity in named}
    return Found(why, counts(len(ids), pairs), named)


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError("finding duplicates needs FAISS: pip install 'sd3_jax[deduplicate]'") from None
    return faiss
