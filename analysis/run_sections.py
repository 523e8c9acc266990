"""What a report says of the runs: losses and noise, scores of their pictures, how they were made, the points."""

import json
import math
from typing import Any, cast

from analysis import published, quality, recipe
from analysis.checklist import counts
from analysis.correlation import FLAGS as CORRELATION_FLAGS
from analysis.drawing import counted
from analysis.findings import Findings, Missing, raw
from analysis.law_sections import drawn, none, sentence
from analysis.links import FLAGS as LINK_FLAGS
from analysis.markup import Html, data_uri, folded, items, join, number, table, tag
from analysis.quality import Relation
from analysis.runs import LEVELS
from analysis.scores import OVERALL, UNSEEN
from sd3_jax.config import RunConfig, identity


def levels(found: Findings) -> Html:
    """The validation loss at each level t at the last step of each run."""
    names = [f"loss_t{k}" for k in range(LEVELS)]
    if found.runs is None:
        return none("No levels", Missing("a table has one loss a point"))
    ends: Any = _ends(found.runs)
    ends = ends[~ends["cooldown"]]
    if ends[names].isna().all(axis=None):
        return none("No levels", Missing("the runs did not record them"))
    rows = [[one["run"], one["depth"], *(_fixed(one[name]) for name in (*names, "loss"))] for _, one in ends.iterrows()]
    text = "At the last step, averaged weights. The validation loss is the mean of t = 0/8 to 7/8."
    alt = "Validation loss of each level t against training FLOPs, and of the last checkpoints against t."
    caption = "The loss by level: where compute still helps, and where nothing is left to learn."
    picture = drawn(found.figures["levels"], "figure of levels", alt, caption)
    return join(picture, tag("p", text), table(["run", "depth", *(f"t = {k}/8" for k in range(LEVELS)), "loss"], rows))


def cooldowns(found: Findings) -> Html:
    """What annealing gains."""
    ends: Any = found.cooldowns
    if isinstance(ends, Missing) or ends.empty:
        return none("No cooldowns", ends if isinstance(ends, Missing) else Missing("no run ends in one"))
    rows = [
        [
            row.run,
            row.depth,
            number(row.step),
            _fixed(row.loss),
            f"{row.offset:+.4f}" if row.offset == row.offset else "",
        ]
        for row in ends.itertuples()
    ]
    text = "These runs are in no fit; the difference is to the constant-rate run of the same depth, seed and step."
    return join(tag("p", text), table(["run", "depth", "step", "loss", "difference"], rows))


def noise(found: Findings) -> Html:
    """How far seeds differ, and which learning rates were tried."""
    if found.runs is None:
        return none("No noise floor", Missing("a table does not tell seeds"))
    ends: Any = _ends(found.runs)
    ends = ends[~ends["cooldown"]]
    ends = ends.assign(rate=[recipe.peak(found.records[name].config) for name in ends["run"]])
    alike = [_but_seed(found.runs.attrs["configs"][name]) for name in ends["run"]]
    rows = []
    for _, own in ends.groupby([alike, "step"]):
        if len(own) > 1:
            mean, spread = own["loss"].mean(), own["loss"].std()
            first = [own["depth"].iloc[0], number(own["rate"].iloc[0], 3), number(own["step"].iloc[0]), len(own)]
            rows.append([*first, _fixed(mean), _fixed(spread), f"{spread / mean:.2%}", _fixed(own["loss_se"].mean())])
    parts: list[Html] = []
    if rows:
        text = "The loss at the last step of runs that differ in their seed alone:"
        header = ["depth", "rate", "step", "seeds", "mean loss", "sd", "of the loss", "Monte-Carlo error"]
        parts += [tag("p", text), table(header, rows)]
    else:
        parts.append(none("No noise between seeds", Missing("no two runs differ in their seed alone")))
    tried = ends.groupby("depth")["rate"].nunique()
    if (tried > 1).any():
        several = ends[ends["depth"].map(tried) > 1].sort_values(["depth", "rate", "run"])
        rows = [
            [one["depth"], number(one["rate"], 3), one["run"], number(one["step"]), _fixed(one["loss"])]
            for _, one in several.iterrows()
        ]
        text = "Learning rates, those of the model's width, and the loss at the last step; only equal steps compare:"
        parts += [tag("p", text), table(["depth", "rate", "run", "step", "loss"], rows)]
    else:
        why = Missing("each depth has one rate; a sweep such as lr_check_cpu tells whether it is a good one")
        parts.append(none("Learning rates are not compared", why))
    return join(*parts)


# --- pictures ---------------------------------------------------------------------------------------------------------


def scores(found: Findings) -> Html:
    """Whether the loss predicts the scores, and the scores themselves."""
    if isinstance(found.scores, Missing):
        return none("No scores of pictures", found.scores)
    parts: list[Html] = [_overall(found.scores)]
    if not isinstance(found.figures["geneval"], Missing):
        alt = "GenEval of the last checkpoints by depth, beside the paper's Table 5."
        parts.append(drawn(found.figures["geneval"], "GenEval", alt, "The official GenEval score, beside the paper's."))
    for name, relation in found.relations.items():
        parts += [tag("h3", name), *_relation(name, relation)]
    return join(*parts)


def _overall(scores: Any) -> Html:
    overall = scores[(scores["group"] == OVERALL) & ~scores["name"].str.contains("/")]
    names = sorted(overall["name"].unique(), key=lambda name: (name.startswith("proxy"), name))
    rows = []
    for (depth, run, step), own in overall.groupby(["depth", "run", "step"]):
        cells = {
            row.name: _plus_minus(row.value, row.se) for row in own[["name", "value", "se"]].itertuples(index=False)
        }
        rows.append([run, depth, number(step), _fixed(own["loss"].iloc[0]), *(cells.get(name, "") for name in names)])
    text = "Value ± standard error, prompts as clusters. None of these names is an official score's."
    return join(tag("p", text), table(["run", "depth", "step", "loss", *names], rows))


def _relation(name: str, relation: Relation) -> list[Html]:
    told, found, link = quality.numbers(name, relation), relation.correlation, relation.link
    parts = [items(relation.notes)]
    ends = [", ".join(f"{key} {told[key]:.3f}" for key in ("chance", "ceiling") if told[key] is not None)]
    if found is not None:
        parts.append(tag("p", found.sentence))
        one = told["correlation"]
        rows = {f"{key}, one point a depth": value for key, value in one["last"].items()}
        rows |= {f"{key}, all points": value for key, value in one["every"].items()}
        rows |= {
            "pearson given log C": one["partial_given_log_flops"],
            "pearson given log C and log steps": one["partial_given_log_flops_and_steps"],
            "pearson within depths": one["within_depths"],
        }
        lines = [
            [key, f"{value['value']:.2f}", _to(*value["ci95"]), number(value["p"], 2)]
            for key, value in rows.items()
            if math.isfinite(value["value"])
        ]
        parts.append(table(["", "with the loss", "95 % interval", "p"], lines))
        if found.held_out is not None:
            held = found.held_out
            ends.append(
                f"depth {held.depth} held out: predicted {held.predicted:.3f} ({held.low:.3f} to {held.high:.3f}), "
                f"measured {held.actual:.3f}"
            )
        ends += [CORRELATION_FLAGS[flag] for flag in found.flags]
    if link is not None:
        constants = ", ".join(f"{key} = {value:.4g} ± {link.se[key]:.2g}" for key, value in link.constants.items())
        ends += [f"link from loss to score: {link.kind}, {constants}; {link.why}".rstrip("; ")]
        ends += [LINK_FLAGS[flag] for flag in link.flags]
    return [*parts, items(sentence(line) for line in ends if line)]


def tasks(found: Findings) -> Html:
    """Each score task by task, at the last steps."""
    if isinstance(found.scores, Missing):
        return none("No scores by task", found.scores)
    parts = []
    table_of: Any = found.scores
    own = table_of[found.scores["last"] & ~found.scores["cooldown"]]
    for name in found.relations:
        part = own[(own["name"] == name) & ~own["group"].str.endswith(UNSEEN)]
        groups = sorted(part["group"].unique(), key=lambda group: (group == OVERALL, group))
        value = part.pivot_table(index=["depth", "run"], columns="group", values="value")
        error = part.assign(se=part["se"].astype(float)).pivot_table(
            index=["depth", "run"], columns="group", values="se"
        )
        rows = [
            [run, depth, *(_plus_minus(one.get(group), error.loc[(depth, run)].get(group)) for group in groups)]
            for (depth, run), one in value.iterrows()
        ]
        parts.append(folded(name, table(["run", "depth", *groups], rows)))
    return join(*parts) if parts else none("No scores by task", Missing("none has prompts of its own"))


def pictures(found: Findings) -> Html:
    """The contact sheet."""
    alt = "A row of pictures for each prompt: one for each depth, then the largest depth's earlier steps."
    caption = "The same prompts, from the same noise, across depths and steps (after the paper's Figure 12)."
    return drawn(found.figures["sheet"], "contact sheet", alt, caption)


# --- what was done ----------------------------------------------------------------------------------------------------


def runs(found: Findings) -> Html:
    """Every run; what all of them share is said once."""
    if found.runs is None:
        return none("No configurations", Missing("a table says what was measured, not how; keep each run's"))
    rows = {}
    for end in _ends(found.runs).itertuples():
        told = recipe.described(found.records[end.run])
        measured = {"parameters": counted(end.params), "steps": number(end.step), "FLOPs": number(end.flops)}
        rows[end.run] = told | measured | {"last loss": _fixed(end.loss)}
    same = [key for key in next(iter(rows.values())) if len({row[key] for row in rows.values()}) == 1]
    order = ["depth", "width", "parameters", "steps", "FLOPs", "last loss"]
    header = [*order, *(key for key in next(iter(rows.values())) if key not in same and key not in order)]
    shared = [join(tag("b", key), f": {row}") for key, row in next(iter(rows.values())).items() if key not in header]
    return join(
        table(["run", *header], [[name, *(row[key] for key in header)] for name, row in rows.items()]),
        tag("p", "The same in all runs:" if len(rows) > 1 else "Besides:"),
        items(shared),
        folded("The paper's depths: sizes and FLOPs as counted here, and as printed there", _beside()),
    )


def _beside() -> Html:
    rows = [
        [row.depth, number(row.params), number(row.paper_params), number(row.flops), number(row.paper_flops), row.why]
        for row in cast(Any, published.beside()).itertuples()
    ]
    header = ["depth", "parameters", "of the paper", "FLOPs", "of the paper", "why they differ"]
    return table(header, rows)


def answers(found: Findings) -> Html:
    """The reporting checklist."""
    parts: list[Html] = [tag("p", counts(found.checklist))]
    for group in dict.fromkeys(item.group for item in found.checklist):
        rows = [
            [item.question, item.answer, item.where]
            if item.answer is not None
            else [item.question, tag("b", "not recorded", class_="missing"), f"To record: {item.where}"]
            for item in found.checklist
            if item.group == group
        ]
        parts += [tag("h3", group), table(["", "answer", "where"], rows, wide=True)]
    return join(*parts)


def data(found: Findings) -> Html:
    """Every point of the fit, to fit again."""
    if isinstance(found.points, Missing):
        return none("No points", found.points)
    text = raw(found.points).to_csv(index=False, lineterminator="\n")
    link = tag("a", "points.csv", href=data_uri("text/csv;charset=utf-8", text.encode()), download="points.csv")
    said = join(
        f"The {len(found.points):,} points of the law, all digits: ", link, ", or below; ",
        tag("code", "sd3-jax fit points.csv"), " fits them again.",
    )  # fmt: skip
    return join(tag("p", said), folded("The table", tag("pre", text)))


def _ends(table: Any) -> Any:
    """The last point of each run, of averaged weights where there are any."""
    kept = table[table["weights"] == "ema"] if (table["weights"] == "ema").any() else table
    return kept.sort_values("step").groupby("run").tail(1).sort_values(["depth", "run"], ignore_index=True)


def _but_seed(config: RunConfig) -> str:
    """What runs must share to differ in their seed alone."""
    return json.dumps(
        {key: one for key, one in identity(config).items() if key != "seed"}, sort_keys=True, default=list
    )


def _fixed(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def _to(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}" if math.isfinite(low) else ""


def _plus_minus(value: Any, error: Any) -> str:
    if value is None or value != value:
        return ""
    digits = 3 if abs(value) < 10 else 0
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None and error == error else "")
