"""Seconds until the train step is compiled, at several depths: blocks are scanned, so depth hardly matters.

python benchmarks/compile_time.py                # the paper's depths 15 and 38, whole, on this machine
python benchmarks/compile_time.py --head-dim 8   # narrow

Traced, lowered and compiled for shapes alone: no parameter is ever allocated, so the largest model needs no more
memory than the compiler does. Depths take turns, so that what else the machine does falls on all of them alike.
"""

import os
import statistics
import time
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table

from sd3_jax import platform, terminal
from sd3_jax.config import RunConfig
from sd3_jax.overlays import resolve


class Compiled(NamedTuple):
    """One compilation of a step."""

    trace_seconds: float  # tracing, and lowering to what XLA reads
    seconds: float  # that and XLA's work
    processor_seconds: float  # of all threads, which others on the machine disturb least
    instructions: int  # after XLA's optimisation


def compile_step(config: RunConfig) -> Compiled:
    """Compile the step that ``sd3-jax train`` runs, for one device and with nothing cached."""
    import jax
    import jax.numpy as jnp

    from sd3_jax.training import step

    jax.clear_caches()
    steps = 10**9  # a length that no schedule ends within
    state = jax.eval_shape(step.make_init(config, steps), jnp.uint32(0))
    examples = step.example_shapes(config)
    train_step = jax.jit(step.make_step(config, steps), donate_argnums=0)
    began, spent = time.perf_counter(), time.process_time()
    lowered = train_step.lower(state, examples)
    traced = time.perf_counter()
    compiled = lowered.compile()
    ended, spent = time.perf_counter(), time.process_time() - spent
    instructions = sum(" = " in line for line in compiled.as_text().splitlines())
    return Compiled(traced - began, ended - began, spent, instructions)


def summarize(compilations: list[Compiled]) -> dict[str, Any]:
    """Of one depth: medians, and the fastest."""
    return {
        "seconds": statistics.median(c.seconds for c in compilations),
        "fastest_seconds": min(c.seconds for c in compilations),
        "processor_seconds": statistics.median(c.processor_seconds for c in compilations),
        "trace_seconds": statistics.median(c.trace_seconds for c in compilations),
        "instructions": compilations[0].instructions,
    }


def compare(
    depth: Annotated[list[int] | None, typer.Option(min=1, help="Blocks; give it twice or more.  [15 and 38]")] = None,
    head_dim: Annotated[int, typer.Option(min=4, help="Width of a head; a model is depth times as wide.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Compilations of each depth.")] = 3,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write every number; - is standard output.")
    ] = None,
) -> None:
    """Compile the train step at several depths in turn, and print how long each took."""
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # else the second of a depth would not compile
    platform.prepare()
    fixed = {"steps": 1, "batch": batch, "model.head_dim": head_dim}
    configs = {d: resolve(fixed, {"model.depth": d}) for d in sorted(depth or [15, 38])}
    compile_step(resolve(fixed, {"model.depth": 2}))  # for what a process does once
    taken: dict[int, list[Compiled]] = {d: [] for d in configs}
    for _ in range(repeats):
        for d, config in configs.items():
            taken[d].append(compile_step(config))
    rows = {d: summarize(compilations) for d, compilations in taken.items()}
    low, high = min(rows), max(rows)
    ratio = {key: rows[high][key] / rows[low][key] for key in rows[low]}
    said = (
        f"depth {high} / depth {low}: {ratio['seconds']:.2f}x the seconds, fastest {ratio['fastest_seconds']:.2f}x, "
        f"processors' {ratio['processor_seconds']:.2f}x"
    )
    shape = f"heads of {head_dim}, batch {batch}, {repeats} compilations each"
    terminal.show([shape, table(rows), said], {"depths": rows, "ratio": ratio}, json_file)


def table(rows: dict[int, dict[str, Any]]) -> Table:
    """One line a depth."""
    chart = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("depth", "seconds", "fastest", "processors'", "tracing", "instructions"):
        chart.add_column(heading, justify="right")
    for depth, row in rows.items():
        numbers = (row[key] for key in ("seconds", "fastest_seconds", "processor_seconds", "trace_seconds"))
        chart.add_row(str(depth), *(f"{number:.2f}" for number in numbers), f"{row['instructions']:,}")
    return chart


if __name__ == "__main__":
    typer.run(compare)
