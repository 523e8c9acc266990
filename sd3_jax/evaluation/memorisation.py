"""Whether a model gives back pictures that it was trained on (paper section 6.5: its appendix E.3, Algorithm 2).

Pictures are drawn several times for each of some captions. Two pictures are near if the largest of the distances of
their 16 tiles is; so that a white background, or one odd corner, makes nothing alike. Memorised is what comes out again
and again: pictures of one caption that are all near one another, a clique of some size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

TILES = 4  # on a side: 16 tiles, 128 pixels each at 512, in proportion here
NEAR = 0.15  # the paper's epsilon
EACH = 8  # pictures drawn of a caption
CLIQUE = 4  # of them near one another make a caption memorised


class Memorised(NamedTuple):
    """Of one caption: how large its largest clique is, and how near its pictures come to the one trained on."""

    clique: int
    nearest: float  # smallest distance of any of its pictures to that of the caption in training


def tiles(images: UInt8[np.ndarray, "n H W 3"]) -> Float[np.ndarray, "n 16 d"]:
    """Each picture as 16 tiles of numbers in [0, 1]."""
    n, height, width, _ = images.shape
    h, w = height // TILES * TILES, width // TILES * TILES
    cut = images[:, :h, :w].reshape(n, TILES, h // TILES, TILES, w // TILES, 3).swapaxes(2, 3)
    return cut.reshape(n, TILES**2, -1).astype(np.float32) / 255


def distances(one: Float[np.ndarray, "n 16 d"], other: Float[np.ndarray, "m 16 d"]) -> Float[np.ndarray, "n m"]:
    """The largest over tiles of the root mean squared difference: 0 for equal pictures, at most 1."""
    squares = np.stack(
        [
            np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
            for a, b in zip(one.swapaxes(0, 1), other.swapaxes(0, 1), strict=True)
        ]
    )
    return np.sqrt(np.maximum(squares.max(axis=0), 0) / one.shape[-1])


def largest_clique(near: Bool[np.ndarray, "n n"]) -> int:
    """How many pictures are all near one another, at most; 1 if no two are (Bron and Kerbosch 1973, with pivots)."""
    neighbours = [set(np.flatnonzero(row).tolist()) - {i} for i, row in enumerate(near)]
    best = 0

    def grow(size: int, candidates: set[int], excluded: set[int]) -> None:
        nonlocal best
        best = max(best, size)
        if size + len(candidates) <= best:
            return
        pivot = max(candidates | excluded, key=lambda i: len(neighbours[i] & candidates), default=None)
        for i in sorted(candidates - (neighbours[pivot] if pivot is not None else set())):
            grow(size + 1, candidates & neighbours[i], excluded & neighbours[i])
            candidates, excluded = candidates - {i}, excluded | {i}

    grow(0, set(range(len(near))), set())
    return best


def measure(
    drawn: Sequence[UInt8[np.ndarray, "k H W 3"]], trained: UInt8[np.ndarray, "p H W 3"], near: float = NEAR
) -> list[Memorised]:
    """Of each caption: pictures drawn for it, and the picture that it had in training."""
    found = []
    for own, picture in zip(drawn, trained, strict=True):
        parts = tiles(own)
        clique = largest_clique(distances(parts, parts) <= near)
        found.append(Memorised(clique, float(distances(parts, tiles(picture[None])).min())))
    return found
