"""Spelling: the words that a prompt asks to be written, against the lines that were read in a picture.

Case, kinds of spaces and forms of one letter (Unicode's NFKC) make no difference; every other character does.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Text that a prompt asks for stands in quotation marks; an apostrophe is none.
_QUOTED = re.compile(r"\"[^\"]+\"|“[^”]+”|«[^»]+»|(?<!\w)['‘][^'’]+(?:['’]\w[^'’]*)*['’](?!\w)")
MOST = 8  # texts of one prompt that are looked for, the first
SAME_ROW = 0.5  # of the lower one's height: two lines whose middles are less apart are read from left to right

Box = tuple[float, float, float, float]  # left, top, right, bottom; y points down


class Spelling(NamedTuple):
    """How well what was read says what was asked for."""

    exact: bool  # every text is there, character by character
    similarity: float  # 0 to 1: of each text to the lines that are nearest to it, their mean
    words: float  # share of the words asked for that were read, each word serving once


def quoted(text: str) -> list[str]:
    """What a prompt has in quotation marks.

    >>> quoted("a sign that says “open late” and a mug with 'it's tea'")
    ['open late', "it's tea"]
    """
    return [found[1:-1].strip() for found in _QUOTED.findall(text) if found[1:-1].strip()]


def requested(metadata: Mapping[str, Any]) -> list[str]:
    """The texts that a prompt asks for: its field ``text``, one or a list, else what it has in quotation marks."""
    said = metadata.get("text")
    texts = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    return [one for one in texts if isinstance(one, str) and one.strip()] or quoted(str(metadata.get("prompt", "")))


def normal(text: str) -> str:
    """Text as it is compared.

    >>> normal("ＯＰＥＮ   Late")
    'open late'
    """
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and substitutions of characters that make one the other.

    >>> distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def similarity(a: str, b: str) -> float:
    """``1 - distance / length of the longer``, as they are compared; 1 for two empty texts.

    >>> similarity("STOP", "shop")
    0.75
    """
    a, b = normal(a), normal(b)
    return 1 - distance(a, b) / max(len(a), len(b), 1)


def spelling(asked: Sequence[str], lines: Sequence[str]) -> Spelling:
    """How well lines, in reading order, say what is asked for.

    A text may run over several lines. Texts are given lines so that the sum of their similarities is greatest, and no
    line serves two. Lines that are left over count for nothing: a street has other signs. Raises ValueError if
    nothing is asked for.
    """
    if not asked:
        raise ValueError("nothing is asked for")
    asked = asked[:MOST]
    best = [[0.0] * 2 ** len(asked)]  # the greatest sum, by the set of texts that are open: from no line on, then ...
    for first in reversed(range(len(lines))):  # ... from each line on; the last comes first
        following = list(best[-1])  # this line is left over
        for text, wanted in enumerate(asked):
            for number in range(1, min(len(best), len(wanted.split())) + 1):
                own = similarity(wanted, " ".join(lines[first : first + number]))
                for there in range(2 ** len(asked)):
                    if there >> text & 1:
                        following[there] = max(following[there], own + best[-number][there ^ 1 << text])
        best.append(following)
    mean = min(best[-1][-1] / len(asked), 1.0)
    words, read = (Counter(itertools.chain(*(normal(one).split() for one in texts))) for texts in (asked, lines))
    return Spelling(mean > 1 - 1e-9, mean, (words & read).total() / words.total())


def reading_order(boxes: Sequence[Box]) -> list[int]:
    """The indices of lines as they are read: rows from the top, each from the left.

    >>> reading_order([(50, 0, 90, 10), (0, 20, 40, 30), (0, 2, 40, 12)])
    [2, 0, 1]
    """
    rows: list[list[int]] = []
    for index in sorted(range(len(boxes)), key=lambda i: boxes[i][1] + boxes[i][3]):
        _, top, _, bottom = boxes[index]
        if rows:
            _, its_top, _, its_bottom = boxes[rows[-1][0]]
            apart = abs(top + bottom - its_top - its_bottom) / 2
            if apart < SAME_ROW * min(bottom - top, its_bottom - its_top):
                rows[-1].append(index)
                continue
        rows.append([index])
    return [index for row in rows for index in sorted(row, key=lambda i: boxes[i][0])]
