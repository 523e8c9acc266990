"""Encoded examples: pictures as latents, captions as states of frozen text encoders, and what says how to read them.

::

    DIR/manifest.json                  what the arrays mean: autoencoder, text encoders, shapes, shards, statistics
    DIR/train-00000-000.array_record   shards, each one msgpack record to an example
    DIR/validation-00000-000.array_record
    DIR/skipped.jsonl                  pictures that could not be used, and why

A record holds what encoders gave, as they gave it: all positions of every text encoder (padded states are not zeros,
and nothing is masked), but no zeros that only fill the width of CLIP up to that of T5. Normalising latents, placing the
parts and dropping them is done on the device, by :func:`normalise` and :func:`place`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
from jaxtyping import Array, Bool, Float

from sd3_jax.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@dataclass(frozen=True)
class Autoencoder:
    """What made the latents: ``z = (latent - shift) * scale`` is what a network is trained on."""

    kind: str  # diffusers, or a name of ours: see encoders
    source: str  # the folder or hub id that it was loaded from
    digest: str  # of its weights
    channels: int
    downsample: int  # pixels to one latent pixel, f
    shift: float
    scale: float  # 0: no network has been told yet; prepare takes the mean and deviation of what it trains on
    moments: bool  # a record has mean and log-variance, [h, w, 2 c], and is sampled as it is read; else [h, w, c]


@dataclass(frozen=True)
class Part:
    """One frozen text encoder, and where its output stands in the text that a network reads (paper section 4)."""

    name: str  # clip-l, clip-g, t5, or another
    kind: str  # how it is run: see encoders
    source: str
    digest: str
    tokens: int  # positions, all of them stored
    channels: int  # of each
    pooled: int  # channels of the pooled vector; 0: it gives none
    token_start: int = 0
    channel_start: int = 0
    pooled_start: int = 0
    tokenizer: str = ""  # the files that it was read from, and their digest


@dataclass(frozen=True)
class Shard:
    """One file of records, all of one size of picture."""

    file: str
    split: Literal["train", "validation"]
    size: tuple[int, int]  # height and width in pixels
    examples: int
    bytes: int
    checksum: int  # CRC-32 of the file


@dataclass(frozen=True)
class Manifest:
    """All that a reader has to know of a prepared set."""

    autoencoder: Autoencoder
    parts: tuple[Part, ...]
    text_tokens: int
    text_dim: int
    pooled_dim: int
    dtype: str  # of latents and states: a key of DTYPES
    image_size: int  # pixels on a side of the square, whose area every bucket nearly has
    captions: tuple[str, ...]  # kinds that records may have; every record has one at least
    shards: tuple[Shard, ...]
    skipped: int = 0
    licences: Mapping[str, int] = field(default_factory=dict)  # examples of each
    statistics: Mapping[str, Any] = field(default_factory=dict)  # of latents: mean and std, also of each channel
    origin: str = ""  # in words: what was prepared
    format: int = FORMAT

    def count(self, split: str, size: tuple[int, int] | None = None) -> int:
        """Examples of a split, in all or of one size of picture."""
        return sum(s.examples for s in self.shards if s.split == split and size in (None, s.size))

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes of pictures that are trained on, ascending."""
        return tuple(sorted({shard.size for shard in self.shards if shard.split == "train"}))

    @property
    def digest(self) -> str:
        """Eight hex digits, equal for equal examples: wherever they are, and wherever their encoders were."""
        plain = to_dict(self)
        for encoder in (plain["autoencoder"], *plain["parts"]):
            del encoder["source"]
        del plain["origin"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


class Caption(NamedTuple):
    """A caption and what each part made of it: states [tokens, channels] and pooled vector [pooled]."""

    text: str
    parts: Mapping[str, tuple[Float[np.ndarray, "tokens channels"], Float[np.ndarray, " pooled"]]]


class Example(NamedTuple):
    """One record."""

    id: str
    latent: Float[np.ndarray, "h w c"]  # as the autoencoder gave it; 2 c channels with moments
    captions: Mapping[str, Caption]  # by kind
    size: tuple[int, int]  # height and width of the picture in its file, in pixels
    crop: tuple[int, int, int, int]  # top, left, height, width of what was kept of it, in its pixels
    licence: str = ""


def settings(manifest: Manifest) -> dict[str, Any]:
    """What the configuration of a run on this set must say, flat and dotted."""
    clip = [part.tokens for part in manifest.parts if part.kind == "clip"]
    size = manifest.image_size // manifest.autoencoder.downsample
    return {
        "data.source": "encoded",
        "data.image_size": manifest.image_size,
        "data.downsample": manifest.autoencoder.downsample,
        "model.latent_size": size,
        "model.latent_channels": manifest.autoencoder.channels,
        "model.text_tokens": manifest.text_tokens,
        "model.text_dim": manifest.text_dim,
        "model.pooled_dim": manifest.pooled_dim,
        **({"model.clip_tokens": clip[0]} if clip and clip[0] < manifest.text_tokens else {}),
    }


def pack(example: Example, dtype: str) -> bytes:
    """A record; arrays are rounded to ``dtype``. Equal examples give equal bytes."""
    cast = lambda array: np.ascontiguousarray(array, DTYPES[dtype]).tobytes()  # noqa: E731
    captions = {
        kind: [caption.text, {name: [cast(x) for x in arrays] for name, arrays in caption.parts.items()}]
        for kind, caption in example.captions.items()
    }
    record = [example.id, list(example.latent.shape), cast(example.latent), captions]
    return msgpack.packb([*record, list(example.size), list(example.crop), example.licence])


def unpack(record: bytes, manifest: Manifest) -> Example:
    """The example of a record; its arrays are views of the record. Raises ValueError for bytes that are none."""
    dtype, expected = DTYPES[manifest.dtype], manifest.autoencoder.channels * (1 + manifest.autoencoder.moments)
    try:
        name, shape, latent, captions, size, crop, licence = msgpack.unpackb(record)
        read = {
            kind: Caption(
                text,
                {
                    part.name: (
                        np.frombuffer(parts[part.name][0], dtype).reshape(part.tokens, part.channels),
                        np.frombuffer(parts[part.name][1], dtype).reshape(part.pooled),
                    )
                    for part in manifest.parts
                },
            )
            for kind, (text, parts) in captions.items()
        }
        height, width, _ = shape
        array = np.frombuffer(latent, dtype).reshape(height, width, expected)
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a record of this set ({error})") from None
    return Example(name, array, read, tuple(size), tuple(crop), licence)


def normalise(
    latent: Float[Array, "b h w _"], noise: Float[Array, "b h w c"] | None, autoencoder: Autoencoder
) -> Float[Array, "b h w c"]:
    """What a network is trained on, float32: ``(x - shift) * scale``, x the stored latent, or drawn from its moments.

    ``noise``: standard normal, for a set with moments; None takes their mean.
    """
    latent = latent.astype(jnp.float32)
    if autoencoder.moments:
        latent, log_variance = jnp.split(latent, 2, axis=-1)
        if noise is not None:
            latent = latent + jnp.exp(0.5 * jnp.clip(log_variance, -30, 20)) * noise
    return (latent - autoencoder.shift) * autoencoder.scale


def restore(z: Float[np.ndarray, "b h w c"], autoencoder: Autoencoder) -> Float[np.ndarray, "b h w c"]:
    """What the autoencoder decodes, of what a network draws: the inverse of :func:`normalise`."""
    return np.asarray(z, np.float32) / autoencoder.scale + autoencoder.shift


def place(
    arrays: Sequence[tuple[Float[Array, "b tokens channels"], Float[Array, "b pooled"]]],
    kept: Bool[Array, "b parts"],
    manifest: Manifest,
) -> tuple[Float[Array, "b m text_dim"], Float[Array, "b pooled_dim"]]:
    """The text that a network reads, float32: each part of ``manifest.parts`` in its place, zeros if it is dropped."""
    b = len(kept)
    tokens = jnp.zeros((b, manifest.text_tokens, manifest.text_dim))
    pooled = jnp.zeros((b, manifest.pooled_dim))
    for i, (part, (states, vector)) in enumerate(zip(manifest.parts, arrays, strict=True)):
        own = kept[:, i]
        rows = slice(part.token_start, part.token_start + part.tokens)
        columns = slice(part.channel_start, part.channel_start + part.channels)
        tokens = tokens.at[:, rows, columns].set(jnp.where(own[:, None, None], states.astype(jnp.float32), 0))
        if part.pooled:
            columns = slice(part.pooled_start, part.pooled_start + part.pooled)
            pooled = pooled.at[:, columns].set(jnp.where(own[:, None], vector.astype(jnp.float32), 0))
    return tokens, pooled


def to_dict(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain dictionaries and lists, as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(manifest)))


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """The manifest of a prepared set, or a copy of one.

    Raises UserError for a folder that holds none, or one that says nonsense.
    """
    path = folder / name
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: holds no prepared set, which has a {MANIFEST}; make it with sd3-jax prepare"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not JSON; prepare the set again") from None
    if isinstance(tree, dict) and tree.get("format") != FORMAT:
        raise UserError(f"{path}: is of format {tree.get('format')}, and this version reads {FORMAT}")
    try:
        tree["autoencoder"] = Autoencoder(**tree["autoencoder"])
        tree["parts"] = tuple(Part(**part) for part in tree["parts"])
        tree["shards"] = tuple(Shard(**{**shard, "size": tuple(shard["size"])}) for shard in tree["shards"])
        tree["captions"] = tuple(tree["captions"])
        manifest = Manifest(**tree)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is not a manifest ({error}); prepare the set again") from None
    for one in (manifest, manifest.autoencoder, *manifest.parts, *manifest.shards):
        _check_types(path, one)
    if manifest.dtype not in DTYPES:
        raise UserError(f"{path}: dtype: {manifest.dtype!r} is not one of {', '.join(DTYPES)}")
    for shard in manifest.shards:
        if Path(shard.file).name != shard.file:
            raise UserError(f"{path}: {shard.file!r} is not the name of a file beside it; prepare the set again")
    return manifest


def _check_types(path: Path, one: Any) -> None:
    """Raises UserError for a number, a text or a size that JSON gave as something else."""
    kinds: dict[Any, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,), bool: (bool,)}
    for field_ in dataclasses.fields(one):
        value = getattr(one, field_.name)
        right = type(value) in kinds.get(field_.type, (type(value),))
        if field_.name == "size":
            right = len(value) == 2 and all(type(side) is int for side in value)
        if not right:
            raise UserError(f"{path}: {field_.name}: {value!r} is of another kind; prepare the set again")
