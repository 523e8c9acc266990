"""Runs on prepared sets, measured: how far their pictures are from those held out, and their loss on any other set.

The reference is what the set's autoencoder gives back of the held-out pictures, so that what it loses is in none of
the distances; the ceiling is as many pictures that were trained on.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from sd3_jax import checks, records
from sd3_jax.config import RunConfig
from sd3_jax.data import frozen, latents
from sd3_jax.data.examples import read_manifest
from sd3_jax.data.latents import Prepared
from sd3_jax.errors import UserError
from sd3_jax.evaluation import conditioning, fidelity, folders, generate, judged, memorisation, scores, validation
from sd3_jax.evaluation.generate import Report, Sampler
from sd3_jax.evaluation.judged import Pictures
from sd3_jax.evaluation.prompts import Prompt
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
    row = judged.distance_row(NAME, scores.OVERALL, found, ceiling, pictures, setting)
    return [row | {"reference_n": reference.n}]


@functools.lru_cache(maxsize=4)
def _features(folder: Path, split: str, most: int, side: int) -> Float[np.ndarray, "n d"]:
    """Features of at most so many square pictures of a split, as its autoencoder gives them back."""
    prepared = _square(Prepared(folder, read_manifest(folder), split), side)
    codec, channels = frozen.codec_of(prepared.manifest), prepared.manifest.autoencoder.channels
    chosen = np.concatenate([group.record for group in latents.choose(prepared, most, seed=0)])
    found = []
    for first in range(0, len(chosen), _CHUNK):
        own = latents.read_examples(prepared, chosen[first : first + _CHUNK].tolist())
        stored = np.stack([example.latent[..., :channels].astype(np.float32) for example in own])
        found.append(fidelity.scene_features(codec.decode(stored)))
    return np.concatenate(found)


def memorisation_row(
    run_dir: Path, step: int, sampler: Sampler, captions: int, report: Report = lambda pictures: None
) -> dict[str, Any]:
    """The share of captions whose pictures come out alike (paper's appendix E.3), of those trained on; as one row.

    ``chance`` is that of captions that were held out, which cannot have been learnt by heart, unless they are captions
    of training pictures too, as names of classes are: then both shares are of the same prompts. A sheet of the pictures
    that come nearest to those trained on, each below its own, is written beside the drawn ones, as nearest.png.

    Raises UserError for a run of scenes, of which none is ever shown twice, and for a set without square pictures.
    """
    config = records.load_config(run_dir)
    if config.data.source != "encoded":
        raise UserError(f"{run_dir}: no scene is shown twice in training, so that none can be learnt by heart")
    held = conditioning.held_out(config, run_dir)
    folder = Path(config.data.path)
    trained = Prepared(folder, read_manifest(folder), "train")
    found = {}
    for prepared in (trained, held):
        number = min(captions, prepared.manifest.count(prepared.split))
        chosen = _examples(prepared, number, config.data.image_size)
        asked = [Prompt(np.zeros(0, int), {"prompt": text}, memorisation.EACH) for text in chosen]
        out = run_dir / "samples" / generate.folder_name(step, sampler, asked)
        generate.sample(run_dir, step, asked, sampler, out, report=report)
        read = read_pictures(out, config)
        drawn = [read.images[read.prompt == i] for i in range(len(read.prompts))]
        true = np.stack([chosen[metadata["prompt"]] for metadata in read.prompts])
        found[prepared.split] = out, drawn, true, memorisation.measure(drawn, true)
    (out, drawn, true, own), (_, _, _, others) = found["train"], found[held.split]
    order = np.argsort([one.nearest for one in own])[:8]
    nearest = [
        pictures[int(memorisation.distances(memorisation.tiles(pictures), memorisation.tiles(picture[None])).argmin())]
        for pictures, picture in zip(drawn, true, strict=True)
    ]
    sheet = np.concatenate([true[order], np.stack(nearest)[order]])
    folders.write_png(out / "nearest.png", folders.tile(sheet, columns=len(order)))
    share = [float(np.mean([one.clique >= memorisation.CLIQUE for one in each])) for each in (own, others)]
    errors = [float(np.sqrt(p * (1 - p) / len(each))) for p, each in zip(share, (own, others), strict=True)]
    return {
        "step": step,
        "name": "memorised",
        "group": scores.OVERALL,
        "value": share[0],
        "se": errors[0],
        "chance": share[1],
        "chance_se": errors[1],
        "n": len(own) * memorisation.EACH,
        "prompts": len(own),
        "chance_prompts": len(others),
        "images_each": memorisation.EACH,
        "clique": memorisation.CLIQUE,
        "epsilon": memorisation.NEAR,
        "near": float(np.mean([one.nearest <= memorisation.NEAR for one in own])),
        "near_held_out": float(np.mean([one.nearest <= memorisation.NEAR for one in others])),
        **sampler.settings,
        "prompt_list": f"{captions} captions",
    }


def _examples(prepared: Prepared, count: int, side: int) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Captions of a split, drawn by lot, with their pictures as the set's autoencoder gives them back."""
    prepared = _square(prepared, side)
    codec, channels = frozen.codec_of(prepared.manifest), prepared.manifest.autoencoder.channels
    chosen = [int(i) for group in latents.choose(prepared, count, seed=1) for i in group.record]
    found = {}
    for example in latents.read_examples(prepared, chosen):
        caption = example.captions.get("original") or next(iter(example.captions.values()))
        found[caption.text] = codec.decode(example.latent[None, ..., :channels].astype(np.float32))[0]
    return found


def _square(prepared: Prepared, side: int) -> Prepared:
    """The pictures of a split that are as those a run draws. Raises UserError for fewer than two."""
    shards = tuple(shard for shard in prepared.manifest.shards if shard.size == (side, side))
    own = prepared._replace(manifest=dataclasses.replace(prepared.manifest, shards=shards))
    if own.manifest.count(own.split) < 2:
        raise UserError(
            f"{own.folder}: split {own.split} has too few pictures of {side}x{side} pixels to compare those drawn with"
        )
    return own


def loss_rows(
    run_dir: Path,
    folder: Path,
    levels: Literal["every", "round-robin"],
    weights: Literal["ema", "raw"],
    steps: Sequence[int],
    most: int | None = None,
) -> list[dict[str, Any]]:
    """The validation loss of checkpoints on a prepared set (paper section 5.2.1), on all of it or ``most`` examples.

    Raises UserError for a run of scenes, and for a set that is too small, or was encoded otherwise than the run's.
    """
    config = records.load_config(run_dir)
    trained = conditioning.manifest_of(config, run_dir)
    there = encoded.split_of(read_manifest(folder), trained)[1]
    count = there if most is None else min(there, most)
    if levels == "round-robin" and count < checks.LEAST_ROBIN:
        raise UserError(
            f"{folder}: has {count} examples; levels round-robin needs {checks.LEAST_ROBIN}, two of each level"
        )
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
