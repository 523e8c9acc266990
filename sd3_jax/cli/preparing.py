"""Real pictures: a source of them becomes a prepared set, which is trained on."""

import shlex
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sd3_jax import terminal
from sd3_jax.cli.options import JsonOption
from sd3_jax.errors import RunFailed, Stopped, UserError

if TYPE_CHECKING:
    from sd3_jax.data.deduplication import Descriptor
    from sd3_jax.data.examples import Manifest

MOST = 4096  # pixels on a side


def prepare(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, table, tars, Parquet, COCO's captions, tfds:NAME.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    autoencoder: Annotated[str, typer.Option(help="cosine:CHANNELSxDOWNSAMPLE, or a folder of one.")] = "cosine:16x8",
    text: Annotated[
        list[str] | None, typer.Option(help="words:TOKENSxCHANNELS, or NAME=FOLDER[:TOKENS]; may be repeated.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, max=MOST, help="Pixels on a side of the square.")] = 256,
    bucket: Annotated[
        list[str] | None, typer.Option(metavar="HxW", help="A shape that pictures may have; may be repeated.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--as", help="What SOURCE is: folder, table, webdataset, coco, huggingface, tfds.")
    ] = "",
    images: Annotated[Path | None, typer.Option(help="Where the pictures of a table, or of COCO, lie.")] = None,
    file_column: Annotated[str, typer.Option(help="The column of a table with the pictures' names.")] = "",
    caption_column: Annotated[str, typer.Option(help="The column of a table, or key of JSON, with captions.")] = "",
    synthetic_column: Annotated[str, typer.Option(help="The one with a second caption, a model's.")] = "synthetic",
    classes: Annotated[
        Path | None, typer.Option(help="Names of classes, a line each: n01440764 tench, Tinca tinca.")
    ] = None,
    hold_out: Annotated[float, typer.Option(min=0, max=0.5, help="Share that is held out, if SOURCE has none.")] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first so many alone.")] = None,
    deduplicate: Annotated[
        float | None,
        typer.Option(min=0.3, max=1, help="Leave out pictures as similar as this to one before; 0.9 finds copies."),
    ] = None,
    descriptor: Annotated[
        str, typer.Option(help="What --deduplicate compares: waves (no network), clip=FOLDER, dinov2=FOLDER.")
    ] = "waves",
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN>=N", help="Only pictures with such a number; may be repeated.")
    ] = None,
    least: Annotated[int, typer.Option(min=1, help="Pixels that a picture's shorter side must have.")] = 1,
    licence: Annotated[str, typer.Option(help="Of pictures whose SOURCE does not say.")] = "",
    dtype: Annotated[str, typer.Option(help="Of what is stored: float16, bfloat16, float32.")] = "float16",
    part: Annotated[
        str, typer.Option(metavar="K/N", help="Do this share of the work; another machine does another.")
    ] = "1/1",
    batch: Annotated[int, typer.Option(min=1, help="Pictures, or captions, that are encoded at a time.")] = 32,
    device: Annotated[str, typer.Option(help="Of torch's networks: auto, cpu, cuda, cuda:1.")] = "auto",
    compute: Annotated[str, typer.Option(help="Of torch's networks: float32, bfloat16, float16.")] = "float32",
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 4,
    check: Annotated[
        bool, typer.Option("--check", help="Make nothing: read all of OUT, and say what is damaged.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Encode captioned pictures once, for training at full speed from disk.

    Kill it and run it again: it goes on, and gives the same files. What cannot be read is listed in OUT/skipped.jsonl.

    Example: sd3-jax prepare pictures/emoji data/emoji --size 64 --autoencoder cosine:16x8 --text words:16x64
    """
    from sd3_jax.data import deduplication, frozen, sources
    from sd3_jax.data import prepare as preparing

    if check:
        _check(out, json_file)
        return
    if dtype not in ("float16", "bfloat16", "float32"):
        raise UserError(f"--dtype {dtype}: is not one of float16, bfloat16, float32")
    compared = _descriptor(descriptor)
    kept = tuple(sources.read_limit(one) for one in keep or ())
    columns = sources.Columns(file_column, caption_column, synthetic_column, keep=kept)
    shapes = tuple(_shape(one) for one in bucket or ())
    recipe = preparing.Recipe(size, shapes, least, hold_out, dtype, licence, tuple(map(str, kept)))
    if compute not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--compute {compute}: is not one of float32, bfloat16, float16")
    running = frozen.Running(device, compute, batch)
    texts = [frozen.load_text(one, running) for one in text or ["words:16x64"]]
    encoders = preparing.Encoders(frozen.load_codec(autoencoder, running), texts, batch, compute)
    found = sources.find(source, kind, columns, images, sources.read_classes(classes) if classes else None)
    if limit is not None:
        found = sources.first(found, limit)
    began = time.monotonic()
    looked_at = 0
    counts = (MofNCompleteColumn(), TextColumn("chunks, {task.fields[rate]}"))
    bars = (BarColumn(), *counts, TimeRemainingColumn())
    with Progress(TextColumn("preparing"), *bars, console=Console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None, rate="")

        def report(looked: int, done: int, chunks: int) -> None:
            nonlocal looked_at
            looked_at = looked
            rate = f"{looked / (time.monotonic() - began):,.0f} pictures/s"
            bar.update(task, completed=done, total=chunks, rate=rate)

        own, left_out = _part(part), None
        if deduplicate is not None:
            twice = deduplication.deduplicate(found, out, deduplicate, compared, least, own, workers, report)
            if twice is None:
                raise Stopped(f"{out}: part {part} is described; run the same command again once all parts are")
            left_out = twice.left_out
        manifest = preparing.prepare(
            found, out, recipe, encoders, origin=source, part=own, left_out=left_out, workers=workers, report=report
        )
    if manifest is None:
        terminal.show(f"{out}: part {part} is done; the last one writes the manifest", {"done": part}, json_file)
        return
    _say(out, manifest, looked_at, time.monotonic() - began, json_file)


def _say(out: Path, manifest: "Manifest", looked: int, seconds: float, json_file: str | None) -> None:
    from sd3_jax.data import examples
    from sd3_jax.data.prepare import SKIPPED
    from sd3_jax.records import read_rows

    made = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("split", "size", "pictures", "MB", "bytes each"):
        made.add_column(name, justify="left" if name == "split" else "right")
    rows = []
    for split, size in sorted({(shard.split, shard.size) for shard in manifest.shards}):
        own = [shard for shard in manifest.shards if (shard.split, shard.size) == (split, size)]
        count, total = sum(s.examples for s in own), sum(s.bytes for s in own)
        rows.append({"split": split, "size": size, "pictures": count, "bytes": total})
        made.add_row(split, f"{size[0]}x{size[1]}", f"{count:,}", f"{total / 1e6:,.1f}", f"{total / count:,.0f}")
    said = (row["reason"].partition(" (")[0] for row in read_rows(out / SKIPPED)[0])
    skipped = Counter("is a duplicate of another" if "is a duplicate of" in reason else reason for reason in said)
    gone = [f"left out {n:,}: {reason}" for reason, n in skipped.most_common(8)]
    if len(skipped) > 8:
        gone.append(f"and {len(skipped) - 8} more reasons: {out / SKIPPED}")
    if twice := manifest.statistics.get("duplicates"):
        each = ", ".join(f"{n:,} at {threshold}" for threshold, n in twice["counts"].items())
        gone.append(f"duplicates by {twice['descriptor']} that would go: {each}")
    rate = f"; {looked:,} pictures in {seconds:.1f} s, {looked / seconds:,.0f} a second" if looked else "; done before"
    settings = examples.settings(manifest) | {"data.path": str(out)}
    if len(manifest.sizes) > 1 or manifest.sizes != ((manifest.image_size,) * 2,):
        settings["data.buckets"] = str([list(size) for size in manifest.sizes]).replace(" ", "")
    if held := manifest.count("validation"):
        settings |= {"evaluation.examples": min(held, 512)}
    told = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in settings.items())
    parts: list[RenderableType] = [made, *gone, f"{out}: set {manifest.digest}{rate}"]
    parts.append(f"train on it: sd3-jax train EXPERIMENT --run RUN {told}")
    value = {"digest": manifest.digest, "made": rows, "skipped": skipped, "seconds": seconds, "settings": settings}
    terminal.show(parts, value, json_file)


def _check(out: Path, json_file: str | None) -> None:
    from sd3_jax.data import examples, shards

    manifest = examples.read_manifest(out)
    wrong = [line for _, lines in shards.check(out, manifest) for line in lines]
    if wrong:
        print("\n".join(wrong))
        raise RunFailed(f"{out}: {len(wrong)} of its records or files are damaged")
    count, files = sum(shard.examples for shard in manifest.shards), len(manifest.shards)
    terminal.show(f"{out}: {count:,} records in {files:,} files are as they were written", wrong, json_file)


def _descriptor(spec: str) -> "Descriptor":
    """What duplicates are found by. Raises UserError for a name that is none."""
    from sd3_jax.data import deduplication

    if spec == "waves":
        return deduplication.WAVES
    from sd3_jax.evaluation import features

    kind = spec.partition("=")[0]
    if kind not in ("clip", "dinov2"):
        raise UserError(f"--descriptor {spec}: is not one of waves, clip=FOLDER, dinov2=FOLDER")
    found = features.load(spec)
    return deduplication.by_features(f"{kind} {found.digest}", found.embed)


def _shape(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()) or max(int(height), int(width)) > MOST:
        raise UserError(f"--bucket {text}: is not height x width in pixels, at most {MOST}, such as 48x80")
    return int(height), int(width)


def _part(text: str) -> tuple[int, int]:
    own, _, count = text.partition("/")
    if not (own.isdecimal() and count.isdecimal()) or not 1 <= int(own) <= int(count):
        raise UserError(f"--part {text}: is not K/N, such as 1/4 to 4/4")
    return int(own), int(count)
