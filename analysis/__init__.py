"""Records of runs -> tables -> laws -> figures.

::

    import analysis
    runs = analysis.load("runs/figure8_cpu")
    law = analysis.fit(runs)
    print(analysis.describe(law))
    analysis.figure8(runs)

It reads run directories and nothing else, so anyone's runs can be analysed.
"""

from analysis.drawing import save
from analysis.figures import figure8, isoflop_figure
from analysis.frontier import envelope, implied, sizes
from analysis.isoflop import isoflop
from analysis.laws import Law, curves, fit, fit_points, sensitivity
from analysis.prediction import hold_out_largest, predict
from analysis.report import describe, rows
from analysis.runs import cooldown_ends, load, load_train, points_on_law

__all__ = [
    "Law",
    "cooldown_ends",
    "curves",
    "describe",
    "envelope",
    "figure8",
    "fit",
    "fit_points",
    "hold_out_largest",
    "implied",
    "isoflop",
    "isoflop_figure",
    "load",
    "load_train",
    "points_on_law",
    "predict",
    "rows",
    "save",
    "sensitivity",
    "sizes",
]
