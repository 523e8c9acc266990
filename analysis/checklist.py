"""What a paper on a scaling law must say (Li et al., ICLR 2025), answered from the records as far as they say it.

Each question has an answer and where it was found, or none and what to record, so that nobody has to guess it again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy

import sd3_jax
from analysis import powers, recipe, report, solvers
from analysis.approaches import Comparison
from analysis.laws import Law
from analysis.prediction import HoldOut
from analysis.recipe import Silent
from analysis.runs import Record

HYPOTHESIS, TRAINING, DATA, FITTING = GROUPS = ("Hypothesis", "Training", "Data", "Fitting")


Answer = tuple[str, str]  # what is said, and where it was found


class Item(NamedTuple):
    """One question. ``where`` says where its answer was found, or if there is none (None) what to record."""

    group: str
    question: str
    answer: str | None
    where: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """What there is to answer from; of a table, or where nothing could be fitted, less."""

    points: pd.DataFrame | None = None  # that the law is fitted to
    records: Mapping[str, Record] = field(default_factory=dict)  # of each run; none of a table
    law: Law | None = None
    hold_out: HoldOut | None = None
    compared: Comparison | None = None
    sensitivity: pd.DataFrame | None = None
    rivals: pd.DataFrame | None = None  # other forms on the same points
    reach: Sequence[float] = ()  # FLOPs of each prediction over the most of any run
    notes: Sequence[str] = ()  # what was left out, and why


def checklist(evidence: Evidence) -> tuple[Item, ...]:
    """Every question of the checklist, in its order."""
    found = []
    for group, questions in QUESTIONS.items():
        for question, answer in questions.items():
            try:
                said, where = answer(evidence)
                found.append(Item(group, question, said, where))
            except Silent as silent:
                found.append(Item(group, question, None, str(silent)))
    return tuple(found)


def counts(items: Sequence[Item]) -> str:
    """How many are answered, and the questions that are not.

    >>> counts([Item("Data", "loss", "mean of v", "config"), Item("Data", "outliers", None, "say")])
    '1 of 2 questions answered; not recorded: outliers.'
    """
    missing = [item.question for item in items if item.answer is None]
    said = f"{len(items) - len(missing)} of {len(items)} questions answered"
    return f"{said}; not recorded: {'; '.join(missing)}." if missing else f"{said}."


# --- what is asked of the evidence ----------------------------------------------------------------------------------


def _of(answer: Callable[[Mapping[str, Record]], Answer]) -> Callable[[Evidence], Answer]:
    return lambda evidence: answer(evidence.records)


def _law(evidence: Evidence) -> Law:
    if evidence.law is None:
        raise Silent("a law: none could be fitted to these runs")
    return evidence.law


def _points(evidence: Evidence) -> pd.DataFrame:
    if evidence.points is None:
        raise Silent("points that belong on one law: these runs have none")
    return evidence.points


def _need(value: Any, why: str) -> Any:
    if value is None or (hasattr(value, "__len__") and not len(value)):
        raise Silent(why)
    return value


# --- hypothesis -----------------------------------------------------------------------------------------------------


def _form(evidence: Evidence) -> Answer:
    law = _law(evidence)
    symbols = ", ".join(report.SYMBOLS[name] for name in law.form.columns)
    return f"{law.form.formula}; {symbols}, L validation loss; fitted to natural logarithms of L", "the fit"


def _variables(evidence: Evidence) -> Answer:
    recipe.configs(evidence.records, "model.depth")
    return (
        "N: all trainable parameters, embedders, adaLN and the final layer among them, the position table not. "
        "D: images seen in training, each once. C: training FLOPs. L: the validation loss of averaged weights",
        "sd3_jax/flops.py, from each run's config.json",
    )


def _why(evidence: Evidence) -> Answer:
    law = _law(evidence)
    rivals = _need(evidence.rivals, "the residuals of other forms on the same points")
    words = [f"{row.Index} leaves rms {row.residual_rms:.2%}" for row in rivals.itertuples()]
    because = ": it tells size and data apart, as an allocation needs" if len(law.form.columns) == 2 else ""
    return f"{law.form.name}{because}; tried on the same points: {', '.join(words)}", "rival forms, below the law"


# --- training ---------------------------------------------------------------------------------------------------------


def _epochs(evidence: Evidence) -> Answer:
    values = recipe.configs(evidence.records, "data.source")
    assert {one[0] for one in values.values()} == {"scenes"}  # the only source there is
    points = evidence.points
    most = f", {int(points['images'].max()):,} images at most" if points is not None and len(points) else ""
    return f"one: scenes are endless, and no image is seen twice{most}", "config.json: data.source"


def _flops(evidence: Evidence) -> Answer:
    if not evidence.records:
        note = next((note for note in evidence.notes if "6 N" in note or "C / 6" in note), None)
        if note is None:
            raise Silent("how the column flops was counted: 6 N D or exact, attention, head, multiply-adds as 1 or 2")
        return f"{note} Attention, norms and the head beyond 6 N D are not counted", "notes on the table"
    recipe.configs(evidence.records, "model.depth")
    return (
        "C = 3F x images, F the forward matmul FLOPs of an image in closed form, a multiply-add as 2. Counted: "
        "attention, adaLN, embedders, the final layer, padding tokens, the last block's unused text queries. Not: "
        "norms, softmax, GELU (about 1 %), autoencoder and text encoders (data come encoded), recomputation",
        "sd3_jax/flops.py, from each run's config.json",
    )


# --- data -----------------------------------------------------------------------------------------------------------


def _number(evidence: Evidence) -> Answer:
    points = _points(evidence)
    return f"{len(points):,} points of {points['run'].nunique():,} runs", "the points"


def _checkpoints(evidence: Evidence) -> Answer:
    points = _points(evidence)
    if not {"phase", "step", "last_step"} <= set(points):
        raise Silent("whether each row is a run's end, and under which schedule (a column schedule)")
    last = int((points["step"] == points["last_step"]).sum())
    phases = ", ".join(sorted(points["phase"].unique())).replace("lr_drop", "after a drop of the rate")
    return (
        f"intermediate: {last} of {len(points)} points are at a run's last step; rate: {phases}; points of a falling "
        "rate are in no fit",
        "metrics.jsonl: step, phase",
    )


def _loss(evidence: Evidence) -> Answer:
    if not evidence.records:
        raise Silent("what the column loss is: objective, weighting, raw or averaged weights")
    weights = ("raw", "ema") if evidence.points is None else evidence.points["weights"]
    return (
        "squared error of the velocity, mean over levels t = k/8, k = 0..7 (uniform, not the training density), "
        f"true captions, {' and '.join(sorted(set(weights)))} weights; level 0 tends to 1 whatever the model",
        "metrics.jsonl: loss, weights",
    )


def _noise(evidence: Evidence) -> Answer:
    points = _points(evidence)
    errors = points["loss_se"].dropna() if "loss_se" in points else pd.Series(dtype=float)
    if not len(errors):
        raise Silent("loss_se: the standard error of each validation loss over its examples")
    share = float((errors / points["loss"]).median())
    return (
        f"median standard error {errors.median():.2g}, {share:.2%} of the loss, over examples; they are the same for "
        "all runs, so differences are surer than that",
        "metrics.jsonl: loss_se",
    )


def _smoothing(evidence: Evidence) -> Answer:
    _points(evidence)
    return (
        "none in the fit. At a FLOP budget, and on the envelope, losses are interpolated log-log between the points "
        "around it, at most 10 % away",
        "analysis/isoflop.py, analysis/frontier.py",
    )


def _exclusions(evidence: Evidence) -> Answer:
    _points(evidence)
    outliers = "no point is left out for its loss"
    return (" ".join(evidence.notes) + f" Besides, {outliers}.").strip() if evidence.notes else outliers, "the notes"


def _with_and_without(evidence: Evidence) -> Answer:
    table = _need(evidence.sensitivity, "the constants with and without what is left out")
    rows = [name for name in table.index if name.startswith(("with", "first"))]
    if not rows:
        return "nothing is left out, so there is no other result", "the sensitivity table"
    return f"rows {', '.join(rows)}", "the sensitivity table"


def _raw(evidence: Evidence) -> Answer:
    return f"{len(_points(evidence)):,} rows at full precision", "the CSV in this page"


# --- fitting --------------------------------------------------------------------------------------------------------


def _objective(evidence: Evidence) -> Answer:
    law = _law(evidence)
    huber = f"Huber losses, delta {law.delta:g}," if math.isfinite(law.delta) else "squares"
    return (
        f"the sum (not the mean) of {huber} of log L - log law; points that repeat a cell (seeds) share the weight of "
        f"one; {law.objective:.6g} at the optimum",
        "the fit",
    )


def _optimiser(evidence: Evidence) -> Answer:
    law = _law(evidence)
    low, high = powers.EXPONENTS
    return (
        "Levenberg-Marquardt in float64, from the 16 best cells of a grid of exponents, E and amplitudes eliminated "
        f"there; exponents in [{low:g}, {high:g}]; ends after {solvers.STALLED} steps that gain less than 1e-13 of the "
        f"objective, {solvers.ITERATIONS} at most; relative gradient {law.grad_norm:.1e} at the optimum; flags: "
        f"{', '.join(law.flags) or 'none'}",
        "analysis/solvers.py; the fit",
    )


def _precise(evidence: Evidence) -> Answer:
    law = _law(evidence)
    said = "constants with all their digits"
    said += f", covariance of {len(law.draws):,} joint draws" if len(law.draws) > 1 else ""
    return said + "; draws follow again from points and seed", "the details of the law, and --json"


def _intervals(evidence: Evidence) -> Answer:
    law = _law(evidence)
    if not law.ci95:
        raise Silent(f"intervals, from six independent runs or more ({law.how})")
    return f"80 % and 95 % percentiles, {law.how}", "the fit"


def _sensitivity(evidence: Evidence) -> Answer:
    table = _need(evidence.sensitivity, "the constants under other choices")
    return f"{len(table)} rows: {', '.join(map(str, table.index))}", "the sensitivity table"


def _held_out(evidence: Evidence) -> Answer:
    held = _need(evidence.hold_out, "the error on the largest compute, held out from a fit to the rest")
    return report.held_out_sentence(held), "the hold-out"


def _agreement(evidence: Evidence) -> Answer:
    compared = _need(evidence.compared, "exponents by envelope, isoFLOP valleys and law on the same runs")
    if compared.agree is None:
        raise Silent("enough runs and budgets for intervals of two approaches: " + compared.sentence)
    return compared.sentence, "the three approaches"


def _reach(evidence: Evidence) -> Answer:
    reach = _need(list(evidence.reach), "predictions, with their FLOPs over the most of any run")
    held = evidence.hold_out
    also = f"; the hold-out {held.reach:.3g}" if held is not None and math.isfinite(held.reach) else ""
    return f"predictions at {', '.join(f'{x:.3g}' for x in reach)} times the most FLOPs of any run{also}", "the outlook"


def _code(evidence: Evidence) -> Answer:
    fitted = f"fitted with seed 0 by sd3_jax {sd3_jax.__version__}, numpy {np.__version__}, scipy {scipy.__version__}"
    if not evidence.records:
        raise Silent(f"the revision and versions of what trained each run; {fitted}")
    recipe.configs(evidence.records, "seed")
    trained = recipe.lives(evidence.records, "revision", "sd3_jax", "jax", "flax", "optax", "python")
    words = {
        name: f"revision {str(revision)[:12]}, sd3_jax {ours}, jax {jax}, flax {flax}, optax {optax}, Python {python}"
        for name, (revision, ours, jax, flax, optax, python) in trained.items()
    }
    return f"trained with {recipe.each(words)}; {fitted}", "lives.jsonl: revision and versions"


QUESTIONS: dict[str, dict[str, Callable[[Evidence], Answer]]] = {
    HYPOTHESIS: {
        "exact form, units and base of logarithms": _form,
        "definition of each variable": _variables,
        "why this form, rivals tried": _why,
    },
    TRAINING: {
        "depth and width of every run": _of(recipe.sizes),
        "what is predicted, and at which times": _of(recipe.objective),
        "steps and batch": _of(recipe.length),
        "learning rate": _of(recipe.rate),
        "schedule and warm-up": _of(recipe.rates),
        "optimizer and weight decay": _of(recipe.optimizer),
        "averaged weights (EMA)": _of(recipe.average),
        "seeds": _of(recipe.seeds),
        "precision and device": _of(recipe.precision),
        "how hyper-parameters scale with size": _of(recipe.scaling),
        "how hyper-parameters were tuned": _of(recipe.tuning),
        "data set and filtering": _of(recipe.dataset),
        "epochs": _epochs,
        "FLOP formula and what it counts": _flops,
    },
    DATA: {
        "number of points and of independent runs": _number,
        "final or intermediate checkpoints": _checkpoints,
        "definition of the loss": _loss,
        "validation set": _of(recipe.validation),
        "Monte-Carlo error of the loss": _noise,
        "smoothing and interpolation": _smoothing,
        "exclusions and outliers, with reasons": _exclusions,
        "results with and without them": _with_and_without,
        "raw table published": _raw,
    },
    FITTING: {
        "objective, delta, sum or mean, weights": _objective,
        "optimiser, tolerance, starts, bounds, convergence": _optimiser,
        "full-precision constants and covariance": _precise,
        "intervals, resampling unit, failures": _intervals,
        "sensitivity table": _sensitivity,
        "held-out error on the largest compute": _held_out,
        "whether other approaches agree": _agreement,
        "extrapolation ratio": _reach,
        "code, seed, versions": _code,
    },
}
