"""The formulations of the paper in a figure: where on the path each is trained (after its Figure 11)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from analysis.drawing import STYLE, WIDTH, Drawing, save

Curves = Mapping[str, Mapping[str, Any]]  # a name, and its x and y


def formulations_figure(
    densities: Mapping[str, Curves], levels: Curves, spreads: Curves, out: str | Path | None = None
) -> Drawing:
    """Densities of t in panels, log-SNR against t by path, and the density of log-SNR in training.

    ``densities`` has groups of curves (t, density), ``levels`` curves (t, log_snr), ``spreads`` (log_snr, density).
    """
    panels = [
        *((own, "t", "density", "t: 0 data, 1 noise", f"density of t, {label}") for label, own in densities.items()),
        (levels, "t", "log_snr", "t: 0 data, 1 noise", "log-SNR λ"),
        (spreads, "log_snr", "density", "log-SNR λ: noise left, data right", "density of λ in training"),
    ]
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(WIDTH, 3.2 * rows), layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (curves, x, y, across, up) in zip(grid, panels, strict=False):
            for number, (name, curve) in enumerate(curves.items()):
                colour = matplotlib.colormaps["viridis"](0.9 * number / max(len(curves) - 1, 1))
                style = ("-", (0, (4, 1.5)), (0, (1, 1)))[number % 3]
                axes.plot(curve[x], curve[y], color=colour, ls=style, lw=1.2, label=name)
            axes.set(xlabel=across, ylabel=up)
            if y == "density":
                peaks = sorted(float(np.max(curve[y])) for curve in curves.values())
                middle = peaks[len(peaks) // 2]
                top = max(peak for peak in peaks if peak <= 2.5 * middle)  # a spike may leave the panel
                axes.set_ylim(0, 1.12 * top)
            if x == "log_snr":
                axes.set_xlim(-12, 12)
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
            axes.legend(frameon=False, fontsize=6.5, handlelength=1.8, labelspacing=0.25, columnspacing=1, **below)
    numbers = {
        "figure": "11",
        "densities": {label: {name: dict(one) for name, one in own.items()} for label, own in densities.items()},
        "log_snr": {name: dict(one) for name, one in levels.items()},
        "spreads": {name: dict(one) for name, one in spreads.items()},
    }
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)
