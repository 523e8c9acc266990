"""Where captioned pictures come from: each a list of chunks in a fixed order, whose items are found when needed.

A folder with a caption beside each picture; a table (CSV, JSONL, Parquet) of files and captions; COCO's captions; and,
in :mod:`sd3_jax.data.archives`, WebDataset tars, a Hugging Face dataset on disk, a TensorFlow dataset without
TensorFlow. Nothing is ever unpacked to disk.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sd3_jax.data.pictures import SUFFIXES, Unreadable
from sd3_jax.errors import UserError

CHUNK = 1000  # items, where a source is one long list
KINDS = ("folder", "table", "webdataset", "coco", "huggingface", "tfds")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
CAPTIONS = ("caption", "text", "txt", "captions", "TEXT")  # names of the column, in order
_FILES = ("file_name", "file", "path", "filename", "image_path", "image")
IMAGES = ("image", "jpg", "png", "img", "picture")


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


class Columns(NamedTuple):
    """Names that a user gives the columns of a table, a dataset or a tar's JSON; empty: the usual ones."""

    file: str = ""
    caption: str = ""
    synthetic: str = "synthetic"
    split: str = "split"
    licence: str = "licence"


USUAL = Columns()


class Source(NamedTuple):
    """A source as it was found."""

    kind: str
    chunks: Sequence[Chunk]
    items: int | None  # where that is known without opening every chunk


def find(where: str, kind: str = "", columns: Columns = USUAL, images: Path | None = None) -> Source:
    """What ``where`` holds: ``kind`` of :data:`KINDS`, or what it looks like. Raises UserError if it is none of them.

    ``images``: the folder of COCO's pictures, and of a table's; else beside it.
    """
    path = Path(where)
    kind = kind or _looks_like(where, path)
    if kind not in KINDS:
        raise UserError(f"--as {kind}: is not one of {', '.join(KINDS)}")
    if kind != "tfds" and kind != "webdataset" and not path.exists():
        raise UserError(f"{where}: no such file or directory")
    if kind == "folder":
        return _folder(path)
    if kind == "table":
        return _table(path, columns, images)
    if kind == "coco":
        return _coco(path, images)
    from sd3_jax.data import archives

    if kind == "webdataset":
        return archives.tars(where, path, columns)
    if kind == "huggingface":
        return archives.arrow(path, columns)
    return archives.tensorflow(where.removeprefix("tfds:"), columns)


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
    if where.startswith("tfds:"):
        return "tfds"
    if where.endswith(".tar") or (path.is_dir() and any(path.glob("*.tar"))):
        return "webdataset"
    if path.suffix in TABLES or (path / "metadata.jsonl").exists() or (path / "metadata.csv").exists():
        return "table"
    if path.suffix == ".json":
        return "coco"
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        return "huggingface"
    if path.is_dir():
        return "folder"
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


def _file(folder: Path, name: str) -> bytes:
    path = inside(folder, name)
    if not path.is_file():
        raise Unreadable("is missing" if not path.exists() else "is not a file")
    return path.read_bytes()


def chunked(name: str, count: int, items: Callable[[int, int], Sequence[Item]]) -> list[Chunk]:
    """Chunks of a long list, of which ``items(start, stop)`` gives a part."""
    starts = range(0, count, CHUNK)
    return [Chunk(f"{name}-{i}", partial(items, i, min(i + CHUNK, count))) for i in starts]


# --- a folder -------------------------------------------------------------------------------------------------------
def _folder(folder: Path) -> Source:
    names = sorted(_files_below(folder))
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not pictures:
        raise UserError(f"{folder}: has no pictures ({', '.join(SUFFIXES)})")
    beside = {name for name in names if name.endswith(".txt")}
    if not beside:
        raise UserError(
            f"{folder}: has {len(pictures):,} pictures, and no captions: no .txt beside each, no metadata.jsonl"
        )

    def items(start: int, stop: int) -> list[Item]:
        return [_of_folder(folder, name, beside) for name in pictures[start:stop]]

    return Source("folder", chunked(folder.name, len(pictures), items), len(pictures))


def _files_below(folder: Path) -> Iterator[str]:
    """Relative names; hidden files and folders are none of ours, and links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _of_folder(folder: Path, name: str, beside: set[str]) -> Item:
    text = PurePosixPath(name).with_suffix(".txt").as_posix()
    caption = text_of(_file(folder, text)) if text in beside else ""
    top = PurePosixPath(name).parts[0]
    split = {"train": "train", "validation": "validation", "val": "validation"}.get(top, "")
    return Item(name, partial(_file, folder, name), {"original": caption}, split)


def text_of(data: bytes) -> str:
    """A caption's text; what is not UTF-8 has a mark in its place, by which it is known later."""
    return data.decode("utf-8", errors="replace").strip()


# --- a table of files and captions ----------------------------------------------------------------------------------
def _table(path: Path, columns: Columns, images: Path | None) -> Source:
    if path.is_dir():
        path = next(file for file in (path / "metadata.jsonl", path / "metadata.csv") if file.exists())
    rows = read_table(path)
    if not rows:
        raise UserError(f"{path}: has no rows")
    folder, there = images or path.parent, list(rows[0])
    file, caption = column(path, there, columns.file, _FILES, "file"), caption_column(path, there, columns)

    def items(start: int, stop: int) -> list[Item]:
        return [
            of_row(row, str(row.get(file) or ""), partial(_file, folder, str(row.get(file) or "")), caption, columns)
            for row in rows[start:stop]
        ]

    return Source("table", chunked(path.stem, len(rows), items), len(rows))


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV (with a header), TSV, JSONL or Parquet file. Raises UserError with the line that is none."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix != ".jsonl":
                return list(csv.DictReader(file, dialect="excel-tab" if path.suffix == ".tsv" else "excel"))
            rows = [_json_line(path, i, line) for i, line in enumerate(file, 1) if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8") from None
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:100]})") from None
    return rows


def _json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: is not a JSON object")
    return row


def column(where: Any, there: Sequence[str], asked: str, usual: Sequence[str], what: str) -> str:
    """The column that a user asked for, or the first of the usual ones. Raises UserError if it is not there."""
    found = [name for name in ([asked] if asked else usual) if name in there]
    if not found:
        raise UserError(f"{where}: has no column {asked or what}; it has {', '.join(map(str, there))}")
    return found[0]


def caption_column(where: Any, there: Sequence[str], columns: Columns) -> str:
    """The column of captions; errors of :func:`column`."""
    return column(where, there, columns.caption, CAPTIONS, "caption")


def of_row(
    row: Mapping[str, Any], name: str, read: Callable[[], bytes], caption: str, columns: Columns, split: str = ""
) -> Item:
    """The item of a row whose column ``caption`` has its caption; ``split`` where the row does not say."""
    texts = {"original": row.get(caption), "synthetic": row.get(columns.synthetic)}
    captions = {kind: str(text).strip() for kind, text in texts.items() if text}
    said = {"val": "validation", "test": "validation", "valid": "validation"}.get(
        str(row.get(columns.split) or split), str(row.get(columns.split) or split)
    )
    return Item(name, read, captions, said, str(row.get(columns.licence) or row.get("license") or ""))


# --- COCO -----------------------------------------------------------------------------------------------------------
def _coco(path: Path, images: Path | None) -> Source:
    """One caption to a picture, that of the lowest number; pictures in order of theirs (paper section 5.2.1's set)."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        pictures = sorted((picture["id"], str(picture["file_name"])) for picture in tree["images"])
        spoken = sorted(((a["image_id"], a["id"], str(a["caption"])) for a in tree["annotations"]), reverse=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: is not a file of COCO's captions (images and annotations)") from None
    captions = {number: caption for number, _, caption in spoken}
    folder = images or next((f for f in (path.parent.parent / "val2014", path.parent) if f.is_dir()), path.parent)

    def items(start: int, stop: int) -> list[Item]:
        return [
            Item(name, partial(_file, folder, name), {"original": captions.get(number, "").strip()})
            for number, name in pictures[start:stop]
        ]

    return Source("coco", chunked(path.stem, len(pictures), items), len(pictures))
