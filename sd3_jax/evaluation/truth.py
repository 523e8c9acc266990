"""True scenes through the autoencoder: what a perfect model would score, the ceiling of every score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from sd3_jax.config import DataConfig
from sd3_jax.data import captions, composition, scenes
from sd3_jax.evaluation import scene_judge, scores
from sd3_jax.evaluation.generate import to_uint8
from sd3_jax.evaluation.prompts import GROUPS, metadata
from sd3_jax.evaluation.scores import Score

_APART = 2**31  # of the keys: they are not those of prompts' numbers


@functools.lru_cache
def ceilings(data: DataConfig, channels: int | None, images_per_task: int) -> dict[tuple[str, str], Score]:
    """Each score of true scenes, encoded into ``channels`` and decoded (or left as they are), by (name, group)."""
    prompts, found = [], []
    for task, split in GROUPS:
        if split == "unseen" and not data.held_out:
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
    number_of_task = composition.TASKS.index(task)

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
