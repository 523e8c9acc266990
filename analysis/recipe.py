"""How runs were made, in words: answers from what their directories recorded, never from defaults.

A field that the configuration of a run lacks is no answer, though whoever reads the configuration fills it in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from analysis.runs import Record
from sd3_jax import formulations
from sd3_jax.config import FlowConfig

LENGTHS = ("steps", "images", "flops")
UNSAID = "not recorded"
Records = Mapping[str, Record]


class Silent(Exception):
    """The records do not say; its text is what to record."""


def configs(records: Records, *keys: str) -> dict[str, tuple[Any, ...]]:
    """Values of the keys in each run's config.json. Raises Silent, naming the key and the runs, where one lacks it."""
    if not records:
        raise Silent(f"{', '.join(keys)}: a table says nothing of it; keep each run's configuration, or state it here")
    for key in keys:
        lacking = [name for name, one in records.items() if key not in one.config]
        if lacking:
            raise Silent(f"{key} in config.json of {some(lacking)}")
    return {name: tuple(one.config[key] for key in keys) for name, one in records.items()}


def lives(records: Records, *keys: str) -> dict[str, tuple[Any, ...]]:
    """Values of the keys in each run's last life."""
    if not records:
        raise Silent(f"{', '.join(keys)}: a table says nothing of it; keep it with each run, or state it here")
    for key in keys:
        lacking = [name for name, one in records.items() if not one.lives or key not in one.lives[-1]]
        if lacking:
            raise Silent(f"{key} in lives.jsonl of {some(lacking)}")
    return {name: tuple(one.lives[-1][key] for key in keys) for name, one in records.items()}


def sizes(records: Records) -> tuple[str, str]:
    """How many runs, of which depths and widths."""
    values = list(configs(records, "model.depth", "model.head_dim").values())
    widths = [depth * head for depth, head in values]
    said = f"{len(values)} runs of depth {span([depth for depth, _ in values])}, width {span(widths)}"
    return f"{said}, each in the table of runs", "config.json: model.depth, model.head_dim"


def length(records: Records) -> tuple[str, str]:
    """How long each run is, and its batch."""
    values = configs(records, "batch")
    long = {}
    for name, (batch,) in values.items():
        own = records[name].config
        given = next((key for key in LENGTHS if own.get(key)), None)
        if given is None:
            raise Silent(f"steps, images or flops in config.json of {name}")
        long[name] = f"{own[given]:,.10g} {given.replace('flops', 'FLOPs')} in batches of {batch:,}"
    return each(long), "config.json: steps, images or flops; batch"


def rate(records: Records) -> tuple[str, str]:
    """The constant rate, by width where it follows it."""
    values = configs(records, "optimizer.learning_rate", "optimizer.reference_width")
    words = {name: f"{peak:g} x {width} / width" if width else f"{peak:g}" for name, (peak, width) in values.items()}
    return each(words), "config.json: optimizer.learning_rate, optimizer.reference_width"


def rates(records: Records) -> tuple[str, str]:
    """The schedule of each run."""
    values = configs(records, "optimizer.warmup_steps", "optimizer.drops", "optimizer.cooldown")
    return each({name: schedule(*one) for name, one in values.items()}), (
        "config.json: optimizer.warmup_steps, optimizer.drops, optimizer.cooldown"
    )


def schedule(warmup: int, drops: Sequence[Sequence[float]], cooldown: float) -> str:
    """A schedule in words.

    >>> schedule(50, [[300, 0.5]], 0.2)
    'linear warm-up of 50 steps, then constant, x 0.5 from step 300, linear to zero over the last 20 %'
    """
    return f"linear warm-up of {warmup:,} steps, then {after_warmup(drops, cooldown)}"


def after_warmup(drops: Sequence[Sequence[float]], cooldown: float) -> str:
    """What the rate does once it is there.

    >>> after_warmup([], 0.0)
    'constant'
    """
    words = ["constant", *(f"x {factor:g} from step {step:,.10g}" for step, factor in drops)]
    return ", ".join(words + ([f"linear to zero over the last {100 * cooldown:g} %"] if cooldown else []))


def optimizer(records: Records) -> tuple[str, str]:
    """AdamW's constants and clipping."""
    names = ("beta1", "beta2", "epsilon", "weight_decay", "clip_norm")
    keys = [f"optimizer.{name}" for name in names]
    words = {
        name: f"AdamW: weight decay {decay:g} (matrices alone), beta {first:g} and {second:g}, epsilon {epsilon:g}, "
        + (f"gradients clipped to norm {clip:g}" if clip else "no clipping")
        for name, (first, second, epsilon, decay, clip) in configs(records, *keys).items()
    }
    return each(words), f"config.json: {', '.join(keys)}"


def average(records: Records) -> tuple[str, str]:
    """Which average of the weights is evaluated."""
    keys = [f"optimizer.{name}" for name in ("ema", "ema_relative_width", "ema_decay", "ema_every")]
    words = {name: ema(*one) for name, one in configs(records, *keys).items()}
    return each(words), f"config.json: {', '.join(keys)}"


def ema(kind: str, width: float, decay: float, every: int) -> str:
    """An average of weights in words.

    >>> ema("exponential", 0.1, 0.99, 100)
    '0.99 every 100 steps'
    """
    return (
        f"power function, width {width:g} of the images seen" if kind == "power" else f"{decay:g} every {every} steps"
    )


def seeds(records: Records) -> tuple[str, str]:
    """The seeds of each depth, of runs without a cooldown."""
    values = configs(records, "model.depth", "seed", "optimizer.cooldown")
    by_depth: dict[int, set[int]] = {}
    for depth, seed, cooldown in values.values():
        if not cooldown:
            by_depth.setdefault(depth, set()).add(seed)
    words = [f"depth {depth}: {', '.join(map(str, sorted(seeds)))}" for depth, seeds in sorted(by_depth.items())]
    return f"seeds of {'; '.join(words)}", "config.json: seed"


def precision(records: Records) -> tuple[str, str]:
    """The arithmetic and devices of each run's last life."""
    values = lives(records, "dtype", "device", "devices")
    words = {name: f"matmuls in {dtype}, on {number} {device}" for name, (dtype, device, number) in values.items()}
    said = f"{each(words)}; parameters, optimizer, EMA and loss in float32"
    return said, "lives.jsonl: dtype, device, devices"


def scaling(records: Records) -> tuple[str, str]:
    """What changes with the size of a model beside it."""
    keys = ("batch", "optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.beta2")
    values = configs(records, "optimizer.reference_width", *keys)
    proportional = {bool(one[0]) for one in values.values()}
    follows = {True: "as 1 / width", False: "the same for all"}
    said = "the rate " + " or ".join(follows[one] for one in sorted(proportional))
    for differ, words in ((False, "the same in all runs"), (True, "not the same in all runs")):
        own = [key for i, key in enumerate(keys, 1) if (len({one[i] for one in values.values()}) > 1) is differ]
        said += f"; {words}: {', '.join(own)}" if own else ""
    return said, f"config.json: optimizer.reference_width, {', '.join(keys)}"


def tuning(records: Records) -> tuple[str, str]:
    """The rates that were tried, where a depth has three or more."""
    why = "rates on either side of the one in use, at the smallest and the largest depth (a sweep such as lr_check_cpu)"
    if not records:
        raise Silent(why)
    values = configs(records, "model.depth", "model.head_dim", "optimizer.learning_rate", "optimizer.reference_width")
    tried: dict[int, set[float]] = {}
    for depth, head, peak, width in values.values():
        tried.setdefault(depth, set()).add(peak * (width / (depth * head) if width else 1.0))
    several = {depth: sorted(own) for depth, own in sorted(tried.items()) if len(own) > 2}
    if not several:
        raise Silent(why)
    words = [f"depth {depth} {', '.join(f'{one:.3g}' for one in own)}" for depth, own in several.items()]
    return f"rates tried among these runs: {'; '.join(words)}", "config.json: optimizer.learning_rate"


def objective(records: Records) -> tuple[str, str]:
    """The formulation that is trained, by the paper's name and in words."""
    keys = [f"flow.{spec.name}" for spec in fields(FlowConfig)]
    words = {}
    for name, values in configs(records, *keys).items():
        flow = FlowConfig(*values)
        said = formulations.describe(flow)
        error = said["predicts"] if flow.weight == "own" else f"{said['predicts']}, weighed as that of {flow.weight}"
        words[name] = f"{said['name']}: z = {said['z']}, squared error of {error}, t {said['t']}, shift {flow.shift:g}"
    return each(words), f"config.json: {', '.join(keys)}"


def dataset(records: Records) -> tuple[str, str]:
    """The pictures and captions, and what was filtered."""
    keys = [f"data.{name}" for name in ("source", "image_size", "layout", "shapes", "colors", "held_out")]
    words = {
        name: f"{source}: procedural, captioned, of {size} px, layout {layout}, {shapes} shapes, {colors} colours, "
        f"drawn as they are needed; nothing is filtered; {100 * held:g} % of pairs and relations are never trained on"
        for name, (source, size, layout, shapes, colors, held) in configs(records, *keys).items()
    }
    return each(words), f"config.json: {', '.join(keys)}"


def validation(records: Records) -> tuple[str, str]:
    """Which examples the loss is of."""
    words = {
        name: f"{n:,} fixed examples (seed {seed}), fixed noise of each level"
        for name, (n, seed) in configs(records, "evaluation.examples", "evaluation.seed").items()
    }
    said = f"{each(words)}; drawn by the same rules as training, from keys of its own"
    return said, "config.json: evaluation.examples, evaluation.seed"


def some(names: Sequence[str]) -> str:
    """The first four names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def span(values: Sequence[float]) -> str:
    """The least and the largest, or the one."""
    low, high = min(values), max(values)
    return f"{low:,.10g}" if low == high else f"{low:,.10g} to {high:,.10g}"


def each(values: Mapping[str, Any]) -> str:
    """One value if all runs share it, else each with its runs."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(str(value), []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} ({some(names)})" for value, names in groups.items())


def peak(config: Mapping[str, Any]) -> float:
    """The constant rate of a run, at its width; nan where its fields do not say."""
    try:
        width = config["model.depth"] * config["model.head_dim"]
        reference = config["optimizer.reference_width"]
        return float(config["optimizer.learning_rate"] * (reference / width if reference else 1.0))
    except KeyError:
        return math.nan


def described(record: Record) -> dict[str, str]:
    """A run in a row: what its records say, and where they do not, that."""
    config, life = record.config, record.lives[-1] if record.lives else {}

    def said(words: Callable[..., Any], *keys: str, of: Mapping[str, Any] = config) -> str:
        return str(words(*(of[key] for key in keys))) if all(key in of for key in keys) else UNSAID

    averaged = [f"optimizer.{name}" for name in ("ema", "ema_relative_width", "ema_decay", "ema_every")]
    rate = peak(config)
    versions = ("sd3_jax", "jax", "flax", "optax", "python")
    return {
        "depth": said(str, "model.depth"),
        "width": said(lambda depth, head: depth * head, "model.depth", "model.head_dim"),
        "batch": said(str, "batch"),
        "learning rate": UNSAID if math.isnan(rate) else f"{rate:.3g}",
        "warm-up": said(lambda steps: f"{steps:,}", "optimizer.warmup_steps"),
        "schedule": said(after_warmup, "optimizer.drops", "optimizer.cooldown"),
        "weight decay": said(lambda decay: f"{decay:g}", "optimizer.weight_decay"),
        "EMA": said(ema, *averaged),
        "seed": said(str, "seed"),
        "precision": said(str, "dtype", of=life),
        "device": said(lambda number, kind: f"{number} {kind}", "devices", "device", of=life),
        "versions": said(
            lambda *found: ", ".join(f"{key} {one}" for key, one in zip(versions, found, strict=True)),
            *versions,
            of=life,
        ),
        "revision": said(lambda revision: str(revision)[:12], "revision", of=life),
        "lives": str(len(record.lives)),
    }
