"""True scenes: what a perfect model would score, the ceiling of every score, and what distances are measured from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from sd3_jax.config import DataConfig
from sd3_jax.data import captions, composition, scenes, signs
from sd3_jax.evaluation import fidelity, scene_judge, scores
from sd3_jax.evaluation.conditioning import to_uint8
from sd3_jax.evaluation.fidelity import Distance, Moments
from sd3_jax.evaluation.prompts import captions_of, groups, metadata
from sd3_jax.evaluation.scores import Score

_APART = 2**31  # of the keys: they are not those of prompts' numbers
_OF_CAPTIONS = _APART + 2**20
_CHUNK = 512  # pictures at once
_REFERENCES = 4  # true scenes of a caption, for each of its pictures, that distances are measured from


@functools.lru_cache
def ceilings(data: DataConfig, channels: int | None, images_per_task: int) -> dict[tuple[str, str], Score]:
    """Each score of true scenes, encoded into ``channels`` and decoded (or left as they are), by (name, group)."""
    prompts, found = [], []
    for task, split in groups(data):
        if (split == "unseen" and not data.held_out) or (task == signs.TAG and not captions_of(data, task, split)):
            continue
        words, _, kept = draw(data, channels, task, split, images_per_task)
        prompts += [metadata(word) | {"split": split} for word in words]
        found += scene_judge.find(kept, data)
    measured = scores.measure(prompts, np.arange(len(prompts)), found)
    return {(score.name, score.group): score for score in scores.summarize(prompts, measured)}


def draw(
    data: DataConfig, channels: int | None, task: str, split: composition.Split, number: int, seed: int = 0
) -> tuple[Int[np.ndarray, "n 6"], UInt8[np.ndarray, "n H W 3"], UInt8[np.ndarray, "n H W 3"]]:
    """Scenes of one task: their captions' words, their pictures, and what the autoencoder keeps of these."""
    number_of_task = composition.SIGN if task == signs.TAG else composition.TASKS.index(task)

    @jax.jit
    def pictures(examples: Int[Array, " n"]) -> tuple[Array, Array, Array]:
        domain = _APART + 2 * number_of_task + (split == "unseen")
        key = jax.vmap(lambda i: scenes.example_key(seed, scenes.EVALUATION, domain, i))(examples)
        drawn = jax.vmap(lambda k: composition.draw(k, data, split, number_of_task))(key)
        images = jax.vmap(lambda scene: scenes.render(scene, data))(drawn)
        kept = images if channels is None else scenes.decode(scenes.encode(images, data, channels), data)
        return jax.vmap(captions.caption_words)(drawn), to_uint8(images), to_uint8(kept)

    words, images, kept = jax.device_get(pictures(jnp.arange(number)))
    return words, images, kept


@functools.lru_cache(maxsize=8)
def reference(
    data: DataConfig, channels: int | None, words: tuple[tuple[int, ...], ...], images: tuple[int, ...]
) -> tuple[Moments, Distance]:
    """What :func:`fidelity.distance` measures from: true scenes of these captions, four for each picture.

    And the ceiling: how far from them as many others are, one for each picture, through the autoencoder.
    """
    pictures = np.repeat(np.array(words), images, axis=0)
    tasks = [metadata(word)["tag"] for word in pictures]
    true, kept = draw_captions(data, channels, np.tile(pictures, (_REFERENCES + 1, 1)))
    known = fidelity.moments(fidelity.scene_features(true[: -len(pictures)]))
    others = fidelity.scene_features(kept[-len(pictures) :])
    return known, fidelity.distance(others, known, np.repeat(np.arange(len(words)), images), tasks)


def draw_captions(
    data: DataConfig, channels: int | None, words: Int[np.ndarray, "n 6"], seed: int = 0
) -> tuple[UInt8[np.ndarray, "n H W 3"], UInt8[np.ndarray, "n H W 3"]]:
    """A true scene of each caption, and what the autoencoder of ``channels`` keeps of it (None: everything)."""
    facts = np.array([_said(word) for word in words])

    @jax.jit
    def pictures(numbers: Int[Array, " b"], facts: Int[Array, "b 7"]) -> tuple[Array, Array]:
        key = jax.vmap(lambda i: scenes.example_key(seed, scenes.EVALUATION, _OF_CAPTIONS, i))(numbers)
        drawn = jax.vmap(lambda k, f: composition.draw_of(k, data, f[0], f[1], f[2], f[3:5], f[5:]))(key, facts)
        images = jax.vmap(lambda scene: scenes.render(scene, data))(drawn)
        kept = images if channels is None else scenes.decode(scenes.encode(images, data, channels), data)
        return to_uint8(images), to_uint8(kept)

    found = []
    for first in range(0, len(facts), _CHUNK):
        own = facts[first : first + _CHUNK]
        padded = np.pad(own, ((0, _CHUNK - len(own)), (0, 0)), mode="edge")  # one program for every number of pictures
        drawn = jax.device_get(pictures(jnp.arange(first, first + _CHUNK), padded))
        found.append([part[: len(own)] for part in drawn])
    true, kept = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return true, kept


def _said(words: Int[np.ndarray, "6"]) -> tuple[int, ...]:
    """A caption as :func:`composition.draw_of` takes it: task, relation, count, two shapes, two colours."""
    count, color, shape, joint, other_color, other = (captions.VOCABULARY[word] for word in words)
    relation = composition.RELATIONS.index(joint) if joint in composition.RELATIONS else -1
    number = captions.COUNTS[count] if not other else 2
    shapes = [composition.SHAPES.index(one) for one in (shape, other or shape)]
    colors = [composition.COLORS.index(one) if one else -1 for one in (color, other_color)]
    return composition.TASKS.index(metadata(words)["tag"]), relation, number, *shapes, *colors
