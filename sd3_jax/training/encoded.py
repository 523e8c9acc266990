"""Prepared sets in training: which ones a run reads, and rows of hosts as examples on the device."""

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt32

from sd3_jax import records
from sd3_jax.config import RunConfig
from sd3_jax.data import examples, latents, scenes
from sd3_jax.data.examples import Manifest, read_manifest, to_dict
from sd3_jax.data.latents import Prepared, Rows
from sd3_jax.errors import UserError
from sd3_jax.flow import timesteps
from sd3_jax.training import group, sharding
from sd3_jax.training.step import Examples


class Sets(NamedTuple):
    """What a run reads."""

    train: Prepared
    held: Prepared  # with the shift and scale of the set that is trained on
    origin: dict[str, Any]  # what the records say of them


def find(config: RunConfig, run_dir: Path, branch_from: Path | None = None) -> Sets:
    """The sets that ``config.data`` names, if they fit it and are those that the run began with.

    Writes nothing. Raises UserError in all processes if it does in one.
    """
    failure = None
    try:
        train, held = look(config)
        manifests = _manifests(config, train, held)
        if jax.process_index() == 0:
            for folder in filter(None, (run_dir, branch_from)):
                for name, manifest in manifests.items():
                    _check_same(folder / records.MANIFESTS[name], manifest)
    except UserError as error:
        failure = error
    group.together(failure)
    digests = {name: manifest.digest for name, manifest in manifests.items()}
    for name, digest in digests.items():
        if group.agreed(int(digest, 16) >> 1) != int(digest, 16) >> 1:
            failure = UserError(f"data: process {jax.process_index()} has another {name} set than process 0")
    group.together(failure)
    return Sets(train, held, digests)


def keep(sets: Sets, config: RunConfig, run_dir: Path) -> None:
    """Copy the manifests of what a run reads into its directory, when it begins."""
    for name, manifest in _manifests(config, sets.train, sets.held).items():
        path = run_dir / records.MANIFESTS[name]
        if not path.exists():
            records.write_atomic(path, json.dumps(to_dict(manifest), indent=1) + "\n")


def _manifests(config: RunConfig, train: Prepared, held: Prepared) -> dict[str, Manifest]:
    """Of the sets that a run reads, by their names in ``records.MANIFESTS``; one that does both is named once."""
    return {"data": train.manifest, **({"validation": held.manifest} if config.data.validation else {})}


def look(config: RunConfig) -> tuple[Prepared, Prepared]:
    """What a run trains on and what its loss is measured on. Raises UserError for sets that do not fit it."""
    train = Prepared(Path(config.data.path), read_manifest(Path(config.data.path)), "train")
    latents.check_fits(config, train)
    return train, find_held(config, Path(config.data.validation or config.data.path), train.manifest)


def find_held(config: RunConfig, folder: Path, trained: Manifest) -> Prepared:
    """The split of a set that the loss is measured on: validation, or all of a set that has none and is another one.

    Raises UserError for a set that was encoded otherwise than ``trained``, or that is too small.
    """
    manifest = read_manifest(folder)
    split, count = split_of(manifest, trained)
    of = lambda one: [(part.name, part.digest, part.tokenizer, part.tokens) for part in one.parts]  # noqa: E731
    if of(manifest) != of(trained):
        raise UserError(f"{folder}: its text encoders are others than those of what is trained on")
    ours, theirs = trained.autoencoder, manifest.autoencoder
    if (ours.digest, ours.channels, ours.downsample) != (theirs.digest, theirs.channels, theirs.downsample):
        raise UserError(f"{folder}: its autoencoder is another than that of what is trained on")
    same = dataclasses.replace(theirs, shift=ours.shift, scale=ours.scale)
    prepared = Prepared(folder, dataclasses.replace(manifest, autoencoder=same), split)
    wanted = config.evaluation.examples
    if not count:
        raise UserError(f"{folder}: holds nothing out to validate on; prepare it so, or name a set in data.validation")
    if count < wanted:
        raise UserError(f"{folder}: has {count} examples of split {split}; --set evaluation.examples={count} or fewer")
    latents.check_fits(config, prepared)
    return prepared


def split_of(manifest: Manifest, trained: Manifest) -> tuple[str, int]:
    """Which split of a set a loss is measured on, and how many examples it has."""
    split = "validation" if manifest.digest == trained.digest or manifest.count("validation") else "train"
    return split, manifest.count(split)


def _check_same(path: Path, manifest: Manifest) -> None:
    """Refuse to go on with other examples than those that a run began with."""
    if path.exists() and (digest := read_manifest(path.parent, path.name).digest) != manifest.digest:
        raise UserError(
            f"{path.parent}: began with other examples (set {digest}) than are there now ({manifest.digest}); "
            "a run goes on with those that it began with"
        )


def make_draw(config: RunConfig, mesh: Mesh, prepared: Prepared) -> Any:
    """``draw(seed, step) -> Examples``, as :func:`sd3_jax.training.step.make_draw`; steps in order cost least.

    Noise, timesteps and which parts are dropped come from each example's own key, whatever the mesh.
    """
    place = sharding.batch_sharding(mesh)
    rows = local_rows(mesh, config.batch)
    read: Iterator[Rows] | None = None
    expected = 0

    @partial(jax.jit, out_shardings=place)
    def finish(stored: Rows, seed: UInt32[Array, ""], step: Int[Array, ""]) -> Examples:
        key = jax.vmap(lambda i: scenes.example_key(seed, scenes.TRAIN, step, i))(jnp.arange(config.batch))
        key = jax.lax.with_sharding_constraint(key, place)
        data_key, eps_key, t_key = jnp.unstack(jax.vmap(lambda k: jax.random.split(k, 3))(key), axis=1)
        batch = decode(stored, data_key, prepared.manifest, config.data.text_dropout)
        eps = jax.vmap(lambda k: jax.random.normal(k, batch.x0.shape[1:]))(eps_key)
        return Examples(batch, eps, jax.vmap(lambda k: timesteps.sample(k, config.flow))(t_key))

    def draw(seed: Any, step: Any) -> Examples:
        nonlocal read, expected
        if read is None or int(step) != expected:
            read = latents.batches(config, prepared, rows, int(step), int(seed))
        expected = int(step) + 1
        return finish(onto(mesh, next(read), rows, config.batch), seed, step)

    return draw


def decode(stored: Rows, keys: Key[Array, "b"], manifest: Manifest, dropout: float) -> scenes.Batch:
    """What the network is trained on: latents drawn and normalised, each part of the text in its place or dropped."""
    b, h, w, _ = stored.latent.shape
    split = jax.vmap(jax.random.split)(keys)
    shape = (h, w, manifest.autoencoder.channels)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(split[:, 0]) if manifest.autoencoder.moments else None
    kept = jax.vmap(lambda k: jax.random.uniform(k, (len(manifest.parts),)) >= dropout)(split[:, 1])
    arrays = [(jnp.asarray(states), jnp.asarray(vector)) for states, vector in stored.parts]
    tokens, pooled = examples.place(arrays, kept, manifest)
    return scenes.Batch(examples.normalise(jnp.asarray(stored.latent), noise, manifest.autoencoder), tokens, pooled)


def local_rows(mesh: Mesh, batch: int) -> Int[np.ndarray, " n"]:
    """Which rows of a batch this process's devices hold, ascending."""
    slices = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in slices]))


def onto(mesh: Mesh, stored: Rows, rows: Int[np.ndarray, " n"], batch: int) -> Any:
    """Rows of the processes as one array each, split over the mesh; nothing passes between hosts."""

    def array(own: Float[np.ndarray, "n ..."]) -> Float[Array, "b ..."]:
        def piece(index: tuple[slice, ...] | None) -> Float[np.ndarray, "k ..."]:
            wanted = np.arange(batch)[index[0] if index else slice(None)]
            first = int(np.searchsorted(rows, wanted[0]))
            return own[first : first + len(wanted)]

        return jax.make_array_from_callback((batch, *own.shape[1:]), sharding.batch_sharding(mesh), piece)

    return jax.tree.map(array, stored)
