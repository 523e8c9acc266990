"""Shards of records: whole or not at all, equal bytes for equal records, and damage that is found and confined."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sd3_jax.data import shards
from sd3_jax.data.examples import Autoencoder, Manifest, Shard

RNG = np.random.default_rng(0)
RECORDS = [RNG.bytes(n) for n in (0, 1, 24, 40_000, 65_536, 200_000, 127, 128, 30_000)]


def a_set(folder: Path, records: list[bytes] = RECORDS, files: int = 1) -> Manifest:
    written = []
    for i in range(files):
        path = folder / f"train-{i:05d}.array_record"
        own = records[i::files]
        written.append(Shard(path.name, "train", (64, 64), *shards.write(path, own)))
    encoder = Autoencoder("cosine", "", "", 4, 8, 0.0, 1.0, False)
    return Manifest(encoder, (), 0, 0, 0, "float16", 64, ("original",), tuple(written))


def test_records_come_back_by_index_over_all_files(tmp_path: Path) -> None:
    manifest = a_set(tmp_path, files=3)
    records = shards.Records(tmp_path, manifest.shards)
    assert list(records) == [r for i in range(3) for r in RECORDS[i::3]]
    with pytest.raises(IndexError):
        records[len(RECORDS)]
    shards.check_sizes(tmp_path, manifest)
    assert [wrong for _, wrong in shards.check(tmp_path, manifest)] == [[], [], []]


def test_more_shards_than_a_process_may_open_are_read_by_threads(tmp_path: Path) -> None:
    records = [f"record {i}".encode() for i in range(2 * shards.OPEN)]
    manifest = a_set(tmp_path, records, files=len(records))
    read = shards.Records(tmp_path, manifest.shards)
    before = len(os.listdir("/proc/self/fd"))
    order = np.random.RandomState(0).permutation(len(records)).tolist() * 2
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: read[i], order)) == [records[i] for i in order]
    assert len(os.listdir("/proc/self/fd")) <= before + shards.OPEN


def test_equal_records_give_equal_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    a_set(tmp_path / "a"), a_set(tmp_path / "b")
    name = "train-00000.array_record"
    assert os.listdir(tmp_path / "a") == [name]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_flipped_bit_costs_one_record_at_most_wherever_it_is(tmp_path: Path) -> None:
    manifest = a_set(tmp_path)
    path = tmp_path / manifest.shards[0].file
    whole = path.read_bytes()
    for place in [3, 30, *RNG.integers(0, len(whole), 60).tolist(), len(whole) - 20]:
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        ((_, wrong),) = shards.check(tmp_path, manifest)
        assert wrong
        assert all(str(path) in line for line in wrong)
        read = []
        for i in range(len(RECORDS)):
            try:
                read.append(shards.Records(tmp_path, manifest.shards)[i])
            except shards.DamagedError:
                read.append(None)
        if all(r is None for r in read):  # its index was hit: the rest can be salvaged
            read = list(shards.salvage(path))
            assert read == RECORDS
        assert sum(r == want for r, want in zip(read, RECORDS, strict=True)) >= len(RECORDS) - 1
        assert all(r is None or r == want for r, want in zip(read, RECORDS, strict=True))


def test_a_file_that_lost_its_end_is_named_and_the_records_before_it_are_read(tmp_path: Path) -> None:
    manifest = a_set(tmp_path)
    path = tmp_path / manifest.shards[0].file
    whole = path.read_bytes()
    starts = np.cumsum([0, *(len(r) for r in RECORDS)])
    for size in (0, 10, 40_000, 110_000, 300_000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(shards.DamagedError, match="train-00000.*has .* bytes"):
            shards.check_sizes(tmp_path, manifest)
        with pytest.raises(shards.DamagedError, match="train-00000.*holds 0 records"):
            shards.Records(tmp_path, manifest.shards)[0]
        rest = list(shards.salvage(path))
        assert rest == RECORDS[: len(rest)]
        assert len(rest) >= np.searchsorted(starts, size - 2000) - 1
    path.unlink()
    with pytest.raises(shards.DamagedError, match="missing"):
        shards.check_sizes(tmp_path, manifest)
    assert "missing" in next(shards.check(tmp_path, manifest))[1][0]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import pathlib, resource, signal, sys; from sd3_jax.data import shards\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"  # no file grows past this: a full disk
        "try: shards.write(pathlib.Path(sys.argv[1]) / 'x.array_record', [bytes(1000)] * 1000)\n"
        "except OSError as error: sys.exit(f'{error.filename}: {error.strerror}')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert "x.array_record: " in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
