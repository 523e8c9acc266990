"""Task by task, does a score go with the loss? One table of a score's tasks, not as many separate claims.

Each task has the correlation and the link of the overall score, from its own prompts. To ask of several tasks is to
find a small p-value sooner: those here are corrected by Holm's rule, which holds however the tasks depend on each
other, and they do, as the same runs drew all pictures. A task that is at chance at every depth, or at its ceiling,
has no trend, whatever its p-value.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import quality
from analysis.association import SIGMA, Estimate
from analysis.links import Link
from analysis.quality import Relation
from analysis.report import aligned
from analysis.resampling import averaged
from analysis.scores import constant_rate, task_names
from sd3_jax.errors import UserError

LEVEL = 0.05


class Task(NamedTuple):
    """One task of a score: how it goes with the loss, and whether there is anything to go."""

    name: str
    relation: Relation
    values: tuple[float, float]  # lowest and highest of the last checkpoints, one a depth
    depths: int
    at_chance: int  # depths within two standard errors of chance at their last checkpoint
    at_ceiling: int  # likewise of the ceiling
    holm: float  # Spearman's exact p-value, corrected over the tasks; nan where there is none
    sentence: str


def relate(scores: pd.DataFrame, name: str, resamples: int = 1000) -> tuple[Task, ...]:
    """Every task of a score, in order of their names. Raises UserError without last checkpoints."""
    names = task_names(constant_rate(scores, name))
    relations = [quality.relate(scores, name, resamples, task) for task in names]
    corrected = holm([math.nan if one.correlation is None else one.correlation.last.spearman.p for one in relations])
    found = []
    for task, relation, p in zip(names, relations, corrected, strict=True):
        if not relation.points["last"].any():
            raise UserError(f"{name}: no run's last checkpoint has a score of {task}: sd3-jax evaluate makes them")
        ends = averaged(relation.points[relation.points["last"]], ["depth"])
        chance = _beyond(ends.value - relation.chance, ends.se, relation, "chance_se")
        ceiling = _beyond(relation.ceiling - ends.value, ends.se, relation, "ceiling_se")
        values = (float(ends.value.min()), float(ends.value.max()))
        one = Task(task, relation, values, len(ends.value), int((~chance).sum()), int((~ceiling).sum()), p, "")
        found.append(one._replace(sentence=_sentence(one)))
    return tuple(found)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: of m, the k-th smallest times m - k + 1, none below those before it. nan stays nan.

    >>> holm([0.01, 0.04, math.nan, 0.03])
    [0.03, 0.06, nan, 0.06]
    """
    values = np.asarray(p, float)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]  # nan are last
    found = np.full(len(values), math.nan)
    scaled = values[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return found.tolist()


def describe(name: str, tasks: Sequence[Task]) -> list[str]:
    """A table of the tasks, a sentence for each, and what asking of several tasks costs."""
    header = (
        "task",
        "last checkpoints",
        "chance",
        "ceiling",
        "rho over depths",
        "p",
        "Holm p",
        "r given log C",
        "link",
    )
    rows = [header, *(_row(one) for one in tasks)]
    lines = [f"{name}, task by task", *(f"  {line}" for line in aligned(rows))]
    lines += [f"  {one.name}: {one.sentence}" for one in tasks]
    return [*lines, f"  {remark(tasks)}"]


def remark(tasks: Sequence[Task]) -> str:
    """What the tasks say together: how many trends hold with Holm's correction."""
    known = [one for one in tasks if one.relation.correlation is not None]
    if not known:
        return "No task has a correlation."
    smallest = max(one.relation.correlation.smallest_p for one in known if one.relation.correlation is not None)
    least, asked = min(1.0, smallest * len(known)), f"Holm over {len(known)} tasks"
    if least >= LEVEL:
        return (
            f"{asked}: even perfect order over these depths has p = {least:.2g}, so no single task can be significant."
        )
    trends = [one.name for one in tasks if _saturated(one) is None and one.holm < LEVEL]
    shared = " (of the same runs, so no independent findings)" if len(trends) > 1 else ""
    return f"{asked}: trends at 5 % together: {', '.join(trends) or 'none'}{shared}."


def numbers(tasks: Sequence[Task]) -> dict[str, Any]:
    """The tasks for JSON, at full precision."""
    return {
        "holm_over": sum(math.isfinite(one.holm) for one in tasks),
        "remark": remark(tasks),
        "tasks": [
            {
                "task": one.name,
                "p_holm": one.holm,
                "depths": one.depths,
                "depths_at_chance": one.at_chance,
                "depths_at_ceiling": one.at_ceiling,
                "saturated": _saturated(one),
                "sentence": one.sentence,
                **quality.numbers(one.relation.points["name"].iloc[0], one.relation),
            }
            for one in tasks
        ],
    }


def _beyond(apart: np.ndarray, se: np.ndarray, relation: Relation, error: str) -> np.ndarray:
    """Where scores are more than two standard errors inside of chance or ceiling; all, where that is not known."""
    other = float(relation.points[error].astype(float).mean())
    reach = SIGMA * np.hypot(np.nan_to_num(se), other if math.isfinite(other) else 0.0)
    return ~(apart <= reach + 1e-12)  # nan: neither chance nor ceiling is known


def _saturated(task: Task) -> str | None:
    """Chance, ceiling, both if errors are that large, or None."""
    at = [where for where, n in (("chance", task.at_chance), ("its ceiling", task.at_ceiling)) if n == task.depths]
    return " and at ".join(at) or None


def _sentence(task: Task) -> str:
    low, high = task.values
    found, where = task.relation.correlation, _saturated(task)
    if where is not None:
        return f"at {where} at every depth ({low:.2f} to {high:.2f}): there is no trend to speak of."
    near = [
        f"{n} of {task.depths} depths are at {level}"
        for level, n in (("chance", task.at_chance), ("its ceiling", task.at_ceiling))
        if n
    ]
    tail = f"; {' and '.join(near)}." if near else "."
    if found is None or not math.isfinite(task.holm):
        return f"no correlation is defined{tail}"
    if not task.holm < LEVEL:
        return f"no rank correlation is established (Holm p = {task.holm:.2g}){tail}"
    way = "rises" if found.last.spearman.value < 0 else "falls"
    given = found.partial
    if not math.isfinite(given.low) or "compute explains it" in found.flags:
        way += " as the loss falls, which compute alone may explain"
    else:
        way += " as the loss falls, given compute too"
    return f"the score {way} (Holm p = {task.holm:.2g}){tail}"


def _row(task: Task) -> tuple[str, ...]:
    relation, found = task.relation, task.relation.correlation
    low, high = task.values
    cells = [task.name, f"{low:.2f} to {high:.2f}", *(_plain(one) for one in (relation.chance, relation.ceiling))]
    if found is None:
        cells += ["-"] * 4
    else:
        rho = found.last.spearman
        cells += [_span(rho), _plain(rho.p, ".2g"), _plain(task.holm, ".2g"), _span(found.partial)]
    link = relation.link
    shown = link is not None and not {"slope zero", "not converged"} & set(link.flags)
    cells.append(_link(link) if shown and link is not None else "no slope" if link is not None else "-")
    return tuple(cells)


def _link(link: Link) -> str:
    return f"{link.kind}, " + ", ".join(
        f"{key} {value:.3g}±{link.se[key]:.1g}" for key, value in link.constants.items()
    )


def _plain(value: float, how: str = ".2f") -> str:
    return format(value, how) if math.isfinite(value) else "-"


def _span(one: Estimate) -> str:
    if not math.isfinite(one.value):
        return "-"
    return f"{one.value:.2f}" + (f" [{one.low:.2f}, {one.high:.2f}]" if math.isfinite(one.low) else "")
