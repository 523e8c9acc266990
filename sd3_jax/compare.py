"""Whose pictures are preferred: those of every run against one fixed reference, prompt by prompt.

The rater is the proxy (:mod:`sd3_jax.evaluation.proxy`), a reward trained on pairs whose order is known; nothing
here is a human preference. The same prompts, from the same noise, are compared in every run. ``other_caption`` is
the win rate where both pictures are rated by another caption of the same task: what looks alone would win.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from sd3_jax import records
from sd3_jax.data import captions, signs
from sd3_jax.errors import UserError
from sd3_jax.evaluate import Request, folder_of, setting, write_scores
from sd3_jax.evaluation import preference, proxy, scores
from sd3_jax.evaluation.judged import Pictures, partial, read_pictures
from sd3_jax.evaluation.scores import OVERALL

PREFERENCE = "proxy-preference"
ELO = "proxy-preference-elo"
PROXY = "proxy.safetensors"


class Point(NamedTuple):
    """One evaluated checkpoint."""

    run_dir: Path
    step: int


def check_comparable(runs: Sequence[Path]) -> None:
    """Raises UserError if the runs do not draw the same scenes."""
    data = {run: records.load_config(run).data for run in runs}
    if prepared := [run for run, own in data.items() if own.source != "scenes"]:
        raise UserError(f"{prepared[0]}: draws no scenes, and the proxy for preference knows nothing else")
    other = next((run for run in runs if data[run] != data[runs[0]]), None)
    if other is not None:
        raise UserError(f"{other}: draws other scenes than {runs[0]}: they cannot be compared")


def default_reference(runs: Sequence[Path]) -> Path:
    """The smallest depth without a cooldown, of the smallest seed: what every other run should beat."""

    def rank(run_dir: Path) -> tuple:
        config = records.load_config(run_dir)
        return config.optimizer.cooldown > 0, config.model.depth, config.seed, run_dir.name

    return min(runs, key=rank)


def compare(
    steps: Mapping[Path, Sequence[int]], reference: Path, request: Request, proxy_path: Path
) -> list[dict[str, Any]]:
    """Rate the pictures of the given steps of runs, write each run's rows of win rate and Elo, and return them.

    The reference, which is one of the runs, is compared at its last step. The proxy is kept at ``proxy_path``, and
    trained if it is not there or belongs to other scenes.

    Raises UserError if pictures have not been drawn, or if the runs do not share their scenes.
    """
    check_comparable([reference, *steps])
    last = Point(reference, max(steps[reference]))
    points = [Point(run, step) for run, own in steps.items() for step in own]
    names = records.names_of(list(steps))
    label = {point: f"{names[point.run_dir]}@{point.step}" for point in points}
    config = records.load_config(reference)
    params, report = proxy.load_or_train(proxy_path, config.data, config.model)
    rate = proxy.make_reward(params, config.data)
    folders = {point: read_pictures(folder_of(point.run_dir, point.step, request), config.data) for point in points}
    shared = _shared(folders[last], folders.values())
    captions_of = _captions(shared)
    net = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))).hexdigest()
    rewards, others = {}, {}
    for point, pictures in folders.items():
        kept = folder_of(point.run_dir, point.step, request) / "rewards.json"
        rated = _rate(pictures, shared, (captions_of.words, captions_of.others), rate, net, kept)
        rewards[point], others[point] = rated
    seen = np.array([not group.endswith(":unseen") for group in captions_of.groups])
    parts = [(OVERALL, seen), *((group, captions_of.groups == group) for group in dict.fromkeys(captions_of.groups))]
    if len(np.unique(captions_of.prompt[seen])) < 2:
        raise UserError("pictures of one prompt alone are not compared: their wins have no error; ask for more")
    elo = preference.scores(
        {label[point]: own[seen] for point, own in rewards.items()}, captions_of.prompt[seen], label[last]
    )
    problems = [problem for pictures in folders.values() for problem in pictures.problems]
    written: list[dict[str, Any]] = []
    for point in points:
        common = {
            "step": point.step,
            **setting(point.run_dir, request),
            "reference": label[last],
            "proxy_accuracy": report["accuracy"],
            **({"partial": partial(problems)} if problems else {}),
        }
        rows = [
            {
                "name": PREFERENCE,
                "group": group,
                **_wins("", rewards[point][chosen], rewards[last][chosen], captions_of.prompt[chosen]),
                **_wins("other_caption", others[point][chosen], others[last][chosen], captions_of.prompt[chosen]),
                **common,
            }
            for group, chosen in parts
        ]
        score = elo[label[point]]
        rows.append(
            {"name": ELO, "group": OVERALL, "value": score.value, "se": score.se, "ci95": list(score.ci95), **common}
            | {"compared": sorted(label.values())}
        )
        write_scores(point.run_dir, rows)
        written += [{"run": names[point.run_dir], **row} for row in rows]
    return written


class _Captions(NamedTuple):
    """What is said of each picture that is compared."""

    words: Int[np.ndarray, "n 6"]
    others: Int[np.ndarray, "n 6"]  # another caption of the same task: by chance
    prompt: Int[np.ndarray, " n"]  # numbers of the prompts
    groups: np.ndarray  # the task of each


def _shared(first: Pictures, everything: Iterable[Pictures]) -> list[tuple[str, int, str]]:
    """(caption, index, group) of the pictures that all folders have, in the order of the first.

    Signs are left out: the proxy is not taught to read. Raises UserError if there is none.
    """
    common = set.intersection(*(set(_keys(pictures)) for pictures in everything))
    shared = [key for key in _keys(first) if key in common and not key[2].startswith(signs.TAG)]
    if not shared:
        raise UserError("the runs have no picture of the same prompt: evaluate them with the same settings")
    return shared


def _keys(pictures: Pictures) -> list[tuple[str, int, str]]:
    described = [(metadata["prompt"], scores.group_of(metadata)) for metadata in pictures.prompts]
    pairs = zip(pictures.prompt.tolist(), pictures.number.tolist(), strict=True)
    return [(described[prompt][0], index, described[prompt][1]) for prompt, index in pairs]


def _captions(shared: Sequence[tuple[str, int, str]]) -> _Captions:
    texts = list(dict.fromkeys(text for text, _, _ in shared))
    words = {text: captions.parse(text) for text in texts}
    group_of = {text: group for text, _, group in shared}
    peers = {group: [text for text in texts if group_of[text] == group] for group in group_of.values()}
    after = {text: own[(i + 1) % len(own)] for own in peers.values() for i, text in enumerate(own)}
    return _Captions(
        np.stack([words[text] for text, _, _ in shared]),
        np.stack([words[after[text]] for text, _, _ in shared]),
        np.array([texts.index(text) for text, _, _ in shared]),
        np.array([group for _, _, group in shared]),
    )


def _rate(
    pictures: Pictures,
    shared: Sequence[tuple[str, int, str]],
    captions: Sequence[Int[np.ndarray, "n 6"]],
    rate: Any,
    net: str,
    kept: Path,
) -> Float[np.ndarray, "captions n"]:
    """Rewards of the pictures with each set of captions; kept beside them, under what they depend on."""
    where = {key: i for i, key in enumerate(_keys(pictures))}
    chosen = [where[key] for key in shared]
    key = hashlib.sha256(net.encode() + pictures.checksums[chosen].tobytes() + np.stack(captions).tobytes()).hexdigest()
    try:
        old = json.loads(kept.read_text(encoding="utf-8"))
        if old["key"] == key:
            return np.array(old["rewards"], float)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    rewards = np.stack([rate(pictures.images[chosen], words) for words in captions]).astype(float)
    records.write_atomic(kept, json.dumps({"key": key, "rewards": rewards.tolist()}) + "\n")
    return rewards


def _wins(
    prefix: str, rewards: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"], prompt: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    """A win rate as the fields of a row; with one prompt it has no error."""
    if len(np.unique(prompt)) < 2:
        value = float(np.mean((np.sign(rewards - reference) + 1) / 2))
        if prefix:
            return {prefix: value, f"{prefix}_se": math.nan}
        return {"value": value, "se": math.nan, "by_prompt": [value], "n": len(prompt), "prompts": 1} | {
            "images_by_prompt": [len(prompt)]
        }
    win = preference.win_rate(rewards, reference, prompt)
    if prefix:
        return {prefix: win.value, f"{prefix}_se": win.se}
    _, images = np.unique(prompt, return_counts=True)
    counts = {"n": win.n, "prompts": win.n_prompts, "images_by_prompt": images.tolist()}
    by_prompt = [round(float(value), 6) for value in win.by_prompt]
    soft = {"soft": win.soft.value, "soft_se": win.soft.se}  # of the probabilities that the proxy says
    return {"value": win.value, "se": win.se, "ci95": list(win.ci95), **soft, "by_prompt": by_prompt, **counts}
