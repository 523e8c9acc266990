"""Scenes as pixels: signed distances of the shapes, anti-aliased by coverage."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sd3_jax.config import DataConfig
from sd3_jax.data import signs
from sd3_jax.data.composition import BACKGROUND_RGB, MAX_OBJECTS, SHAPES, SIGN, Scene, Size

Distance = Callable[[Float[Array, "*s"], Float[Array, "*s"]], Float[Array, "*s"]]


def render(scene: Scene, data: DataConfig, size: Size | None = None) -> Float[Array, "H W 3"]:
    """The picture of a scene in [-1, 1]: ``background + coverage * (rgb - background)``.

    ``size``: that of the canvas it was drawn for; the square of ``image_size`` unless given.

    The coverage of a pixel falls from 1 to 0 over EDGE pixels of signed distance, half of them outside the outline.
    Bounding boxes are disjoint, so each pixel belongs to the object whose box is nearest and one evaluation of the
    distance is enough.
    """
    size = size or (data.image_size, data.image_size)
    shorter = min(size)
    y, x = ((jnp.arange(side) + 0.5) / shorter for side in size)
    x, y = x[None, :], y[:, None]
    one, first = jnp.ones(size), jnp.zeros(size, jnp.int32)
    nearest: tuple[Array, ...] = (jnp.full(size, jnp.inf), one, one, one, first, first)
    for slot in range(MAX_OBJECTS):
        right, down = x - scene.center[slot, 0], y - scene.center[slot, 1]
        outside = jnp.maximum(jnp.abs(right), jnp.abs(down)) - scene.radius[slot]
        closer = scene.present[slot] & (outside < nearest[0])
        this: tuple[Any, ...] = (outside, right, down, scene.radius[slot], scene.shape[slot], slot)
        nearest = tuple(jnp.where(closer, new, old) for new, old in zip(this, nearest, strict=True))
    _, dx, dy, radius, shape, owner = nearest
    covered = jnp.zeros(size)
    for index, name in enumerate(SHAPES[: data.shapes]):
        covered = jnp.where(shape == index, coverage(name, dx, dy, radius, shorter), covered)
    # Without the barrier XLA computes the distances once for each colour channel.
    covered, owner = jax.lax.optimization_barrier((covered, owner))
    background = jnp.asarray(BACKGROUND_RGB / 255, jnp.float32)[scene.background]
    image = background + covered[..., None] * (scene.rgb - background)[owner]
    if data.words:
        plate, ink = signs.cover(scene.letters, scene.center[0], size)
        lettered = jnp.where(ink[..., None], signs.ink_of(scene.rgb[0]), scene.rgb[0])
        image = jnp.where((plate & (scene.task == SIGN))[..., None], lettered, image)
    return 2 * image - 1


def coverage(
    name: str, dx: Float[Array, "*s"], dy: Float[Array, "*s"], radius: Float[Array, "*s"] | float, image_size: int
) -> Float[Array, "*s"]:
    """The share of each pixel that a shape covers; offsets from its centre and radius in units of ``image_size``."""
    distance = DISTANCES[name](dx / radius, -dy / radius)
    return jnp.clip(0.5 - distance * radius * image_size / EDGE, 0, 1)


# Signed distance to each outline, negative inside, for x to the right and y up. Every shape is inscribed in the
# square [-1, 1]^2, touches its left and right sides but for the square and the diamond, and has a box centred at 0.


def _length(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return jnp.sqrt(x * x + y * y)  # twice as fast as hypot, whose care for overflow is not needed


def _circle(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return _length(x, y) - 1


def _ring(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return jnp.abs(_length(x, y) - (1 + RING_HOLE) / 2) - (1 - RING_HOLE) / 2


def _box(x: Float[Array, "*s"], y: Float[Array, "*s"], width: float, height: float) -> Float[Array, "*s"]:
    right, up = jnp.abs(x) - width, jnp.abs(y) - height
    return _length(jnp.maximum(right, 0), jnp.maximum(up, 0)) + jnp.minimum(jnp.maximum(right, up), 0)


def _square(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return _box(x, y, SQUARE_HALF, SQUARE_HALF)


def _cross(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return jnp.minimum(_box(x, y, 1, CROSS_HALF), _box(x, y, CROSS_HALF, 1))


def _edge(
    x: Float[Array, "*s"], y: Float[Array, "*s"], start: tuple[float, float], stop: tuple[float, float]
) -> Float[Array, "*s"]:
    """Distance to a segment, positive on its left (seen from the start) and negative on its right."""
    right, up = stop[0] - start[0], stop[1] - start[1]
    x, y = x - start[0], y - start[1]
    along = jnp.clip((x * right + y * up) / (right**2 + up**2), 0, 1)
    return _length(x - along * right, y - along * up) * jnp.sign(y * right - x * up)


def _triangle(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Equilateral; of the two edges of its right half the nearer one, or outside the outer one."""
    half = math.sqrt(3) / 2
    side = _edge(jnp.abs(x), y, (0, half), (1, -half))
    base = _edge(jnp.abs(x), y, (1, -half), (-1, -half))
    outside = jnp.minimum(jnp.where(side > 0, side, jnp.inf), jnp.where(base > 0, base, jnp.inf))
    return jnp.where(jnp.maximum(side, base) > 0, outside, jnp.maximum(side, base))


def _diamond(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return _edge(jnp.abs(x), jnp.abs(y), (0, 1), (DIAMOND_HALF, 0))


def _star(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Five points: folded into half a point, then the distance to one edge, from the tip to the inner corner."""
    angle = math.pi / 5
    outer = 1 / math.sin(2 * angle)  # the side points touch the box
    x, y = jnp.abs(x), y + outer * (1 - math.cos(angle)) / 2
    for mirror_x, mirror_y in ((math.cos(angle), -math.sin(angle)), (-math.cos(angle), -math.sin(angle))):
        beyond = 2 * jnp.maximum(x * mirror_x + y * mirror_y, 0)
        x, y = x - beyond * mirror_x, y - beyond * mirror_y
    inner = outer * STAR_INNER
    return _edge(jnp.abs(x), y, (0, outer), (inner * math.sin(angle), inner * math.cos(angle)))


def _heart(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """A square on its corner with a half disc on each upper side; solved where its side corner is (1/2, 1/2)."""
    lobe = math.sqrt(2) / 4
    scale = 0.25 + lobe
    x, y = jnp.abs(x) * scale, y * scale + (0.75 + lobe) / 2
    foot = jnp.maximum(x + y, 0) / 2
    flank = jnp.minimum(_length(x, y - 1), _length(x - foot, y - foot)) * jnp.sign(x - y)
    return jnp.where(x + y > 1, _length(x - 0.25, y - 0.75) - lobe, flank) / scale


EDGE = 1.5  # pixels; a little soft, so that small pictures pass through the autoencoder
SQUARE_HALF = 0.88  # half the side: about the area of the circle
RING_HOLE = 0.5  # inner over outer radius
CROSS_HALF = 0.38  # half the width of an arm
DIAMOND_HALF = 0.7  # half the width
STAR_INNER = 0.45  # inner over outer radius

DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "diamond": _diamond,
}
