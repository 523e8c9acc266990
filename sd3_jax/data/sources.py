"""Where captioned pictures come from: each a list of chunks in a fixed order, whose items are found when needed.

A folder with a caption beside each picture, or with one for each class; a table of files and captions, or COCO's
captions (:mod:`sd3_jax.data.tables`); WebDataset tars, a Hugging Face dataset on disk (its Parquet or its Arrow files),
a TensorFlow dataset without TensorFlow (:mod:`sd3_jax.data.archives`). Nothing is ever unpacked to disk.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sd3_jax.data.pictures import MOST_BYTES, SUFFIXES, Unreadable
from sd3_jax.errors import UserError

CHUNK = 1000  # items, where a source is one long list
MOST_TEXT = 1 << 24  # bytes of a caption, or of what is said of a picture: more is none
KINDS = ("folder", "table", "webdataset", "coco", "huggingface", "tfds")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "validation",
}


class Item(NamedTuple):
    """A picture that is not read yet. ``read`` raises Unreadable, or OSError."""

    id: str
    read: Callable[[], bytes]
    captions: Mapping[str, str]  # by kind: original, synthetic
    split: str = ""  # train, validation; empty: the source does not say
    licence: str = ""


class Chunk(NamedTuple):
    """Some items of a source, in an order that never changes."""

    name: str
    items: Callable[[], Sequence[Item]]


class Limit(NamedTuple):
    """What a column's number must be for a picture to be kept, such as a predicted aesthetic score of at least 5."""

    column: str
    sign: str  # >= or <=
    bound: float

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.bound:g}"

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why a row is not kept; None if it is."""
        try:
            value = float(row[self.column])
        except (KeyError, TypeError, ValueError):
            value = math.nan
        if math.isnan(value):
            return f"has no number {self.column}"
        kept = value >= self.bound if self.sign == ">=" else value <= self.bound
        return None if kept else f"has not {self}"


def read_limit(text: str) -> Limit:
    """``aesthetic>=5`` as a limit. Raises UserError for anything else."""
    parts = re.fullmatch(r"\s*([^<>=]+?)\s*(>=|<=)\s*([-+.0-9eE]+)\s*", text)
    try:
        if parts:
            return Limit(parts[1], parts[2], float(parts[3]))
    except ValueError:
        pass
    raise UserError(f"--keep {text!r}: is not of the form column>=number or column<=number, such as aesthetic>=5")


def place_of(chunk: int, place: int) -> str:
    """Where an item stands in a source, which tells it from another of the same id: a table may name a file twice.

    >>> place_of(12, 345)
    '00012/345'
    """
    return f"{chunk:05d}/{place}"


class Columns(NamedTuple):
    """Names that a user gives the columns of a table, a dataset or a tar's JSON; empty: the usual ones."""

    file: str = ""
    caption: str = ""
    synthetic: str = "synthetic"
    split: str = "split"
    licence: str = "licence"
    keep: tuple["Limit", ...] = ()


USUAL = Columns()


class Source(NamedTuple):
    """A source as it was found."""

    kind: str
    chunks: Sequence[Chunk]
    items: int | None  # where that is known without opening every chunk


def find(
    where: str,
    kind: str = "",
    columns: Columns = USUAL,
    images: Path | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Source:
    """What ``where`` holds: ``kind`` of :data:`KINDS`, or what it looks like. Raises UserError if it is none of them.

    ``images``: the folder of COCO's pictures, and of a table's; else beside it. ``classes``: names of each class, which
    is what a folder of pictures is called by, or a dataset's label.
    """
    path = Path(where)
    kind = kind or _looks_like(where, path)
    if kind not in KINDS:
        raise UserError(f"--as {kind}: is not one of {', '.join(KINDS)}")
    if kind != "tfds" and kind != "webdataset" and not path.exists():
        raise UserError(f"{where}: no such file or directory")
    if columns.keep and kind in ("folder", "coco"):
        raise UserError(f"--keep {columns.keep[0]}: a source of kind {kind} has no columns of numbers")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: is not a folder")
    if kind == "folder":
        return _folder(path, classes or {})
    from sd3_jax.data import archives, tables

    if kind == "table":
        return tables.table(path, columns, images)
    if kind == "coco":
        return tables.coco(path, images)
    if kind == "webdataset":
        return archives.tars(where, path, columns)
    if kind == "huggingface":
        return archives.arrow(path, columns)
    return archives.tensorflow(where.removeprefix("tfds:"), columns, classes or {})


def tell_apart(source: Source) -> str:
    """What is the same of a source that is the same, of what is known without opening its chunks."""
    names = json.dumps([chunk.name for chunk in source.chunks])
    many = "" if source.items is None else f", {source.items} pictures"
    return f"{source.kind}, {len(source.chunks)} chunks, {hashlib.sha256(names.encode()).hexdigest()[:8]}{many}"


def first(source: Source, limit: int) -> Source:
    """The first so many items of a source."""
    chunks: list[Chunk] = []
    left = limit
    for chunk in source.chunks:
        if left <= 0:
            break
        items = chunk.items()[:left]
        chunks.append(Chunk(chunk.name, partial(list, items)))
        left -= len(items)
    return Source(source.kind, chunks, limit - left)


def _looks_like(where: str, path: Path) -> str:
    from sd3_jax.data import archives, tables

    if where.startswith("tfds:"):
        return "tfds"
    if where.endswith(".tar") or (path.is_dir() and any(path.glob("*.tar"))):
        return "webdataset"
    if path.suffix == ".parquet" and path.is_file() and archives.has_pictures(path):
        return "huggingface"
    if path.suffix in TABLES or (path.is_dir() and tables.of_folder(path)):
        return "table"
    if path.suffix == ".json":
        return "coco"
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")) or any(path.rglob("*.parquet")):
        return "huggingface"
    if path.is_dir():
        return "folder"
    if path.exists():
        raise UserError(f"{where}: is no folder, and its name ends in none of .tar, .json, {', '.join(TABLES)}")
    raise UserError(f"{where}: no such file or directory, and no name of the form tfds:NAME")


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, wherever links lead. Raises Unreadable if that is outside."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise Unreadable("lies outside the folder")
    except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, a loop of links
        raise Unreadable("is not the name of a file") from None
    return path


def file_of(folder: Path, name: str, most: int = MOST_BYTES) -> bytes:
    """What a file of a folder holds. Raises Unreadable for one that is outside, no file, or of more than ``most``."""
    path = inside(folder, name)
    if not path.is_file():
        raise Unreadable("is missing" if not path.exists() else "is not a file")
    if path.stat().st_size > most:
        raise Unreadable("is too large")
    return path.read_bytes()


def refuse(why: str) -> bytes:
    """What stands for reading a picture that cannot be read."""
    raise Unreadable(why)


def chunked(name: str, count: int, items: Callable[[int, int], Sequence[Item]]) -> list[Chunk]:
    """Chunks of a long list, of which ``items(start, stop)`` gives a part."""
    starts = range(0, count, CHUNK)
    return [Chunk(f"{name}-{i}", partial(items, i, min(i + CHUNK, count))) for i in starts]


def read_classes(path: Path) -> dict[str, list[str]]:
    """Names of each class, of lines such as ``n01440764 tench, Tinca tinca``. Raises UserError for one of no names."""
    classes = {}
    for number, line in enumerate(text_of(path.read_bytes()).splitlines(), 1):
        own, _, names = line.strip().partition(" ")
        classes[own] = [name.strip() for name in names.split(",") if name.strip()]
        if not classes[own]:
            raise UserError(f"{path}:{number}: is no class and its names, such as n01440764 tench, Tinca tinca")
    return classes


def photo_of(names: Sequence[str], picture: str) -> str:
    """The caption of a class (paper section 5.1), of whose names one is drawn by the picture's id.

    >>> photo_of(["sea_horse"], "a.jpg")
    'a photo of a sea horse'
    """
    drawn = int(hashlib.sha256(f"class {picture}".encode(errors="replace")).hexdigest()[:8], 16) % len(names)
    return f"a photo of a {names[drawn].replace('_', ' ')}"


# --- a folder -------------------------------------------------------------------------------------------------------
def _folder(folder: Path, classes: Mapping[str, Sequence[str]]) -> Source:
    names = sorted(_files_below(folder))
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not pictures:
        raise UserError(f"{folder}: has no pictures ({', '.join(SUFFIXES)})")
    beside = {name for name in names if name.endswith(".txt")}
    if not beside and not classes:
        raise UserError(
            f"{folder}: has {len(pictures):,} pictures and no captions: no .txt beside each, no metadata.jsonl, and no "
            "names of --classes for its folders"
        )

    def items(start: int, stop: int) -> list[Item]:
        return [_of_folder(folder, name, beside, classes) for name in pictures[start:stop]]

    return Source("folder", chunked(folder.name, len(pictures), items), len(pictures))


def _files_below(folder: Path) -> Iterator[str]:
    """Relative names; hidden files and folders are none of ours, and links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _of_folder(folder: Path, name: str, beside: set[str], classes: Mapping[str, Sequence[str]]) -> Item:
    text = PurePosixPath(name).with_suffix(".txt").as_posix()
    split = SPLITS.get(PurePosixPath(name).parts[0], "")
    try:
        caption = text_of(file_of(folder, text, MOST_TEXT)) if text in beside else ""
        if not caption and (own := PurePosixPath(name).parent.name) in classes:
            caption = photo_of(classes[own], name)
    except (Unreadable, OSError) as error:
        return Item(name, partial(refuse, f"has a caption that {error}"), {}, split)
    return Item(name, partial(file_of, folder, name), {"original": caption}, split)


def text_of(data: bytes) -> str:
    """A caption's text; what is not UTF-8 has a mark in its place, by which it is known later."""
    return data.decode("utf-8", errors="replace").strip()
