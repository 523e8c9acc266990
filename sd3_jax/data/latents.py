"""Reading a prepared set through Grain: a batch is a function of (seed, step), whoever reads which part of it.

Each epoch is a permutation of its own, computed index by index, so that going on at any step costs nothing, and no
number of hosts changes what is read. Every host reads its own rows alone.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int

from sd3_jax.checks import size_problem
from sd3_jax.config import RunConfig, flatten, to_dict
from sd3_jax.data.buckets import bucket_of
from sd3_jax.data.examples import DTYPES, Example, Manifest, settings, unpack
from sd3_jax.data.shards import DamagedError, Records, check_sizes
from sd3_jax.errors import UserError

AHEAD = 8  # batches that are read before they are asked for, each by a thread of its own, on a large machine
MEMORY = 2**32  # bytes that they may take, if two of them take no more
_CAPTIONS, _ORDER, _CHOICE = 1, 2, 3  # what numbers are drawn for


class Prepared(NamedTuple):
    """A split of a prepared set, and where it lies."""

    folder: Path
    manifest: Manifest
    split: str


class Rows(NamedTuple):
    """Examples of one size as they are stored: latents, and for each part of the text its states and pooled vector."""

    latent: Float[np.ndarray, "b h w _"]
    parts: tuple[tuple[Float[np.ndarray, "b tokens channels"], Float[np.ndarray, "b pooled"]], ...]


def sizes_of(config: RunConfig) -> tuple[tuple[int, int], ...]:
    """The sizes of pictures, in pixels, that a run trains on."""
    square = (config.data.image_size, config.data.image_size)
    return tuple((height, width) for height, width in config.data.buckets) or (square,)


def check_fits(config: RunConfig, prepared: Prepared) -> None:
    """Raises UserError, in one line with what to set, if a run of ``config`` cannot read this."""
    folder, manifest, split = prepared
    ours, wanted = dict(flatten(to_dict(config))), settings(manifest)
    if config.model.weight_sets != 3:
        wanted.pop("model.clip_tokens", None)
    if wrong := {key: value for key, value in wanted.items() if ours[key] != value}:
        told = " ".join(f"--set {key}={value}" for key, value in wrong.items())
        raise UserError(f"{folder}: the model and the set do not fit; {told}")
    there = sorted({shard.size for shard in manifest.shards if shard.split == split and shard.examples})
    if split == "train" and (lacking := [size for size in sizes_of(config) if size not in there]):
        buckets = str([list(size) for size in there]).replace(" ", "")
        raise UserError(
            f"{folder}: has no pictures of {lacking[0][0]}x{lacking[0][1]} pixels to train on; it has "
            + (f"those of --set data.buckets={buckets}" if there else "none at all")
        )
    if config.data.synthetic and "synthetic" not in manifest.captions:
        raise UserError(f"data.synthetic: {folder} has captions of one kind alone ({', '.join(manifest.captions)})")
    for height, width in there:
        if problem := size_problem(config.model, config.data, height, width):
            raise UserError(f"{folder}: pictures of {height}x{width} pixels: {problem}")
    try:
        check_sizes(folder, manifest)
    except DamagedError as error:
        raise UserError(str(error)) from None


def batches(
    config: RunConfig, prepared: Prepared, rows: Int[np.ndarray, " n"], start: int, seed: int
) -> Iterator[Rows]:
    """The given rows of every batch, from the one after ``start`` others on, read ahead by threads.

    Raises UserError for a record that cannot be read: a set is repaired, not silently trained on without it.
    """
    sizes, manifest = sizes_of(config), prepared.manifest
    sources = [endless(prepared, size, _seed(seed, _ORDER, i)) for i, size in enumerate(sizes)]

    def read(step: int) -> Rows:
        cycle, bucket = step // len(sizes), bucket_of(seed, step, len(sizes))  # each bucket comes once a cycle
        chosen = []
        for position in cycle * config.batch + rows:
            synthetic = config.data.synthetic and _uniform(seed, bucket, int(position)) < config.data.synthetic
            chosen.append((_read(sources[bucket], int(position), prepared), "synthetic" if synthetic else "original"))
        return collate(chosen, manifest)

    return _ahead(grain.MapDataset.range(start, start + 2**40).map(read), len(rows) * _bytes_each(prepared))


def endless(prepared: Prepared, size: tuple[int, int], seed: int) -> grain.MapDataset:
    """The records of one size, epoch after epoch, each in an order of its own."""
    shards = [shard for shard in prepared.manifest.shards if (shard.split, shard.size) == (prepared.split, size)]
    return grain.MapDataset.source(Records(prepared.folder, shards)).shuffle(seed).repeat()


class Chosen(NamedTuple):
    """Examples of one size among those that a loss is measured on."""

    rank: Int[np.ndarray, " n"]  # of each among all of them: what its noise, and its level, are a function of
    record: Int[np.ndarray, " n"]  # among the records of the split


def choose(prepared: Prepared, count: int, seed: int) -> list[Chosen]:
    """``count`` examples of a split, drawn without replacement, by size of picture."""
    shards = [shard for shard in prepared.manifest.shards if shard.split == prepared.split]
    index = np.random.RandomState([seed, _CHOICE]).permutation(sum(shard.examples for shard in shards))[:count]
    shard = np.searchsorted(np.cumsum([shard.examples for shard in shards]), index, side="right")
    groups = []
    for size in sorted({shard.size for shard in shards}):
        rank = np.flatnonzero([shards[i].size == size for i in shard])
        if len(rank):
            groups.append(Chosen(rank, index[rank]))
    return groups


def read_chunks(prepared: Prepared, chunks: Sequence[Int[np.ndarray, " n"]]) -> Iterator[Rows]:
    """The records of a split at these indices, read ahead by threads; original captions. Errors of :func:`batches`."""
    records = Records(prepared.folder, [s for s in prepared.manifest.shards if s.split == prepared.split])

    def read(chunk: int) -> Rows:
        examples = [_read(records, int(i), prepared) for i in chunks[chunk]]
        return collate([(example, "original") for example in examples], prepared.manifest)

    largest = max(map(len, chunks), default=0) * _bytes_each(prepared)
    return _ahead(grain.MapDataset.range(len(chunks)).map(read), largest)


def read_examples(prepared: Prepared, chosen: Sequence[int]) -> Iterator[Example]:
    """Some of a split's records, one by one. Errors of :func:`batches`."""
    records = Records(prepared.folder, [s for s in prepared.manifest.shards if s.split == prepared.split])
    for i in chosen:
        yield _read(records, int(i), prepared)


def _bytes_each(prepared: Prepared) -> float:
    """Of an example, on the mean."""
    shards = [shard for shard in prepared.manifest.shards if shard.split == prepared.split]
    return sum(shard.bytes for shard in shards) / max(sum(shard.examples for shard in shards), 1)


def _ahead(read: grain.MapDataset, size: float) -> Iterator[Rows]:
    """Read in threads, as many batches of ``size`` bytes ahead as memory is set aside for; two at least."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(2, min(AHEAD, cpus, int(MEMORY / max(size, 1))))
    steps = read.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    try:
        yield from steps
    except UserError as error:  # to whose message Grain has added lines of its own
        raise UserError(str(error).partition("\n")[0]) from None


def _read(source: Any, position: int, prepared: Prepared) -> Example:
    try:
        return unpack(source[position], prepared.manifest)
    except DamagedError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"{prepared.folder}: record {position} of split {prepared.split}: {error}") from None


def collate(chosen: Sequence[tuple[Example, str]], manifest: Manifest) -> Rows:
    """Examples of one size, each with the kind of caption that is read, or its first where it has none of that kind."""
    dtype, count = DTYPES[manifest.dtype], len(chosen)
    latent = np.empty((count, *chosen[0][0].latent.shape), dtype)
    parts = tuple(
        (np.empty((count, part.tokens, part.channels), dtype), np.empty((count, part.pooled), dtype))
        for part in manifest.parts
    )
    for i, (example, kind) in enumerate(chosen):
        latent[i] = example.latent
        caption = example.captions.get(kind) or next(iter(example.captions.values()))
        for part, (states, pooled) in zip(manifest.parts, parts, strict=True):
            states[i], pooled[i] = caption.parts[part.name]
    return Rows(latent, parts)


def _uniform(seed: int, *numbers: int) -> float:
    """In [0, 1): a function of the numbers alone (NumPy never changes this stream, NEP 19)."""
    return np.random.RandomState(
        [seed, _CAPTIONS, *(part for n in numbers for part in divmod(n, 2**32))]
    ).random_sample()


def _seed(seed: int, domain: int, number: int) -> int:
    """A seed for Grain's shuffle, whose next epoch has the next number: seeds of runs must not follow one another."""
    return int(np.random.RandomState([seed, domain, number]).randint(0, 2**32, dtype=np.uint32))
