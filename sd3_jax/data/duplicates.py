"""Which pictures of a set are duplicates of others, exactly or nearly (paper section 6.5: its appendix, Algorithm 1).

A descriptor for each picture; clusters of descriptors; within each cluster all pairs at or above a similarity, by
FAISS; and then, in the order of the set, every neighbour of a picture that is kept is marked. The paper uses SSCD
descriptors, 16,000 clusters and a threshold of 0.5. The descriptor here needs no network, and sees shapes and colours
and no meaning: of it, 0.9 finds copies, and 0.5 would also take pictures that are merely alike.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
    """Similar pictures: the first comes before the second in the set, and pairs are in the order of the first."""

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


def members(labels: Int[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " k"]]:
    """The members of each cluster, in the order of the set."""
    order = np.argsort(labels, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def find_pairs(unit: Float[np.ndarray, "n d"], least: float) -> Pairs:
    """All pairs whose similarity, the cosine, is at least ``least``; in order. For the members of one cluster."""
    index = _faiss().IndexFlatIP(unit.shape[1])
    index.add(unit)
    limits, similarity, other = index.range_search(unit, least - _ROUNDING)
    one = np.repeat(np.arange(len(unit)), np.diff(limits).astype(int))
    keep = one < other
    one, other, similarity = one[keep], other[keep], similarity[keep]
    order = np.lexsort((other, one))
    return Pairs(one[order], other[order], similarity[order].astype(np.float64))


def mark(count: int, pairs: Pairs, threshold: float) -> Int[np.ndarray, " n"]:
    """Of which picture each is a duplicate, -1 for those that are kept (Algorithm 1).

    In the order of the set: a picture that is not marked marks each of its neighbours that is not marked yet. One that
    is marked marks none, so that a chain of small changes is not followed to its end.
    """
    of = np.full(count, -1)
    near = pairs.similarity >= threshold - _ROUNDING
    first, second = pairs.first[near], pairs.second[near]
    for one in np.unique(first):
        if of[one] < 0:
            start, stop = np.searchsorted(first, (one, one + 1))
            others = second[start:stop]
            of[others[of[others] < 0]] = one
    return of


def counts(count: int, pairs: Pairs, thresholds: Iterable[float] = THRESHOLDS) -> dict[str, int]:
    """How many pictures would go at each threshold that the pairs reach."""
    return {f"{threshold:g}": int((mark(count, pairs, threshold) >= 0).sum()) for threshold in thresholds}


class Found(NamedTuple):
    """Why pictures are left out, by their place in the source, and how many would be at other thresholds."""

    left_out: dict[str, str]
    counts: dict[str, int]
    pairs: list[tuple[str, str, float]]  # of the pictures that are left out: which, of which, how similar


def find(places: Sequence[str], ids: Sequence[str], unit: Float[np.ndarray, "n d"], threshold: float) -> Found:
    """The duplicates among pictures with these descriptors, in their order; two may have one id, and no two a place."""
    of, total = np.full(len(ids), -1), Counter[str]()
    for own in members(cluster(unit)):  # who is marked depends on the cluster alone, and so one's pairs fill memory
        pairs = find_pairs(unit[own], min(threshold, *THRESHOLDS))
        marked = mark(len(own), pairs, threshold)
        of[own] = np.where(marked >= 0, own[marked], -1)
        total.update(counts(len(own), pairs))
    gone = [(int(i), int(of[i]), float(unit[i] @ unit[of[i]])) for i in np.flatnonzero(of >= 0)]
    why = {places[i]: f"is a duplicate of {ids[j]} (similarity {similarity:.2f})" for i, j, similarity in gone}
    return Found(why, dict(total), [(ids[i], ids[j], round(similarity, 3)) for i, j, similarity in gone])


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError("finding duplicates needs FAISS: pip install 'sd3_jax[deduplicate]'") from None
    return faiss
