"""Contact sheets: the same prompts, from the same noise, across depths and steps (after the paper's Figure 12)."""

import json
import math
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.image
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from analysis.drawing import STYLE, WIDTH, Drawing, save
from analysis.runs import find
from sd3_jax import records
from sd3_jax.errors import UserError

ROWS = 12  # prompts on a sheet, unless told
# What must be the same for two pictures of a prompt to start from the same noise and be drawn alike.
SETTING = ("sampler", "steps", "guidance", "shift", "weights", "seed", "prompts")


class Samples(NamedTuple):
    """One checkpoint's pictures."""

    run: str
    depth: int
    step: int
    last: bool
    folder: Path
    setting: dict[str, Any]


def contact_sheet(
    path: str | Path, out: str | Path | None = None, prompts: int = ROWS, unfinished: bool = False
) -> Drawing:
    """A row for each of several prompts, a column for each depth's last checkpoint, then the largest's earlier ones.

    One picture of each, the first. Of each depth the run of the smallest seed without a cooldown is shown. Prompts
    are taken in turn from all tasks. ``out`` is a stem to which :func:`analysis.save` writes.

    Raises UserError if there are no pictures.
    """
    if prompts < 1:
        raise UserError(f"prompts: {prompts} is not a number of rows; at least 1")
    samples, notes = find_samples(path, unfinished)
    columns = _columns(samples)
    rows = _prompts([column.folder for column in columns], prompts)
    pictures = [[_picture(column.folder / folder / "samples" / "0000.png") for column in columns] for folder, _ in rows]
    lasts = sum(column.last for column in columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        caption = textwrap.fill(_caption(columns[0].setting), 112)
        _draw(figure, pictures, [text for _, text in rows], columns, lasts, caption)
    numbers = {
        "figure": "12",
        "prompts": [text for _, text in rows],
        "columns": [{"run": c.run, "depth": c.depth, "step": c.step} for c in columns],
        "setting": columns[0].setting,
        "caption": caption,
        "notes": notes,
    }
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def find_samples(path: str | Path, unfinished: bool = False) -> tuple[list[Samples], list[str]]:
    """The pictures of the runs in a directory that were drawn in one setting, the commonest, and notes.

    Raises UserError if there are none.
    """
    found: list[Samples] = []
    for name, (run_dir, _, config) in find(path, unfinished).runs.items():
        if config.optimizer.cooldown:
            continue
        lives, _ = records.read_rows(run_dir / "lives.jsonl")
        final = max((life.get("steps", 0) for life in lives), default=0)
        for settings in sorted(run_dir.glob("samples/*/settings.json")):
            try:
                described = json.loads(settings.read_text(encoding="utf-8"))
                setting, step = {key: described[key] for key in SETTING}, int(described["step"])
            except (ValueError, KeyError, TypeError):
                continue
            found.append(Samples(name, config.model.depth, step, step == final, settings.parent, setting))
    if not found:
        raise UserError(f"{path}: no pictures in these runs; sd3-jax evaluate {path} draws them")
    keys = [json.dumps(samples.setting, sort_keys=True) for samples in found]
    (most, _), *others = Counter(keys).most_common()
    notes = [f"pictures of {len(others)} other settings, left out."] if others else []
    return [samples for samples, key in zip(found, keys, strict=True) if key == most], notes


def _columns(samples: list[Samples]) -> list[Samples]:
    """Each depth's last, then the largest depth's earlier ones."""
    by_depth: dict[int, list[Samples]] = {}
    for one in sorted(samples, key=lambda one: (one.depth, one.run)):
        own = by_depth.setdefault(one.depth, [])
        if not own or own[0].run == one.run:  # the first run of a depth that has pictures
            own.append(one)
    lasts = [max(own, key=lambda one: one.step) for own in by_depth.values()]
    largest = by_depth[max(by_depth)]
    earlier = [one for one in sorted(largest, key=lambda one: one.step) if one.step < lasts[-1].step]
    return [*(last._replace(last=True) for last in lasts), *(one._replace(last=False) for one in earlier)]


def _prompts(folders: list[Path], number: int) -> list[tuple[str, str]]:
    """Folder and text of prompts that all have pictures of, taken in turn from the tasks."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folders[0].glob("[0-9]*/metadata.jsonl")):
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            group, text = metadata.get("tag", "") + metadata.get("split", ""), metadata["prompt"]
            text += " (unseen)" if metadata.get("split") == "unseen" else ""
        except (ValueError, KeyError, TypeError):
            continue
        if all((folder / path.parent.name / "samples" / "0000.png").exists() for folder in folders):
            groups.setdefault(group, []).append((path.parent.name, text))
    if not groups:
        raise UserError(f"{folders[0]}: no prompt of which all runs have a picture")
    turns = math.ceil(number / len(groups))
    taken = [own[turn] for turn in range(turns) for own in groups.values() if turn < len(own)]
    return sorted(taken[:number])


def _picture(path: Path) -> Float[np.ndarray, "H W C"]:
    try:
        return matplotlib.image.imread(path)
    except (OSError, ValueError, SyntaxError):
        raise UserError(f"{path}: cannot be read as a picture; delete it and evaluate again") from None


def _draw(
    figure: Figure,
    pictures: list[list[np.ndarray]],
    texts: list[str],
    columns: list[Samples],
    lasts: int,
    caption: str,
) -> None:
    """The grid in inches: captions on the left, a gap between depths and steps, headings above."""
    left, top, gap, room = 1.75, 0.42, 0.16, 0.05
    below = 0.137 * (caption.count("\n") + 1) + 0.14
    side = (WIDTH - left - 0.05 - gap) / len(columns) - room
    height = top + len(texts) * (side + room) + below
    figure.set_size_inches(WIDTH, height)
    for y, (row, text) in enumerate(zip(pictures, texts, strict=True)):
        bottom = height - top - (y + 1) * (side + room)
        figure.text(
            (left - 0.08) / WIDTH,
            (bottom + side / 2) / height,
            textwrap.fill(text.removeprefix("a photo of "), 26),
            ha="right",
            va="center",
            fontsize=6.5,
            linespacing=1.15,
            parse_math=False,  # a prompt with a $ in it is no formula
        )
        for x, picture in enumerate(row):
            at = left + x * (side + room) + gap * (x >= lasts)
            axes = figure.add_axes((at / WIDTH, bottom / height, side / WIDTH, side / height))
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            if y == 0:
                label = f"{columns[x].depth}" if x < lasts else f"{columns[x].step:,}"
                axes.set_title(label, fontsize=7, pad=2)
    middle = left + lasts * (side + room) / 2
    figure.text(middle / WIDTH, 1 - 0.04 / height, "depth, last step", ha="center", va="top", fontsize=7.5)
    if lasts < len(columns):
        middle = left + gap + (lasts + len(columns)) * (side + room) / 2
        text = f"depth {columns[-1].depth}, step"
        figure.text(middle / WIDTH, 1 - 0.04 / height, text, ha="center", va="top", fontsize=7.5)
    figure.text(0.05 / WIDTH, (below - 0.08) / height, caption, fontsize=7.2, va="top", linespacing=1.35)


def _caption(setting: dict[str, Any]) -> str:
    return (
        f"The first picture of each prompt, not chosen; every column starts from the same noise. {setting['steps']} "
        f"{str(setting['sampler']).capitalize()} steps, guidance {setting['guidance']:g}, {setting['weights']} weights."
    )
