"""Safetensors on disk, one tensor in memory at a time: single files, and folders of shards with an index.

A file is eight bytes that say how long the header is, the header (JSON: of each tensor its type, shape and place), and
the numbers. Files are read by plain reads and not mapped, so that what was read does not stay in memory.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sd3_jax.errors import UserError

TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
STEM = "diffusion_pytorch_model"  # diffusers' name for a model's file


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    type: str
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file


def catalogue(path: Path) -> dict[str, Stored]:
    """Every tensor of a file, or of a folder that holds one file or an index of several; nothing but headers is read.

    Raises UserError for what is missing, truncated or not safetensors.
    """
    if not path.is_dir():
        return _header(path)
    indices = sorted(path.glob("*.safetensors.index.json"))
    files = sorted(path.glob("*.safetensors"))
    plain = path / f"{STEM}.safetensors"
    if plain in files or len(files) == 1 and not indices:
        return _header(plain if plain in files else files[0])
    named = path / f"{STEM}.safetensors.index.json"
    if named not in indices and len(indices) != 1:
        raise UserError(f"{path}: holds {len(files)} .safetensors files and {len(indices)} indices; expected one")
    return _indexed(named if named in indices else indices[0])


def _indexed(index: Path) -> dict[str, Stored]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: is not an index of safetensors (a JSON object with a weight_map)") from None
    if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise UserError(f"{index}: names files outside its folder: {', '.join(map(str, strange))}")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"{index.parent}: shards are missing: {', '.join(missing)}")
    found: dict[str, Stored] = {}
    for name in names:
        found |= _header(index.parent / name)
    if lost := [name for name, file in places.items() if name not in found or found[name].file.name != file]:
        raise UserError(f"{index}: tensors are not in the shards that it names: {', '.join(lost)}")
    return found


def _header(path: Path) -> dict[str, Stored]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > LONGEST_HEADER:
                raise UserError(f"{path}: is not a safetensors file")
            text = file.read(length)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing") from None
    if len(text) < length:
        raise UserError(f"{path}: is truncated: its header should have {length:,} bytes and has {len(text):,}")
    found, end = {}, 8 + length
    try:
        for name, entry in json.loads(text).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                found[name] = Stored(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), 8 + length + first)
                end = max(end, 8 + length + last)
                wrong = entry["dtype"] in TYPES and last - first != _bytes(found[name])
                if wrong or not 0 <= first <= last:
                    raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not a safetensors file (its header is broken)") from None
    if end > size:
        raise UserError(f"{path}: is truncated: it should have {end:,} bytes and has {size:,}")
    return found


def _bytes(stored: Stored) -> int:
    return math.prod(stored.shape) * TYPES[stored.type].itemsize


def read(stored: Stored) -> np.ndarray:
    """One tensor, in the type that it is stored in."""
    with open(stored.file, "rb") as file:
        file.seek(stored.start)
        raw = file.read(_bytes(stored))
    return np.frombuffer(raw, TYPES[stored.type]).reshape(stored.shape)


def write(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    tensors: Iterator[tuple[str, np.ndarray]],
    type_: str,
    shard_bytes: int,
) -> None:
    """Write tensors as they come, in the order of ``shapes``, as diffusers names files: one, or shards and an index.

    Raises UserError for a number that is too large for ``type_``.
    """
    width = TYPES[type_].itemsize
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        if filled and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    places: dict[str, str] = {}
    for i, shard in enumerate(shards):
        many = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        places |= dict.fromkeys(shard, f"{STEM}{many}.safetensors")
        _write_file(folder / f"{STEM}{many}.safetensors", shard, tensors, type_)
    if len(shards) > 1:
        total = sum(math.prod(shape) * width for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterator[tuple[str, np.ndarray]], type_: str
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * TYPES[type_].itemsize
        header[name] = {"dtype": type_, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for wanted in shapes:
            name, tensor = next(tensors)
            assert (name, tensor.shape) == (wanted, shapes[wanted])
            with np.errstate(over="ignore"):
                rounded = tensor.astype(TYPES[type_])
            if tensor.dtype != rounded.dtype and (np.isinf(rounded) & np.isfinite(tensor)).any():
                raise UserError(f"{name}: holds numbers too large for {type_}; write float32 or bfloat16")
            file.write(np.ascontiguousarray(rounded).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
