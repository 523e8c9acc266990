"""The page of the vote, in a browser where there is one, and its script by itself."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from booth import SYSTEMS, ballot_of, write_pictures

from sd3_jax.voting import page


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path)


NODE = shutil.which("node")


def _hash(text: str) -> int:
    """The page's hash, in Python: FNV-1a, and the end of MurmurHash3."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = (value ^ (value >> shift)) * factor % 2**32
    return value ^ (value >> 16)


def _plan(shown: dict[str, Any], rater: str) -> list[tuple[str, str, str, str]]:
    """What a rater is asked, in Python: (axis, item, left, right)."""
    found = []
    for question in shown["questions"]:
        key = [f"{shown['seed']}\n{rater}\n{question['axis']}\n{item}" for item in question["items"]]
        order = sorted(zip(key, question["items"], strict=True), key=lambda one: (_hash("order\n" + one[0]), one[1]))
        for own, item in order:
            first, second = shown["items"][item]["pictures"]
            pair = (first, second) if _hash("side\n" + own) & 1 else (second, first)
            found.append((question["axis"], item, *pair))
    return found


def test_sides_and_order_are_a_fair_function_of_rater_question_pair_and_seed() -> None:
    items = {f"{number:024x}": {"prompt": "", "pictures": ["p", "q"]} for number in range(500)}
    questions = [{"axis": axis, "text": "", "items": sorted(items)} for axis in ("following", "quality")]
    shown = {"seed": 0, "items": items, "questions": questions}
    plans = {rater: _plan(shown, rater) for rater in ("ann", "bob")} | {"seed 1": _plan(shown | {"seed": 1}, "ann")}
    by_axis = {(who, axis): [row for row in own if row[0] == axis] for who, own in plans.items() for axis in
               ("following", "quality")}  # fmt: skip
    spread = np.sqrt(500) / 2
    sides = {key: {row[1]: row[2] == "p" for row in rows} for key, rows in by_axis.items()}
    for rows in by_axis.values():
        place = [int(row[1], 16) for row in rows]
        assert sorted(place) == list(range(500))
        assert abs(np.corrcoef(place, np.arange(500))[0, 1]) < 4 / np.sqrt(500)
    for one in sides.values():
        assert abs(sum(one.values()) - 250) < 4 * spread
    for one in list(sides.values())[1:]:  # independent of each other
        same = sum(one[item] == sides["ann", "following"][item] for item in items)
        assert abs(same - 250) < 4 * spread


@pytest.mark.skipif(NODE is None, reason="node is not installed: the page's script is not run by itself")
def test_the_script_of_the_page_shuffles_as_its_twin_in_python_does(pictures, tmp_path) -> None:
    [script] = re.findall(r"<script>(.*?)</script>", page.source(), re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    shown = ballot_of(pictures, *SYSTEMS, seed=3).shown()
    code = "const {plan, hash} = require('./page.js'); const [b, raters, texts] = JSON.parse(process.argv[1]);"
    code += "console.log(JSON.stringify([raters.map(r => plan(b, r).map(x => [x.axis, x.item, x.left, x.right])), "
    code += "texts.map(hash)]))"
    raters, texts = ["ann", "Ångström 🙂", "<b>"], ["", "a", "é🙂", "x" * 1000]
    run = subprocess.run(
        [NODE, "-e", code, json.dumps([shown, raters, texts])], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    plans, hashes = json.loads(run.stdout)
    assert hashes == [_hash(text) for text in texts]
    assert [[tuple(row) for row in one] for one in plans] == [_plan(shown, rater) for rater in raters]
