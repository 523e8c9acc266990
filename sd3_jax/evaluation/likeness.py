"""Runs on prepared sets, measured: how far their pictures are from those held out, and their loss on any other set.

The reference is what the set's autoencoder gives back of the held-out pictures, so that what it loses is in none of
the distances; the ceiling is as many pictures that were trained on.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from sd3_jax import records
from sd3_jax.config import RunConfig
from sd3_jax.data import frozen, latents
from sd3_jax.data.examples import read_manifest
from sd3_jax.data.latents import Prepared
from sd3_jax.evaluation import conditioning, fidelity, generate, judged, scores, validation
from sd3_jax.evaluation.judged import Pictures
from sd3_jax.training import encoded, sharding
from sd3_jax.training.step import make_model

NAME = "picture-frechet"
LOSS = "validation-loss"
MOST = 10_000  # pictures of the reference
_CHUNK = 256


def read_pictures(out: Path, config: RunConfig) -> Pictures:
    """All pictures of a folder that can be read, whatever their prompts say. Raises UserError if there is none."""
    return judged.read_described(out, lambda metadata: metadata, config.data.image_size)


def distance_rows(
    pictures: Pictures, config: RunConfig, run_dir: Path, setting: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """How far pictures are from those held out, by features that need no network, as one row; lower is better.

    There is no row of fewer than two pictures, which have no covariance.
    """
    count, side = len(pictures.images), config.data.image_size
    if count < 2:
        return []
    held = conditioning.held_out(config, run_dir)
    reference = fidelity.moments(_features(held.folder, held.split, MOST, side))
    others = _features(Path(config.data.path), "train", count, side)
    ceiling = fidelity.distance(others, reference, np.arange(len(others)), ["any"] * len(others))
    found = fidelity.distance(fidelity.scene_features(pictures.images), reference, pictures.prompt, ["any"] * count)
    row = {
        "name": NAME,
        "group": scores.OVERALL,
        "value": found.value,
        "se": found.se,
        "n": found.n,
        "prompts": found.prompts,
        "ceiling": ceiling.value,
        "ceiling_se": ceiling.se,
        "reference_n": reference.n,
        **setting,
        "pictures": zlib.crc32(pictures.checksums.tobytes()),
        "features": fidelity.VERSION,
        **({"partial": judged.partial(pictures.problems)} if pictures.problems else {}),
    }
    return [row]


@functools.lru_cache(maxsize=4)
def _features(folder: Path, split: str, most: int, side: int) -> Float[np.ndarray, "n d"]:
    """Features of at most so many square pictures of a split, as its autoencoder gives them back."""
    manifest = read_manifest(folder)
    square = tuple(shard for shard in manifest.shards if shard.size == (side, side))
    prepared = Prepared(folder, dataclasses.replace(manifest, shards=square), split)
    codec, channels = frozen.codec_of(manifest), manifest.autoencoder.channels
    chosen = np.concatenate([group.record for group in latents.choose(prepared, most, seed=0)])
    found = []
    for first in range(0, len(chosen), _CHUNK):
        own = latents.read_examples(prepared, chosen[first : first + _CHUNK].tolist())
        stored = np.stack([example.latent[..., :channels].astype(np.float32) for example in own])
        found.append(fidelity.scene_features(codec.decode(stored)))
    return np.concatenate(found)


def loss_rows(
    run_dir: Path,
    folder: Path,
    levels: Literal["every", "round-robin"],
    weights: Literal["ema", "raw"],
    steps: Sequence[int],
    most: int | None = None,
) -> list[dict[str, Any]]:
    """The validation loss of checkpoints on a prepared set (paper section 5.2.1), on all of it or ``most`` examples.

    Raises UserError for a run of scenes, and for a set that was encoded otherwise than the run's.
    """
    config = records.load_config(run_dir)
    trained = conditioning.manifest_of(config, run_dir)
    there = encoded.split_of(read_manifest(folder), trained)[1]
    count = there if most is None else min(there, most)
    spec = dataclasses.replace(config.evaluation, levels=levels, examples=count)
    config = dataclasses.replace(config, evaluation=spec)
    held = encoded.find_held(config, folder, trained)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    evaluate = validation.make_eval(config, make_model(config.model, config.mesh), mesh, held)
    rows = []
    for step in steps:
        found = evaluate(generate.load_weights(run_dir, config, mesh, step, weights))
        each = {key: value for key, value in found.items() if key not in ("loss", "loss_se")}
        said = {"weights": weights, "levels": levels, "split": held.split, "set": read_manifest(folder).digest}
        rows.append(
            {"step": step, "name": LOSS, "group": folder.resolve().name, "value": found["loss"], "se": found["loss_se"]}
            | {"n": count, "prompt_list": f"{held.split} {levels}", **said, **each}
        )
    return rows
