"""Signs read off the pixels: a plate of the size that plates have, each of its letters explained by every letter.

As scenes are made, ``pixel = plate + ink here * (ink - plate)``. A letter is told if its bitmap explains its cells, and
clearly better than any other does; so is the lack of one. What is no such plate is no sign.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from sd3_jax.config import DataConfig
from sd3_jax.data import signs
from sd3_jax.evaluation import scene_fit

REACH = 2  # pixels that a plate's edges may be off by
UNEXPLAINED = 0.4  # most of a letter's ink, and of the plate's difference from the background, that may be wrong
BESIDE = 3  # pixels: no object's middle is so near
RIVAL = 1.3  # by which factor the next letter must leave more of it unexplained
_NONE = 4.0  # cells of ink that no letter is weighed as: less than half of any letter's, so a faint one is not none


class Sign(NamedTuple):
    """A plate that was found."""

    box: tuple[int, int, int, int]  # left, top, right, bottom, in pixels
    text: str  # what is on it; "?" for a letter that cannot be told
    rgb: Float[np.ndarray, " 3"]  # of the plate
    score: float  # share of the ink, weighed by its cells, that the letters explain


def read(picture: Float[np.ndarray, "H W 3"], background: Float[np.ndarray, " 3"], data: DataConfig) -> list[Sign]:
    """The signs of a picture in [0, 1]."""
    cell = signs.cell((data.image_size, data.image_size))
    wanted = np.array([signs.ROWS, signs.COLUMNS]) * cell
    labels, number = scene_fit.parts(picture, background)
    found = []
    for rows, columns in ndimage.find_objects(labels, number):
        size = np.array([rows.stop - rows.start, columns.stop - columns.start])
        if np.abs(size - wanted).max() <= 2 * REACH:
            tried = [
                _fit(picture[top : top + wanted[0], left : left + wanted[1]], left, top, background, cell)
                for top in range(max(rows.start - REACH, 0), rows.start + REACH + 1)
                for left in range(max(columns.start - REACH, 0), columns.start + REACH + 1)
                if top + wanted[0] <= picture.shape[0] and left + wanted[1] <= picture.shape[1]
            ]
            _, best = min(tried, key=lambda one: one[0], default=(1.0, None))
            found += [best] if best else []
    return found


def _fit(
    patch: Float[np.ndarray, "h w 3"], left: int, top: int, background: Float[np.ndarray, " 3"], cell: int
) -> tuple[float, Sign | None]:
    """What this place of a plate leaves unexplained, in cells of ink, and the sign if it is one."""
    margin, stride = signs.MARGIN * cell, (signs.WIDTH + 1) * cell
    rim = np.ones(patch.shape[:2], bool)
    rim[margin:-margin, margin:-margin] = False
    plate = np.median(patch[rim], axis=0)
    ink = np.asarray(signs.ink_of(plate)) - plate  # as seen from the plate
    offset = (patch - plate) / np.linalg.norm(ink)
    wrong = float(np.square(offset[rim]).sum()) / cell**2
    total, text = 0.0, ""
    glyphs = np.pad(signs.GLYPHS, ((0, 0), (0, 0), (0, 1))).repeat(cell, axis=1).repeat(cell, axis=2)
    weight = np.append(signs.GLYPHS[:-1].sum(axis=(1, 2)), _NONE)
    for slot in range(signs.LONGEST):
        x = margin + slot * stride
        seen = offset[margin:-margin, x : x + stride]  # the gap to the next letter with it, of the last the plate
        drawn = glyphs[..., None] * (ink / np.linalg.norm(ink))
        left_over = np.square(seen - drawn).sum(axis=(1, 2, 3)) / cell**2
        best, next_best = np.argsort(left_over)[:2]
        told = left_over[best] <= UNEXPLAINED * weight[best] and left_over[next_best] >= RIVAL * left_over[best]
        text += [*signs.LETTERS, " "][best] if told else "?"
        wrong, total = wrong + float(left_over[best]), total + float(weight[best])
    apart = np.square((plate - background) / np.linalg.norm(ink)).sum() * rim.sum() / cell**2
    rest = float(np.square(offset[rim]).sum()) / cell**2
    if rest > UNEXPLAINED * apart:
        return wrong, None
    height, width = patch.shape[:2]
    return wrong, Sign((left, top, left + width, top + height), text.rstrip(), plate, max(0.0, 1 - wrong / total))


def is_on(box: Float[np.ndarray, " 4"], sign: Sign) -> bool:
    """Whether a part of a picture is the sign's own, or a ripple beside it: its middle is not a small object's away."""
    left, top, right, bottom = sign.box
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return bool(left - BESIDE < x < right + BESIDE and top - BESIDE < y < bottom + BESIDE)
