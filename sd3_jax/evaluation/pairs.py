"""Pairs of pictures whose order is known, for one caption: what the proxy of preference is taught and tested with.

Of two pictures with more and less of one defect the one with less is better, and a picture of what the caption says
is better than one with one thing wrong, or one of something else. The keys of the pairs are a domain of their own,
and they show all shapes in all colours and relations, also what is held out from the training of image models: to
the judge nothing is unseen.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sd3_jax.config import DataConfig
from sd3_jax.data import autoencoder, scenes
from sd3_jax.data.composition import COLOR_RGB
from sd3_jax.data.scenes import MAX_OBJECTS, TASKS, Scene

DEFECTS = ("blend", "patches", "contrast", "blur", "smooth", "latent_noise", "noise")  # in the order of their making
FAULTS = ("color", "shape", "count", "relation", "caption")  # caption: all that is shown is another's
KINDS = DEFECTS + FAULTS
GAP = 0.15  # the least difference between two strengths of a defect, which go from 0 to 1
SHARED = 0.15  # probability of each defect that both pictures have alike, in every second pair
PATCHES = 6  # corrupted patches lie on a raster of so many on a side

_COLOR, _SHAPE, _COUNT, _RELATION, _CAPTION = map(KINDS.index, FAULTS)
_SINGLE, _TWO, _COUNTING, _COLORS, _POSITION, _COLOR_ATTR = range(len(TASKS))
_TASKS_OF = {_COLOR: (_COLORS, _COLOR_ATTR), _COUNT: (_POSITION, *3 * (_COUNTING,)), _RELATION: (_POSITION,)}
_TASK_TABLE = np.array([(12 * _TASKS_OF.get(kind, tuple(range(6))))[:12] for kind in range(len(KINDS))])
# What a scene of one, two, three or four alike is told as, where the count decides.
_RETOLD = np.array([[_SINGLE, _COLORS] * 3, [_TWO, _COUNTING, _COLOR_ATTR] * 2, [_COUNTING] * 6, [_COUNTING] * 6])


class Composed(NamedTuple):
    """A pair before it is drawn: two scenes for one caption, which is that of the first."""

    kind: Int[Array, ""]  # index in KINDS
    right: Scene
    wrong: Scene  # differs in what ``kind`` says; the same as ``right`` if a defect decides
    ghost: Scene  # what shines through where pictures are blended


def compose(key: Key[Array, ""], data: DataConfig) -> Composed:
    """A pair of scenes, all kinds equally likely; what the caption does not mention is the same in both.

    (Not for ``caption``, whose wrong scene is drawn apart.) A caption stands for all that is there, so an object
    too many is wrong; then the scene with it is drawn first and the right one lacks it, so that no two touch.
    """
    number_key, scene_key, other_key = jax.random.split(key, 3)
    u, v, w = jnp.split(jax.random.uniform(number_key, (24,)), 3)
    kind = _index(u[0], len(KINDS))
    task = jnp.asarray(_TASK_TABLE)[kind, _index(u[1], 12)]
    scene = _choose(task, [scenes.draw(scene_key, data, task=each) for each in range(len(TASKS))])

    counted = (kind == _COUNT) & (task == _COUNTING)
    too_many = counted & (u[2] < 0.5)
    present = scene.present & (jnp.arange(MAX_OBJECTS) < scene.present.sum() - too_many)
    number = present.sum()
    task = jnp.where(counted, jnp.asarray(_RETOLD)[number - 1, _index(u[3], 6)], task)
    right = _dressed(scene._replace(task=task, present=present), v, data)
    other = _unlike(_dressed(scenes.draw(other_key, data), w, data), right, data)

    coin = u[5] < 0.5
    here = jnp.arange(MAX_OBJECTS) == _index(u[4], number)
    color = jnp.where(here, _another(right.color, u[6], data.colors), right.color)
    color = jnp.where((task == _COLOR_ATTR) & coin, right.color.at[:2].set(right.color[1::-1]), color)
    shape = _another(right.shape, u[6], data.shapes)
    misshapen = right._replace(shape=jnp.where(here | ((task == _COUNTING) & coin), shape, right.shape))
    miscounted = right._replace(present=jnp.where(too_many, scene.present, present & ~here))
    wrongs = _recolored(right, color), misshapen, miscounted, _misplaced(right, 1 + _index(u[5], 3)), other
    wrong = _choose(jnp.maximum(kind - len(DEFECTS) + 1, 0), [right, *wrongs])
    return Composed(kind, right, wrong, _choose(_index(u[7], 2), [other, misshapen]))


def _dressed(scene: Scene, u: Float[Array, "8"], data: DataConfig) -> Scene:
    """The scene with shapes and colours drawn anew from all that there are, as its task demands."""
    task = scene.task
    two = (task == _TWO) | (task == _POSITION) | (task == _COLOR_ATTR)
    shape, color = _index(u[:4], data.shapes), _index(u[4:], data.colors)
    shape = jnp.where(two, shape.at[1].set(_another(shape[0], u[1], data.shapes)), shape)
    color = jnp.where(task == _COLOR_ATTR, color.at[1].set(_another(color[0], u[5], data.colors)), color)
    shape, color = (jnp.where(task == _COUNTING, each[0], each) for each in (shape, color))
    return _recolored(scene, color)._replace(shape=shape)


def _unlike(scene: Scene, right: Scene, data: DataConfig) -> Scene:
    """The scene, with a shape changed if it shows the very shapes of the right one, and so perhaps its caption."""
    shown, told = (jnp.sort(jnp.where(each.present, each.shape, -1)) for each in (scene, right))
    changed = scene.shape.at[0].set((scene.shape[0] + 1) % data.shapes)
    return scene._replace(shape=jnp.where(jnp.all(shown == told), changed, scene.shape))


def _recolored(scene: Scene, color: Int[Array, "4"]) -> Scene:
    """Other colours, with the jitter of the old ones."""
    anchors = jnp.asarray(COLOR_RGB / 255, jnp.float32)
    return scene._replace(color=color, rgb=jnp.clip(scene.rgb + (anchors[color] - anchors[scene.color]), 0, 1))


def _misplaced(scene: Scene, turn: Int[Array, ""]) -> Scene:
    """Objects 0 and 1 in another relation: exchanged (turn 1), mirrored across the diagonal (2), or both (3)."""
    order = jnp.where(turn % 2 == 1, jnp.array([1, 0, 2, 3]), jnp.arange(4))
    shape, color, rgb = scene.shape[order], scene.color[order], scene.rgb[order]
    center = jnp.where(turn >= 2, scene.center[:, ::-1], scene.center)
    return scene._replace(shape=shape, color=color, rgb=rgb, center=center, relation=scene.relation ^ turn)


def _choose(index: Int[Array, ""], options: Sequence[Scene]) -> Scene:
    return jax.tree.map(lambda *fields: jnp.stack(fields)[index], *options)


def _index(u: Float[Array, "*s"], n: int | Int[Array, ""]) -> Int[Array, "*s"]:
    """A uniform number in [0, 1) as a uniform index below n."""
    return jnp.minimum((u * n).astype(jnp.int32), n - 1)


def _another(index: Int[Array, "*s"], u: Float[Array, ""], n: int) -> Int[Array, "*s"]:
    """A uniform index below n that is not this one."""
    return (index + 1 + _index(u, n - 1)) % n


class Pairs(NamedTuple):
    """Two pictures of 8 bits for each caption, and what the better one is better in."""

    better: Float[Array, "b H W 3"]
    worse: Float[Array, "b H W 3"]
    words: Int[Array, "b 6"]
    kind: Int[Array, " b"]  # index in KINDS


class _Chance(NamedTuple):
    """What the defects of pairs are: their strengths, 0 to 1, and the numbers that they are made of."""

    better: Float[Array, "b defects"]
    worse: Float[Array, "b defects"]
    coded: Bool[Array, " b"]  # through the autoencoder, as all pictures that a model makes
    order: Float[Array, "b patches"]  # in which patches are corrupted
    colors: Float[Array, "b patches 3"]
    pixels: Float[Array, "b H W 3"]
    latents: Float[Array, "b h w c"]


def pairs(keys: Key[Array, " b"], data: DataConfig, channels: int) -> Pairs:
    """One pair for each key; ``channels`` are the latent ones. Every second pair has other defects as well.

    None is of signs. A defect that does not decide a pair is the same in both pictures, noise and all. Do not compile
    this as one program: XLA on CPUs would then compose a scene anew for each of its pixels, which takes five times as
    long.
    """
    data = replace(data, words=0)
    kind, right, wrong, ghost = _compose(keys, data)
    images = [_render(scene, data) for scene in (right, wrong, ghost)]
    chance = _draw_chance(keys, kind, data, channels)
    better = _degrade(images[0], images[2], chance.better, chance, data)
    worse = _degrade(images[1], images[2], chance.worse, chance, data)
    return Pairs(better, worse, _words(right), kind)


@partial(jax.jit, static_argnames="data")
def _compose(keys: Key[Array, " b"], data: DataConfig) -> Composed:
    return jax.vmap(lambda key: compose(jax.random.fold_in(key, 0), data))(keys)


@partial(jax.jit, static_argnames="data")
def _render(many: Scene, data: DataConfig) -> Float[Array, "b H W 3"]:
    return jax.vmap(lambda scene: scenes.render(scene, data))(many)


_words = jax.jit(jax.vmap(scenes.caption_words))


@partial(jax.jit, static_argnames=("data", "channels"))
def _draw_chance(keys: Key[Array, " b"], kind: Int[Array, " b"], data: DataConfig, channels: int) -> _Chance:
    count, raster, latent = len(DEFECTS), PATCHES**2, data.image_size // data.downsample
    shapes = (data.image_size, data.image_size, 3), (latent, latent, channels)
    sizes = [int(np.prod(shape)) for shape in shapes]
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (count + 4 + 4 * raster,)))(keys)
    normal = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 2), (sum(sizes),)))(keys)
    alike, options, order, colors = jnp.split(uniform, [count, count + 4, count + 4 + raster], axis=1)
    pixels, latents = jnp.split(normal, sizes[:1], axis=1)

    clean, coded, low, high = jnp.split(options, 4, axis=1)
    alike = jnp.where((clean < 0.5) & (alike < SHARED), alike / SHARED, 0)
    low = jnp.maximum(0, (1 - GAP) * (4 * low - 1) / 3)  # a quarter of them zero
    high = low + GAP + (1 - low - GAP) * high
    deciding = jnp.arange(count) == kind[:, None]
    better, worse = jnp.where(deciding, low, alike), jnp.where(deciding, high, alike)
    in_latents = worse[:, DEFECTS.index("smooth")] + worse[:, DEFECTS.index("latent_noise")] > 0
    colors, pixels, latents = (
        each.reshape(-1, *shape) for each, shape in zip((colors, pixels, latents), ((raster, 3), *shapes), strict=True)
    )
    return _Chance(better, worse, in_latents | (coded[:, 0] < 0.5), order, colors, pixels, latents)


@partial(jax.jit, static_argnames="data")
def _degrade(
    images: Float[Array, "b H W 3"],
    ghosts: Float[Array, "b H W 3"],
    strengths: Float[Array, "b defects"],
    chance: _Chance,
    data: DataConfig,
) -> Float[Array, "b H W 3"]:
    """Pictures with each defect at its strength, rounded to 8 bits."""
    blend, patches, contrast, blur, smooth, latent_noise, noise = jnp.unstack(strengths[..., None, None, None], axis=1)
    x = images + 0.5 * blend * (ghosts - images)
    rank = jnp.sum(chance.order[:, :, None] > chance.order[:, None, :], axis=2, keepdims=True)
    cell = np.arange(data.image_size) * PATCHES // data.image_size
    rank, flat = (
        each.reshape(-1, PATCHES, PATCHES, each.shape[-1])[:, cell][:, :, cell] for each in (rank, chance.colors)
    )
    x = jnp.where(rank < 0.5 * PATCHES**2 * patches, 2 * flat - 1, x)
    x = x + 0.9 * contrast * (autoencoder.PIXEL_MEAN - x)
    x = _blurred(x, 0.1 * x.shape[1] * blur[:, 0, 0])
    z = scenes.encode(x, data, chance.latents.shape[-1])
    z = _blurred(z, 0.1 * max(z.shape[1], 8) * smooth[:, 0, 0]) + 0.7 * latent_noise * chance.latents
    x = jnp.where(chance.coded[:, None, None, None], scenes.decode(z, data), x)
    return rounded(x + 0.3 * noise * chance.pixels)


def _blurred(x: Float[Array, "b h h c"], sigma: Float[Array, "b 1"]) -> Float[Array, "b h h c"]:
    """Under a Gaussian of ``sigma`` pixels, renormalised at the borders."""
    offset = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])
    kernel = jnp.exp(-0.5 * jnp.square(offset / jnp.maximum(sigma, 1e-2)[..., None]))
    kernel = kernel / kernel.sum(axis=2, keepdims=True)
    return jnp.einsum("bij,bkjc->bkic", kernel, jnp.einsum("bij,bjkc->bikc", kernel, x))


def rounded(images: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
    """As after a PNG file: clipped to [-1, 1], 8 bits."""
    return jnp.round(127.5 * (jnp.clip(images, -1, 1) + 1)) / 127.5 - 1
