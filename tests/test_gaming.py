"""The judge of scenes is hard to game: what would win without drawing what is asked for scores as chance does.

Scenes with one attribute wrong, garbage, blends and collages are in ``test_scene_judge.py``; memorised pictures in
``test_likeness.py``.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
from test_scene_judge import SETTINGS, drawn, found_in, setting

from sd3_jax.evaluation import fidelity, scene_judge, scores
from sd3_jax.evaluation.prompts import scene_prompts

ROOT = Path(__file__).parent.parent / "sd3_jax"
# How often a true scene answers another caption of its task, of all shapes and colours; with three of each by 8 to 3.
CHANCE = {"single_object": 0.17, "two_object": 0.06, "counting": 0.08, "colors": 0.05, "position": 0.04,
          "color_attr": 0.02}  # fmt: skip
# How many captions of a task one picture answers, the luckiest of twelve, of three shapes.
LUCKIEST = {"single_object": 0.3, "two_object": 0.2, "counting": 0.12, "colors": 0.05, "position": 0.08,
            "color_attr": 0.02}  # fmt: skip


@pytest.mark.parametrize("task", CHANCE)
def test_true_scenes_of_other_captions_are_right_no_oftener_than_by_chance(task: str) -> None:
    asked, found = drawn("scenes_gpu", task)[1], found_in("scenes_gpu", task)
    verdicts = [
        scene_judge.judge(asked[(i + shift) % len(asked)], one)[1].correct
        for shift in (1, 7, 19, 40)
        for i, one in enumerate(found)
    ]
    assert np.mean(verdicts) <= CHANCE[task]


def test_one_good_picture_for_every_prompt_wins_nothing() -> None:
    """It is right where it happens to be, the luckiest too; and it is as far from true scenes as a collapse."""
    name = "scenes_cpu"
    for task, most in LUCKIEST.items():
        asked, found = drawn(name, task)[1], found_in(name, task)
        for one in found[:12]:
            own = scores.measure(asked, np.arange(len(asked)), [one] * len(asked))
            assert own.own[:, scores.MEASURES.index("strict")].mean() <= most
    images = np.concatenate([drawn(name, task)[2] for task in CHANCE])
    features = fidelity.scene_features(images)
    half = len(features) // 2
    rng = np.random.default_rng(0)
    order = rng.permutation(len(features))
    reference = fidelity.moments(features[order[:half]])
    number = np.arange(half)
    others = features[order[half : 2 * half]]
    true = fidelity.distance(others, reference, number, ["any"] * half).value
    pasted = np.repeat(features[order[:1]], half, axis=0) + 1e-6 * rng.normal(size=others.shape)
    assert fidelity.distance(pasted, reference, number, ["any"] * half).value > max(0.8, 20 * true)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_never_shown_in_training_is_asked_and_scored_apart(name: str) -> None:
    asked = scene_prompts(setting(name).data, 60)
    unseen = [prompt.metadata for prompt in asked if prompt.metadata["split"] == "unseen"]
    assert {metadata["tag"] for metadata in unseen} == {"colors", "position", "color_attr"}
    assert {scores.group_of(metadata) for metadata in unseen} == {
        "colors:unseen", "position:unseen", "color_attr:unseen"
    }  # fmt: skip


def test_a_fresh_list_of_prompts_is_another_and_the_frozen_one_stays() -> None:
    data = setting("scenes_gpu").data
    frozen, again, fresh = ([prompt.text for prompt in scene_prompts(data, 100, seed)] for seed in (0, 0, 1))
    assert frozen == again
    assert len({*frozen} & {*fresh}) < len(frozen) / 2


def test_the_judge_gives_no_gradients_and_picks_no_checkpoints() -> None:
    """Nothing that trains, keeps or chooses checkpoints imports a judge, a score, or what was scored."""
    judges = {"scene_judge", "scene_fit", "scores", "judged", "geneval", "compbench", "proxy", "fidelity", "truth"}
    watched = [ROOT / "train.py", ROOT / "initial.py", *(ROOT / "training").glob("*.py"), *(ROOT / "flow").glob("*.py")]
    assert len(watched) > 10
    for path in watched:
        imported = {
            part
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (*(alias.name for alias in node.names), getattr(node, "module", None) or "")
            for part in name.split(".")
        }
        assert not imported & judges, path
