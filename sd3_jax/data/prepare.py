"""Preparing a set: pictures and captions go through frozen encoders once, and records of them are written.

::

    OUT/.prepare.json               what was asked for: another answer needs another folder
    OUT/.pieces/00012-003.json      what the fourth piece of a source's thirteenth chunk gave; with it, it is done
    OUT/train-00012-003.array_record
    OUT/skipped.jsonl, manifest.json   written last, from the pieces

A piece is done whole or not at all, and is a function of its items and of the encoders alone. So a preparation that is
killed, and run again, gives the same files bit for bit, and several machines may each do a share of the chunks.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sd3_jax import records
from sd3_jax.data import deduplication, examples, pieces, sources
from sd3_jax.data.examples import MANIFEST, Manifest, Shard
from sd3_jax.data.frozen import arrange
from sd3_jax.data.pieces import Encoders, Ready, Recipe, Skipped, look, split_of
from sd3_jax.data.sources import Item, Source
from sd3_jax.errors import UserError

PIECE = 500  # items: what is done again after a kill, and what memory holds at a time
SETTINGS, PIECES, SKIPPED = ".prepare.json", ".pieces", "skipped.jsonl"

Report = Callable[[int, int, int], None]  # items that were looked at, chunks that are done, chunks in all


def prepare(
    source: Source,
    out: Path,
    recipe: Recipe,
    encoders: Encoders,
    *,
    origin: str = "",
    part: tuple[int, int] = (1, 1),
    left_out: Mapping[str, str] | None = None,
    workers: int = 2,
    report: Report = lambda looked, done, chunks: None,
) -> Manifest | None:
    """Do what is left of a preparation, or of part k of n; the manifest, once all parts are done, and None before.

    ``left_out``: why a picture is not wanted, by ``sources.place_of``. Raises UserError if ``out`` holds something
    else, and OSError for a disk that is full: what was done stays done.
    """
    left_out = left_out or {}
    _check(recipe, encoders)
    _claim(out, source, recipe, encoders, left_out)
    looked, chunks = 0, list(enumerate(source.chunks))[part[0] - 1 :: part[1]]
    threads = ThreadPoolExecutor(workers)
    try:
        for done, (number, chunk) in enumerate(chunks):
            report(looked, done, len(chunks))
            if not _is_done(out, number):
                for place, last, own in _todo(out, number, chunk.items(), recipe, left_out, threads):
                    row = {"last": last, **pieces.write(out, f"{number:05d}-{place:03d}", own, recipe, encoders)}
                    records.write_atomic(_piece(out, number, place), json.dumps(row) + "\n")
                    looked += len(own)
                    report(looked, done, len(chunks))
            report(looked, done + 1, len(chunks))
    finally:
        threads.shutdown(cancel_futures=True)  # who interrupts does not wait for what is decoded ahead
    if not all(_is_done(out, number) for number in range(len(source.chunks))):
        return None
    return _finish(out, source, recipe, encoders, origin)


# --- what is asked for ------------------------------------------------------------------------------------------
def _check(recipe: Recipe, encoders: Encoders) -> None:
    unit = encoders.image.described.downsample
    for height, width in ((recipe.size, recipe.size), *recipe.buckets):
        if height % unit or width % unit or min(height, width) < unit:
            raise UserError(f"pictures of {height}x{width} pixels: a side is no multiple of the autoencoder's {unit}")
    names = [text.part.name for text in encoders.texts]
    if len(set(names)) < len(names):
        raise UserError(f"--text: {max(names, key=names.count)} is given twice")


def _claim(out: Path, source: Source, recipe: Recipe, encoders: Encoders, left_out: Mapping[str, str]) -> None:
    """Make the folder, or see that it is of this very preparation. Raises UserError with what differs."""
    asked = {
        **asdict(recipe),
        "autoencoder": _plain(encoders.image.described),
        **{f"text {i + 1}": _plain(text.part) for i, text in enumerate(encoders.texts)},
        "compute": encoders.compute,
        "batch": encoders.batch,  # which may change the last bits of what an encoder gives
        "source": sources.tell_apart(source),
        "left out": f"{len(left_out)} pictures, {_hash(left_out)}",
    }
    asked = json.loads(json.dumps(asked))
    path = out / SETTINGS
    if not path.exists():
        ours = (f".{SETTINGS}.", deduplication.FOLDER, deduplication.RESULT)
        strange = out.exists() and (not out.is_dir() or any(not p.name.startswith(ours) for p in out.iterdir()))
        if not path.exists():  # still: another part may have begun meanwhile
            if strange:
                raise UserError(f"{out}: is there already, and is no preparation; name a new folder")
            out.mkdir(parents=True, exist_ok=True)
            records.write_atomic(path, json.dumps(asked, indent=1) + "\n")
    before = _read_json(path)
    keys = [key for key in {**before, **asked} if before.get(key) != asked.get(key)]
    if keys:
        differ = "; ".join(f"{key}: {before.get(key)} -> {asked.get(key)}" for key in keys)
        raise UserError(f"{out}: was begun otherwise ({differ}); name a new folder, or delete this one")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _plain(described: Any) -> dict[str, Any]:
    """What an encoder is, wherever it was loaded from."""
    return {key: value for key, value in asdict(described).items() if key != "source"}


def _read_json(path: Path) -> dict[str, Any]:
    """One of our own small files."""
    with suppress(ValueError):
        if isinstance(tree := json.loads(path.read_text(encoding="utf-8")), dict):
            return tree
    raise UserError(f"{path}: is not what sd3-jax prepare wrote; delete it, and run the same command again")


# --- pieces -----------------------------------------------------------------------------------------------------
def _piece(out: Path, number: int, place: int) -> Path:
    return out / PIECES / f"{number:05d}-{place:03d}.json"


def _done(out: Path, number: int, place: int) -> dict[str, Any] | None:
    """What a piece gave, if it is done and all its files are still there."""
    path = _piece(out, number, place)
    if not path.exists():
        return None
    piece = _read_json(path)
    files = [(out / shard["file"], shard["bytes"]) for shard in piece["shards"]]
    return piece if all(file.exists() and file.stat().st_size == size for file, size in files) else None


def _pieces(out: Path, number: int) -> Iterator[dict[str, Any]]:
    """What the pieces of a chunk gave, as far as they are done without a gap."""
    place = 0
    while (piece := _done(out, number, place)) is not None:
        yield piece
        place += 1


def _is_done(out: Path, number: int) -> bool:
    return any(piece["last"] for piece in _pieces(out, number))


def _todo(
    out: Path,
    number: int,
    items: Sequence[Item],
    recipe: Recipe,
    left_out: Mapping[str, str],
    threads: ThreadPoolExecutor,
) -> Iterator[tuple[int, bool, list[Ready | Skipped]]]:
    """The pieces of a chunk that are not done: place, whether it is the last, and its pictures, decoded one ahead."""
    count = max(-(-len(items) // PIECE), 1)
    places = [place for place in range(count) if _done(out, number, place) is None]

    def begin(place: int) -> list[Future[Ready | Skipped]]:
        own = enumerate(items[place * PIECE : (place + 1) * PIECE], place * PIECE)
        return [threads.submit(look, item, recipe, left_out.get(sources.place_of(number, i), "")) for i, item in own]

    following = begin(places[0]) if places else []
    for place, after in zip(places, [*places[1:], None], strict=True):
        reading, following = following, begin(after) if after is not None else []
        yield place, place == count - 1, [future.result() for future in reading]


def read_pictures(where: str, size: int, split: str, hold_out: float, limit: int) -> UInt8[np.ndarray, "n H W 3"]:
    """At most so many square pictures of one split of a source, evenly spaced over it; what cannot be read is left out.

    Raises UserError if there is none.
    """
    recipe = Recipe(size, hold_out=hold_out)
    items = [item for chunk in sources.find(where).chunks for item in chunk.items() if split_of(item, recipe) == split]
    chosen = [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int))]
    with ThreadPoolExecutor(4) as threads:
        read = [one for one in threads.map(lambda item: look(item, recipe, ""), chosen) if isinstance(one, Ready)]
    if not read:
        raise UserError(f"{where}: has no picture of split {split} that can be read")
    return np.stack([one.picture.pixels for one in read])


# --- the end ----------------------------------------------------------------------------------------------------
def _finish(out: Path, source: Source, recipe: Recipe, encoders: Encoders, origin: str) -> Manifest:
    """The manifest and the list of what was skipped, from what the pieces gave."""
    done = [piece for number in range(len(source.chunks)) for piece in _pieces(out, number)]
    skipped = [row for piece in done for row in piece["skipped"]]
    written = tuple(Shard(**{**shard, "size": tuple(shard["size"])}) for piece in done for shard in piece["shards"])
    if not written:
        why = Counter(row["reason"] for row in skipped).most_common(1)
        raise UserError(
            f"{out}: not one picture could be used"
            + (f"; {why[0][1]:,} times: {why[0][0]}" if why else "")
            + "; put that right, delete the folder, and prepare it again"
        )
    captions = {kind for piece in done for kind in piece["captions"]}
    licences: Counter[str] = sum((Counter(piece["licences"]) for piece in done), Counter())
    statistics = _duplicates(out) | _statistics([piece["moments"] for piece in done])
    autoencoder = encoders.image.described
    if not autoencoder.scale:
        if not statistics.get("std"):
            raise UserError(f"{out}: no picture to train on, whose latents would give {autoencoder.source} its scale")
        autoencoder = replace(autoencoder, shift=statistics["mean"], scale=1 / statistics["std"])
    parts, tokens, text_dim, pooled_dim = arrange([text.part for text in encoders.texts])
    manifest = Manifest(
        autoencoder,
        parts,
        tokens,
        text_dim,
        pooled_dim,
        recipe.dtype,
        recipe.size,
        tuple(kind for kind in ("original", "synthetic") if kind in captions),
        written,
        len(skipped),
        dict(sorted(licences.items())),
        statistics,
        origin,
    )
    records.write_rows(out / SKIPPED, skipped)
    records.write_atomic(out / MANIFEST, json.dumps(examples.to_dict(manifest), indent=1) + "\n")
    strays = (*out.glob(".*.array_record.*"), *out.glob(f".{SETTINGS}.*"), *(out / PIECES).glob(".*"))
    for stray in strays:  # of processes that were killed
        stray.unlink(missing_ok=True)
    return manifest


def _duplicates(out: Path) -> dict[str, Any]:
    """What a manifest says of duplicates, if they were looked for."""
    path = out / deduplication.RESULT
    said = _read_json(path) if path.exists() else {}
    return {"duplicates": {key: said[key] for key in ("threshold", "descriptor", "counts")}} if said else {}


def _statistics(moments: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of the latents that are trained on, as they are stored: of all, and of each channel."""
    moments = list(moments)
    count = sum(one["count"] for one in moments)
    if not count:
        return {}
    mean = np.sum([one["sum"] for one in moments], axis=0) / count
    squares = np.sum([one["squares"] for one in moments], axis=0) / count
    channels = np.sqrt(np.maximum(squares - mean**2, 0))
    whole = float(np.sqrt(max(squares.mean() - mean.mean() ** 2, 0)))
    return {
        "mean": float(mean.mean()),
        "std": whole,
        "channel_mean": mean.tolist(),
        "channel_std": channels.tolist(),
    }
