"""Prepared sets for tests: random pictures that frozen encoders without weights have encoded, or nothing but noise."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny import TINY

from sd3_jax.config import RunConfig
from sd3_jax.data import examples, frozen, shards
from sd3_jax.data.examples import Autoencoder, Caption, Example, Manifest, Shard
from sd3_jax.overlays import resolve

# Two parts side by side and one below: every rule of the layout.
PARTS, TOKENS, DIM, POOLED = frozen.arrange(
    [
        examples.Part("clip-l", "clip", "", "l", tokens=3, channels=4, pooled=4),
        examples.Part("clip-g", "clip", "", "g", tokens=3, channels=6, pooled=6),
        examples.Part("t5", "t5", "", "t", tokens=2, channels=12, pooled=0),
    ]
)
SQUARE = (24, 24)


def example(number: int, size: tuple[int, int] = SQUARE, kinds: Sequence[str] = ("original", "synthetic")) -> Example:
    """One of noise, whose captions say which it is; its latent's first number and each state's does, too."""
    numbers = np.random.RandomState(number)
    latent = numbers.standard_normal((size[0] // 8, size[1] // 8, 2 * 4))
    latent[..., 4:] -= 2  # log-variances
    latent[0, 0, 0] = number
    captions = {}
    for kind in kinds:
        parts = {p.name: (numbers.standard_normal((p.tokens, p.channels)), numbers.randn(p.pooled)) for p in PARTS}
        parts["t5"][0][0, 0] = number if kind == "original" else -number
        captions[kind] = Caption(f"{kind} {number}", parts)
    return Example(f"{number}.png", latent, captions, size, (0, 0, *size))


def noise_set(
    folder: Path,
    train: int = 40,
    validation: int = 20,
    sizes: Sequence[tuple[int, int]] = (SQUARE,),
    kinds: Sequence[str] = ("original", "synthetic"),
    files: int = 2,
) -> Manifest:
    """A set of numbered examples, split over shards, a size after the other: train from 1, validation from 1001."""
    written: list[Shard] = []
    for split, count, first in (("train", train, 1), ("validation", validation, 1001)):
        for size in sizes:
            for part in range(files):
                own = range(first + part, first + count, files)
                path = folder / f"{split}-{len(written):05d}.array_record"
                records = [examples.pack(example(n, size, kinds), "float16") for n in own]
                written.append(Shard(path.name, split, size, *shards.write(path, records)))  # type: ignore[arg-type]
            first += count
    autoencoder = Autoencoder("diffusers", "", "a", 4, 8, shift=0.1, scale=0.9, moments=True)
    shapes = (TOKENS, DIM, POOLED)
    manifest = Manifest(autoencoder, PARTS, *shapes, "float16", 24, tuple(kinds), tuple(s for s in written))
    (folder / examples.MANIFEST).write_text(json.dumps(examples.to_dict(manifest)))
    return manifest


def encoded(folder: Path, manifest: Manifest, **overlay: Any) -> RunConfig:
    """The tiny setting, on a prepared set."""
    small = {key: value for key, value in TINY.items() if key != "data"}
    return resolve(small, examples.settings(manifest), {"data.path": str(folder)}, overlay)


def rewrite(folder: Path, manifest: Manifest, **changed: Any) -> Manifest:
    """The manifest of a set, with fields changed."""
    new = dataclasses.replace(manifest, **changed)
    (folder / examples.MANIFEST).write_text(json.dumps(examples.to_dict(new)))
    return new
