"""What figures share: style, colours, ticks, and a drawing with its numbers that can be shown and saved.

Figures use matplotlib's ``Figure`` and no pyplot, so that they draw the same in a notebook, a command or a thread.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sd3_jax import records

WIDTH = 7.0  # inches: the text width of a two-column page
PANEL = 2.55  # height of the panels, inches
CAPTION = 112  # characters to a line
DASHED = (0, (4, 2))  # a line out of the data
APART = 4.0  # points between the labels of two ticks, at least
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "pdf.fonttype": 42,  # text stays text
}


class Drawing(NamedTuple):
    """A figure and every number in it; a notebook shows the figure."""

    figure: Figure
    numbers: dict[str, Any]

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def save(figure: Figure, numbers: Mapping[str, Any], out_stem: str | Path) -> list[Path]:
    """Write STEM.png (200 dpi), STEM.pdf and STEM.json, each whole or not at all; the same figure, the same bytes."""
    stem = Path(out_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, options in ((".png", {"dpi": 200}), (".pdf", {"metadata": {"CreationDate": None}})):
        path = stem.with_name(stem.name + suffix)
        with records.whole(path) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, format=suffix[1:], **options)
        written.append(path)
    path = stem.with_name(stem.name + ".json")
    records.write_atomic(path, json.dumps(jsonable(numbers), indent=1, allow_nan=False) + "\n")
    return [*written, path]


def below(
    figure: Figure, handles: list[Line2D], columns: int, caption: str, rows: float = 1, left: float = 0.085
) -> None:
    """The legend and the caption under the rows of panels; the page grows with them (all in inches).

    The layout being known, tick labels are thinned to those that have room. ``left`` is the panels' share of the page
    that labels take.
    """
    text = 0.137 * (caption.count("\n") + 1) + 0.08
    legend = 0.165 * math.ceil(len(handles) / max(columns, 1)) + 0.14
    height = rows * PANEL + 0.45 + legend + text
    figure.set_size_inches(WIDTH, height)
    figure.subplots_adjust(left=left, right=0.98, top=1 - 0.13 / height, bottom=(text + legend + 0.45) / height)
    if handles:
        figure.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.53, (text + legend) / height),
            ncols=columns,
            frameon=False,
            columnspacing=1.2,
            handlelength=1.8,
            handletextpad=0.5,
        )
    figure.text(0.085, text / height, caption, fontsize=7.2, va="top", linespacing=1.35)
    figure.draw_without_rendering()
    roomy: list[tuple[Axis, list[float]]] = []
    for axes in figure.axes:
        roomy += [(axes.xaxis, _with_room(axes.xaxis, horizontal=True))]
        roomy += [(axes.yaxis, _with_room(axes.yaxis, horizontal=False))]
    for axis, places in roomy:  # panels may share an axis: all is measured before any is changed
        if places:
            axis.set_major_locator(FixedLocator(places))


def _with_room(axis: Axis, horizontal: bool) -> list[float]:
    """As many of a logarithmic axis' round ticks as have room for their labels; none where that is not the question.

    Within a decade those that follow the one before at a distance; over more every second, third, ... of them, powers
    of ten rather than others.
    """
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    labels = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
    is_round = axis.get_scale() == "log" and isinstance(axis.get_major_locator(), FixedLocator)
    if not is_round or len(ticks) < 2 or len(labels) != len(ticks):
        return []
    ends = np.array([label.get_window_extent().extents for label in labels])[:, [0, 2] if horizontal else [1, 3]]
    gap = (APART if horizontal else 0.2 * APART) * axis.get_figure().dpi / 72  # type: ignore[union-attr]
    places = np.array([tick.get_loc() for tick in ticks])
    apart = [0]
    for place in range(1, len(ticks)):
        if ends[place, 0] >= ends[apart[-1], 1] + gap:
            apart.append(place)
    if len(apart) < len(ticks) and places[-1] >= 9.9 * places[0]:
        choices = [list(range(start, len(ticks), every)) for every in range(2, len(ticks)) for start in range(every)]
        free = [one for one in choices if (ends[one[1:], 0] >= ends[one[:-1], 1] + gap).all() and len(one) > 1]
        apart = max(free, key=lambda one: (_whole(places[one]), len(one)), default=apart)
    return places[apart].tolist()


def _whole(ticks: np.ndarray) -> int:
    """How many are powers of ten."""
    return int(sum(math.isclose(power, round(power), abs_tol=1e-9) for power in np.log10(ticks)))


def interval_bars(
    axes: Axes,
    at: float,
    value: float,
    ci80: tuple[float, float] | None,
    ci95: tuple[float, float] | None,
    colour: Any,
    horizontal: bool = False,
    filled: bool = True,
) -> None:
    """A value with a thick bar of 80 % and a thin one of 95 %; where there are none they are None or nan."""
    for ends, width in ((ci95, 0.8), (ci80, 2.4)):
        if ends is not None and math.isfinite(ends[0]):
            pair = (ends, (at, at)) if horizontal else ((at, at), ends)
            axes.plot(*pair, color=colour, lw=width, solid_capstyle="butt", zorder=3)
    place = (value, at) if horizontal else (at, value)
    axes.plot(*([one] for one in place), "o", ms=3.8, mew=0.9, mec=colour, mfc=colour if filled else "white", zorder=4)


def jsonable(value: Any) -> Any:
    """Plain Python numbers and containers; nan and inf, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sequential_colours(values: Any) -> dict[Any, Any]:
    """A colour for each value in order, from a sequential map that the colour-blind can read: the largest darkest."""
    ordered = sorted(values)
    shades = np.linspace(0.80, 0.0, len(ordered)) if len(ordered) > 1 else [0.3]
    return {value: matplotlib.colormaps["viridis"](shade) for value, shade in zip(ordered, shades, strict=True)}


def plain_log_ticks(axes: Axes, which: str, values: Any, label: Callable[[float], str] | None = None) -> None:
    """Round numbers, written out (or by ``label``), as the ticks of a logarithmic axis of any range."""
    low, high = float(np.min(values)), float(np.max(values))
    if high / low < 8:
        even = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
        ticks = [float(tick) for tick in even if low <= tick <= high]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        ticks = ticks[:: math.ceil(len(ticks) / 8)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    written = label or plain
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axis.set_minor_locator(NullLocator())


def plain(value: float) -> str:
    """A number written out.

    >>> plain(2000.0), plain(0.30000000000000004)
    ('2,000', '0.3')
    """
    return f"{round(value, 12):,.10g}"


def scientific(value: float) -> str:
    """Mantissa and power of ten, as mathtext.

    >>> scientific(2e11), scientific(1e12)
    ('$2\\\\times10^{11}$', '$10^{12}$')
    """
    power = math.floor(math.log10(value) + 1e-9)
    mantissa = f"{value / 10.0**power:.3g}"
    return f"$10^{{{power}}}$" if mantissa == "1" else f"${mantissa}\\times10^{{{power}}}$"


def counted(value: float) -> str:
    """A count in thousands, millions, billions or trillions.

    >>> counted(75648), counted(1952512), counted(8.06e9), counted(1e12)
    ('75.6 k', '1.95 M', '8.06 B', '1 T')
    """
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
