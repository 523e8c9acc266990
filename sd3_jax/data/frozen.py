"""Frozen encoders as ``prepare`` and sampling see them, and two that need neither torch nor a file of weights.

:mod:`sd3_jax.data.encoders` loads the paper's. Those here are an orthonormal cosine transform of patches of pixels, and
vectors of words drawn from their hash: enough to train on a folder of captioned pictures anywhere.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sd3_jax.data.autoencoder import cosines
from sd3_jax.data.examples import Autoencoder, Manifest, Part
from sd3_jax.errors import UserError

VERSION = "1"  # of the two below: another one gives other numbers


class Running(NamedTuple):
    """How networks of torch compute."""

    device: str = "auto"  # auto: a GPU if there is one
    dtype: str = "float32"  # float32, bfloat16 or float16
    batch: int = 0  # at a time; 0: 32 on a GPU, 8 elsewhere

    def batch_on(self, device: Any) -> int:
        """How many pictures or captions go through a network at a time, always so many."""
        return self.batch or (32 if str(device).startswith("cuda") else 8)


RUNNING = Running()


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


def load_codec(spec: str, running: Running = RUNNING) -> ImageCodec:
    """The autoencoder of ``cosine:CHANNELSxDOWNSAMPLE``, of a folder of :mod:`.learned`, or of diffusers.

    Raises UserError for anything else.
    """
    kind, _, rest = spec.partition(":")
    if kind == "cosine":
        channels, downsample = _two_numbers(f"--autoencoder {spec}", rest, "cosine:16x8 (channels x downsample)")
        if not 1 <= downsample <= 64 or not 1 <= channels <= 3 * downsample**2:
            raise UserError(f"--autoencoder {spec}: downsample is 1 to 64, and channels 1 to 3 * downsample**2")
        return cosine_codec(channels, downsample)
    from sd3_jax.data import encoders, learned

    if not Path(spec).is_dir() and "/" not in spec:
        raise UserError(f"--autoencoder {spec}: is none of cosine:16x8 (channels x downsample), a folder, a hub id")
    if learned.is_here(Path(spec)):
        return learned.load(Path(spec))
    return encoders.autoencoder(spec, running)


def load_text(spec: str, running: Running = RUNNING) -> TextEncoder:
    """The text encoder of ``words:TOKENSxCHANNELS``, or of ``NAME=FOLDER`` or ``NAME=FOLDER:TOKENS``.

    Raises UserError for anything else.
    """
    kind, _, rest = spec.partition(":")
    if kind == "words":
        tokens, channels = _two_numbers(f"--text {spec}", rest, "words:16x64 (tokens x channels)")
        if not 1 <= tokens <= 4096 or not 1 <= channels <= 65536:
            raise UserError(f"--text {spec}: tokens are 1 to 4096, and channels 1 to 65536")
        return word_encoder(tokens, channels)
    from sd3_jax.data import encoders, pretrained

    name, equals, source = spec.partition("=")
    if not equals or name not in pretrained.NAMES:
        names = ", ".join(pretrained.NAMES)
        raise UserError(f"--text {spec}: is neither words:16x64 nor NAME=FOLDER, NAME one of {names}")
    place, colon, length = source.rpartition(":")
    if colon and length.isdigit():
        return encoders.text(name, place, int(length), running)
    return encoders.text(name, source, None, running)


def _two_numbers(where: str, text: str, form: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if not numbers:
        raise UserError(f"{where}: is not of the form {form}")
    return int(numbers[1]), int(numbers[2])


def codec_of(manifest: Manifest) -> ImageCodec:
    """The autoencoder that a set was prepared with. Raises UserError if it is not there, or is another one now.

    Those of torch are looked for where ``SD3_JAX_ENCODERS`` says, if it is set: a pipeline's folder.
    """
    one = manifest.autoencoder
    codec = load_codec(_moved(one.source) if one.kind == "diffusers" else one.source)
    _check_same(codec.described, one)
    return codec


def texts_of(manifest: Manifest) -> list[TextEncoder]:
    """The text encoders that a set was prepared with, in the order of its parts; as :func:`codec_of`."""
    found = []
    for part in manifest.parts:
        spec = part.source if part.kind == "words" else f"{part.name}={_moved(part.source)}:{part.tokens}"
        found.append(load_text(spec))
        _check_same(found[-1].part, part)
    return found


def _moved(source: str) -> str:
    return os.environ.get("SD3_JAX_ENCODERS") or source


def _check_same(found: Part | Autoencoder, wanted: Part | Autoencoder) -> None:
    if found.digest != wanted.digest:
        raise UserError(f"{found.source}: has other weights ({found.digest}) than the set's ({wanted.digest})")
    if isinstance(found, Part) and isinstance(wanted, Part) and found.tokenizer != wanted.tokenizer:
        ours, theirs = found.tokenizer, wanted.tokenizer
        raise UserError(f"{found.source}: {found.name} has another tokenizer ({ours}) than the set's ({theirs})")


def arrange(parts: Sequence[Part]) -> tuple[tuple[Part, ...], int, int, int]:
    """Each part in its place, and the text tokens, text_dim and pooled_dim of all (paper section 4, figure 2).

    CLIP's parts share their tokens and stand side by side; every other part's tokens follow, from channel 0. Pooled
    vectors are side by side, in order. Raises UserError for CLIP's parts of different lengths.
    """
    lengths = {part.tokens for part in parts if part.kind == "clip"}
    if len(lengths) > 1:
        raise UserError(f"--text: CLIP's parts stand side by side and have as many tokens; here {sorted(lengths)}")
    placed, clip_channels, clip_tokens, pooled = [], 0, 0, 0
    for part in (part for part in parts if part.kind == "clip"):
        placed.append(replace(part, token_start=0, channel_start=clip_channels, pooled_start=pooled))
        clip_channels, clip_tokens, pooled = clip_channels + part.channels, part.tokens, pooled + part.pooled
    end = clip_tokens
    for part in (part for part in parts if part.kind != "clip"):
        placed.append(replace(part, token_start=end, channel_start=0, pooled_start=pooled))
        end, pooled = end + part.tokens, pooled + part.pooled
    return tuple(placed), end, max([clip_channels, *(p.channels for p in parts if p.kind != "clip")]), pooled
