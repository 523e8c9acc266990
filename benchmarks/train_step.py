"""Our train step beside that of diffusers' SD3Transformer2DModel: the same depth, batch and tokens, on one device.

python benchmarks/train_step.py --depth 24 --batch 64   # one GPU, bfloat16 matmuls, 256 image and 154 text tokens
python benchmarks/train_step.py --cpu                   # a small shape, float32

Ours is what ``sd3-jax train`` runs: loss, gradients, their clipping, AdamW and the average of the weights, in one
compiled program that donates its state. The peer is torch's usual: every block by torch.compile, autocast, fused AdamW,
the same loss; it neither clips nor averages, so the comparison favours it. Each side has a process to itself, the same
fixed batch of random numbers on the device at every step, and as in training the next step is dispatched before the
last one is waited for. Torch and diffusers: pip install -e '.[parity]', or torch's build for CUDA.
"""

import concurrent.futures
import importlib.util
import multiprocessing
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.table import Table
from sides import Measured, Task, measure

from sd3_jax import flops, platform, terminal
from sd3_jax.config import ModelConfig, RunConfig
from sd3_jax.errors import RunFailed, UserError
from sd3_jax.overlays import resolve

GPU_SHAPE = {"model.depth": 15, "batch": 128, "model.text_tokens": 154}  # the rest is the schema's: 256 px, heads of 64
CPU_SHAPE = {
    "model.depth": 4,
    "batch": 8,
    "model.text_tokens": 16,
    "model.head_dim": 32,
    "model.latent_size": 16,
    "data.image_size": 128,
    "model.text_dim": 256,
    "model.pooled_dim": 256,
}
RECOMPUTED = {
    "elementwise": "our norms, gates and activations",
    "dots": "our norms, gates, activations and attention",
    "full": "each block, on both sides",
}


def apart(side: str, task: Task) -> Measured:
    """One side, in a process of its own that ends with it, and with no compilation cache that outlives it."""
    # Torch's compiler keeps workers of its own, which may still write when the side has ended.
    with tempfile.TemporaryDirectory(prefix="train_step_", ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                return pool.submit(measure, side, task).result()
            except concurrent.futures.process.BrokenProcessPool:
                raise RunFailed(f"{side}: its process was killed, perhaps for its memory") from None


def summarize(measured: Measured, config: RunConfig) -> dict[str, Any]:
    """What is printed of a side: rates are by the median step, FLOPs are 3F, ``mfu`` None where no peak is known."""
    low, median, high = np.quantile(measured.step_seconds, [0.25, 0.5, 0.75]).tolist()
    rate = config.batch / median
    spent = rate * flops.train_flops(config.model)
    peak = flops.peak_flops(measured.device)
    return asdict(measured) | {
        "seconds": median,
        "seconds_quartiles": [low, high],
        "images_per_second": rate,
        "flops_per_second": spent,
        "mfu": spent / peak if peak else None,
    }


def table(rows: dict[str, dict[str, Any]], cpu: bool) -> Table:
    """One line a side."""
    chart = Table(box=None, padding=(0, 2, 0, 0))
    chart.add_column("")
    memory = "peak memory" + (" (process)" if cpu else "")
    for heading in ("img/s", "TFLOP/s", "MFU", "step, ms", "quartiles", memory, "first step"):
        chart.add_column(heading, justify="right", no_wrap=True)
    for side, row in rows.items():
        low, high = row["seconds_quartiles"]
        chart.add_row(
            side,
            f"{row['images_per_second']:.4g}",
            f"{row['flops_per_second'] / 1e12:.3g}",
            "" if row["mfu"] is None else f"{row['mfu']:.1%}",
            f"{1e3 * row['seconds']:.4g}",
            f"{1e3 * low:.4g} to {1e3 * high:.4g}",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{row['first_seconds']:.1f} s",
        )
    return chart


def heading(config: RunConfig, rows: dict[str, dict[str, Any]], task: Task) -> list[str]:
    """What was measured, in words."""
    model, row = config.model, next(iter(rows.values()))
    lines = [
        f"{row['device']}, {row['dtype']} matmuls: depth {model.depth}, width {model.width}, "
        f"{row['parameters'] / 1e6:.4g}M parameters, batch {config.batch}, "
        f"{model.image_tokens} + {model.text_tokens} tokens, {task.steps} steps",
        f"ours: {rows['ours']['software']}, unroll {config.mesh.unroll}, clipping, average of the weights"
        if "ours" in rows
        else "",
        f"peer: {rows['peer']['software']}, blocks {'compiled' if task.compiled else 'not compiled'}, fused AdamW"
        if "peer" in rows
        else "",
        f"recomputed in the backward pass: {RECOMPUTED[config.mesh.remat]}" if config.mesh.remat != "none" else "",
    ]
    return [line for line in lines if line]


def check_installed(sides: list[str], cpu: bool) -> None:
    """Raises UserError for what is missing, before anything is measured."""
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if "peer" in sides and missing:
        raise UserError(f"the peer needs {' and '.join(missing)}: pip install -e '.[parity]', or --ours-only")
    if "ours" in sides and not cpu and not platform.has_accelerator():
        raise UserError("JAX finds no accelerator here: install jax[cuda13], or measure a small shape with --cpu")


def compare(
    cpu: Annotated[bool, typer.Option("--cpu", help="A small shape on CPU, in float32.")] = False,
    depth: Annotated[int | None, typer.Option(help="Blocks and heads.  [15; with --cpu 4]")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step.  [128; with --cpu 8]")] = None,
    text_tokens: Annotated[int | None, typer.Option(help="Text tokens an image.  [154; with --cpu 16]")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps that are timed.")] = 30,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them, after the first.")] = 5,
    ours_only: Annotated[bool, typer.Option("--ours-only", help="Without torch.")] = False,
    peer_only: Annotated[bool, typer.Option("--peer-only", help="Diffusers' side alone.")] = False,
    remat: Annotated[
        str, typer.Option(help="What blocks compute again backward: elementwise or dots on our side, full on both.")
    ] = "none",
    unroll: Annotated[int, typer.Option(min=1, help="Our blocks per iteration of the scan over depth.")] = 1,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="The peer's blocks; by default on GPU alone.")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write every number; - is standard output.")
    ] = None,
) -> None:
    """Time our train step and diffusers', each in a process of its own, and print both with their ratio."""
    if ours_only and peer_only:
        raise UserError("--ours-only and --peer-only: give one at most")
    given = {"model.depth": depth, "batch": batch, "model.text_tokens": text_tokens}
    execution = {"steps": 1, "mesh.unroll": unroll, "mesh.remat": remat}
    overlay = {key: value for key, value in given.items() if value is not None}
    config = resolve(CPU_SHAPE if cpu else GPU_SHAPE, execution, overlay)
    sides = ["ours"] if ours_only else ["peer"] if peer_only else ["peer", "ours"]
    check_installed(sides, cpu)
    if cpu:
        os.environ |= {"JAX_PLATFORMS": "cpu", **platform.memory_settings()}
        # Torch's threads would spin while they wait: on busy cores that made its steps 2 to 15 times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # else the first step would not compile
    task = Task(config, steps, warmup, cpu, (not cpu) if compiled is None else compiled)
    rows = {}
    for side in sides:
        load = os.getloadavg()[0]
        rows[side] = summarize(apart(side, task), config) | {"load": load}
    check_same(rows, config.model)
    ratios = compare_rates(rows) if len(rows) == 2 else {}
    load = round(max(row["load"] for row in rows.values()), 2)
    result = {"task": asdict(task), "flops_per_image": flops.train_flops(config.model), **rows, "ours / peer": ratios}
    last = []
    if ratios:
        last.append(
            f"ours / peer: {ratios['median']:.3g}x the images a second ({ratios['fastest']:.3g}x fastest steps)"
        )
    if cpu and load > 0.25 * len(platform.cores()):
        last.append(f"others were using this machine (load {load} on {len(platform.cores())} cores): times say little")
    terminal.show([*heading(config, rows, task), table(rows, cpu), *last], result, json_file)


def compare_rates(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Our images a second over the peer's: by the median step, and by the fastest, which others disturb least."""
    return {
        "median": rows["peer"]["seconds"] / rows["ours"]["seconds"],
        "fastest": min(rows["peer"]["step_seconds"]) / min(rows["ours"]["step_seconds"]),
    }


def check_same(rows: dict[str, dict[str, Any]], model: ModelConfig) -> None:
    """Raises RunFailed unless every side had all the parameters of this model and a finite loss."""
    expected = flops.parameters(model).total
    for side, row in rows.items():
        if row["parameters"] != expected:
            raise RunFailed(f"{side}: has {row['parameters']:,} parameters, and the model {expected:,}")
        if not np.isfinite(row["loss"]):
            raise RunFailed(f"{side}: the loss is {row['loss']}")


def main() -> NoReturn:
    """Run, and exit: 0 done, 1 a side failed, 2 bad input or something missing."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(compare)
    try:
        app(prog_name=Path(__file__).name)
    except (UserError, RunFailed) as error:
        print(f"{Path(__file__).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    sys.exit(0)


if __name__ == "__main__":
    main()
