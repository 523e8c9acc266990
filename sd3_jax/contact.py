"""Contact sheets: what a model is shown, to be looked at before hours are spent on it."""

import functools
import io
import operator
import textwrap
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from sd3_jax import records
from sd3_jax.config import RunConfig
from sd3_jax.data import scenes
from sd3_jax.data.frozen import ImageCodec
from sd3_jax.errors import UserError

_COLUMNS = 6
_FORMATS = (".png", ".pdf", ".svg")


def contact_sheet(config: RunConfig, number: int, out: Path) -> None:
    """Draw scenes of the training distribution with their captions, and below each its autoencoding.

    With buckets, the scenes take turns in being of each.

    Raises UserError for a setting that scenes cannot be drawn in, and for an unknown picture format.
    """
    if out.suffix not in _FORMATS:
        raise UserError(f"{out}: is not the name of a picture; it ends in one of {', '.join(_FORMATS)}")
    data, model = config.data, config.model

    @functools.partial(jax.jit, static_argnums=1)
    def sheet(
        examples: Int[Array, " n"], size: scenes.Size
    ) -> tuple[scenes.Scene, Float[Array, "n H W 3"], Float[Array, "n H W 3"]]:
        keys = jax.vmap(lambda example: scenes.example_key(config.seed, scenes.TRAIN, 0, example))(examples)
        drawn = jax.vmap(lambda key: scenes.draw(key, data, size=size))(keys)
        images = jax.vmap(lambda scene: scenes.render(scene, data, size))(drawn)
        latents = scenes.encode(images, data, model.latent_channels)
        return drawn, images, scenes.decode(latents, data)

    sizes = data.buckets or ((data.image_size, data.image_size),)
    images, kept, captions = [np.empty(0)] * number, [np.empty(0)] * number, [""] * number
    for first, size in enumerate(sizes[:number]):
        own = range(first, number, len(sizes))
        drawn, shown, rebuilt = jax.device_get(sheet(jnp.asarray(own), size))
        for i, example in enumerate(own):
            images[example], kept[example] = shown[i], rebuilt[i]
            captions[example] = scenes.caption(jax.tree.map(operator.itemgetter(i), drawn))
    pixels, lost = (np.concatenate([x.ravel() for x in many]) for many in (images, map(np.subtract, images, kept)))
    share = 1 - float(np.mean(np.square(lost)) / np.var(pixels))
    _save(_figure(images, kept, captions, share), out)


def _figure(images: list[np.ndarray], kept: list[np.ndarray], captions: list[str], share: float) -> Figure:
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 3.5 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, image, rebuilt, caption in zip(axes.flat, images, kept, captions, strict=False):
        gap = np.ones((max(1, len(image) // 24), *image.shape[1:]))
        pair = np.concatenate([image, gap, rebuilt])
        panel.imshow(np.clip((pair + 1) / 2, 0, 1), interpolation="nearest")
        panel.set_title(textwrap.fill(caption, 20), fontsize=7)
    title = f"above: the scene; below: through the linear autoencoder, which keeps {share:.1%} of their variance"
    figure.suptitle(title, fontsize=8)
    return figure


def _save(figure: Figure, out: Path) -> None:
    FigureCanvasAgg(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    with records.whole(out) as temporary:
        figure.savefig(temporary, dpi=150, format=out.suffix[1:] or "png")


def reconstructions(codecs: Sequence[ImageCodec], images: UInt8[np.ndarray, "n H W 3"], out: Path) -> None:
    """Pictures in the first row, and below what comes back through each autoencoder, four times as large."""
    rows = [images, *(codec.decode(codec.encode(images)[..., : codec.described.channels]) for codec in codecs)]
    labels = ["pictures", *(codec.described.source for codec in codecs)]
    side, text = images.shape[1] * max(1, 128 // images.shape[1]), 16
    page = Image.new("RGB", (len(images) * (side + 4), len(rows) * (side + text + 4)), "white")
    pen = ImageDraw.Draw(page)
    for y, (label, row) in enumerate(zip(labels, rows, strict=True)):
        pen.text((2, y * (side + text + 4) + 2), label, fill="black")
        for x, picture in enumerate(row):
            large = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            page.paste(large, (x * (side + 4), y * (side + text + 4) + text))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    records.write_atomic(out, buffer.getvalue())


def folder_sheet(folder: Path, out: Path, columns: int = 12, rows: int = 8) -> None:
    """Pictures of a folder with metadata.jsonl, drawn by lot, with caption and style; a star: of the validation split.

    Raises UserError for a folder without metadata.jsonl.
    """
    found, _ = records.read_rows(folder / "metadata.jsonl")
    if not found:
        raise UserError(f"{folder}: holds no metadata.jsonl; make it with sd3-jax emoji")
    chosen = np.random.default_rng(0).permutation(len(found))[: columns * rows]
    cell, text = 128, 44
    page = Image.new("RGB", (columns * cell, rows * (cell - 24 + text)), "white")
    pen = ImageDraw.Draw(page)
    for i, row in enumerate(found[j] for j in chosen):
        x, y = i % columns * cell, i // columns * (cell - 24 + text)
        with Image.open(folder / row["file_name"]) as picture:
            page.paste(picture.convert("RGB").resize((96, 96), Image.Resampling.NEAREST), (x + 16, y + 4))
        words = (row["caption"] + (" *" if row["split"] == "validation" else ""), row["style"])
        for line, word in enumerate(words):
            pen.text((x + 4, y + 104 - 4 + 13 * line), word[:20], fill="black")
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    records.write_atomic(out, buffer.getvalue())
