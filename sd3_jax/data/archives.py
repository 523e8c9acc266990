"""Captioned pictures in files of many: WebDataset tars, Hugging Face and TensorFlow datasets. See :mod:`.sources`."""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sd3_jax.data.pictures import MOST_BYTES, SUFFIXES, Unreadable
from sd3_jax.data.sources import (
    MOST_TEXT,
    SPLITS,
    USUAL,
    Chunk,
    Columns,
    Item,
    Source,
    chunked,
    inside,
    photo_of,
    refuse,
    text_of,
)
from sd3_jax.data.tables import CAPTIONS, caption_column, column, of_row
from sd3_jax.errors import UserError

IMAGES = ("image", "jpg", "png", "img", "picture")  # names of the column with pictures


# --- WebDataset -----------------------------------------------------------------------------------------------------
def tars(where: str, path: Path, columns: Columns) -> Source:
    """A folder of tars, one, or a range of names, {000..123}; each is a chunk. Raises UserError for a missing one."""
    paths = sorted(path.glob("*.tar")) if path.is_dir() else [Path(name) for name in expand(where)]
    if not paths:
        raise UserError(f"{path}: has no tars")
    if lacking := [tar for tar in paths if not tar.is_file()]:
        raise UserError(f"{lacking[0]}: no such file ({len(lacking)} of {len(paths)} are missing)")
    return Source("webdataset", [Chunk(tar.name, partial(_of_tar, tar, columns)) for tar in paths], None)


def expand(pattern: str) -> list[str]:
    """WebDataset's ranges.

    >>> expand("a-{08..11}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']
    """
    before, brace, rest = pattern.partition("{")
    inside, _, after = rest.partition("}")
    first, dots, last = inside.partition("..")
    if not brace or not dots or not (first.isdecimal() and last.isdecimal()):
        return [pattern]
    return [f"{before}{i:0{len(first)}d}{end}" for i in range(int(first), int(last) + 1) for end in expand(after)]


def _of_tar(path: Path, columns: Columns) -> list[Item]:
    """The samples of a tar, in its order: files with one name before its first dot belong together."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    items: list[Item] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0:  # which would lead back to where we were, and on for ever
                    raise tarfile.ReadError("negative size")
                name = PurePosixPath(member.name)
                key = (name.parent / name.name.partition(".")[0]).as_posix()
                if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                    why = "is a link" if member.islnk() or member.issym() else "lies outside the folder"
                    items.append(Item(f"{path.stem}/{member.name}", partial(refuse, why), {}))
                elif member.isfile():
                    place = (member.offset_data, member.size)
                    samples.setdefault(key, {})[name.name.partition(".")[2].lower()] = place
    except (tarfile.TarError, EOFError) as error:
        why = f"its tar is broken here ({' '.join(str(error).split())[:60]})"
        items.append(Item(f"{path.stem}/...", partial(refuse, why), {}))
    if not samples and not items:
        items.append(Item(f"{path.stem}/...", partial(refuse, "is not a tar with samples"), {}))
    with open(path, "rb") as file:
        for key, parts in samples.items():
            items.append(_of_sample(path, file, f"{path.stem}/{key}", parts, columns))
    return items


def _of_sample(
    path: Path, file: io.BufferedReader, name: str, parts: Mapping[str, tuple[int, int]], columns: Columns
) -> Item:
    picture = next((parts[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in parts), None)
    if picture is None:
        return Item(name, partial(refuse, "has no picture"), {})
    if picture[1] > MOST_BYTES or any(parts[key][1] > MOST_TEXT for key in ("json", "txt") if key in parts):
        return Item(name, partial(refuse, "is too large"), {})
    row: dict[str, Any] = {}
    if "json" in parts:
        try:
            said = json.loads(_piece(file, *parts["json"]))
            row = said if isinstance(said, dict) else {}
        except (ValueError, RecursionError):
            row = {}
    caption = columns.caption or next((key for key in CAPTIONS if row.get(key)), "caption")
    if "txt" in parts and not columns.caption:
        row[caption] = text_of(_piece(file, *parts["txt"]))
    return of_row(row, name, partial(_at, path, *picture), caption, columns)


def _piece(file: io.BufferedReader, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _at(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        data = _piece(file, offset, size)
    if len(data) < size:
        raise Unreadable("its tar ends before it does")
    return data


# --- Hugging Face ---------------------------------------------------------------------------------------------------
def arrow(path: Path, columns: Columns) -> Source:
    """A dataset as the hub has it (Parquet) or as ``save_to_disk`` writes it (Arrow); a file is a chunk."""
    parquet = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    folder = path.parent if path.is_file() else path
    files = [(_split_of(file), file) for file in parquet] or _saved(folder)
    return Source(
        "huggingface",
        [
            Chunk(name, partial(_of_arrow, file, name.rpartition(".")[0], split, columns))
            for split, file in files
            for name in [file.relative_to(folder).as_posix()]
        ],
        None,
    )


def has_pictures(path: Path) -> bool:
    """Whether a Parquet file holds pictures themselves, rather than names of files."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError):
        return False
    kinds = [schema.field(name).type for name in IMAGES if name in schema.names]
    return any(pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind) for kind in kinds)


def _split_of(file: Path) -> str:
    """Of a file of the hub, such as data/train-00000-of-00002.parquet or default/train/0000.parquet."""
    return next((name for name in (file.name.partition("-")[0], file.parent.name) if name in SPLITS), "")


def _saved(folder: Path) -> list[tuple[str, Path]]:
    """Splits and files of what ``save_to_disk`` wrote."""
    try:
        listing = folder / "dataset_dict.json"
        splits = json.loads(listing.read_text(encoding="utf-8"))["splits"] if listing.exists() else [""]
        named = [
            (split, f"{split}/{file['filename']}".lstrip("/"))
            for split in splits
            for file in json.loads((folder / split / "state.json").read_text(encoding="utf-8"))["_data_files"]
        ]
        return [(split, folder / name) for split, name in named if inside(folder, name)]
    except (OSError, ValueError, KeyError, TypeError, Unreadable):
        raise UserError(
            f"{folder}: is not a dataset as datasets.save_to_disk writes one, and has no Parquet files"
        ) from None


def _of_arrow(path: Path, name: str, split: str, columns: Columns) -> list[Item]:
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:80]})") from None
    picture = column(path, table.column_names, columns.file, IMAGES, "image")
    caption = caption_column(path, table.column_names, columns)
    others = table.drop_columns([picture])

    def read(i: int) -> bytes:
        value = table[picture][i].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise Unreadable("is not stored in the dataset, only named")
        return data

    rows: Iterable[tuple[int, dict[str, Any]]] = enumerate(others.to_pylist())
    return [of_row(row, f"{name}/{i}", partial(read, i), caption, columns, split) for i, row in rows]


# --- TensorFlow datasets --------------------------------------------------------------------------------------------
def tensorflow(name: str, columns: Columns, classes: Mapping[str, Sequence[str]]) -> Source:
    """Splits of a dataset that is prepared on disk. A label becomes "a photo of a {class}", a name of ``classes``."""
    import tensorflow_datasets as tfds

    where = f"tfds:{name}"
    try:
        builder = tfds.builder(name, file_format="array_record")
        features = builder.info.features
        splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    except Exception as error:  # of many kinds, and many lines
        raise UserError(f"{where}: {' '.join(str(error).split())[:160]}") from None
    if not splits:
        raise UserError(
            f"{where}: is not below {builder.data_dir}; tfds build {name} --file_format=array_record, then again"
        )
    picture = column(where, list(features), columns.file, IMAGES, "image")
    spoken = column(where, list(features), columns.caption, (*CAPTIONS, "label"), "caption and no label")
    labels: list[str] | None = getattr(features[spoken], "names", None)
    if labels and not classes and all(re.fullmatch(r"n\d{8}", label) for label in labels):
        raise UserError(f"{where}: its classes are numbers of WordNet; give their names with --classes FILE")
    names = {label: classes.get(label, [label]) for label in labels or ()}
    chunks: list[Chunk] = []
    for split, count in sorted(splits.items()):
        data = builder.as_data_source(split, decoders={picture: tfds.decode.SkipDecoding()})

        def items(start: int, stop: int, data: Any = data, split: str = split) -> list[Item]:
            found = []
            for i in range(start, stop):
                own = f"{split}/{i}"
                try:
                    value = data[i][spoken]
                except Exception as error:  # of many kinds, for a damaged file
                    why = f"cannot be read ({' '.join(str(error).split())[:80]})"
                    found.append(Item(own, partial(refuse, why), {}, SPLITS.get(split, split)))
                    continue
                text = text_of(value) if isinstance(value, bytes) else str(value)
                if labels:
                    text = photo_of(names[labels[int(value)]], own)
                read = partial(_of_data, data, i, picture)
                found.append(of_row({"caption": text}, own, read, "caption", USUAL, split))
            return found

        chunks += chunked(split, count, items)
    return Source("tfds", chunks, sum(splits.values()))


def _of_data(data: Any, i: int, picture: str) -> bytes:
    return data[i][picture]
