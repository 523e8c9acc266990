"""Records of runs -> tables -> laws -> figures.

::

    import analysis
    runs = analysis.load("runs/figure8_cpu")
    law = analysis.fit(runs)
    print(analysis.describe(law))
    analysis.figure8(runs, analysis.load_scores("runs/figure8_cpu"))

It reads run directories, and tables (CSV) of anyone's runs: ``analysis.fit_points(analysis.read_points("table.csv"))``.
"""

from analysis.allocation import frontier_figure, isoflop_figure
from analysis.approaches import compare_approaches
from analysis.backbones import figure4
from analysis.beside import exponents_figure, geneval_by_depth
from analysis.channels import figure10, load_channels
from analysis.correlation import Correlation, correlate
from analysis.diagnostics import held_out_figure, levels_figure, residual_figure
from analysis.drawing import save
from analysis.figures import figure8
from analysis.formulations import formulations_figure
from analysis.frontier import envelope, implied, sizes
from analysis.isoflop import isoflop, isoflop_points
from analysis.laws import Law, curves, fit, fit_points
from analysis.links import Link, fit_link
from analysis.outlook import outlook
from analysis.paper_tables import table1, table2
from analysis.prediction import hold_out_largest, predict, rolling
from analysis.report import describe, rows
from analysis.robustness import sensitivity
from analysis.runs import cooldown_ends, load, load_train, points_on_law
from analysis.sampling import figure3, table6
from analysis.scores import load_scores, score_points
from analysis.sheets import contact_sheet
from analysis.study import load_study
from analysis.tables import read_points
from analysis.voting import votes_figure

__all__ = [
    "Correlation",
    "Law",
    "Link",
    "compare_approaches",
    "contact_sheet",
    "cooldown_ends",
    "correlate",
    "curves",
    "describe",
    "envelope",
    "exponents_figure",
    "figure10",
    "figure3",
    "figure4",
    "figure8",
    "fit",
    "fit_link",
    "fit_points",
    "formulations_figure",
    "frontier_figure",
    "geneval_by_depth",
    "held_out_figure",
    "hold_out_largest",
    "implied",
    "isoflop",
    "isoflop_figure",
    "isoflop_points",
    "levels_figure",
    "load",
    "load_channels",
    "load_scores",
    "load_study",
    "load_train",
    "outlook",
    "points_on_law",
    "predict",
    "read_points",
    "residual_figure",
    "rolling",
    "rows",
    "save",
    "score_points",
    "sensitivity",
    "sizes",
    "table1",
    "table2",
    "table6",
    "votes_figure",
]
