"""A sweep of isoFLOP valleys for a total of FLOPs: budgets, and depths on either side of each one's best size."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from sd3_jax import flops as counts
from sd3_jax.config import LENGTHS, RunConfig, flatten
from sd3_jax.errors import UserError
from sd3_jax.sweep import spec
from sd3_jax.units import count

BUDGETS = 5  # each twice the one before; fewer where a total does not reach as many
LEAST_BUDGETS = 3
SIDE = 2  # sizes on either side of the best, so that a parabola has its minimum among them
RATIO = 1.4  # of parameters, at least, from one size to the next
LARGEST_DEPTH = 256


class Optimum(NamedTuple):
    """The best number of parameters at a budget C = 3F x images, where the model's family is known by a member."""

    parameters: Callable[[RunConfig, float], float]
    source: str


def published(config: RunConfig, budget: float) -> float:
    """N* = 0.0009 C6^0.5681 (Liang et al. 2024, text-to-image diffusion transformers of 1M to 1B parameters).

    They count C6 = 6 N tokens, which is 2.8 to 2.9 times our C for the paper's sizes: a token meets half of the
    block's matmuls.
    """
    model = config.model
    tokens = model.image_tokens + model.text_tokens
    six = 6 * counts.parameters(model).total * tokens / counts.train_flops(model)
    return 0.0009 * (six * budget) ** 0.5681


PUBLISHED = Optimum(published, "N* = 0.0009 C6^0.5681 of Liang et al. 2024")


class Valley(NamedTuple):
    """A budget and the depths that bracket its best size."""

    budget: float  # training FLOPs, C = 3F x images
    best: float  # parameters
    below: tuple[int, ...]
    above: tuple[int, ...]


def proposal(path: Path, total: float, optimum: Optimum = PUBLISHED) -> str:
    """The YAML of a sweep in the setting of another, whose cells take at most ``total`` FLOPs together.

    One run per depth, at a constant rate and as long as the largest budget that it serves. Raises UserError for a
    total so small that there are not enough sizes, or a run has no step.
    """
    if not 0 < total < float("inf"):
        raise UserError(f"--propose: {total} is not a number of FLOPs")
    document = spec.read(path)
    base = spec.load(path)[0].config
    sizes = {depth: _with_depth(base, depth) for depth in _ladder(base)}
    for number, largest in itertools.product(range(BUDGETS, LEAST_BUDGETS - 1, -1), _rounded_down(total)):
        valleys = [_valley(sizes, largest / 2**k, optimum) for k in reversed(range(number))]
        found = [valley for valley in valleys if valley is not None]
        if len(found) < number:
            continue
        lengths: dict[int, float] = {}
        for valley in found:
            lengths |= dict.fromkeys((*valley.below, *valley.above), valley.budget)
        if sum(_spent(sizes[depth], length) for depth, length in lengths.items()) <= total:
            break
    else:
        raise UserError(
            f"--propose: {total:.3g} FLOPs make no {LEAST_BUDGETS} budgets with {SIDE} depths on either side of the "
            f"best size ({optimum.source}) in the setting of {path}: give another total"
        )
    if any(_spent(sizes[depth], found[0].budget) == 0 for depth in lengths):
        raise UserError(f"--propose: {total:.3g} FLOPs are too few: a run would have no step of batch {base.batch}")
    return _yaml(path, document, base, sizes, found, lengths, total, optimum)


def _ladder(base: RunConfig) -> list[int]:
    """Depths in steps of parameters that a valley can tell apart."""
    depths, last = [], 0.0
    for depth in range(2, LARGEST_DEPTH + 1):
        parameters = counts.parameters(_with_depth(base, depth).model).total
        if parameters >= RATIO * last:
            depths.append(depth)
            last = parameters
    return depths


def _with_depth(base: RunConfig, depth: int) -> RunConfig:
    return dataclasses.replace(base, model=dataclasses.replace(base.model, depth=depth))


def _valley(sizes: dict[int, RunConfig], budget: float, optimum: Optimum) -> Valley | None:
    """The nearest depths on either side; None where there are not enough."""
    gaps = {}
    for depth, config in sizes.items():
        best = optimum.parameters(config, budget)
        gaps[depth] = counts.parameters(config.model).total / best
    below = [depth for depth, gap in gaps.items() if gap < 1][-SIDE:]
    above = [depth for depth, gap in gaps.items() if gap >= 1][:SIDE]
    if len(below) < SIDE or len(above) < SIDE:
        return None
    nearest = sizes[min((below[-1], above[0]), key=lambda depth: abs(gaps[depth] - 1))]
    return Valley(budget, optimum.parameters(nearest, budget), tuple(below), tuple(above))


def _spent(config: RunConfig, budget: float) -> int:
    """What a run of a budget takes in whole steps."""
    return counts.steps_within(config, budget) * config.batch * counts.train_flops(config.model)


def _rounded_down(total: float) -> Iterator[float]:
    """Budgets of two digits below a total, from the largest, over two decades."""
    exponent = int(f"{total:e}".partition("e")[2])
    for power in range(exponent, exponent - 3, -1):
        for digits in range(99, 9, -1):
            budget = float(f"{digits}e{power - 1}")
            if budget <= total:
                yield budget


def _yaml(
    path: Path,
    document: dict,
    base: RunConfig,
    sizes: dict[int, RunConfig],
    valleys: list[Valley],
    lengths: dict[int, float],
    total: float,
    optimum: Optimum,
) -> str:
    """The sweep as text, with what it was made from said in its first lines."""
    experiment = document["experiment"]
    if Path(experiment).suffix in (".py", ".json"):
        experiment = str((path.parent / experiment).resolve())
    dropped = (*LENGTHS, "model.depth", "seed", "keep_steps", "evaluation.budgets", "optimizer.cooldown")
    common = {key: value for key, value in flatten(document["set"]) if key not in dropped}
    common["evaluation.budgets"] = [valley.budget for valley in valleys]
    spent = sum(_spent(sizes[depth], length) for depth, length in lengths.items())
    lines = [
        f"# IsoFLOP valleys for {total:.3g} FLOPs, of which the runs take {spent:.3g}. Where the minima should lie:",
        f"# {optimum.source}.",
        "#",
        "#   C        N*     depths below    above",
    ]
    for valley in valleys:
        below, above = (" ".join(f"{d} ({_size(sizes[d])})" for d in side) for side in (valley.below, valley.above))
        lines.append(f"#   {_text(valley.budget):<8} {count(valley.best):<6} {below:<27} {above}")
    lines += [f"experiment: {experiment}", "set:"]
    lines += [f"  {key}: {_inline(value)}" for key, value in common.items()]
    lines += ["cells:  # flops: the largest budget that the depth serves"]
    for budget in sorted(set(lengths.values())):
        depths = sorted(depth for depth, length in lengths.items() if length == budget)
        lines.append(f"  - {{model.depth: {depths}, seed: {base.seed}, flops: {_text(budget)}}}")
    return "\n".join(lines) + "\n"


def _size(config: RunConfig) -> str:
    return count(counts.parameters(config.model).total)


def _text(budget: float) -> str:
    """A budget with as many digits as it has.

    >>> _text(6.25e18), _text(8e21)
    ('6.25e18', '8e21')
    """
    texts = (f"{budget:.{digits}e}" for digits in range(17))
    return next(text for text in texts if float(text) == budget).replace("e+", "e")


def _inline(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return f"[{', '.join(map(_text, value))}]"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
