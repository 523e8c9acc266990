"""Shards: ArrayRecord files of records, each with a checksum of its own, so that damage is found, named and confined.

ArrayRecord finds a flipped bit as it reads, but takes a file that has lost its end for an empty one. Here a file is
held to the manifest's counts, and :func:`salvage` reads what is left of one.
"""

import errno
import os
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from sd3_jax.data.examples import Manifest, Shard
from sd3_jax.records import whole

OPTIONS = "group_size:1,uncompressed"  # one record to a chunk: any one is read alone, and latents do not compress
CHECK_BYTES = 4  # CRC-32 at the end of each record
OPEN = 256  # files at a time: a process may have about 1,000, and a large set has more; to open one takes 0.1 ms

# Riegeli's layout, which ArrayRecord's is, for salvage: a header at each start of a block, and one before each chunk.
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER, _SIMPLE = 1 << 16, 24, 40, ord("r")


class DamagedError(Exception):
    """A record or a file that is not what was written. The message names it, and what helps."""


class Written(NamedTuple):
    """A file as it was written."""

    examples: int
    bytes: int
    checksum: int  # CRC-32


def write(path: Path, records: Iterable[bytes]) -> Written:
    """Write a shard whole or not at all; equal records give equal bytes. A full disk is an OSError naming ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole(path) as temporary:
            writer, count = ArrayRecordWriter(str(temporary), OPTIONS), 0
            for record in records:
                writer.write(record + zlib.crc32(record).to_bytes(CHECK_BYTES, "little"))
                count += 1
            writer.close()
            if len(_Reader(temporary)) != count:  # the writer says nothing of a full disk
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            written = Written(count, *sums(temporary))
    except RuntimeError as error:  # the writer's word for a disk that is full or failing
        raise OSError(errno.EIO, str(error).partition(" writing")[0].partition(";")[0], str(path)) from None
    return written


def sums(path: Path) -> tuple[int, int]:
    """Bytes and CRC-32 of a file."""
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return size, checksum


class Records(Sequence[bytes]):
    """The records of some shards under one index. Files are opened when they are needed; threads may share this."""

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self._folder, self._shards = folder, tuple(shards)
        self._starts = list(accumulate((shard.examples for shard in shards), initial=0))
        self._open: dict[int, _Reader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        """The record at ``index``. Raises DamagedError if it is not what was written."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._starts, index) - 1
        reader, i = self._reader(shard), index - self._starts[shard]
        try:
            return reader.read(i)
        except ValueError:
            raise _damaged(reader.path, f"record {i} is damaged") from None

    def _reader(self, shard: int) -> "_Reader":
        with self._lock:
            reader = self._open.pop(shard, None)
            self._open[shard] = reader = _opened(self._folder, self._shards[shard]) if reader is None else reader
            if len(self._open) > OPEN:  # the one that was wanted longest ago; a thread that reads it still has it
                del self._open[next(iter(self._open))]
            return reader


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises DamagedError for the first shard that is missing or of another size than it was written: no reading."""
    for shard in manifest.shards:
        path = folder / shard.file
        try:
            size = path.stat().st_size
        except OSError:
            raise _damaged(path, "is missing") from None
        if size != shard.bytes:
            raise _damaged(path, f"has {size} bytes, and the manifest says {shard.bytes}")


def check(folder: Path, manifest: Manifest) -> Iterator[tuple[Shard, list[str]]]:
    """Read every shard, and yield each with what is wrong with it: nothing, or a line for each file and record."""
    for shard in manifest.shards:
        path = folder / shard.file
        whole = path.is_file() and sums(path) == (shard.bytes, shard.checksum)
        yield shard, [] if whole else list(_wrong(folder, shard))


def _wrong(folder: Path, shard: Shard) -> Iterator[str]:
    """What is wrong with a shard that is not as it was written."""
    path, whole = folder / shard.file, True
    try:
        reader = _opened(folder, shard)
    except DamagedError as error:
        yield f"{error}; {sum(1 for _ in salvage(path))} records can still be read"
        return
    for i in range(len(reader)):
        try:
            reader.read(i)
        except ValueError:
            whole = False
            yield str(_damaged(path, f"record {i} is damaged"))
    if whole:
        yield str(_damaged(path, "its records are whole, and its checksum is another"))


def salvage(path: Path) -> Iterator[bytes]:
    """The records of a shard that are whole, in order, though the file may have lost its end or its index."""
    if not path.exists():
        return
    raw = path.read_bytes()
    data = b"".join(raw[i + _BLOCK_HEADER : i + _BLOCK] for i in range(0, len(raw), _BLOCK))
    at = 0
    while at + _CHUNK_HEADER <= len(data):
        size, kind = int.from_bytes(data[at + 8 : at + 16], "little"), data[at + 24]
        chunk = data[at + _CHUNK_HEADER : at + _CHUNK_HEADER + size]
        with suppress(ValueError):
            if kind == _SIMPLE:
                yield _verified(_single(chunk))
        at += _CHUNK_HEADER + size


def _single(chunk: bytes) -> bytes:
    """The one record of an uncompressed chunk: a zero, then (as varints) the size of the sizes, and its size."""
    _, at = _varint(chunk, 1)
    size, at = _varint(chunk, at)
    return chunk[at : at + size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and data[at] & 0x80:
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
    if at >= len(data):
        raise ValueError("cut off")
    return value | data[at] << shift, at + 1


class _Reader:
    """ArrayRecord's reader, for which a file that is none has no records."""

    def __init__(self, path: Path):
        self.path, self._count = path, 0
        with suppress(RuntimeError, ValueError):
            self._inner = ArrayRecordReader(str(path), "readahead_buffer_size:0")
            self._count = self._inner.num_records()

    def __len__(self) -> int:
        return self._count

    def read(self, i: int) -> bytes:
        """Record ``i``, verified. Raises ValueError."""
        try:
            return _verified(self._inner.read([i])[0])
        except (RuntimeError, IndexError) as error:
            raise ValueError(str(error)) from None


def _opened(folder: Path, shard: Shard) -> _Reader:
    path = folder / shard.file
    if not path.is_file():
        raise _damaged(path, "is missing")
    if len(reader := _Reader(path)) != shard.examples:
        raise _damaged(path, f"holds {len(reader)} records, and the manifest says {shard.examples}")
    return reader


def _verified(record: bytes) -> bytes:
    """A record without its checksum. Raises ValueError if it does not fit."""
    payload, checksum = record[:-CHECK_BYTES], record[-CHECK_BYTES:]
    if len(checksum) < CHECK_BYTES or zlib.crc32(payload) != int.from_bytes(checksum, "little"):
        raise ValueError("checksum")
    return payload


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path}: {what}; copy the file again, or delete it and run sd3-jax prepare again")
