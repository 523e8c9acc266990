"""Parts of a picture that may be objects, each fitted by every shape: ``offset = coverage * (colour - background)``.

On a grid the parts are its cells, in whose middle an object lies. Elsewhere they are what is connected and differs
from the background, and each shape's place and size are fitted too.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import ndimage

from sd3_jax.config import DataConfig
from sd3_jax.data.composition import FREE_RADIUS, GRID_RADIUS, SHAPES
from sd3_jax.data.rendering import DISTANCES, coverage

SEEN = 10.0  # CIELAB distance from the background at which there is an object
NOISE_FACTOR = 4.0  # and how far above the noise of the background that is
FAINT = 0.15  # and above which share of the picture's largest distance: an autoencoder's ripples are no objects
SPECK = 0.004  # of the picture: smaller parts are no objects

_STEPS = 4  # of Gauss-Newton
_NUDGE = 0.3  # pixels, of its central differences
_CHUNK = 64  # parts that are fitted at once


class Fits(NamedTuple):
    """Regions, each fitted by every shape; the first axis of all but ``outer`` is regions, the second shapes."""

    image: np.ndarray  # the picture of each region
    outer: Float[np.ndarray, "r 4"]  # box of the region itself
    boxes: Float[np.ndarray, "r s 4"]  # of the object, were it this shape
    unexplained: Float[np.ndarray, "r s"]  # share of the squared difference from the background
    rgb: Float[np.ndarray, "r s 3"]  # of the object, were it this shape


@functools.lru_cache
def half_extents() -> Float[np.ndarray, "shapes 2"]:
    """Half the width and height of each shape's bounding box, in radii."""
    axis = np.linspace(-1.1, 1.1, 1101)
    with jax.ensure_compile_time_eval():
        x, y = jnp.meshgrid(jnp.asarray(axis), jnp.asarray(axis))
        inside = np.stack([np.asarray(DISTANCES[name](x, y)) <= 0 for name in SHAPES])
    return np.stack([[np.abs(axis[own.any(axis=k)]).max() for k in (0, 1)] for own in inside])


def grid_fits(pixels: Float[np.ndarray, "b H W 3"], background: Float[np.ndarray, "b 3"], data: DataConfig) -> Fits:
    """Every cell of the grid as a region: each shape in its middle, at the one size that there is."""
    b, grid, f = len(pixels), data.grid, data.image_size // data.grid
    offset = pixels - background[:, None, None]
    cells = offset.reshape(b, grid, f, grid, f, 3).swapaxes(2, 3).reshape(b * grid**2, f * f, 3)
    masks = _cell_masks(data)
    weight = np.square(masks).sum(axis=1)
    color = np.einsum("rpc,sp->rsc", cells, masks) / weight[:, None]
    energy = np.square(cells).sum(axis=(1, 2))
    left = energy[:, None] - weight * np.square(color).sum(axis=-1)
    image = np.repeat(np.arange(b), grid**2)
    y, x = np.divmod(np.tile(np.arange(grid**2), b), grid)
    outer = np.stack([x, y, x + 1, y + 1], axis=1) * float(f)
    reach = half_extents()[: data.shapes] * GRID_RADIUS * f
    center = (outer[:, None, :2] + outer[:, None, 2:]) / 2
    boxes = np.concatenate([center - reach, center + reach], axis=-1)
    unexplained = np.maximum(left, 0) / np.maximum(energy[:, None], 1e-12)
    return Fits(image, outer, boxes, unexplained, background[image][:, None] + color)


@functools.lru_cache
def _cell_masks(data: DataConfig) -> Float[np.ndarray, "shapes p"]:
    f = data.image_size // data.grid
    axis = np.arange(f) + 0.5 - f / 2
    with jax.ensure_compile_time_eval():
        dx, dy = jnp.meshgrid(jnp.asarray(axis), jnp.asarray(axis))
        masks = [coverage(name, dx, dy, GRID_RADIUS * f, 1) for name in SHAPES[: data.shapes]]
        return np.stack([np.asarray(mask) for mask in masks]).reshape(data.shapes, -1)


def free_fits(pixels: Float[np.ndarray, "b H W 3"], background: Float[np.ndarray, "b 3"], data: DataConfig) -> Fits:
    """Every connected part that differs from the background: each shape where and as large as it fits best."""
    size = 2 * int(np.ceil(FREE_RADIUS[1] * data.image_size * 1.15)) + 6  # of a patch: the largest object, a margin
    found = [
        (index, *part) for index, picture in enumerate(pixels) for part in _connected(picture, background[index], size)
    ]
    if not found:
        none = np.zeros((0, data.shapes))
        boxes, colors = (np.zeros((0, data.shapes, k)) for k in (4, 3))
        return Fits(np.zeros(0, int), np.zeros((0, 4)), boxes, none, colors)
    image, box, patches, weights = (np.stack(column) for column in zip(*found, strict=True))
    corner = (box[:, :2] + box[:, 2:] - size) // 2  # of the patch, as in _connected
    unexplained, color, place = _fit_all(patches, weights, _starts(box, corner, data), data.shapes)
    center = corner[:, None] + place[..., :2]
    reach = half_extents()[: data.shapes] * place[..., 2:]
    boxes = np.concatenate([center - reach, center + reach], axis=-1)
    too_large = (box[:, 2:] - box[:, :2]).max(axis=1) > size - 2  # for any object: two that touch, or none
    unexplained = np.where(too_large[:, None], 1.0, unexplained)
    return Fits(image, box.astype(float), boxes, unexplained, background[image][:, None] + color)


def _connected(
    picture: Float[np.ndarray, "H W 3"], background: Float[np.ndarray, " 3"], size: int
) -> list[tuple[Int[np.ndarray, " 4"], Float[np.ndarray, "P P 3"], Float[np.ndarray, "P P"]]]:
    """Box of each part, the patch around it less the background, and which of its pixels count: not others' own."""
    labels, number = parts(picture, background)
    padding = [(size, size), (size, size)]
    offset = np.pad(picture - background, [*padding, (0, 0)])
    owner = np.pad(labels, padding, constant_values=-1)
    y, x = np.ogrid[:size, :size]
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels, number), 1):
        if np.count_nonzero(labels[rows, columns] == label) < SPECK * labels.size:
            continue
        top, left = ((edge.start + edge.stop - size) // 2 for edge in (rows, columns))
        patch = (slice(top + size, top + 2 * size), slice(left + size, left + 2 * size))
        near = (y >= rows.start - top - 2) & (y < rows.stop - top + 2)
        near = near & (x >= columns.start - left - 2) & (x < columns.stop - left + 2)
        others = ndimage.binary_dilation((owner[patch] > 0) & (owner[patch] != label))
        weight = (near & (owner[patch] >= 0) & ~others).astype(np.float32)
        found.append((np.array([columns.start, rows.start, columns.stop, rows.stop]), offset[patch], weight))
    return found


def parts(picture: Float[np.ndarray, "H W 3"], background: Float[np.ndarray, " 3"]) -> tuple[np.ndarray, int]:
    """The connected parts of a picture that differ from its background, each pixel labelled, and how many there are."""
    distance = difference(picture, background)
    if np.median(distance) > SEEN / NOISE_FACTOR:
        distance = difference(ndimage.median_filter(picture, (3, 3, 1)), background)
    return ndimage.label(distance > _threshold(distance))


def _threshold(distance: Float[np.ndarray, "H W"]) -> float:
    return max(SEEN, NOISE_FACTOR * float(np.median(distance)), FAINT * float(distance.max()))


def difference(pixels: Float[np.ndarray, "*s 3"], background: Float[np.ndarray, "*t 3"]) -> Float[np.ndarray, "*s"]:
    """CIELAB distance of pixels from the background."""
    return np.linalg.norm(lab(pixels) - lab(background), axis=-1)


def _starts(
    box: Float[np.ndarray, "r 4"], corner: Float[np.ndarray, "r 2"], data: DataConfig
) -> Float[np.ndarray, "r shapes 3"]:
    """Centre (in the patch) and radius of each shape in a part's box, less the soft edge that the box includes."""
    center = (box[:, :2] + box[:, 2:]) / 2 - corner
    half = (box[:, 2:] - box[:, :2]) / 2 - 0.5
    radius = (half[:, None] / half_extents()[: data.shapes]).mean(axis=-1)
    centers = np.broadcast_to(center[:, None], (*radius.shape, 2))
    return np.concatenate([centers, radius[..., None]], axis=-1).astype(np.float32)


def _fit_all(
    patches: Float[np.ndarray, "r P P 3"],
    weights: Float[np.ndarray, "r P P"],
    starts: Float[np.ndarray, "r shapes 3"],
    shapes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    results = []
    for i in range(0, len(patches), _CHUNK):
        part = [array[i : i + _CHUNK] for array in (patches, weights, starts)]
        padding = _CHUNK - len(part[0])
        padded = [np.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1)), mode="edge") for array in part]
        results.append([np.asarray(out)[: len(part[0])] for out in _fit(*padded, shapes=shapes)])
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnames="shapes")
def _fit(
    patch: Float[Array, "r P P 3"], weight: Float[Array, "r P P"], start: Float[Array, "r s 3"], shapes: int
) -> tuple[Float[Array, "r s"], Float[Array, "r s 3"], Float[Array, "r s 3"]]:
    """Unexplained share, colour less background, and (x, y, radius) of every shape in every region.

    Gauss-Newton on place and size, the colour being what they leave by least squares; slopes by central differences,
    as a distance is not smooth everywhere.
    """
    axis = jnp.arange(patch.shape[1]) + 0.5

    def one_shape(name: str, offset: Array, weight: Array, start: Array) -> tuple[Array, Array, Array]:
        def mask(place: Float[Array, "3"]) -> Float[Array, "P P"]:
            return coverage(name, axis[None, :] - place[0], axis[:, None] - place[1], place[2], 1) * weight

        def color_of(m: Float[Array, "P P"]) -> Float[Array, "3"]:
            return jnp.einsum("yx,yxc->c", m, offset) / jnp.maximum(jnp.sum(m * m), 1e-6)

        room = jnp.stack([jnp.float32(3), jnp.float32(3), 0.3 * start[2]])  # that a fit may move

        def step(_: int, place: Float[Array, "3"]) -> Float[Array, "3"]:
            m = mask(place)
            color = color_of(m)
            nudges = _NUDGE * jnp.eye(3)
            slope = jnp.stack([(mask(place + nudge) - mask(place - nudge)) / (2 * _NUDGE) for nudge in nudges])
            slope = slope[..., None] * color
            rest = weight[..., None] * offset - m[..., None] * color
            hessian = jnp.einsum("iyxc,jyxc->ij", slope, slope)
            hessian += (1e-3 * jnp.trace(hessian) + 1e-9) * jnp.eye(3)
            move = jnp.linalg.solve(hessian, jnp.einsum("iyxc,yxc->i", slope, rest))
            return jnp.clip(place + jnp.clip(move, -1, 1), start - room, start + room)

        place = jax.lax.fori_loop(0, _STEPS, step, start)
        m = mask(place)
        color = color_of(m)
        energy = jnp.sum(jnp.square(weight[..., None] * offset))
        left = jnp.sum(jnp.square(weight[..., None] * offset - m[..., None] * color))
        return left / jnp.maximum(energy, 1e-12), color, place

    fitted = [
        jax.vmap(functools.partial(one_shape, name))(patch, weight, start[:, s])
        for s, name in enumerate(SHAPES[:shapes])
    ]
    return tuple(jnp.stack(parts, axis=1) for parts in zip(*fitted, strict=True))  # type: ignore[return-value]


def lab(rgb: Float[np.ndarray, "*s 3"]) -> Float[np.ndarray, "*s 3"]:
    """CIELAB (D65) of sRGB in [0, 1]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T.astype(linear.dtype)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_XYZ /= _XYZ.sum(axis=1, keepdims=True)  # white is (1, 1, 1)
