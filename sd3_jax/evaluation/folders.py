"""Pictures on disk: written whole or not at all, read with care.

Ours are in the layout that GenEval's evaluator reads; anyone's may also lie flat in one folder, named by the number of
their prompt: ``00007.png``, or ``00007_0002.png`` for the third of several.
"""

import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from sd3_jax import records
from sd3_jax.errors import UserError

LENGTH = "path-length"  # the key in a picture's file, and the name of the score


def image_path(out: Path, folder: int, index: int) -> Path:
    """Where GenEval looks for a picture."""
    return out / f"{folder:05d}" / "samples" / f"{index:04d}.png"


def write_png(path: Path, image: UInt8[np.ndarray, "H W 3"], length: float | None = None) -> None:
    """Write a picture whole or not at all, with the length of its latent's path if there is one."""
    said = PngImagePlugin.PngInfo()
    if length is not None:
        said.add_text(LENGTH, f"{length:.4g}")
    with records.whole(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=said)


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
        except (ValueError, RecursionError):
            raise UserError(f"{path}: is not one JSON object") from None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
            raise UserError(f"{path}: has no prompt")
        images = sorted((p for p in (folder / "samples").glob("*.png") if p.stem.isdigit()), key=lambda p: int(p.stem))
        yield int(folder.name), metadata, images


_FLAT = re.compile(r"(\d+)(?:[_-](\d+))?\.(?:png|jpe?g|webp)", re.IGNORECASE)


def pictures_of(out: Path, captions: Sequence[str], where: str) -> dict[int, list[Path]]:
    """The pictures of each caption, by its number from 0, in either layout; captions without any are left out.

    A folder in GenEval's layout says its prompts, which may be more, and in another order; in a flat one the number of
    a picture is that of its caption. ``where`` the captions are from is said in errors.

    Raises UserError for a folder that is neither, one that has a caption twice, or pictures of other captions.
    """
    if not out.is_dir():
        raise UserError(f"{out}: no such folder of pictures")
    if not says_prompts(out):
        return _flat(out, len(captions), where)
    numbers = {caption: number for number, caption in enumerate(captions)}
    found: dict[int, list[Path]] = {}
    prompts = []
    for _, metadata, images in read_folder(out):
        prompts.append(metadata["prompt"].strip())
        number = numbers.get(prompts[-1])
        if number is not None and images:
            if number in found:
                first = found[number][0].parent.parent.name
                raise UserError(f"{out}: {first} and {images[0].parent.parent.name} have the same prompt")
            found[number] = images
    if not found:
        raise UserError(f"{out}: holds no picture of any prompt of {where}; its first prompt is {prompts[0]!r}")
    return found


def index_of(path: Path) -> int:
    """Which of its prompt's pictures a file is, in either layout."""
    if path.parent.name == "samples" and path.parent.parent.name.isdigit():
        return int(path.stem)
    flat = _FLAT.fullmatch(path.name)
    return int(flat[2] or 0) if flat else 0


def says_prompts(out: Path) -> bool:
    """Whether a folder has GenEval's layout, where each picture is beside its prompt."""
    return out.is_dir() and any(path.is_dir() and path.name.isdigit() for path in out.iterdir())


def count_others(out: Path, captions: Sequence[str]) -> int:
    """How many prompts a folder in GenEval's layout has pictures of that are none of ``captions``."""
    if not says_prompts(out):
        return 0
    known = set(captions)
    return sum(bool(images) and said["prompt"].strip() not in known for _, said, images in read_folder(out))


def _flat(out: Path, prompts: int, where: str) -> dict[int, list[Path]]:
    named = {path: _FLAT.fullmatch(path.name) for path in sorted(out.iterdir())}
    numbers = {(int(name[1]), int(name[2] or 0)): path for path, name in named.items() if name}
    if not numbers:
        raise UserError(
            f"{out}: holds no pictures, neither in GenEval's layout (00000/metadata.jsonl, 00000/samples/0000.png) nor "
            "flat (00000.png or 00000_0000.png, .jpg, .webp)"
        )
    if len(numbers) < sum(map(bool, named.values())):
        twice = next(path for path, name in named.items() if name and path not in numbers.values())
        raise UserError(f"{out}: {twice.name} is numbered as another picture is")
    extra = [path for (number, _), path in sorted(numbers.items()) if number >= prompts]
    if extra:
        raise UserError(f"{extra[0]}: is of no prompt: {where} has {prompts}, numbered from 0")
    found: dict[int, list[Path]] = {}
    for (number, _), path in sorted(numbers.items()):
        found.setdefault(number, []).append(path)
    return found


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


def drawn_by(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The run that drew the pictures of a folder, and how. Raises UserError if none did."""
    path = folder / "settings.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        run_dir = folder.resolve().parent.parent
        records.load_config(run_dir)
        if isinstance(settings, dict) and isinstance(settings.get("step"), int):
            return run_dir, settings
    except (OSError, ValueError, UserError):
        pass
    raise UserError(f"{folder}: is not a folder of pictures that a run drew (RUN/samples/...), so no score is its own")
