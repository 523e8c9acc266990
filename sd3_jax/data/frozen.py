"""Frozen encoders as ``prepare`` and sampling see them, and two that need neither torch nor a file of weights.

:mod:`sd3_jax.data.encoders` loads the paper's. Those here are an orthonormal cosine transform of patches of pixels, and
vectors of words drawn from their hash: enough to train on a folder of captioned pictures anywhere.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sd3_jax.data.autoencoder import cosines
from sd3_jax.data.examples import Autoencoder, Manifest, Part
from sd3_jax.errors import UserError

VERSION = "1"  # of the two below: another one gives other numbers


class ImageCodec(NamedTuple):
    """A frozen autoencoder. Both functions are deterministic, and treat pictures one by one: batches change nothing."""

    described: Autoencoder
    encode: Callable[[UInt8[np.ndarray, "b H W 3"]], Float[np.ndarray, "b h w _"]]  # latents as records have them
    decode: Callable[[Float[np.ndarray, "b h w c"]], UInt8[np.ndarray, "b H W 3"]]  # of latents, not of moments


class TextEncoder(NamedTuple):
    """A frozen text encoder: the states and the pooled vector of each caption, float32."""

    part: Part
    encode: Callable[[Sequence[str]], tuple[Float[np.ndarray, "b tokens channels"], Float[np.ndarray, "b pooled"]]]


def cosine_codec(channels: int, downsample: int) -> ImageCodec:
    """The first ``channels`` cosines of patches of ``downsample`` pixels, low frequencies first; energy is kept.

    What it leaves out is lost, so decoding gives the nearest picture that has these cosines alone.
    """
    f = downsample
    basis = cosines(f)[:, :channels].astype(np.float32)

    def encode(images: UInt8[np.ndarray, "b H W 3"]) -> Float[np.ndarray, "b h w c"]:
        b, height, width, _ = images.shape
        patches = (images.astype(np.float32) / 127.5 - 1).reshape(b, height // f, f, width // f, f, 3)
        return patches.swapaxes(2, 3).reshape(b, height // f, width // f, 3 * f * f) @ basis

    def decode(latents: Float[np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "b H W 3"]:
        b, height, width, _ = latents.shape
        pixels = (latents.astype(np.float32) @ basis.T).reshape(b, height, width, f, f, 3).swapaxes(2, 3)
        pixels = (np.clip(pixels, -1, 1) + 1) * 127.5
        return np.round(pixels).astype(np.uint8).reshape(b, height * f, width * f, 3)

    described = Autoencoder(
        "cosine", f"cosine:{channels}x{f}", f"cosine-{VERSION}", channels, f, shift=0.0, scale=0.0, moments=False
    )
    return ImageCodec(described, encode, decode)


def word_encoder(tokens: int = 16, channels: int = 64) -> TextEncoder:
    """A state for each word of a caption, drawn from the hash of the word and of its place; their sum is pooled.

    Words are runs of letters and digits, in lower case; what is past ``tokens`` is cut off, and what is short of them
    is filled with the empty word. States have variance one.
    """

    def encode(texts: Sequence[str]) -> tuple[Float[np.ndarray, "b tokens channels"], Float[np.ndarray, "b pooled"]]:
        words = [re.findall(r"\w+", text.lower())[:tokens] for text in texts]
        states = np.stack(
            [[_state(row[i] if i < len(row) else "", i, channels) for i in range(tokens)] for row in words]
        )
        return states, np.stack([_pooled(row, channels) for row in words])

    return TextEncoder(
        Part("words", "words", f"words:{tokens}x{channels}", f"words-{VERSION}", tokens, channels, channels), encode
    )


def _state(word: str, place: int, channels: int) -> Float[np.ndarray, " channels"]:
    return (_gaussian(f"word {word}", channels) + _gaussian(f"place {place}", channels)) / np.float32(np.sqrt(2))


def _pooled(words: Sequence[str], channels: int) -> Float[np.ndarray, " channels"]:
    total = sum((_gaussian(f"pooled {word}", channels) for word in words), np.zeros(channels, np.float32))
    return total / np.float32(np.sqrt(max(len(words), 1)))


@functools.lru_cache(maxsize=2**16)
def _gaussian(text: str, n: int) -> Float[np.ndarray, " n"]:
    """Standard normal numbers that are a function of ``text`` (NumPy never changes this stream, NEP 19)."""
    seed = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    numbers = np.random.RandomState(seed).standard_normal(n).astype(np.float32)
    numbers.setflags(write=False)
    return numbers


def load_codec(spec: str) -> ImageCodec:
    """The autoencoder that ``cosine:CHANNELSxDOWNSAMPLE`` names. Raises UserError for anything else."""
    kind, _, rest = spec.partition(":")
    numbers = re.fullmatch(r"(\d+)x(\d+)", rest)
    if kind != "cosine" and (Path(spec) / "config.json").is_file():
        from sd3_jax.data import learned

        return learned.load(Path(spec))
    if kind != "cosine" or not numbers:
        raise UserError(
            f"--autoencoder {spec}: is neither like cosine:16x8 (channels x downsample) nor a folder of one"
        )
    channels, downsample = map(int, numbers.groups())
    if not 1 <= downsample <= 64 or not 1 <= channels <= 3 * downsample**2:
        raise UserError(f"--autoencoder {spec}: downsample is 1 to 64, and channels 1 to 3 * downsample**2")
    return cosine_codec(channels, downsample)


def load_text(spec: str) -> TextEncoder:
    """The text encoder that ``words:TOKENSxCHANNELS`` names. Raises UserError for anything else."""
    kind, _, rest = spec.partition(":")
    numbers = re.fullmatch(r"(\d+)x(\d+)", rest)
    if kind != "words" or not numbers:
        raise UserError(f"--text {spec}: is not of the form words:16x64 (tokens x channels)")
    tokens, channels = map(int, numbers.groups())
    if not 1 <= tokens <= 4096 or not 1 <= channels <= 65536:
        raise UserError(f"--text {spec}: tokens are 1 to 4096, and channels 1 to 65536")
    return word_encoder(tokens, channels)


def codec_of(manifest: Manifest) -> ImageCodec:
    """The autoencoder that a set was prepared with. Raises UserError if it is not there, or is another one now."""
    codec = load_codec(manifest.autoencoder.source)
    _check_same(codec.described, manifest.autoencoder)
    return codec


def texts_of(manifest: Manifest) -> list[TextEncoder]:
    """The text encoders that a set was prepared with, in the order of its parts. Errors of :func:`codec_of`."""
    texts = [load_text(part.source) for part in manifest.parts]
    for part, text in zip(manifest.parts, texts, strict=True):
        _check_same(text.part, part)
    return texts


def _check_same(found: Part | Autoencoder, wanted: Part | Autoencoder) -> None:
    if found.digest != wanted.digest:
        raise UserError(f"{found.source}: has other weights ({found.digest}) than the set's ({wanted.digest})")


def arrange(parts: Sequence[Part]) -> tuple[tuple[Part, ...], int, int, int]:
    """Each part in its place, and the text tokens, text_dim and pooled_dim of all (paper section 4, figure 2).

    CLIP's parts share their tokens and stand side by side; every other part's tokens follow, from channel 0. Pooled
    vectors are side by side, in order.
    """
    placed, clip_channels, clip_tokens, pooled = [], 0, 0, 0
    for part in (part for part in parts if part.kind == "clip"):
        placed.append(replace(part, token_start=0, channel_start=clip_channels, pooled_start=pooled))
        clip_channels, clip_tokens, pooled = clip_channels + part.channels, part.tokens, pooled + part.pooled
    end = clip_tokens
    for part in (part for part in parts if part.kind != "clip"):
        placed.append(replace(part, token_start=end, channel_start=0, pooled_start=pooled))
        end, pooled = end + part.tokens, pooled + part.pooled
    return tuple(placed), end, max([clip_channels, *(p.channels for p in parts if p.kind != "clip")]), pooled
