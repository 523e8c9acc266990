"""From the bytes of a file to the pixels that are encoded: nothing that a file says of itself is believed."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

# Those that Pillow decodes itself; PostScript and its like would be run by other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
MOST_PIXELS = 89_478_485  # where Pillow begins to warn: a quarter of a gigabyte as RGB
MOST_BYTES = 1 << 30  # of a file; what is larger is not even read

# What is odd about a file is ours to say. For good: a filter that is set for a moment is set for every thread.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Unreadable(Exception):
    """A picture that cannot be used; the message says why, in a few words."""


class Picture(NamedTuple):
    """What is encoded, and what was kept of the file's picture."""

    pixels: UInt8[np.ndarray, "H W 3"]
    size: tuple[int, int]  # height and width of the picture in its file, upright
    crop: tuple[int, int, int, int]  # top, left, height, width of what was kept, in its pixels


def read(data: bytes, sizes: Sequence[tuple[int, int]], least: int = 1) -> Picture:
    """Decode, and cut out the middle at the one of ``sizes`` that is nearest in shape. Errors of :func:`decode`."""
    whole = decode(data, least)
    return cut(whole, nearest((whole.height, whole.width), sizes))


def content_of(path: Path) -> bytes:
    """The bytes of a picture's file. Raises Unreadable for one that is not there, or too large."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Unreadable("has too many bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("is missing") from None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None


def decode(data: bytes, least: int = 1) -> Image.Image:
    """The picture of a file, upright and on white, as RGB.

    ``least``: pixels that the shorter side must have. Raises Unreadable for anything that is not a whole picture.
    """
    if not data:
        raise Unreadable("is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise Unreadable("has too many pixels")
        if min(image.size) < least:
            raise Unreadable(f"has a side of fewer than {least} pixels")
        upright = ImageOps.exif_transpose(image) or image
        return on_white(upright)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable("has too many pixels") from None
    except Image.UnidentifiedImageError:
        raise Unreadable(f"is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise whatever a crooked file makes them trip over
        raise Unreadable(f"cannot be decoded ({' '.join(str(error).split())[:80]})") from None


def on_white(image: Image.Image) -> Image.Image:
    """RGB of any mode: what is transparent becomes white, and sixteen bits become eight."""
    if image.mode.startswith("I;16") or image.mode == "I":
        array = np.asarray(image).astype(np.int64)
        image = Image.fromarray((array >> 8 if array.max(initial=0) > 255 else array).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def nearest(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The one of ``sizes`` whose ratio of height to width is nearest, as a factor; the first of equals.

    >>> nearest((300, 400), [(64, 64), (56, 72), (72, 56)])
    (56, 72)
    """
    ratio = np.log(size[0] / size[1])
    return min(sizes, key=lambda other: abs(np.log(other[0] / other[1]) - ratio))


def cut(image: Image.Image, size: tuple[int, int]) -> Picture:
    """The middle of a picture, as large as it can be in the shape of ``size``, resized to it."""
    height, width = size
    scale = min(image.height / height, image.width / width)
    kept = min(image.height, max(1, round(height * scale))), min(image.width, max(1, round(width * scale)))
    top, left = (image.height - kept[0]) // 2, (image.width - kept[1]) // 2
    box = (left, top, left + kept[1], top + kept[0])
    small = image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return Picture(np.asarray(small), (image.height, image.width), (top, left, *kept))
