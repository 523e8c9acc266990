"""A set of some 15,000 captioned emoji and pieces of clip art, from packages with free licences.

::

    OUT/recipe.json                 what was asked for, and of which packages
    OUT/fluent-flat/guide-dog.png   pictures on white, a folder to a style
    OUT/metadata.jsonl              written last: file_name, caption, synthetic, licence, source, concept, style, split

Concepts, not pictures, are held out: what one package draws of a held-out concept no other shows in training. Which
they are is a function of their names, so that no choice of packages moves one.
"""

import functools
import hashlib
import io
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sd3_jax import records
from sd3_jax.data import icons, packages
from sd3_jax.data.icons import Icon
from sd3_jax.data.packages import Package
from sd3_jax.errors import UserError

VERSION = 1  # of the recipe: another one gives other pictures or captions
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "MIT",
    "emojibase-data-17.0.0.tgz",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
# What each source is called, its archive, and who reads it.
SOURCES: dict[str, tuple[Package, Callable[..., Iterable[Icon]]]] = {
    "fluent": (
        Package(
            "fluentui-emoji",
            "1.3.0",
            "MIT",
            "fluentui-emoji-1.3.0.tgz",
            "sha512-JTXXwqIie2rWTgOkIJDJxr0WtwTz2WU4kdOq8buLVThYwQ264aFR2jdTyuon2oEbLqqGMT64zI4btyn1saB2xw==",
        ),
        icons.fluent,
    ),
    "fluent-3d": (
        Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "MIT",
            "lobehub-fluent-emoji-3d-1.1.0.tgz",
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        icons.fluent_3d,
    ),
    "noto": (
        Package(
            "@iconify-json/noto",
            "1.2.9",
            "Apache-2.0",
            "iconify-json-noto-1.2.9.tgz",
            "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
        functools.partial(icons.iconify, "noto"),
    ),
    "noto-v1": (
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "Apache-2.0",
            "iconify-json-noto-v1-1.2.5.tgz",
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
        functools.partial(icons.iconify, "noto-v1"),
    ),
    "twemoji": (
        Package(
            "@iconify-json/twemoji",
            "1.2.5",
            "CC-BY-4.0",
            "iconify-json-twemoji-1.2.5.tgz",
            "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
        functools.partial(icons.iconify, "twemoji"),
    ),
    "openmoji": (
        Package(
            "openmoji",
            "17.0.0",
            "CC-BY-SA-4.0",
            "openmoji-17.0.0.tgz",
            "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
        ),
        icons.openmoji,
    ),
    "clipart": (
        Package(
            "openclipart-svg",
            "1:0.18+dfsg-19",
            "LicenseRef-public-domain",
            "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
            "sha256-989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        ),
        icons.clipart,
    ),
}
_BLACK, _WHITE = 48, 239  # of 255: darker in every channel is black, lighter in every one is background
_GREY = 24  # of 255, the most that channels of a grey differ by


@dataclass(frozen=True)
class Recipe:
    """What is asked for; a folder holds pictures of one recipe."""

    sources: tuple[str, ...] = tuple(SOURCES)
    size: int = 64  # pixels on a side
    skin_tones: bool = False
    held_out: float = 0.05  # share of concepts that are kept for validation


@dataclass(frozen=True)
class Made:
    """What a folder came to hold."""

    counts: list[dict[str, Any]]  # pictures of each style, licence and split
    dropped: dict[str, int]  # by style and reason
    concepts: dict[str, int]  # by split


def held_out(concept: str, share: float) -> bool:
    """Whether a concept is kept for validation: a function of its name alone."""
    return int.from_bytes(hashlib.sha256(concept.encode()).digest()[:8]) < share * 2**64


def make(
    out: Path,
    recipe: Recipe,
    archives: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 2,
) -> Made:
    """Fetch, draw, filter and write. Pictures that are there already are not drawn again.

    ``archives``: where the packages are, or are brought to; OUT/.packages unless given. ``progress`` is told how many
    pictures of how many are done. Raises UserError for a recipe that makes no sense, without resvg-py, for a package
    that cannot be had or is not what was pinned, and for a folder that holds something else.
    """
    _check(recipe)
    archives = archives or out / ".packages"
    _claim(out, recipe)
    named = icons.read_names(dict(packages.members(NAMES, packages.fetch(NAMES, archives))))
    dropped: Counter[str] = Counter()
    used: Counter[str] = Counter()
    wanted: list[tuple[str, Icon, Package]] = []
    for source in recipe.sources:
        package, read = SOURCES[source]
        files = dict(packages.members(package, packages.fetch(package, archives)))
        for icon in read(files, named):
            flaw = icon.flaw or ("a variant of skin tone" if icon.toned and not recipe.skin_tones else "")
            if flaw:
                dropped[f"{icon.style}: {flaw}"] += 1
            else:
                stem = f"{icon.style}/{icons.slug(icon.key) or 'unnamed'}"
                used[stem] += 1  # keys that differ in their punctuation alone
                wanted.append((f"{stem}.png" if used[stem] == 1 else f"{stem}--{used[stem]}.png", icon, package))
    rows = []
    for i, flaw in enumerate(_drawn(out, [(name, icon) for name, icon, _ in wanted], recipe.size, workers)):
        name, icon, package = wanted[i]
        if flaw:
            dropped[f"{icon.style}: {flaw}"] += 1
        else:
            rows.append(_row(name, icon, package, recipe))
        progress(i + 1, len(wanted))
    for stale in out.glob("*/.*.png.*"):  # what a killed worker was writing
        stale.unlink(missing_ok=True)
    rows.sort(key=lambda row: row["file_name"])
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    records.write_atomic(out / "metadata.jsonl", "".join(lines))
    counts = Counter((row["style"], row["licence"], row["split"]) for row in rows)
    table = [
        {"style": style, "licence": licence, "split": split, "pictures": n}
        for (style, licence, split), n in sorted(counts.items())
    ]
    concepts = Counter(split for _, split in {(row["concept"], row["split"]) for row in rows})
    return Made(table, dict(sorted(dropped.items())), dict(concepts))


def _check(recipe: Recipe) -> None:
    unknown = [source for source in recipe.sources if source not in SOURCES]
    if unknown or not recipe.sources:
        raise UserError(f"sources: {', '.join(unknown) or 'none'}: choose of {', '.join(SOURCES)}")
    if not 16 <= recipe.size <= 1024:
        raise UserError(f"size: {recipe.size} is not between 16 and 1024 pixels")
    if not 0 <= recipe.held_out < 1:
        raise UserError(f"held out: {recipe.held_out} is not a share of concepts, from 0 to below 1")
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise UserError("drawing SVG needs resvg-py: pip install -e '.[emoji]'") from None


def _claim(out: Path, recipe: Recipe) -> None:
    used = [NAMES, *(SOURCES[source][0] for source in recipe.sources)]
    said = {"version": VERSION, **asdict(recipe), "packages": {p.source: p.integrity for p in used}}
    text = json.dumps(said, indent=1) + "\n"
    path = out / "recipe.json"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise UserError(f"{out}: holds pictures of another recipe (see {path.name}): choose another folder")
    elif out.exists() and any(each.name[0] != "." for each in out.iterdir()):
        raise UserError(f"{out}: is not empty and holds no {path.name}: choose another folder")
    else:
        records.write_atomic(path, text)


def _row(name: str, icon: Icon, package: Package, recipe: Recipe) -> dict[str, str]:
    concept = icons.concept(icon.name)
    return {
        "file_name": name,
        "caption": icon.name,
        "synthetic": icons.sentence(icon.name, icon.style, icon.group),
        "licence": package.licence,
        "source": package.source,
        "concept": concept,
        "style": icon.style,
        "split": "validation" if held_out(concept, recipe.held_out) else "train",
    }


def _drawn(out: Path, wanted: Sequence[tuple[str, Icon]], size: int, workers: int) -> Iterator[str]:
    """Write the pictures, and give in order the flaw of each; resvg holds the interpreter, hence processes."""
    tasks = ((out / name, icon.data, size, icon.style == "clipart") for name, icon in wanted)
    with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
        try:
            yield from pool.map(_draw_one, tasks, chunksize=32)
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Of a worker: a killed parent, which can end nobody, leaves none behind."""

    def watch() -> None:
        parent_process().join()  # type: ignore[union-attr]  # a worker has a parent
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw_one(task: tuple[Path, bytes, int, bool]) -> str:
    path, data, size, crop = task
    if path.exists():
        return ""
    try:
        picture = draw(data, size, crop)
    except ValueError as error:
        return str(error)
    flaw = flaw_of(picture)
    if not flaw:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        records.write_atomic(path, buffer.getvalue())
    return flaw


def draw(data: bytes, size: int, crop: bool = False) -> UInt8[np.ndarray, "size size 3"]:
    """An SVG, or what Pillow reads, on a white square; twice as large at first, then averaged down.

    ``crop``: first cut to what is drawn, and a margin. Raises ValueError, with the reason, for what cannot be drawn,
    and for what reads fonts or other files, which would look different on every machine.
    """
    vector = b"<svg" in data
    large = _svg(data, 2 * size) if vector else _raster(data)
    box = large.getchannel("A").getbbox()
    if box is None:
        raise ValueError("empty")
    if crop:
        part = max(box[2] - box[0], box[3] - box[1]) / max(large.size)
        if vector and part < 0.8:  # a small drawing on a large page: the page is drawn larger
            large = _svg(data, max(2 * size, min(4096, round(2 * size / max(part, 0.1)))))
            box = large.getchannel("A").getbbox()
        large = large.crop(box)
    side = max(large.size) * 9 // 8 if crop else max(large.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(large, ((side - large.width) // 2, (side - large.height) // 2))
    return np.asarray(
        square.convert("RGB").resize(
            (size, size), Image.Resampling.BOX if side == 2 * size else Image.Resampling.LANCZOS
        )
    )


def _svg(data: bytes, size: int) -> Image.Image:
    import resvg_py

    text = data.decode("utf-8", "replace")
    if "<text" in text:
        raise ValueError("needs fonts")
    if re.search(r"<image|href\s*=\s*[\"'](?!#|data:)", text):
        raise ValueError("shows another file")
    options: dict[str, Any] = {"svg_string": text, "skip_system_fonts": True, "dpi": 96.0}  # at 0, points are none
    try:
        wide = _raster(bytes(resvg_py.svg_to_bytes(**options, width=size)))
        return wide if wide.height <= size else _raster(bytes(resvg_py.svg_to_bytes(**options, height=size)))
    except (ValueError, TypeError):
        raise ValueError("cannot be drawn") from None


def _raster(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError("cannot be read") from error


def flaw_of(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """Why a picture on white is of no use; empty if it is.

    Too little of it differs from white, all of it is of one colour, or it is a black glyph: black and grey alone, and
    black in the greater part.
    """
    covered = picture[(picture < _WHITE).any(axis=-1)].astype(int)
    if len(covered) < 0.03 * picture.shape[0] * picture.shape[1]:
        return "empty"
    if len(np.unique((picture >> 4).reshape(-1, 3), axis=0)) < 2:
        return "of one colour"
    grey = np.mean(np.ptp(covered, axis=-1) < _GREY)
    black = np.mean((covered < _BLACK).all(axis=-1))
    return "a black glyph" if grey > 0.98 and black > 0.5 else ""
