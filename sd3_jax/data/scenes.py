"""Procedural scenes, the embedded default: captioned pictures that are a pure function of (seed, step, example).

Drawn, rendered and encoded on the device, by a compiled program; endless, so that every run is one epoch.
``composition`` says what is in a scene, ``rendering`` what it looks like, ``captions`` what is said about it, and
``autoencoder`` turns it into latents.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from sd3_jax.config import DataConfig, ModelConfig
from sd3_jax.data.autoencoder import decode, encode
from sd3_jax.data.captions import VOCABULARY, caption, caption_words, embed_captions, unconditional
from sd3_jax.data.composition import (
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    TASKS,
    Scene,
    Size,
    Split,
    draw,
)
from sd3_jax.data.rendering import render

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "EVALUATION",
    "MAX_OBJECTS",
    "PREFERENCE",
    "RELATIONS",
    "SHAPES",
    "TASKS",
    "TRAIN",
    "VALIDATION",
    "VOCABULARY",
    "Batch",
    "Scene",
    "Size",
    "Split",
    "batch",
    "caption",
    "caption_words",
    "decode",
    "draw",
    "embed_captions",
    "encode",
    "example_key",
    "render",
    "unconditional",
]

# Domains of randomness: what is trained on, validated on and evaluated on never shares a key. (3 is the domain of
# initial parameters, training.step.INIT.) PREFERENCE: the pairs that the proxy reward is trained and tested on.
TRAIN, VALIDATION, EVALUATION = range(3)
PREFERENCE = 4


class Batch(NamedTuple):
    """Training examples: latents, and the token states and pooled states of their captions."""

    x0: Float[Array, "b h w c"]
    tokens: Float[Array, "b m text_dim"]
    pooled: Float[Array, "b pooled_dim"]


def example_key(
    seed: int | Int[Array, ""], domain: int, step: int | Int[Array, ""], example: int | Int[Array, ""]
) -> Key[Array, ""]:
    """The key of one example, ``fold_in(seed, domain, step, example)``: no batch, mesh or host in it."""
    key = jax.random.key(seed, impl="threefry2x32")
    for number in (domain, step, example):
        key = jax.random.fold_in(key, number)
    return key


def batch(
    keys: Key[Array, "b"], data: DataConfig, model: ModelConfig, dropout: float, size: Size | None = None
) -> Batch:
    """One example of the training distribution for each key, square or of ``size`` in pixels.

    Each part of the text embedding is dropped independently with probability ``dropout``; 0 for validation.
    """
    split = jax.vmap(jax.random.split)(keys)
    scenes = jax.vmap(lambda key: draw(key, data, size=size))(split[:, 0])
    images = jax.vmap(lambda scene: render(scene, data, size))(scenes)
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, dropout, (data.text_parts,)))(split[:, 1])
    words = jax.vmap(caption_words)(scenes)
    tokens, pooled = embed_captions(words, dropped, model, data.text_parts, data.text_sequence)
    return Batch(encode(images, data, model.latent_channels), tokens, pooled)
