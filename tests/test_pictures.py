"""From bytes of a file to pixels: every mode, upright, on white, cut in the middle; and no file does harm."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd3_jax.data.pictures import Unreadable, read

RNG = np.random.RandomState(0)
COLOURS = Image.fromarray(RNG.randint(0, 256, (40, 56, 3)).astype(np.uint8))
WHOLE = ((40, 56),)  # the size of the picture itself: nothing is cut or resized


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_a_picture_of_the_size_that_is_asked_for_comes_back_as_it_is() -> None:
    picture = read(saved(COLOURS), WHOLE)
    np.testing.assert_array_equal(picture.pixels, np.asarray(COLOURS))
    assert picture.size == (40, 56)
    assert picture.crop == (0, 0, 40, 56)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_upright_as_the_camera_says(orientation: int) -> None:
    turns = {  # the Exif standard: where the first row and the first column of what is stored belong
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = turns[orientation](np.asarray(COLOURS))
    picture = read(saved(COLOURS, exif=exif), [expected.shape[:2]])
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.size == expected.shape[:2]


def test_what_is_transparent_becomes_white_whatever_lies_below() -> None:
    pixels = np.zeros((40, 56, 4), np.uint8)
    pixels[..., 0], pixels[:, 28:, 3] = 200, 255
    pixels[:20, 28:, 3] = 128
    found = read(saved(Image.fromarray(pixels)), WHOLE).pixels
    assert (found[:, :28] == 255).all()
    assert (found[20:, 28:] == (200, 0, 0)).all()
    half = 255 - (255 - np.array([200, 0, 0])) * 128 / 255
    assert np.abs(found[:20, 28:] - half).max() <= 1
    palette = Image.new("P", (56, 40), 3)
    palette.putpalette([0] * 9 + [10, 20, 30])
    assert (read(saved(palette), WHOLE).pixels == (10, 20, 30)).all()
    assert (read(saved(palette, transparency=3), WHOLE).pixels == 255).all()


def test_sixteen_bits_become_eight_and_one_bit_black_and_white() -> None:
    grey = RNG.randint(0, 256, (40, 56)).astype(np.uint16)
    for wide in (grey * 257, (grey << 8) + 77):
        found = read(saved(Image.fromarray(wide)), WHOLE).pixels
        np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))
    for format in ("PNG", "TIFF"):
        bits = Image.fromarray((grey > 127).astype(np.uint8) * 255).convert("1")
        np.testing.assert_array_equal(read(saved(bits, format), WHOLE).pixels[..., 0], (grey > 127) * 255)


def test_cmyk_and_grey_jpeg_look_like_the_picture_they_were_made_of() -> None:
    smooth = np.stack(np.broadcast_arrays(*np.ix_(np.linspace(0, 255, 40), np.linspace(255, 0, 56))), -1)
    image = Image.fromarray(np.concatenate([smooth, smooth[..., :1]], -1).astype(np.uint8))
    found = read(saved(image.convert("CMYK"), "JPEG", quality=98), WHOLE).pixels
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 4
    grey = read(saved(image.convert("L"), "JPEG", quality=98), WHOLE).pixels
    assert np.abs(grey[..., 0].astype(int) - np.asarray(image.convert("L"))).mean() < 2


def test_the_middle_is_kept_as_large_as_it_can_be() -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = (0, 128, 255)
    picture = read(saved(Image.fromarray(wide)), [(20, 20)])
    assert picture.crop == (0, 100, 100, 100)
    assert (picture.pixels[:, 3:-3] == (0, 128, 255)).all()  # at its edges the filter looks beyond them
    for height, width in ((100, 300), (301, 40), (7, 7), (1, 500)):
        picture = read(saved(Image.new("RGB", (width, height))), [(24, 24), (16, 32), (32, 16)])
        top, left, kept_height, kept_width = picture.crop
        assert top in ((height - kept_height) // 2, (height - kept_height + 1) // 2)
        assert left in ((width - kept_width) // 2, (width - kept_width + 1) // 2)
        assert kept_height == height or kept_width == width
        assert 1 <= kept_height <= height
        assert 1 <= kept_width <= width


def test_shrinking_keeps_the_mean_and_a_bucket_is_the_nearest_shape() -> None:
    image = Image.fromarray(RNG.randint(0, 256, (512, 512, 3)).astype(np.uint8))
    found = read(saved(image), [(16, 16)]).pixels
    assert np.abs(found.mean((0, 1)) - np.asarray(image).mean((0, 1))).max() < 1
    assert found.std() < 20  # 74 before: noise is averaged, not picked from
    sizes = [(64, 64), (48, 80), (80, 48)]
    chosen = [read(saved(Image.new("RGB", size)), sizes).pixels.shape[:2] for size in ((50, 50), (80, 50), (50, 90))]
    assert chosen == sizes


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, and is a few hundred kilobytes of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")
    )


PNG, JPEG = saved(COLOURS), saved(COLOURS, "JPEG")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"GIF89a", "is none of"),
        (b"<html>404</html>", "is none of"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is none of"),  # never handed to another program
        (bytes(1000), "is none of"),
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (bomb(30_000, 3_000), "has too many pixels"),  # Pillow warns
        (bomb(60_000, 60_000), "has too many pixels"),  # Pillow refuses
        (saved(Image.new("F", (12, 12)), "TIFF"), "cannot be decoded"),
        (saved(Image.new("RGB", (9, 40))), "has a side of fewer than 10 pixels"),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read(data, WHOLE, least=10)


def test_the_name_of_a_file_does_not_matter_what_it_holds_does() -> None:
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        assert read(saved(COLOURS, format), WHOLE).pixels.shape == (40, 56, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_crooked_files_are_unreadable_or_pictures_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [PNG, JPEG, saved(COLOURS, "JPEG", exif=exif), saved(COLOURS, "WEBP", exif=exif), saved(COLOURS, "BMP")]
    seeds += [saved(COLOURS, "TIFF"), saved(COLOURS.convert("P"), "GIF"), saved(COLOURS.convert("LA"))]
    numbers, fine, reasons = random.Random(0), 0, [""]
    for _ in range(3000):
        data = bytearray(numbers.choice(seeds))
        for _ in range(numbers.choice((1, 2, 5, 20))):
            at = int(len(data) * numbers.random() ** 2)
            data[at : at + numbers.choice((0, 1, 1, 8))] = numbers.randbytes(numbers.choice((0, 1, 1, 4)))
        try:
            fine += read(bytes(data), [(16, 16), (12, 20)]).pixels.shape in ((16, 16, 3), (12, 20, 3))
        except Unreadable as error:
            reasons.append(str(error))
    assert fine > 300
    assert max(map(len, reasons)) < 120
