"""The command that compares two sets of pictures."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sd3_jax import terminal
from sd3_jax.cli.options import JsonOption
from sd3_jax.cli.pictures import progress

_SET_HELP = "A folder of pictures (all below it, or GenEval's samples), or a prepared set: what it holds out."
_FEATURES_HELP = "scene or effnet-lite0, or clip=FOLDER, dinov2=FOLDER, inception=FOLDER with weights as safetensors."
_SHOWN = 5  # unreadable pictures that are named
_WORDS = {
    "fd": "Frechet (biased upwards)",
    "fd-extrapolated": "Frechet, extrapolated",
    "kid": "KID",
    "cmmd": "CMMD (biased upwards)",
    "cmmd-unbiased": "CMMD, unbiased",
}


def distance(
    one: Annotated[Path, typer.Argument(metavar="A", help=_SET_HELP)],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another, usually of true pictures.")],
    features: Annotated[str, typer.Option(metavar="SPEC", help=_FEATURES_HELP)] = "scene",
    json_file: JsonOption = None,
) -> None:
    """How far two sets of pictures are apart: Frechet's distance, extrapolated too, and KID; with CLIP also CMMD.

    Where a folder in GenEval's layout says its prompts, CLIP gives their score besides. Frechet's distance of few
    pictures is too large: compare its extrapolation, or KID, and sets of equal numbers.

    Example: sd3-jax distance pictures/d08 pictures/true --features clip=weights/clip-vit-large-patch14-336
    """
    from sd3_jax.evaluation import between
    from sd3_jax.evaluation import features as specs

    sources = [between.find(path) for path in (one, other)]
    extractor = specs.load(features)
    with progress(extractor.name, sum(source.total for source in sources)) as report:
        measured = [between.measure(source, extractor, report) for source in sources]
    problems = [problem for each in measured for problem in each.problems]
    for problem in problems[:_SHOWN]:
        print(f"note: {problem}", file=sys.stderr)
    if len(problems) > _SHOWN:
        print(f"note: {len(problems) - _SHOWN} more cannot be read; --json lists all", file=sys.stderr)
    rows = between.rows(sources, measured, extractor)
    terminal.show(_parts(rows, sources, measured), {"rows": rows, "unreadable": problems}, json_file)


def _parts(rows: list[dict[str, Any]], sources: list[Any], measured: list[Any]) -> list[Any]:
    from sd3_jax.evaluation.between import FEW

    first = rows[0]
    cells = [[f"in {first['features']} ({first['digest']})", "value", "±"]]
    for row in rows:
        word = f"CLIP score of {row['of']}" if "of" in row else _WORDS[row["name"].removesuffix(f"-{row['features']}")]
        cells.append([word, f"{row['value']:.5g}", f"{row['se']:.2g}"])
    lines = []
    for source, each in zip(sources, measured, strict=True):
        lost = f", {len(each.problems):,} cannot be read" if each.problems else ""
        lines.append(f"{source.path}: {each.gathered.moments.n:,} pictures{lost}")
    if min(first["n"], first["reference_n"]) < FEW:
        lines.append(f"fewer than {FEW:,} pictures: the plain Frechet distance is no measure between unequal numbers")
    if not rows[1]["linear"]:
        lines.append(
            f"the extrapolation is not to be trusted: its smaller parts lie on no line ({first['dimensions']} features)"
        )
    if "partial" in first:
        lines.append(f"partial: {first['partial']}")
    return [terminal.chart("distance", cells), *lines]
