"""GenEval's prompts, drawn again: the published numbers of each task, and prompts that reports of scores name."""

import json
from collections import Counter

import pytest

from sd3_jax.evaluation import coco, geneval

PUBLISHED = """a photo of a bench; a photo of a bench and a sports ball; a photo of two clocks; a photo of three benchs;
a photo of a blue fire hydrant; a photo of a dog right of a teddy bear; a photo of three sports balls;
a photo of a tv remote left of an umbrella; a photo of a hair drier below an elephant; a photo of two bananas;
a photo of a computer mouse left of a bench; a photo of a green skis and a brown airplane;
a photo of an orange giraffe and a white baseball glove; a photo of a suitcase above a skis
"""


def test_the_list_is_the_published_one_by_its_numbers_and_by_prompts_that_are_known() -> None:
    rows = coco.geneval_prompts()
    counts = Counter(row["tag"] for row in rows)
    assert counts == {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100,
                      "color_attr": 100}  # fmt: skip
    assert tuple(counts) == geneval.TAGS
    drawn = {row["prompt"] for row in rows}
    assert {" ".join(prompt.split()) for prompt in PUBLISHED.split(";")} <= drawn
    assert len(drawn) == 553
    assert sum(len(json.dumps(row)) + 1 for row in rows) == 85_209  # characters of the published file


def test_metadata_has_the_evaluators_keys_in_its_order_and_says_what_the_prompt_says() -> None:
    rows = {row["prompt"]: json.dumps(row) for row in coco.geneval_prompts()}
    assert rows["a photo of two clocks"] == (
        '{"tag": "counting", "include": [{"class": "clock", "count": 2}], '
        '"exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}'
    )
    position = json.loads(rows["a photo of a dog right of a teddy bear"])
    assert position["include"] == [
        {"class": "teddy bear", "count": 1},
        {"class": "dog", "count": 1, "position": ["right of", 0]},
    ]
    there = {"teddy bear": [geneval.Detection((0, 0, 10, 10), 0.9)], "dog": [geneval.Detection((40, 0, 50, 10), 0.9)]}
    assert geneval.judge(position, there).correct
    assert not geneval.judge(position, {"teddy bear": there["dog"], "dog": there["teddy bear"]}).correct


@pytest.mark.parametrize("seed", range(5))
def test_any_seed_draws_each_prompt_once_and_no_coloured_person(seed: int) -> None:
    rows = coco.geneval_prompts(seed)
    assert len({json.dumps(row) for row in rows}) == len(rows)
    assert not any(clause["class"] == "person" and "color" in clause for row in rows for clause in row["include"])
    assert rows != coco.geneval_prompts(seed + 1)
