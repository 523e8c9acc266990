"""Synthetic sweeps: run directories as training writes them, with losses from a law that is known."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sd3_jax import flops, formulations, records
from sd3_jax.config import RunConfig
from sd3_jax.overlays import resolve

BENCH = {
    "model.head_dim": 16,
    "model.patch": 1,
    "model.latent_size": 3,
    "model.latent_channels": 16,
    "model.text_tokens": 6,
    "model.text_dim": 48,
    "model.pooled_dim": 48,
    "model.time_dim": 64,
    "data.image_size": 24,
    "data.layout": "grid",
    "data.downsample": 8,
    "optimizer.warmup_steps": 50,
    "optimizer.learning_rate": 4e-3,
    "evaluation.first_step": 20,
    "batch": 64,
}
# L = E + (N / n)^-alpha * u + (D / d)^-beta * v, with u, v the shares of the loss at n = 1e5, d = 1e5
TRUTH = {"E": 0.20, "A": 0.06 * 1e5**0.6, "B": 0.08 * 1e5**0.5, "alpha": 0.6, "beta": 0.5}


def bench_config(depth: int, seed: int = 0, steps: int = 2000, **changes) -> RunConfig:
    return resolve(BENCH, {"model.depth": depth, "seed": seed, "steps": steps}, changes)


def law_loss(truth: dict[str, float], params, images):
    return truth["E"] + truth["A"] * params ** -truth["alpha"] + truth["B"] * images ** -truth["beta"]


def evaluated_steps(config: RunConfig) -> list[int]:
    """Log-spaced steps, the last, and the last within each budget."""
    evaluation, last = config.evaluation, flops.total_steps(config)
    number = math.log10(last / evaluation.first_step) * evaluation.per_decade
    steps = {round(evaluation.first_step * 10 ** (k / evaluation.per_decade)) for k in range(math.ceil(number))}
    steps |= {flops.steps_within(config, budget) for budget in evaluation.budgets} | {last}
    return sorted(step for step in steps if 1 <= step <= last)


def write_run(
    root: Path,
    config: RunConfig,
    truth: dict[str, float] = TRUTH,
    noise: float = 0.0,
    offset: float = 0.0,
    name: str | None = None,
    finished: bool = True,
) -> Path:
    """One run directory. ``noise`` is the relative standard deviation of a point, ``offset`` that of a whole run."""
    depth, seed = config.model.depth, config.seed
    cooldown = config.optimizer.cooldown
    run_dir = root / (name or f"d{depth:02d}-s{seed}{'-cooldown' if cooldown else ''}")
    records.open_run(run_dir, config)
    records.append(run_dir / "lives.jsonl", {"resumed_from": 0})
    rng = np.random.default_rng([seed, depth, 7])
    shift = 1 + offset * rng.standard_normal()
    params, per_image = flops.parameters(config.model).total, flops.train_flops(config.model)
    last = flops.total_steps(config)
    lines = []
    for step in evaluated_steps(config):
        images = step * config.batch
        spent = {"step": step, "images": images, "flops": float(images * per_image), "seconds": step * 0.01}
        share = (step / last - (1 - cooldown)) / cooldown if cooldown else 0.0
        phase = "warmup" if step <= config.optimizer.warmup_steps else "cooldown" if share > 0 else "constant"
        if phase == "constant" and any(step > drop[0] for drop in config.optimizer.drops):
            phase = "lr_drop"
        budgets = [b for b in config.evaluation.budgets if flops.steps_within(config, b) == step]
        early = 1 + math.exp(-step / 20)
        annealed = 1 - 0.08 * max(share, 0.0)
        rates = {"learning_rate": config.optimizer.learning_rate, "images_per_second": 6400.0, "mfu": None}
        loss = 1.1 * law_loss(truth, params, images)
        lines.append({"split": "train", **spent, "loss": loss, "grad_norm": 0.5, **rates})
        for weights, excess in (("raw", 1.02), ("ema", 1.0)):
            factor = shift * annealed * excess * (early if phase == "warmup" else 1.0)
            loss = law_loss(truth, params, images) * factor * (1 + noise * rng.standard_normal())
            # level 0 tends to 1 whatever the model; the mean over k = 0..7 must be the loss
            rest = (8 * loss - 1.0) / 7
            levels = {"loss_t0": 1.0, **{f"loss_t{k}": rest for k in range(1, 8)}, "loss_t8": 0.9}
            row = {"split": "validation", "weights": weights, **spent, "loss": loss, "loss_se": 0.002, **levels}
            lines.append(row | {"phase": phase, "budgets": budgets})
    for line in lines:
        records.append(run_dir / "metrics.jsonl", line)
    if finished:
        records.finish(
            run_dir, {"steps": last, "images": last * config.batch, "flops": last * config.batch * per_image}
        )
    return run_dir


def write_sweep(
    root: Path,
    depths: Sequence[int] = (2, 3, 4, 5, 6, 7),
    seeds: int = 3,
    truth: dict[str, float] = TRUTH,
    noise: float = 0.0,
    offset: float = 0.0,
    steps: int = 2000,
    cooldown: bool = False,
    **changes,
) -> Path:
    """An equal-step sweep: ``seeds`` runs of the smallest depth, one of each other, optionally a cooldown branch."""
    for depth in depths:
        for seed in range(seeds if depth == min(depths) else 1):
            write_run(root, bench_config(depth, seed, steps, **changes), truth, noise, offset)
        if cooldown:
            write_run(
                root, bench_config(depth, 0, steps, **changes, **{"optimizer.cooldown": 0.2}), truth, noise, offset
            )
    return root


SETTING = {"sampler": "euler", "steps": 25, "guidance": 3.0, "shift": 1.0, "weights": "ema", "seed": 0}
TASKS = {
    "scene-geneval": ("single_object", "counting", "position"),
    "scene-geneval-soft": ("single_object", "counting", "position"),
    "scene-compbench": ("color", "numeracy"),
    "proxy-preference": ("single_object", "counting", "position"),
}
HALVED = {"data.downsample": 4, "model.latent_size": 6, "model.patch": 2}  # as many tokens, which a UViT can make
BACKBONES = {  # what the paper compares, and the share of its loss above E that each has of the law's
    "dit": ({"model.weight_sets": 1}, 1.25),
    "crossdit": ({"model.architecture": "crossdit"}, 1.06),
    "uvit": ({"model.architecture": "uvit"}, 0.95),
    "mmdit": ({}, 1.0),
    "mmdit3": ({"model.weight_sets": 3, "model.clip_tokens": 3}, 0.99),
}


def write_backbones(root: Path, seeds: int = 1, earlier: int = 3, steps: int = 2000, **changes) -> Path:
    """Runs of the five backbones as figure 4 has them, in files alone: losses, scores, distances from true scenes."""
    budget = steps * flops.image_flops(bench_config(4, **HALVED))
    for name, (fields, share) in BACKBONES.items():
        own = round(budget / flops.image_flops(bench_config(4, **HALVED, **fields)))  # the same FLOPs, nearly
        truth = TRUTH | {key: share * TRUTH[key] for key in ("A", "B")}
        for seed in range(seeds):
            config = bench_config(4, seed, own, **HALVED, **fields, **changes)
            write_run(root, config, truth, noise=0.001, offset=0.004, name=f"{name}-s{seed}")
    write_scores(root, noise=0.05, earlier=earlier)
    for run_dir in records.find_runs(root):
        rows, _ = records.read_rows(run_dir / "evals.jsonl")
        own = [row for row in rows if (row["name"], row["group"]) == ("scene-geneval-soft", "overall")]
        for row in own:
            far = {"name": "scene-frechet", "value": 0.015 + 0.3 * (1 - row["value"]) ** 2, "se": 0.008}
            kept = {key: value for key, value in row.items() if key not in ("chance", "chance_se", "judge")}
            records.append(run_dir / "evals.jsonl", kept | far | {"ceiling": 0.015, "features": "scene-1", "n": 600})
    return root


def link(loss):
    """The score that a loss stands for: a logistic from 0 to 1."""
    return 1 / (1 + math.exp((loss - 0.34) / 0.03))


def write_scores(root: Path, noise: float = 0.02, earlier: int = 2, prompts: int = 5, **changes) -> Path:
    """Scores of every finished run under ``root``, at its last validation and ``earlier`` ones before, as evaluate
    writes them: each task with its prompts, and the unweighted mean over tasks. ``noise`` is the standard deviation
    of a prompt's score about the link's, where that is so far from 0 and 1."""
    for run_dir in records.find_runs(root):
        rows, _ = records.read_rows(run_dir / "metrics.jsonl")
        points = [row for row in rows if row["split"] == "validation" and row["weights"] == "ema"]
        rng = np.random.default_rng(sum(run_dir.name.encode()))
        written = []
        for point in [*points[len(points) // 3 :: max(1, len(points) // 4)][:earlier], points[-1]]:
            for name, tasks in TASKS.items():
                written += _score_rows(name, tasks, point, noise, prompts, rng, changes)
        records.write_rows(run_dir / "evals.jsonl", written)
    return root


def _score_rows(name, tasks, point, noise, prompts, rng, changes):
    common = {"step": point["step"], "name": name, **SETTING, "prompt_list": "0a1b2c3d", "judge": 1}
    extra = {} if name == "proxy-preference" else {"chance": 0.02, "chance_se": 0.0, "ceiling": 1.0, "ceiling_se": 0.0}
    extra |= changes
    rows, values, errors = [], [], []
    for number, task in enumerate(tasks):
        images = [1 + (k + number) % 3 for k in range(prompts)]
        own = _about(link(point["loss"]), noise, prompts, rng)
        value = float(np.average(own, weights=images))
        error = float(np.std(own, ddof=1) / math.sqrt(prompts))
        rows.append(
            {**common, "group": task, "value": value, "se": error, "n": sum(images), "prompts": prompts, **extra}
            | {"by_prompt": own.tolist(), "images_by_prompt": images}
        )
        values.append(value)
        errors.append(error)
    total = {"n": sum(row["n"] for row in rows), "prompts": prompts * len(tasks)}
    mean = {"value": float(np.mean(values)), "se": float(np.linalg.norm(errors) / len(errors))}
    return [*rows, {**common, "group": "overall", **mean, **total, **extra, "by_prompt": [], "images_by_prompt": []}]


def _about(mean, noise, number, rng):
    """Scores of exactly this mean, spread evenly: to cut normal ones at 0 and 1 moves the mean."""
    return mean + min(math.sqrt(3) * noise, mean, 1 - mean) * rng.uniform(-1, 1, number)


def write_pictures(root: Path, prompts: int = 3, size: int = 8) -> Path:
    """Pictures of every finished run under ``root``, at the steps of its scores, of one colour each."""
    from PIL import Image

    for run_dir in records.find_runs(root):
        for step in sorted({row["step"] for row in records.read_rows(run_dir / "evals.jsonl")[0]}):
            out = run_dir / "samples" / f"{step:07d}-ema"
            setting = SETTING | {"run": run_dir.name, "step": step, "prompts": "0a1b2c3d", "images": prompts}
            records.write_atomic(out / "settings.json", json.dumps(setting))
            for number in range(prompts):
                folder = out / f"{number:05d}"
                (folder / "samples").mkdir(parents=True)
                text = f"a photo of {('a ring', 'two crosses', 'a red star')[number % 3]}"
                described = {"tag": f"task {number % 2}", "include": [], "prompt": text, "split": "seen"}
                (folder / "metadata.jsonl").write_text(json.dumps(described))
                colour = (step % 256, number * 40, 100)
                Image.new("RGB", (size, size), colour).save(folder / "samples" / "0000.png")
    return root


# The paper's 24 settings: 6 samplers, averaged and raw weights, on two data sets.
SAMPLERS = ((50, 1.0), (50, 2.5), (50, 5.0), (25, 5.0), (10, 5.0), (5, 5.0))
DATA_SETS = {"grid": {}, "free": {"data.layout": "free", "data.image_size": 32, "model.latent_size": 4}}
DOZEN = (
    *("rf", "rf/lognorm(0.00, 1.00)", "rf/lognorm(0.50, 0.60)", "rf/lognorm(1.00, 0.60)", "rf/lognorm(0.50, 1.00)"),
    *("rf/mode(1.29)", "rf/mode(1.75)", "rf/cosmap", "eps/linear", "v/linear", "edm(-1.20, 1.20)", "edm/rf"),
)


def quality(formulation: str, steps: int, guidance: float, weights: str, data_set: str) -> tuple[float, float]:
    """The score and the distance that are true of a formulation in a setting: a function of its name alone."""
    rng = np.random.default_rng(sum(map(ord, formulation)) * 7 + len(formulation))
    own, aligned = rng.normal(0, 1.0, 2)
    own -= 1.0 * formulation.startswith("rf/") - 1.0 * formulation.startswith("edm")
    few = (0.5 if formulation.startswith("rf") else 1.2) * (5 / steps) * (1 + 0.3 * rng.uniform())
    worse = own + few + 0.3 * (weights == "raw") + 0.2 * (data_set == "free")
    return 0.55 - 0.06 * worse + 0.02 * aligned + 0.01 * guidance, 0.12 * math.exp(0.35 * worse - 0.15 * aligned)


def score_settings(run_dir: Path, formulation: str, data_set: str = "grid", noise: float = 0.02, samplers=SAMPLERS):
    """Scores of a run's last step in every setting, as evaluate writes them, path length among them."""
    step = max(row["step"] for row in records.read_rows(run_dir / "metrics.jsonl")[0])
    rng = np.random.default_rng(sum(run_dir.name.encode()))
    difficulty = np.random.default_rng(1).normal(0, 0.1, 12)  # of the prompts, the same for all
    rows = []
    for weights in ("ema", "raw"):
        for steps, guidance in samplers:
            up, down = quality(formulation, steps, guidance, weights, data_set)
            how = {"steps": steps, "guidance": guidance, "weights": weights, "prompt_list": f"list-{data_set}"}
            row = {"step": step, **SETTING, **how, "n": 48, "group": "overall"}
            tasks = []
            for task, hard in zip(
                ("single_object", "counting"), np.split(difficulty - difficulty.mean(), 2), strict=True
            ):
                own = up + hard + noise * rng.standard_normal(6)
                mean = {"value": float(own.mean()), "se": float(own.std(ddof=1) / 6**0.5)}
                prompts = {"by_prompt": own.tolist(), "images_by_prompt": [4] * 6}
                tasks.append({**row, "name": "scene-geneval-soft", "group": task, **mean, **prompts, "judge": 1})
            overall = {key: float(np.mean([task[key] for task in tasks])) for key in ("value", "se")}
            rows += [*tasks, {**row, "name": "scene-geneval-soft", **overall, "by_prompt": [], "judge": 1}]
            far = down * (1 + noise * rng.standard_normal())
            rows.append({**row, "name": "scene-frechet", "value": far, "se": noise * down, "features": "scene-1"})
            length = {"name": "path-length", "value": 190 - 0.2 * records.load_config(run_dir).model.depth, "se": 0.1}
            rows.append({**row, **length, "n": 48})
    records.write_rows(run_dir / "evals.jsonl", rows)


def write_study(
    root: Path, names=DOZEN, seeds: int = 1, data_sets=("grid", "free"), steps: int = 400, **changes
) -> Path:
    """Runs of formulations by their names, on each data set, scored in every setting."""
    for data_set in data_sets:
        for number, name in enumerate(names):
            flow = {f"flow.{key}": value for key, value in formulations.parse(name).items()}
            for seed in range(seeds):
                config = bench_config(2, seed, steps, **DATA_SETS[data_set], **flow, **changes)
                run_dir = write_run(root, config, name=f"{data_set}-{number:02d}-s{seed}")
                score_settings(run_dir, name, data_set)
    return root
