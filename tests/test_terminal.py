"""Tables of scores: what was drawn in different ways is never in one of them."""

import dataclasses
import io

import pytest
from rich.console import Console

from sd3_jax import terminal
from sd3_jax.evaluation.generate import Sampler

USUAL = Sampler(25, 3.0)


def shown(*samplers: Sampler) -> str:
    rows = [
        {"run": run, "step": 100, "name": "scene-geneval", "group": "overall", "value": 0.1 * (number + 1), "se": 0.01}
        | sampler.settings
        for number, sampler in enumerate(samplers)
        for run in ("one", "two")
    ]
    text = io.StringIO()
    console = Console(file=text, width=100)
    for part in terminal.score_tables(rows):
        console.print(part)
    return " ".join(text.getvalue().split())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"shift": 3.0}, "shift 3"),
        ({"method": "heun"}, "25 heun steps"),
        ({"grid": "scheduler"}, "scheduler grid"),
        ({"seed": 7}, "seed 7"),
        ({"without": ("t5",)}, "without t5"),
        ({"weights": "raw"}, "raw weights"),
    ],
)
def test_settings_that_differ_in_one_thing_are_two_tables_whose_titles_say_it(change: dict, words: str) -> None:
    first, usual, other = shown(USUAL, dataclasses.replace(USUAL, **change)).split("25 ")
    assert not first
    assert usual.startswith("euler steps, guidance 3, ema weights run step")
    assert words in f"25 {other}".split(" run step")[0]
    assert usual.count("0.100±0.010") == other.count("0.200±0.010") == 2


def test_of_one_setting_the_title_says_no_more_than_is_needed() -> None:
    assert shown(USUAL).startswith("25 euler steps, guidance 3, ema weights run step")
