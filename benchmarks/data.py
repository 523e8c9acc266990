"""Reading prepared sets beside a plain WebDataset loader of the same records, and preparing them, on the CPU.

python benchmarks/data.py                       # records of SD3's three encoders at 256 px: 1 MB each
python benchmarks/data.py --rate 776            # how long a device waits that takes so many examples a second

Each side makes the same batches of NumPy arrays from the same bytes, read from a warm page cache. WebDataset (1.0, not
ours: pip install webdataset) reads its tars one after another in one thread, with a buffer of 1,000 that it shuffles;
ours reads any record of a seeded permutation, ahead, in threads, and verifies each record's checksum. Sides take turns.
"""

import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.table import Table

from sd3_jax import terminal
from sd3_jax.config import RunConfig
from sd3_jax.data import examples, frozen, latents, shards, sources
from sd3_jax.data import prepare as preparing
from sd3_jax.data.examples import Autoencoder, Caption, Example, Manifest, Part, Shard
from sd3_jax.data.latents import Prepared, Rows
from sd3_jax.overlays import resolve

CLIP = (Part("clip-l", "clip", "", "", 77, 768, 768), Part("clip-g", "clip", "", "", 77, 1280, 1280))
T5 = Part("t5", "t5", "", "", 77, 4096, 0)


def make_records(count: int) -> tuple[list[bytes], Manifest]:
    """Records as the paper's encoders make them: moments of 32 x 32 x 16 latents, and 154 states."""
    parts, *shapes = frozen.arrange([*CLIP, T5])
    generator = np.random.default_rng(0)
    made = []
    for i in range(count):
        latent = generator.standard_normal((32, 32, 32), np.float32)
        own = {p.name: (generator.standard_normal((p.tokens, p.channels), np.float32),
                        generator.standard_normal(p.pooled, np.float32)) for p in parts}  # fmt: skip
        caption = {"original": Caption(f"caption {i}", own)}
        made.append(examples.pack(Example(str(i), latent, caption, (256, 256), (0, 0, 256, 256)), "float16"))
    autoencoder = Autoencoder("diffusers", "", "", 16, 8, 0.0609, 1.5305, moments=True)
    return made, Manifest(autoencoder, parts, *shapes, "float16", 256, ("original",), ())


def write_sides(folder: Path, records: list[bytes], manifest: Manifest, to_file: int) -> tuple[Manifest, list[str]]:
    """The records as our shards, and as tars."""
    written, tars = [], []
    for number, start in enumerate(range(0, len(records), to_file)):
        own, name = records[start : start + to_file], f"train-{number:05d}"
        path = folder / f"{name}.array_record"
        written.append(Shard(path.name, "train", (256, 256), *shards.write(path, own)))
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for i, record in enumerate(own):
                member = tarfile.TarInfo(f"{start + i:08d}.msgpack")
                member.size = len(record)
                tar.addfile(member, io.BytesIO(record))
        tars.append(str(folder / f"{name}.tar"))
    return Manifest(**{**manifest.__dict__, "shards": tuple(written)}), tars


def ours(config: RunConfig, prepared: Prepared) -> Iterator[Rows]:
    """Batches as training reads them."""
    return latents.batches(config, prepared, np.arange(config.batch), 0, 0)


def plain(tars: list[str], manifest: Manifest, batch: int) -> Iterator[Rows]:
    """Batches of a WebDataset, epoch after epoch."""
    import webdataset

    stream = webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000).repeat()
    samples = (examples.unpack(sample["msgpack"], manifest) for sample in stream)
    while True:
        yield latents.collate([(example, "original") for example in islice(samples, batch)], manifest)


def rate_of(batches: Iterator[Rows], batch: int, seconds: float) -> float:
    """Examples a second, after a first batch."""
    next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += batch
    return count / (time.perf_counter() - began)


def wait_of(batches: Iterator[Rows], batch: int, rate: float, seconds: float) -> float:
    """The share of time that a device waits which asks for a batch, and then is busy with it for ``batch / rate``."""
    next(batches)
    began, waited = time.perf_counter(), 0.0
    while (asked := time.perf_counter()) - began < seconds:
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(batch / rate)
    return waited / (time.perf_counter() - began)


def prepare_rate(folder: Path, count: int) -> float:
    """Pictures a second through ``prepare``: JPEG of half a megapixel to 256 px, encoders that need no torch."""
    generator = np.random.default_rng(1)
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(count):
        coarse = generator.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC).save(pictures / f"{i:05d}.jpg", quality=90)
        (pictures / f"{i:05d}.txt").write_text(f"a picture of number {i}")
    encoders = preparing.Encoders(frozen.load_codec("cosine:16x8"), [frozen.load_text("words:16x64")])
    began = time.perf_counter()
    preparing.prepare(sources.find(str(pictures)), folder / "set", preparing.Recipe(256), encoders, workers=4)
    return count / (time.perf_counter() - began)


def main(
    count: Annotated[int, typer.Option("--examples", min=64, help="Records of about 1 MB.")] = 1024,
    batch: Annotated[int, typer.Option(min=1)] = 128,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    rate: Annotated[float, typer.Option(help="Examples a second that a device takes.")] = 776.0,
    json_file: Annotated[str | None, typer.Option("--json")] = None,
) -> None:
    """Measure, side by side."""
    with tempfile.TemporaryDirectory(prefix="data_") as name:
        folder = Path(name)
        records, manifest = make_records(count)
        manifest, tars = write_sides(folder, records, manifest, to_file=256)
        size = statistics.mean(map(len, records))
        config = resolve(examples.settings(manifest), {"data.path": name, "batch": batch, "steps": 1})
        prepared = Prepared(folder, manifest, "train")
        sides: dict[str, Callable[[], Iterator[Rows]]] = {"sd3_jax": lambda: ours(config, prepared)}
        try:
            import webdataset  # noqa: F401

            sides["webdataset"] = lambda: plain(tars, manifest, batch)
        except ModuleNotFoundError:
            print("note: webdataset is not installed, and is left out", file=sys.stderr)
        taken: dict[str, list[float]] = {side: [] for side in sides}
        waits: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, make in sides.items():
                taken[side].append(rate_of(make(), batch, seconds))
                waits[side].append(wait_of(make(), batch, rate, seconds))
        made = [prepare_rate(Path(tempfile.mkdtemp(dir=name)), 400) for _ in range(3)]
    rows: dict[str, Any] = {
        side: {"examples_per_second": statistics.median(taken[side]), "all": taken[side], "wait": waits[side]}
        for side in sides
    }
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("reader", "examples/s", "MB/s", "range", f"waits at {rate:g}/s"):
        table.add_column(heading, justify="right" if heading != "reader" else "left")
    for side, row in rows.items():
        median, low, high = row["examples_per_second"], min(row["all"]), max(row["all"])
        wait = f"{statistics.median(row['wait']):.1%}"
        table.add_row(side, f"{median:,.0f}", f"{median * size / 1e6:,.0f}", f"{low:,.0f} to {high:,.0f}", wait)
    lines = [f"records of {size / 1e6:.2f} MB, batches of {batch}, medians of {rounds} rounds in turn"]
    if len(rows) > 1:
        lines.append(f"ratio {rows['sd3_jax']['examples_per_second'] / rows['webdataset']['examples_per_second']:.2f}")
    lines.append(
        f"prepare: {statistics.median(made):,.0f} pictures/s (800 x 600 JPEG to 256 px; cosine:16x8, words:16x64)"
    )
    terminal.show([table, *lines], json.loads(json.dumps(rows | {"prepare": made, "bytes": size})), json_file)


if __name__ == "__main__":
    typer.run(main)
