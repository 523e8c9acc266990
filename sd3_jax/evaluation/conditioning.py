"""What a run's data has to say to sampling: how captions become what a network reads, and latents pictures.

Scenes embed and decode on the device, in the program that draws. A prepared set's frozen encoders run beside it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from sd3_jax import records
from sd3_jax.config import RunConfig
from sd3_jax.data import examples, frozen, latents, scenes
from sd3_jax.data.examples import Manifest, read_manifest
from sd3_jax.data.latents import Prepared
from sd3_jax.errors import UserError
from sd3_jax.evaluation.prompts import Prompt
from sd3_jax.training import encoded


class Conditioning(NamedTuple):
    """Four steps from prompts to pictures, of which the middle two are traced into the program that draws."""

    given: Callable[[Sequence[Prompt]], Any]  # on the host: what of the prompts goes to the device, leading axis b
    text: Callable[[Any], tuple[Float[Array, "b m text_dim"], Float[Array, "b pooled_dim"]]]
    picture: Callable[[Float[Array, "b h w c"]], Shaped[Array, "b ..."]]  # 8-bit pictures, or latents still
    finish: Callable[[Shaped[np.ndarray, "b ..."]], UInt8[np.ndarray, "b H W 3"]]  # on the host


def of_run(config: RunConfig, run_dir: Path | None = None, without: Sequence[str] = ()) -> Conditioning:
    """Of a run, or of a configuration of scenes; ``without``: names of text encoders whose output is to be zero.

    Raises UserError where a set's manifest, or an encoder that it names, is not there.
    """
    if config.data.source == "scenes":
        if without:
            raise UserError(f"without {without[0]}: scenes have no text encoders that could be left out")
        return _of_scenes(config)
    return _of_set(manifest_of(config, run_dir), without)


def manifest_of(config: RunConfig, run_dir: Path | None) -> Manifest:
    """Of the set that a run was trained on: its own copy, else where the set lies."""
    if run_dir and (run_dir / records.MANIFESTS["data"]).exists():
        return read_manifest(run_dir, records.MANIFESTS["data"])
    return read_manifest(Path(config.data.path))


def _of_scenes(config: RunConfig) -> Conditioning:
    data = config.data

    def text(words: Int[Array, "b 6"]) -> tuple[Float[Array, "b m text_dim"], Float[Array, "b pooled_dim"]]:
        dropped = jnp.zeros((len(words), data.text_parts), bool)
        return scenes.embed_captions(words, dropped, config.model, data.text_parts, data.text_sequence)

    return Conditioning(
        given=lambda prompts: np.stack([prompt.words for prompt in prompts]),
        text=text,
        picture=lambda latents: to_uint8(scenes.decode(latents, data)),
        finish=lambda images: images,
    )


def to_uint8(images: Float[Array, "b H W 3"]) -> UInt8[Array, "b H W 3"]:
    """Pictures in [-1, 1] as 8-bit values; what is outside is clipped."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _of_set(manifest: Manifest, without: Sequence[str]) -> Conditioning:
    names = [part.name for part in manifest.parts]
    if unknown := [name for name in without if name not in names]:
        raise UserError(f"without {unknown[0]}: the set has no such text encoder; it has {', '.join(names)}")
    codec, texts = frozen.codec_of(manifest), frozen.texts_of(manifest)
    kept = np.array([name not in without for name in names])

    def given(prompts: Sequence[Prompt]) -> tuple[Array, Array]:
        said = [text.encode([prompt.text for prompt in prompts]) for text in texts]
        arrays = [(jnp.asarray(states), jnp.asarray(pooled)) for states, pooled in said]
        return examples.place(arrays, jnp.tile(kept, (len(prompts), 1)), manifest)

    return Conditioning(
        given=given,
        text=lambda text: text,
        picture=lambda latents: latents,
        finish=lambda z: codec.decode(examples.restore(z, manifest.autoencoder)),
    )


def held_out(config: RunConfig, run_dir: Path) -> Prepared:
    """The split that a run's validation loss is measured on, where it lies now."""
    folder = Path(config.data.validation or config.data.path)
    return encoded.find_held(config, folder, manifest_of(config, run_dir))


def held_out_prompts(prepared: Prepared, count: int, seed: int = 0, fewer: bool = False) -> list[Prompt]:
    """Captions of a split, each once, with one picture to be drawn of each; another seed chooses others.

    Raises UserError if there are not so many, unless ``fewer`` will do.
    """
    chosen = latents.choose(prepared, prepared.manifest.count(prepared.split), seed)
    order = sorted((rank, record) for group in chosen for rank, record in zip(*group, strict=True))
    found: dict[str, Prompt] = {}
    for example in latents.read_examples(prepared, [record for _, record in order]):
        caption = example.captions.get("original") or next(iter(example.captions.values()))
        found.setdefault(caption.text, Prompt(np.zeros(0, int), {"prompt": caption.text}, 1))
        if len(found) == count:
            return list(found.values())
    if fewer:
        return list(found.values())
    raise UserError(f"{prepared.folder}: holds out {len(found)} different captions, and {count} are asked for")
