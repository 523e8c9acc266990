"""Weights in and out of the library."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sd3_jax import overlays, platform
from sd3_jax.cli.options import SetOption
from sd3_jax.errors import UserError


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A diffusers transformer folder, a reference .safetensors, or a run.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The directory to make: a run, or of a run a folder.")],
    set_: SetOption = None,
    step: Annotated[int | None, typer.Option(help="Of a run: which checkpoint; the newest unless given.")] = None,
    weights: Annotated[str, typer.Option(help="Of a run: ema (averaged) or raw.")] = "ema",
    dtype: Annotated[str, typer.Option(help="Of a run: write float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Released weights to a run directory that sample draws with, or a run to what diffusers loads.

    Example: sd3-jax convert stable-diffusion-3-medium/transformer runs/sd3_medium
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # arrays only pass through: no accelerator need hold them
    platform.prepare()
    from sd3_jax import convert as converting

    overlay = overlays.parse_assignments(set_ or [])
    if weights not in ("ema", "raw"):
        raise UserError(f"weights: {weights!r} is not one of ema, raw")
    if not source.exists():
        raise UserError(f"{source}: there is no such file or directory")
    if converting.is_run(source):
        if overlay:
            raise UserError("--set changes what a file of weights does not say; a run says everything")
        at = converting.to_diffusers(source, target, step, weights, dtype)
        print(f"{target}: {weights} weights of step {at:,}, {dtype}, for SD3Transformer2DModel.from_pretrained")
    else:
        model = converting.to_run(source, target, overlay).model
        print(f"{target}: a run of depth {model.depth} and width {model.width}, ready for sd3-jax sample")
