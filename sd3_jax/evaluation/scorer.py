"""Judges of pictures behind one type, and what they said, kept so that no picture is judged twice.

A judge says one JSON value of a picture and its prompt: a number, a verdict with its reasons, the words that it read.
What it said is a line of a file, under checksums of the picture's bytes, of the prompt, and of the judge: lines stay
true whatever becomes of the pictures, and pictures that were moved are known again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from sd3_jax import records
from sd3_jax.data import pictures

FILE = "judged.jsonl"  # what was said, beside the pictures
BATCH = 32  # pictures that a judge is given at once, at most
MOST_PIXELS = 1 << 25  # of them together: a tenth of a gigabyte
Images = Sequence[UInt8[np.ndarray, "H W 3"]]
Report = Callable[[int], None]  # how many more pictures are done


class Scorer(NamedTuple):
    """A judge of pictures."""

    name: str  # of its score in rows
    digest: str  # of its weights and the version of its rules: what tells it from others of that name
    score: Callable[[Images, Sequence[Mapping[str, Any]]], list[Any]]
    """One JSON value for each picture and the metadata of its prompt, whose ``prompt`` is the text."""


class Shot(NamedTuple):
    """A picture's file, the prompt that it is of (its number, its metadata), and which of its pictures it is."""

    path: Path
    prompt: int
    metadata: Mapping[str, Any]
    place: int = 0


class Said(NamedTuple):
    """What a judge said of the pictures that could be read, in their order, and what was wrong with the others."""

    shots: list[Shot]
    values: list[Any]
    checksums: list[str]  # of the pictures
    problems: list[str]


def ask(scorer: Scorer, shots: Sequence[Shot], kept: Path, report: Report = lambda pictures: None) -> Said:
    """What a judge says of every picture: from the lines of the file ``kept``, else by asking, which adds to them.

    An interruption loses no more than the pictures that were being judged. Pictures are read as they are needed.
    """
    known = _known(kept, scorer)
    waiting: dict[_Key, tuple[Shot, UInt8[np.ndarray, "H W 3"]]] = {}
    found: list[tuple[Shot, _Key]] = []
    problems: list[str] = []

    def judge() -> None:
        if waiting:
            metadata, images = [shot.metadata for shot, _ in waiting.values()], [image for _, image in waiting.values()]
            kept.parent.mkdir(parents=True, exist_ok=True)
            for key, value in zip(waiting, scorer.score(images, metadata), strict=True):
                row = {"scorer": scorer.name, "digest": scorer.digest, "picture": key[0], "prompt": key[1]}
                records.append(kept, row | {"value": value})
                known[key] = value
            waiting.clear()

    for shot in shots:
        try:
            content = pictures.content_of(shot.path)
            key = checksum(content), checksum(json.dumps(shot.metadata, sort_keys=True).encode())
            if key not in known and key not in waiting:
                waiting[key] = shot, np.asarray(pictures.decode(content))
        except pictures.Unreadable as error:
            problems.append(f"{shot.path}: {error}")
        else:
            found.append((shot, key))
        if len(waiting) == BATCH or sum(image.size for _, image in waiting.values()) > 3 * MOST_PIXELS:
            judge()
        report(1)
    judge()
    return Said(
        [shot for shot, _ in found], [known[key] for _, key in found], [picture for _, (picture, _) in found], problems
    )


_Key = tuple[str, str]  # checksums of a picture and of its prompt


def checksum(content: bytes) -> str:
    """Sixteen hex digits: equal for equal bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def _known(kept: Path, scorer: Scorer) -> dict[_Key, Any]:
    """What this judge said before; of two lines of one picture the later."""
    rows = (row for row in records.read_rows(kept)[0] if "value" in row)
    own = (row for row in rows if (row.get("scorer"), row.get("digest")) == (scorer.name, scorer.digest))
    return {(str(row.get("picture")), str(row.get("prompt"))): row["value"] for row in own}
