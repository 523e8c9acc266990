"""Captioned pictures that a table names: CSV, TSV, JSONL or Parquet, or COCO's captions. See :mod:`.sources`."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sd3_jax.data.sources import SPLITS, USUAL, Columns, Item, Source, chunked, file_of, refuse
from sd3_jax.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # a folder's own table
CAPTIONS = ("caption", "text", "txt", "captions", "TEXT")  # names of the column, in order
FILES = ("file_name", "file", "path", "filename", "image_path", "image")


def table(path: Path, columns: Columns, images: Path | None) -> Source:
    """The rows of a table, or of a folder's own, or of one in the folder of each split, as the hub's image folders."""
    if path.is_file():
        return _of_file(path, "", columns, images)
    files = of_folder(path)
    if not files:
        raise UserError(f"{path}: has none of {', '.join(METADATA)}")
    found = [_of_file(file, "" if file.parent == path else file.parent.name, columns, images) for file in files]
    return Source("table", [chunk for one in found for chunk in one.chunks], sum(one.items or 0 for one in found))


def of_folder(folder: Path) -> list[Path]:
    """The tables of a folder of pictures: its own, or else those of its splits."""
    for folders in ([folder], [folder / split for split in sorted(SPLITS)]):
        if found := [path for one in folders for path in [one / name for name in METADATA] if path.is_file()]:
            return found if len(folders) > 1 else found[:1]
    return []


def _of_file(path: Path, split: str, columns: Columns, images: Path | None) -> Source:
    rows = read_table(path)
    if not rows:
        raise UserError(f"{path}: has no rows")
    folder, names = images or path.parent, list(rows[0])
    file, caption = column(path, names, columns.file, FILES, "file"), caption_column(path, names, columns)

    def item(row: Mapping[str, Any]) -> Item:
        name = str(row.get(file) or "")
        own = f"{split}/{name}" if split else name
        return of_row(row, own, partial(file_of, folder, name), caption, columns, split)

    def items(start: int, stop: int) -> list[Item]:
        return [item(row) for row in rows[start:stop]]

    return Source("table", chunked(f"{split}{path.stem}", len(rows), items), len(rows))


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
    """The column of captions, if there is one and any that is asked for beside it; errors of :func:`column`."""
    if columns.synthetic != USUAL.synthetic:
        column(where, there, columns.synthetic, (), "")
    return column(where, there, columns.caption, CAPTIONS, "caption")


def of_row(
    row: Mapping[str, Any], name: str, read: Callable[[], bytes], caption: str, columns: Columns, split: str = ""
) -> Item:
    """The item of a row whose column ``caption`` has its caption; ``split`` where the row does not say."""
    texts = {"original": row.get(caption), "synthetic": row.get(columns.synthetic)}
    one = {kind: text[0] if isinstance(text, list) and text else text for kind, text in texts.items()}  # of several
    captions = {kind: str(text).strip() for kind, text in one.items() if text}
    if problem := next(filter(None, (limit.problem(row) for limit in columns.keep)), None):
        read = partial(refuse, problem)
    said = str(row.get(columns.split) or split)
    licence = str(row.get(columns.licence) or row.get("license") or "")
    return Item(name, read, captions, SPLITS.get(said.lower(), said), licence)


def coco(path: Path, images: Path | None) -> Source:
    """One caption to a picture, in MLPerf's order: captions are shuffled, and the first of each picture stays.

    So the first 30,000 of val2014 are the pictures and the captions of its text-to-image benchmarks (pandas'
    ``sample(frac=1, random_state=2023)``, which is this permutation).
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        names = {picture["id"]: str(picture["file_name"]) for picture in tree["images"]}
        order = np.random.RandomState(2023).permutation(len(tree["annotations"]))
        shuffled = [tree["annotations"][i] for i in order]
        captions = {a["image_id"]: str(a["caption"]) for a in reversed(shuffled)}
        pictures = list(dict.fromkeys((names[a["image_id"]], captions[a["image_id"]]) for a in shuffled))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: is not a file of COCO's captions (images and annotations)") from None
    if not pictures:
        raise UserError(f"{path}: has no captions")
    beside = path.parent.parent / path.stem.removeprefix("captions_")  # as COCO's archives unpack
    folder = images or (beside if beside.is_dir() else path.parent)

    def items(start: int, stop: int) -> list[Item]:
        return [
            Item(name, partial(file_of, folder, name), {"original": caption.replace("\n", "").strip()})
            for name, caption in pictures[start:stop]
        ]

    return Source("coco", chunked(path.stem, len(pictures), items), len(pictures))
