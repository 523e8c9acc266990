"""Pictures on disk, in the layout that GenEval's evaluator reads: written whole or not at all, read with care."""

import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from sd3_jax.errors import UserError

LENGTH = "path-length"  # the key in a picture's file, and the name of the score


def image_path(out: Path, folder: int, index: int) -> Path:
    """Where GenEval looks for a picture."""
    return out / f"{folder:05d}" / "samples" / f"{index:04d}.png"


def write_png(path: Path, image: UInt8[np.ndarray, "H W 3"], length: float | None = None) -> None:
    """Write a picture whole or not at all, with the length of its latent's path if there is one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    said = PngImagePlugin.PngInfo()
    if length is not None:
        said.add_text(LENGTH, f"{length:.4g}")
    try:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=said)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Read(NamedTuple):
    """A picture that was read, a checksum of its file, and the length of its latent's path (nan: not said)."""

    image: UInt8[np.ndarray, "H W 3"]
    checksum: int
    length: float


def read_png(path: Path) -> Read:
    """A picture of a file. Raises UserError if it is missing or not a picture."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            pixels, said = np.asarray(image.convert("RGB")), str(image.info.get(LENGTH, ""))
        length = float(said) if re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", said) else math.nan
        return Read(pixels, zlib.crc32(content), length)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow raises all of them
        raise UserError(f"{path}: cannot be read as a picture; delete it and sample again") from None


def read_folder(out: Path) -> Iterator[tuple[int, dict[str, Any], list[Path]]]:
    """Each prompt of a folder in GenEval's layout: its number, its metadata and its pictures in order.

    Raises UserError if there is none, or for metadata that is not a JSON object with a prompt.
    """
    folders = sorted(path for path in out.iterdir() if path.name.isdigit()) if out.is_dir() else []
    if not folders:
        raise UserError(f"{out}: holds no pictures in GenEval's layout (00000/metadata.jsonl, 00000/samples/0000.png)")
    for folder in folders:
        path = folder / "metadata.jsonl"
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: is missing") from None
        except ValueError:
            raise UserError(f"{path}: is not one JSON object") from None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
            raise UserError(f"{path}: has no prompt")
        images = sorted((p for p in (folder / "samples").glob("*.png") if p.stem.isdigit()), key=lambda p: int(p.stem))
        yield int(folder.name), metadata, images


def tile(images: UInt8[np.ndarray, "n H W 3"], columns: int) -> UInt8[np.ndarray, "X Y 3"]:
    """Pictures on one white sheet, row by row, a thin line between them."""
    n, height, width, _ = images.shape
    gap = max(1, height // 24)
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet
