"""Signs: a plate of one colour with a word on it, in capital letters of 5 x 7 cells, each some whole pixels.

A plate has room for four letters and the word begins at the left. Plates and cells lie on pixels: a letter is its
bitmap exactly, at the smallest size too.
"""

import string

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LETTERS = string.ascii_uppercase
TAG = "sign"  # of prompts for signs, and their class in clauses
# The first data.words of these are on signs. No letter is twice in a word, and most letters are where others have them.
WORDS = (
    *("CAT", "BUN", "CAR", "SUN", "BAT", "STOP", "CAN", "SHOP", "BUS", "GO", "BAND", "NO", "SAND", "CARD", "PARK"),
    *("CART", "SALT", "MAP", "CUP", "TEA", "SEA", "MILK", "OPEN", "TAXI", "EXIT", "HOT", "HAT", "TEN", "MEN", "POST"),
    *("ON", "IN"),
)
LONGEST = 4
# The rows of each letter from the top, five bits each.
_BITS = """
0E11111F111111 1E11111E11111E 0E11101010110E 1C12111111121C 1F10101E10101F 1F10101E101010 0E11101711110F
1111111F111111 0E04040404040E 0702020202120C 11121418141211 1010101010101F 111B1515111111 11111915131111
0E11111111110E 1E11111E101010 0E11111115120D 1E11111E141211 0F10100E01011E 1F040404040404 1111111111110E
11111111110A04 1111111515150A 11110A040A1111 1111110A040404 1F01020408101F
"""
_CODES = np.array([list(bytes.fromhex(letter)) for letter in _BITS.split()])
# GLYPHS[letter, row, column]; the last one, which -1 stands for, is no letter.
GLYPHS = np.concatenate([_CODES[..., None] >> np.arange(4, -1, -1) & 1, np.zeros((1, 7, 5), int)])
HEIGHT, WIDTH = GLYPHS.shape[1:]
MARGIN = 2  # cells of plate around the letters, which are one cell apart
ROWS, COLUMNS = HEIGHT + 2 * MARGIN, LONGEST * (WIDTH + 1) - 1 + 2 * MARGIN  # of a plate: 11 x 27 cells
INK = (14 / 255, 243 / 255)  # black and white, of which a plate has what differs more

Size = tuple[int, int]  # height and width of a picture, in pixels


def cell(size: Size) -> int:
    """The side of a cell in pixels, the largest that a plate of fits in a canvas.

    >>> cell((64, 64))
    2
    """
    return min(size) // COLUMNS


def spell(word: str) -> list[int]:
    """The letters of a word, as indices in LETTERS; -1 past its end.

    >>> spell("CAB")
    [2, 0, 1, -1]
    """
    return [LETTERS.index(letter) for letter in word] + [-1] * (LONGEST - len(word))


def held_out_words(words: int, share: float) -> np.ndarray:
    """True where a word is never on a sign in training, [words].

    Each is the word whose rarest letter, at its place, most other words still have there: what training never shows is
    spelt of what it shows, where that can be.

    >>> [WORDS[i] for i in np.flatnonzero(held_out_words(32, 0.1))]
    ['CAT', 'BUN', 'CAN']
    """
    letters = np.array([spell(word) for word in WORDS[:words]]).reshape(-1, LONGEST)
    held = np.zeros(words, bool)
    for _ in range(round(share * words)):
        same = (letters[:, None] == letters) & ~held[:, None]  # [other word, word, place]
        alike = np.where(letters >= 0, same.sum(axis=0), words + 1).min(axis=1)
        held[np.where(held, -1, alike).argmax()] = True
    return held


def bitmap(letters: Int[Array, "4"]) -> Int[Array, "11 27"]:
    """Where a plate has ink, cell by cell."""
    glyphs = jnp.pad(jnp.asarray(GLYPHS)[letters], ((0, 0), (0, 0), (0, 1)))  # one cell to the next letter
    line = jnp.swapaxes(glyphs, 0, 1).reshape(HEIGHT, -1)[:, :-1]
    return jnp.pad(line, MARGIN)


def place(u: Float[Array, "2"], size: Size, fixed: bool) -> Float[Array, "2"]:
    """The centre of a plate, in units of the canvas's shorter side: the middle, or anywhere on whole pixels."""
    (height, width), side = size, cell(size)
    room = jnp.array([width - COLUMNS * side, height - ROWS * side])
    corner = room // 2 if fixed else jnp.minimum((u * (room + 1)).astype(jnp.int32), room)
    return (corner + jnp.array([COLUMNS, ROWS]) * side / 2) / min(size)


def cover(
    letters: Int[Array, "4"], center: Float[Array, "2"], size: Size
) -> tuple[Bool[Array, "H W"], Bool[Array, "H W"]]:
    """The pixels of a plate, and those of the ink on it."""
    side = cell(size)
    corner = jnp.round(center * min(size) - jnp.array([COLUMNS, ROWS]) * side / 2).astype(jnp.int32)
    # As sums over the cells that each row and column of pixels is in: XLA on CPUs gathers slowly.
    down, across = (
        (jnp.arange(length)[:, None] - start) // side == jnp.arange(cells)
        for length, start, cells in zip(size, corner[::-1], (ROWS, COLUMNS), strict=True)
    )
    ink = down.astype(jnp.float32) @ bitmap(letters).astype(jnp.float32) @ across.T.astype(jnp.float32)
    return down.any(axis=1)[:, None] & across.any(axis=1), ink > 0.5


def ink_of(plate: Float[Array, "*s 3"]) -> Float[Array, "*s 1"]:
    """The grey of the ink on plates of these colours, in [0, 1]: white on dark ones, black on light ones."""
    black, white = INK
    return jnp.where(plate @ jnp.array([0.299, 0.587, 0.114]) < 0.5, white, black)[..., None]
