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
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sd3_jax import records
from sd3_jax.data import examples, pictures, shards
from sd3_jax.data.examples import MANIFEST, Caption, Example, Manifest, Shard
from sd3_jax.data.frozen import ImageCodec, TextEncoder, arrange
from sd3_jax.data.pictures import Picture, Unreadable
from sd3_jax.data.sources import Item, Source
from sd3_jax.errors import UserError

PIECE = 500  # items: what is done again after a kill, and what memory holds at a time
SETTINGS, PIECES, SKIPPED = ".prepare.json", ".pieces", "skipped.jsonl"
LONGEST = 20_000  # characters of a caption; a text that is longer is none

Report = Callable[[int, int, int], None]  # items that were looked at, chunks that are done, chunks in all


@dataclass(frozen=True)
class Recipe:
    """How pictures become examples."""

    size: int = 256  # pixels on a side of the square
    buckets: tuple[tuple[int, int], ...] = ()  # height and width; a picture goes into the nearest. (): the square
    least: int = 1  # pixels that the shorter side of a picture must have
    hold_out: float = 0.0  # share that is held out, by a hash of each picture's name, if the source does not say
    dtype: str = "float16"
    licence: str = ""  # of all whose source does not say

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Of the pictures that are encoded."""
        return self.buckets or ((self.size, self.size),)


class Encoders(NamedTuple):
    """What encodes: one autoencoder, and text encoders that stand where ``arrange`` puts them."""

    image: ImageCodec
    texts: Sequence[TextEncoder]
    batch: int = 32


class _Ready(NamedTuple):
    """An item that can be encoded."""

    item: Item
    picture: Picture
    split: str


class _Skipped(NamedTuple):
    """A picture that cannot be used, and why."""

    id: str
    reason: str


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

    ``left_out``: why a picture, by its id, is not wanted. Raises UserError if ``out`` holds something else, and OSError
    for a disk that is full: what was done stays done.
    """
    left_out = left_out or {}
    _check(recipe, encoders)
    _claim(out, source, recipe, encoders, left_out)
    looked, chunks = 0, list(enumerate(source.chunks))[part[0] - 1 :: part[1]]
    with ThreadPoolExecutor(workers) as threads:
        for done, (number, chunk) in enumerate(chunks):
            if not _is_done(out, number):
                for place, last, own in _todo(out, number, chunk.items(), recipe, left_out, threads):
                    _write_piece(out, number, place, last, own, recipe, encoders)
                    looked += len(own)
                    report(looked, done, len(chunks))
            report(looked, done + 1, len(chunks))
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
        "batch": encoders.batch,  # which may change the last bits of what an encoder gives
        "source": f"{source.kind}, {len(source.chunks)} chunks, {_hash([chunk.name for chunk in source.chunks])}"
        + ("" if source.items is None else f", {source.items} pictures"),
        "left out": f"{len(left_out)} pictures, {_hash(left_out)}",
    }
    asked = json.loads(json.dumps(asked))
    path = out / SETTINGS
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(not p.name.startswith(f".{SETTINGS}.") for p in out.iterdir())):
            raise UserError(f"{out}: is there already, and is no preparation; name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        records.write_atomic(path, json.dumps(asked, indent=1) + "\n")
        return
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


def _pieces(out: Path, number: int) -> Iterator[dict[str, Any]]:
    """What the pieces of a chunk gave, as far as they are done without a gap."""
    place = 0
    while (path := _piece(out, number, place)).exists():
        yield _read_json(path)
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
) -> Iterator[tuple[int, bool, list[_Ready | _Skipped]]]:
    """The pieces of a chunk that are not done: place, whether it is the last, and its pictures, decoded one ahead."""
    count = max(-(-len(items) // PIECE), 1)
    places = [place for place in range(count) if not _piece(out, number, place).exists()]

    def begin(place: int) -> list[Future[_Ready | _Skipped]]:
        own = items[place * PIECE : (place + 1) * PIECE]
        return [threads.submit(_read, item, recipe, left_out.get(item.id, "")) for item in own]

    following = begin(places[0]) if places else []
    for place, after in zip(places, [*places[1:], None], strict=True):
        reading, following = following, begin(after) if after is not None else []
        yield place, place == count - 1, [future.result() for future in reading]


def _read(item: Item, recipe: Recipe, unwanted: str) -> _Ready | _Skipped:
    """Decode a picture, and look at its captions."""
    try:
        if unwanted:
            raise Unreadable(unwanted)
        _check_text(item.id, "name")
        _check_text(item.licence, "licence")
        if item.split not in ("", "train", "validation"):
            raise Unreadable("is of a split that is neither train nor validation")
        data = item.read()
        captions = {kind: text for kind, text in item.captions.items() if text}
        if not captions:
            raise Unreadable("has no caption")
        for text in captions.values():
            _check_text(text, "caption")
        picture = pictures.read(data, recipe.sizes, recipe.least)
    except Unreadable as error:
        return _Skipped(item.id, str(error))
    except OSError as error:
        return _Skipped(item.id, f"cannot be read ({error.strerror or error})")
    share = int(hashlib.sha256(item.id.encode()).hexdigest()[:8], 16) / 2**32
    return _Ready(
        item._replace(captions=captions), picture, item.split or ("validation" if share < recipe.hold_out else "train")
    )


def _check_text(text: str, what: str) -> None:
    if len(text) > LONGEST:
        raise Unreadable(f"has a {what} of more than {LONGEST:,} characters")
    if "\ufffd" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Unreadable(f"has a {what} that is not UTF-8")
    if any(unicodedata.category(letter) == "Cc" and letter not in "\t\n\r" for letter in text):
        raise Unreadable(f"has a {what} with control characters")


def _write_piece(
    out: Path,
    number: int,
    place: int,
    last: bool,
    own: Sequence[_Ready | _Skipped],
    recipe: Recipe,
    encoders: Encoders,
) -> None:
    """Encode the pictures and captions of a piece, write its shards, and then what says that it is done."""
    ready = [one for one in own if isinstance(one, _Ready)]
    latents = _latents(ready, encoders, recipe.dtype)
    spoken = _captions(ready, encoders, recipe.dtype)
    groups: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    for i, (_, picture, split) in enumerate(ready):
        groups[split, picture.pixels.shape[:2]].append(i)
    written = []
    for (split, size), chosen in sorted(groups.items()):
        name = f"{split}-{number:05d}-{place:03d}" + (f"-{size[0]}x{size[1]}" if recipe.buckets else "")
        path = out / f"{name}.array_record"
        packed = (
            examples.pack(
                Example(
                    ready[i].item.id,
                    latents[i],
                    {kind: Caption(text, spoken[text]) for kind, text in ready[i].item.captions.items()},
                    ready[i].picture.size,
                    ready[i].picture.crop,
                    ready[i].item.licence or recipe.licence,
                ),
                recipe.dtype,
            )
            for i in chosen
        )
        written.append(asdict(Shard(path.name, split, size, *shards.write(path, packed))))  # type: ignore[arg-type]
    row = {
        "last": last,
        "shards": written,
        "captions": sorted({kind for one in ready for kind in one.item.captions}),
        "licences": Counter(one.item.licence or recipe.licence for one in ready),
        "moments": _sums([latents[i] for i, one in enumerate(ready) if one.split == "train"], encoders),
        "skipped": [one._asdict() for one in own if isinstance(one, _Skipped)],
    }
    records.write_atomic(_piece(out, number, place), json.dumps(row) + "\n")


def _latents(ready: Sequence[_Ready], encoders: Encoders, dtype: str) -> list[Float[np.ndarray, "h w _"]]:
    """Encoded in batches of one size each; a batch that is not full is filled up, so that each is computed alike."""
    found: dict[int, Float[np.ndarray, "h w _"]] = {}
    by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, one in enumerate(ready):
        by_size[one.picture.pixels.shape].append(i)
    for chosen in by_size.values():
        for full in _filled(chosen, encoders.batch):
            encoded = encoders.image.encode(np.stack([ready[i].picture.pixels for i in full]))
            found |= dict(zip(full, encoded.astype(examples.DTYPES[dtype]), strict=True))
    return [found[i] for i in range(len(ready))]


def _captions(ready: Sequence[_Ready], encoders: Encoders, dtype: str) -> dict[str, dict[str, Any]]:
    """What each text encoder makes of each caption, of both kinds."""
    texts = sorted({text for one in ready for text in one.item.captions.values()})
    found: dict[str, dict[str, Any]] = {text: {} for text in texts}
    for encoder in encoders.texts:
        for full in _filled(texts, encoders.batch):
            states, pooled = (x.astype(examples.DTYPES[dtype]) for x in encoder.encode(full))
            for text, own, vector in zip(full, states, pooled, strict=True):
                found[text][encoder.part.name] = own, vector
    return found


def _filled(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Batches of ``size``, the last filled up with its last item."""
    for start in range(0, len(items), size):
        own = list(items[start : start + size])
        yield own + own[-1:] * (size - len(own))


def _sums(latents: Sequence[Float[np.ndarray, "h w _"]], encoders: Encoders) -> dict[str, Any]:
    """Of each channel of the latents (of their means): how many numbers, their sum, and that of their squares."""
    channels = encoders.image.described.channels
    flat = [latent[..., :channels].reshape(-1, channels).astype(np.float64) for latent in latents]
    table = np.concatenate(flat) if flat else np.zeros((0, channels))
    return {"count": len(table), "sum": table.sum(0).tolist(), "squares": (table**2).sum(0).tolist()}


# --- the end ----------------------------------------------------------------------------------------------------
def _finish(out: Path, source: Source, recipe: Recipe, encoders: Encoders, origin: str) -> Manifest:
    """The manifest and the list of what was skipped, from what the pieces gave."""
    pieces = [piece for number in range(len(source.chunks)) for piece in _pieces(out, number)]
    skipped = [row for piece in pieces for row in piece["skipped"]]
    written = tuple(Shard(**{**shard, "size": tuple(shard["size"])}) for piece in pieces for shard in piece["shards"])
    if not written:
        why = Counter(row["reason"] for row in skipped).most_common(1)
        raise UserError(
            f"{out}: not one picture could be used" + (f"; {why[0][1]:,} times: {why[0][0]}" if why else "")
        )
    captions = {kind for piece in pieces for kind in piece["captions"]}
    licences: Counter[str] = sum((Counter(piece["licences"]) for piece in pieces), Counter())
    statistics = _statistics([piece["moments"] for piece in pieces])
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
