"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

_EXPERIMENT_HELP = "A shipped experiment, a path to a .py with get_config(), or a run's config.json."
_SWEEP_HELP = "A sweep's YAML, or the name of a shipped sweep."
_SET_HELP = "Change a field, such as model.depth=4. May be repeated."
_RUNS_DIR_HELP = "Where the runs are kept, one directory per cell; runs/<sweep name> unless given."
_WORKERS_HELP = "Cells at once; one on an accelerator, on CPU as many as cores, unless given."
_RUNS_HELP = "A directory of runs."
_SOURCE_HELP = "A directory of runs, or a CSV with columns flops, params, data (images or tokens), loss, run."
_COLUMNS_HELP = "Headers of a CSV that have other names, such as params=N,data=D,loss=L."
_WHERE_HELP = "Only scores of pictures drawn so, such as guidance=5. May be repeated."
_JSON_HELP = "Write the result as JSON to this file; - for standard output."
_FIGURE_HELP = "Also draw it: STEM.png, .pdf and .json, or one STEM-NAME of each for every figure that there is."
_HELD_HELP = "Fit without the K largest depths (of a CSV: the K runs of most FLOPs) and predict them."

ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help=_EXPERIMENT_HELP)]
SweepArgument = Annotated[str, typer.Argument(metavar="FILE", help=_SWEEP_HELP)]
RunsArgument = Annotated[Path, typer.Argument(metavar="RUNS", help=_RUNS_HELP)]
SourceArgument = Annotated[Path, typer.Argument(metavar="RUNS|FILE.csv", help=_SOURCE_HELP)]
ColumnsOption = Annotated[str | None, typer.Option("--columns", metavar="NAME=HEADER,...", help=_COLUMNS_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET_HELP)]
RunsOption = Annotated[Path | None, typer.Option("--runs", metavar="DIR", help=_RUNS_DIR_HELP)]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, metavar="N", help=_WORKERS_HELP)]
WhereOption = Annotated[list[str] | None, typer.Option("--where", metavar="KEY=VALUE", help=_WHERE_HELP)]
JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE", help=_JSON_HELP)]
FigureOption = Annotated[Path | None, typer.Option("--figure", metavar="STEM", help=_FIGURE_HELP)]
BootstrapOption = Annotated[int, typer.Option("--bootstrap", min=0, metavar="N", help="Resamples, for intervals.")]
HeldOption = Annotated[int | None, typer.Option("--hold-out-largest", min=1, metavar="K", help=_HELD_HELP)]
