"""Finding duplicates in a source before it is encoded: descriptors chunk by chunk, then pairs, then who goes.

::

    OUT/.descriptors/settings.json  what is described, and by what
    OUT/.descriptors/00012.npz      places, ids and descriptors of a chunk; with it, it is done
    OUT/duplicates.json             threshold, the settings, counts at other thresholds, and why each picture goes

Several machines may describe a share of the chunks each. Who goes is decided once, by the first that finds all chunks
described, and read by the others: every part leaves out the same pictures.
"""

import io
import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sd3_jax import records
from sd3_jax.data import duplicates, sources
from sd3_jax.data.duplicates import Found
from sd3_jax.data.pieces import Ready, Recipe, look
from sd3_jax.data.sources import Chunk, Source, place_of
from sd3_jax.errors import UserError

FOLDER, SETTINGS, RESULT = ".descriptors", "settings.json", "duplicates.json"
BATCH = 256


class Descriptor(NamedTuple):
    """What pictures are compared by; unit vectors, or to be whitened over the set."""

    name: str
    side: int  # pixels of the squares that it sees
    describe: Callable[[UInt8[np.ndarray, "b s s 3"]], Float[np.ndarray, "b d"]]
    whitened: bool


WAVES = Descriptor("waves-1", duplicates.SIDE, duplicates.describe, whitened=False)


def deduplicate(
    source: Source,
    out: Path,
    threshold: float,
    descriptor: Descriptor = WAVES,
    least: int = 1,
    part: tuple[int, int] = (1, 1),
    workers: int = 2,
    report: Callable[[int, int, int], None] = lambda looked, done, chunks: None,
) -> Found | None:
    """Which pictures of a source go, and why; None while other parts have chunks that are not described.

    ``least``: pixels that the shorter side of a picture must have; one that is not used is nobody's original.
    Raises UserError where ``out`` holds the answer to another question.
    """
    settings = {"descriptor": descriptor.name, "least": least, "source": sources.tell_apart(source)}
    asked = {"threshold": threshold, **settings}
    if (out / RESULT).exists():
        return _read(out / RESULT, asked)
    if (out / FOLDER / SETTINGS).exists():
        _check(out / FOLDER / SETTINGS, settings)
    else:
        records.write_atomic(out / FOLDER / SETTINGS, json.dumps(settings) + "\n")
    looked, chunks = 0, list(enumerate(source.chunks))[part[0] - 1 :: part[1]]
    with ThreadPoolExecutor(workers) as threads:
        for done, (number, chunk) in enumerate(chunks):
            path = out / FOLDER / f"{number:05d}.npz"
            if not path.exists():
                looked += _describe(chunk, path, descriptor, least, threads)
            report(looked, done + 1, len(chunks))
    paths = [out / FOLDER / f"{number:05d}.npz" for number in range(len(source.chunks))]
    if not all(path.exists() for path in paths):
        return None
    parts = [_described(path) for path in paths]
    ids = [name for part in parts for name in part.ids]
    if not ids:
        return Found({}, {}, [])
    places = [place_of(number, place) for number, part in enumerate(parts) for place in part.places]
    raw = np.concatenate([part.descriptors for part in parts if part.ids])
    found = duplicates.find(places, ids, raw if descriptor.whitened else duplicates.whiten(raw), threshold)
    if not (out / RESULT).exists():
        records.write_atomic(out / RESULT, json.dumps(asked | found._asdict()) + "\n")
    return _read(out / RESULT, asked)


class _Described(NamedTuple):
    """The pictures of a chunk that could be read."""

    places: list[int]  # in the chunk
    ids: list[str]
    descriptors: Float[np.ndarray, "n d"]


def _described(path: Path) -> _Described:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return _Described(kept["places"].tolist(), kept["ids"].tolist(), kept["descriptors"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise _not_ours(path) from None


def _read(path: Path, asked: dict) -> Found:
    tree = _check(path, asked)
    try:
        return Found(tree["left_out"], tree["counts"], [(a, b, float(s)) for a, b, s in tree["pairs"]])
    except (ValueError, KeyError, TypeError):
        raise _not_ours(path) from None


def _check(path: Path, asked: dict) -> dict:
    """A small file of ours, if it is the answer to this question."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        differ = [f"{key} {tree[key]} -> {value}" for key, value in asked.items() if tree[key] != value]
    except (ValueError, KeyError, TypeError):
        raise _not_ours(path) from None
    if differ:
        raise UserError(f"{path}: was found otherwise ({'; '.join(differ)}); name a new folder, or delete this one")
    return tree


def _not_ours(path: Path) -> UserError:
    return UserError(f"{path}: is not what sd3-jax prepare wrote; delete it, and run the same command again")


def _describe(chunk: Chunk, path: Path, descriptor: Descriptor, least: int, threads: ThreadPoolExecutor) -> int:
    """Describe the pictures of a chunk that can be read; how many items it has."""
    items, recipe = chunk.items(), Recipe(descriptor.side, least=least)
    places, ids, vectors = list[int](), list[str](), list[Float[np.ndarray, "b d"]]()
    for first in range(0, len(items), BATCH):
        looked = enumerate(threads.map(lambda item: look(item, recipe), items[first : first + BATCH]), first)
        ready = {place: one for place, one in looked if isinstance(one, Ready)}
        if ready:
            pixels = np.stack([one.picture.pixels for one in ready.values()])
            vectors.append(descriptor.describe(pixels).astype(np.float32))
            places += ready
            ids += [one.item.id for one in ready.values()]
    table = np.concatenate(vectors) if vectors else np.zeros((0, 0))
    buffer = io.BytesIO()
    np.savez(buffer, places=np.array(places, int), ids=np.array(ids, dtype=str), descriptors=table)
    records.write_atomic(path, buffer.getvalue())
    return len(items)
