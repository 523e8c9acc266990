"""A piece of a preparation: some items are decoded, then encoded, then written. It is a function of them alone."""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sd3_jax.data import examples, pictures, shards
from sd3_jax.data.examples import Caption, Example, Shard
from sd3_jax.data.frozen import ImageCodec, TextEncoder
from sd3_jax.data.pictures import Picture, Unreadable
from sd3_jax.data.sources import Item

LONGEST = 20_000  # characters of a caption; a text that is longer is none


@dataclass(frozen=True)
class Recipe:
    """How pictures become examples."""

    size: int = 256  # pixels on a side of the square
    buckets: tuple[tuple[int, int], ...] = ()  # height and width; a picture goes into the nearest. (): the square
    least: int = 1  # pixels that the shorter side of a picture must have
    hold_out: float = 0.0  # share that is held out, by a hash of each picture's name, if the source does not say
    dtype: str = "float16"
    licence: str = ""  # of all whose source does not say
    keep: tuple[str, ...] = ()  # limits on the source's columns, as it was asked for

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Of the pictures that are encoded."""
        return self.buckets or ((self.size, self.size),)


class Encoders(NamedTuple):
    """What encodes: one autoencoder, and text encoders that stand where ``arrange`` puts them."""

    image: ImageCodec
    texts: Sequence[TextEncoder]
    batch: int = 32
    compute: str = "float32"  # of their networks


class Ready(NamedTuple):
    """An item that can be encoded."""

    item: Item
    picture: Picture
    split: str


class Skipped(NamedTuple):
    """A picture that cannot be used, and why."""

    id: str
    reason: str


def look(item: Item, recipe: Recipe, unwanted: str = "") -> Ready | Skipped:
    """Decode a picture, and look at its captions. ``unwanted``: why it is to be left out, if it is."""
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
        return Skipped(item.id, str(error))
    except OSError as error:
        return Skipped(item.id, f"cannot be read ({error.strerror or error})")
    return Ready(item._replace(captions=captions), picture, split_of(item, recipe))


def split_of(item: Item, recipe: Recipe) -> str:
    """Where an item belongs: where its source says, or by a hash of its name."""
    share = int(hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) / 2**32
    return item.split or ("validation" if share < recipe.hold_out else "train")


def _check_text(text: str, what: str) -> None:
    if len(text) > LONGEST:
        raise Unreadable(f"has a {what} of more than {LONGEST:,} characters")
    if "\ufffd" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Unreadable(f"has a {what} that is not UTF-8")
    if any(unicodedata.category(letter) == "Cc" and letter not in "\t\n\r" for letter in text):
        raise Unreadable(f"has a {what} with control characters")


def write(
    out: Path, name: str, looked_at: Sequence[Ready | Skipped], recipe: Recipe, encoders: Encoders
) -> dict[str, Any]:
    """Encode pictures and captions, write a shard for each split and size, and say what was done, as JSON has it."""
    ready = [one for one in looked_at if isinstance(one, Ready)]
    latents = _latents(ready, encoders, recipe.dtype)
    spoken = _captions(ready, encoders, recipe.dtype)
    groups: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    for i, (_, picture, split) in enumerate(ready):
        groups[split, picture.pixels.shape[:2]].append(i)
    written = []
    for (split, size), chosen in sorted(groups.items()):
        file = f"{split}-{name}" + (f"-{size[0]}x{size[1]}" if recipe.buckets else "")
        path = out / f"{file}.array_record"
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
    return {
        "shards": written,
        "captions": sorted({kind for one in ready for kind in one.item.captions}),
        "licences": Counter(one.item.licence or recipe.licence for one in ready),
        "moments": _sums([latents[i] for i, one in enumerate(ready) if one.split == "train"], encoders),
        "skipped": [one._asdict() for one in looked_at if isinstance(one, Skipped)],
    }


def _latents(ready: Sequence[Ready], encoders: Encoders, dtype: str) -> list[Float[np.ndarray, "h w _"]]:
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


def _captions(ready: Sequence[Ready], encoders: Encoders, dtype: str) -> dict[str, dict[str, Any]]:
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
