"""The formulations that a run may train: listed, and drawn."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sd3_jax import formulations as known
from sd3_jax import platform, terminal
from sd3_jax.cli.options import JsonOption
from sd3_jax.config import FlowConfig

# What is drawn unless asked otherwise: densities of t, log-SNR of paths, densities of log-SNR.
DENSITIES = {
    "mode": tuple(name for name in known.members() if name.startswith("rf/mode")),
    "lognorm": tuple(f"rf/lognorm({pair})" for pair in ("-1.00, 1.00", "0.00, 1.00", "1.00, 1.00", "0.00, 0.60"))
    + ("rf/lognorm(0.50, 0.60)", "rf/lognorm(0.00, 2.20)", "rf/cosmap"),
}
PATHS = ("rf", "v/cos", "eps/linear", "edm(-1.20, 1.20)", "edm(0.60, 1.20)")
LEVELS = ("rf", "rf/lognorm(0.00, 1.00)", "rf/mode(1.29)", "v/cos", "eps/linear", "edm(-1.20, 1.20)")


def formulations(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Of which, such as 'rf/mode(1.29)'; else of all 61.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="STEM", help="Draw densities of t (figure 11) and log-SNR: STEM.png, .pdf and .json."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """List the paper's 61 formulations: path z, what is predicted, weight, density of t.

    The weight is w_t of -(1/2) E w_t lambda' ||eps_hat - eps||^2 over uniform t; pi(t) is the density t is drawn from.
    A name is what flow: takes in a sweep's YAML.

    Example: sd3-jax formulations --plot figures/formulations

    Example: sd3-jax train scenes_cpu --run runs/mine --set 'flow=rf/mode(1.29)'
    """
    flows = [FlowConfig(**known.parse(name)) for name in names or known.members()]
    rows = [known.describe(flow) for flow in flows]
    chart = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("name", "z", "predicts", "weight", "t"):
        chart.add_column(column, overflow="fold")
    for row in rows:
        chart.add_row(*row.values())
    terminal.show([chart, f"{len(rows)} formulations"], rows, json_file)
    if plot is not None:
        platform.prepare()
        import analysis

        drawing = analysis.formulations_figure(*curves(list(names or ())))
        terminal.written(analysis.save(drawing.figure, drawing.numbers, plot), json_file)


def curves(names: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The curves of the figure: densities of t in groups, log-SNR by path, densities of log-SNR in training."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sd3_jax.flow import paths, timesteps

    t = jnp.linspace(0.002, 0.998, 499)

    def flow_of(name: str) -> FlowConfig:
        return FlowConfig(**known.parse(name))

    def pdf(name: str) -> dict[str, Any]:
        return {"t": np.asarray(t), "density": np.asarray(timesteps.pdf(t, flow_of(name)))}

    def level(name: str) -> dict[str, Any]:
        return {"t": np.asarray(t), "log_snr": np.asarray(paths.log_snr(t, flow_of(name)))}

    def spread(name: str) -> dict[str, Any]:
        flow = flow_of(name)
        rate = jax.vmap(jax.grad(lambda t: paths.log_snr(t, flow)))(t)
        density = np.asarray(timesteps.pdf(t, flow) / jnp.abs(rate))
        return {"log_snr": np.asarray(paths.log_snr(t, flow)), "density": density}

    groups = {"asked for": tuple(names)} if names else DENSITIES
    densities = {label: {name: pdf(name) for name in own} for label, own in groups.items()}
    return densities, {name: level(name) for name in names or PATHS}, {name: spread(name) for name in names or LEVELS}
