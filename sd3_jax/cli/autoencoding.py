"""Autoencoders: small ones trained on one's own pictures, and how much of pictures any of them gives back."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sd3_jax import records, terminal
from sd3_jax.cli.options import JsonOption
from sd3_jax.errors import UserError

SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help="Pictures, as for sd3-jax prepare.")]
SizeOption = Annotated[int, typer.Option(min=8, max=4096, help="Pixels on a side.")]
HoldOutOption = Annotated[float, typer.Option(min=0, max=0.5, help="Share that is held out, if SOURCE has none.")]


def autoencoder(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    channels: Annotated[int, typer.Option(min=1, max=256, help="Of the latents.")] = 16,
    downsample: Annotated[int, typer.Option(min=1, max=64, help="Pixels to a latent pixel, f.")] = 8,
    size: SizeOption = 64,
    width: Annotated[int, typer.Option(min=8, max=4096, help="Channels of its convolutions; a multiple of 8.")] = 128,
    blocks: Annotated[int, typer.Option(min=0, max=64, help="Residual blocks of encoder, and of decoder.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 32,
    hold_out: HoldOutOption = 0.05,
    limit: Annotated[int, typer.Option(min=1, help="Pictures that are kept in memory.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a small convolutional autoencoder on pictures; prepare takes it as --autoencoder OUT.

    Example: sd3-jax autoencoder pictures/emoji data/ae16 --channels 16
    """
    from sd3_jax.data import learned, prepare

    if width % 8:
        raise UserError(f"--width {width}: is not a multiple of 8")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; name a new folder")
    training = learned.Training(channels, downsample, width, blocks, steps, batch, seed=seed)
    images = prepare.read_pictures(source, size, "train", hold_out, limit)
    out.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before it is trained
    bars = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(TextColumn("training"), *bars, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=steps, loss="")

        def report(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=f"loss {loss:.4f}")

        params = learned.fit(images, training, report)
    learned.save(out, training, params, f"{len(images)} pictures of {source} at {size} px")
    print(out)


def reconstruct(
    source: SourceArgument,
    autoencoders: Annotated[list[str], typer.Argument(metavar="AUTOENCODER...", help="cosine:16x8, or folders.")],
    size: SizeOption = 64,
    hold_out: HoldOutOption = 0.05,
    number: Annotated[int, typer.Option(min=2, help="Pictures, at most, of those held out.")] = 1000,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the picture and the numbers go.")] = Path("figures"),
    json_file: JsonOption = None,
) -> None:
    """What autoencoders give back of pictures that were held out: the paper's Table 3, beside the paper's own.

    Example: sd3-jax reconstruct pictures/emoji data/ae4 data/ae8 data/ae16 cosine:16x8
    """
    from analysis import published
    from sd3_jax import contact
    from sd3_jax.data import frozen, prepare
    from sd3_jax.evaluation import reconstruction

    if size < reconstruction.WINDOW:
        raise UserError(f"--size {size}: SSIM looks at windows of {reconstruction.WINDOW} pixels")
    codecs = [frozen.load_codec(spec) for spec in autoencoders]
    for one in (codec.described for codec in codecs):
        if size % one.downsample:
            raise UserError(f"--size {size}: is no multiple of the {one.downsample} pixels of a latent of {one.source}")
    images = prepare.read_pictures(source, size, "validation", hold_out, number)
    if len(images) < 2:
        raise UserError(f"{source}: holds out one picture, and two have an error; --hold-out takes a share of more")
    rows = reconstruction.rows(codecs, images)
    cells = [["autoencoder", "channels", "f", "PSNR, dB", "SSIM", "Frechet"]]
    for row in rows:
        signal, alike = (f"{row[name]:.{k}f}±{row[f'{name}_se']:.{k}f}" for name, k in (("psnr", 2), ("ssim", 3)))
        own = (Path(row["autoencoder"]).name, str(row["channels"]), str(row["downsample"]))
        cells.append([*own, signal, alike, f"{row['frechet']:.3f}"])
    for channels, paper in published.TABLE_3.items():
        cells.append(["paper, Table 3", f"{channels}", "8", f"{paper.psnr:.2f}", f"{paper.ssim:.2f}", ""])
    note = (
        f"{rows[0]['n']:,} pictures of {size} px. Frechet: of features that need no network (0: nothing lost, 1: the "
        "mean picture), no FID; the paper's pictures are photographs, and larger."
    )
    contact.reconstructions(codecs, images[:8], out / "reconstructions.png")
    records.write_rows(out / "reconstructions.jsonl", rows)
    terminal.show([terminal.chart("what comes back of pictures that were held out", cells), note], rows, json_file)
    terminal.written([out / "reconstructions.png", out / "reconstructions.jsonl"], json_file)
