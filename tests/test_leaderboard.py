"""Systems beside the paper's Table 5: who stands where, by whom it was scored, and what an encoder is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import leaderboard, published
from sd3_jax.errors import UserError

TASKS = leaderboard.TASKS


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def geneval_rows(value: float, name: str = "geneval", **setting: Any) -> list[dict[str, Any]]:
    return [{"name": name, "group": group, "value": value, "se": 0.01, **setting} for group in ("overall", *TASKS)]


def test_systems_are_ranked_among_the_published_and_scenes_apart(tmp_path: Path) -> None:
    paths = {
        "best": write(tmp_path / "a", geneval_rows(0.9)),
        "middle": write(tmp_path / "b", geneval_rows(0.645, "geneval-mask2former-hf")),
        "toy": write(tmp_path / "c", geneval_rows(0.99, "scene-geneval")),
    }
    entries = leaderboard.load(paths)
    lines = leaderboard.geneval(entries)
    order = [line.label for line in lines]
    assert order[0] == "best"
    assert order.index("DALL-E 3") < order.index("middle") < order.index("MM-DiT depth 30, 512 px")
    assert len(lines) == len(published.TABLE_5) + 2
    assert "toy" not in order
    assert {line.judge for line in lines} == {"geneval", "geneval-mask2former-hf", "published"}
    assert [line.label for line in leaderboard.of_scenes(entries)] == ["toy"]


def test_published_lines_are_the_papers_and_have_no_error(tmp_path: Path) -> None:
    cells = leaderboard.cells(leaderboard.geneval(leaderboard.load({"x": write(tmp_path, geneval_rows(0.1))})))
    line = next(row for row in cells if row[0] == "MM-DiT depth 38, 1024 px, DPO")
    assert line[1:] == ["published", "0.740", "0.990", "0.940", "0.720", "0.890", "0.330", "0.600"]
    assert next(row for row in cells if row[0] == "x")[2] == "0.100±0.010"


def test_settings_of_a_system_are_told_by_what_differs(tmp_path: Path) -> None:
    same = {"sampler": "euler", "steps": 25, "weights": "ema"}
    rows = [
        *geneval_rows(0.5, step=100, guidance=3.0, **same),
        *geneval_rows(0.6, step=200, guidance=3.0, **same),
        *geneval_rows(0.7, step=200, guidance=5.0, without=["t5"], **same),
    ]
    labels = [entry.label for entry in leaderboard.load({"run": write(tmp_path, rows)})]
    assert labels == [
        "run, step 100, guidance 3",
        "run, step 200, guidance 3",
        "run, step 200, guidance 5, without t5",
    ]


def test_a_partial_score_has_a_star(tmp_path: Path) -> None:
    rows = geneval_rows(0.5)
    rows[2]["partial"] = "one is missing"
    cells = leaderboard.cells(leaderboard.geneval(leaderboard.load({"run": write(tmp_path, rows)})))
    assert [row[0] for row in cells if row[0].startswith("run")] == ["run*"]


def test_what_an_encoder_is_worth_is_paired_over_prompts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=40)
    without = given - 0.3 + 0.1 * rng.normal(size=40)
    rows = [
        {
            "name": "pickscore", "group": "overall", "value": float(values.mean()), "se": 1.0, "step": 5,
            "without": left, "by_prompt": values.tolist(), "images_by_prompt": [1] * 40,
            "prompt_list": "p", "judge": "pickscore",
        }
        for values, left in ((given, []), (without, ["t5"]))
    ]  # fmt: skip
    rows[0].pop("without")
    (cost,) = leaderboard.costs(leaderboard.load({"run": write(tmp_path, rows)}))
    apart = without - given
    assert cost.difference == pytest.approx(apart.mean())
    assert cost.se == pytest.approx(apart.std(ddof=1) / np.sqrt(40))
    assert cost.better == pytest.approx(np.mean(apart > 0))
    assert cost.label == "run, without t5"
    for key, value in (("prompt_list", "q"), ("judge", "other"), ("step", 6)):
        other = [rows[0], rows[1] | {key: value}]
        assert leaderboard.costs(leaderboard.load({"run": write(tmp_path, other)})) == []


def test_of_distances_the_lower_is_the_better(tmp_path: Path) -> None:
    rows = [
        {
            "name": "picture-frechet", "group": "overall", "value": sum(values) / 2, "se": 0.1,
            "by_prompt": values, "images_by_prompt": [1, 1], **left,
        }
        for values, left in (([1.0, 2.0], {}), ([0.5, 1.0], {"without": ["t5"]}))
    ]  # fmt: skip
    (cost,) = leaderboard.costs(leaderboard.load({"run": write(tmp_path, rows)}))
    assert cost.better == 1.0


def test_papers_win_rates_stand_beside(tmp_path: Path) -> None:
    assert "46 % in prompt following" in leaderboard.paper_sentence()
    assert "38 % in typography" in leaderboard.paper_sentence()


def test_other_scores_are_a_table_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"name": "pickscore", "group": "overall", "value": 21.0, "se": 0.1},
        {"name": "pickscore", "group": "Animals", "value": 22.0, "se": 0.1},
        {"name": "compbench", "group": "color", "value": 0.4, "se": None},
        {"name": "scene-geneval-soft/count", "group": "overall", "value": 0.4, "se": 0.1},
    ]
    cells = leaderboard.others(leaderboard.load({"run": write(tmp_path, rows)}))
    assert cells == [["system", "pickscore", "compbench color"], ["run", "21.000±0.100", "0.400"]]


def test_elo_scores_among_other_systems_are_not_in_one_column(tmp_path: Path) -> None:
    row = {"name": "pickscore-elo", "group": "overall", "value": 1000.0, "se": 5.0, "reference": "x"}
    paths = {name: write(tmp_path / name, [row | {"compared": ["x", name]}]) for name in ("one", "two")}
    assert leaderboard.others(leaderboard.load(paths)) == [
        ["system", "pickscore-elo among x, one", "pickscore-elo among x, two"],
        ["one", "1000±5", ""],
        ["two", "", "1000±5"],
    ]


def test_scores_of_other_prompts_or_against_others_are_not_in_one_column(tmp_path: Path) -> None:
    def rows(value: float, reference: str, *lists: str) -> list[dict[str, Any]]:
        same: dict[str, Any] = {"group": "overall", "value": value, "se": 0.1}
        win = {"name": "pickscore-win-rate", "reference": reference, "prompt_list": "aaa", **same}
        return [{"name": "pickscore", "prompt_list": one, **same} for one in lists] + [win]

    paths = {
        "one": write(tmp_path / "one", rows(1.0, "x", "aaa", "bbb")),
        "two": write(tmp_path / "two", rows(2.0, "y", "bbb")),
    }
    assert leaderboard.others(leaderboard.load(paths)) == [
        [
            "system",
            "pickscore on aaa",
            "pickscore on bbb",
            "pickscore-win-rate against x",
            "pickscore-win-rate against y",
        ],
        ["one", "1.000±0.100", "1.000±0.100", "1.000±0.100", ""],
        ["two", "", "2.000±0.100", "", "2.000±0.100"],
    ]


def test_prompts_are_not_paired_where_pictures_are_missing(tmp_path: Path) -> None:
    """The two lack different prompts, so that the second of one is not the second of the other."""
    own = {
        "name": "pickscore",
        "group": "overall",
        "value": 1.0,
        "se": 0.1,
        "by_prompt": [1, 2],
        "images_by_prompt": [1, 1],
    }
    gaps = [own | {"partial": "a: 1 picture"}, own | {"partial": "b: 1 picture", "without": ["t5"]}]
    (cost,) = leaderboard.costs(leaderboard.load({"run": write(tmp_path, gaps)}))
    assert cost.prompts == 0
    assert np.isnan(cost.better)
    assert cost.se == pytest.approx(0.1 * 2**0.5)


def test_many_scores_are_several_tables_and_all_are_in_the_json(sd3: Any, tmp_path: Path) -> None:
    rows = [{"name": f"judge{i}", "group": "overall", "value": i + 0.5, "se": 0.25} for i in range(13)]
    write(tmp_path / "mine", [*rows[:-1], rows[-1] | {"partial": "3 are missing"}])
    status, out, err = sd3("leaderboard", str(tmp_path / "mine"), "--json", str(tmp_path / "x.json"))
    assert status == 0, err
    assert all(f"{i + 0.5:.3f}±0.250" in out for i in range(13))
    assert "12.500±0.250*" in out
    assert "* partial: 3 are missing" in out
    found = json.loads((tmp_path / "x.json").read_text())["others"]
    assert [one["value"] for one in found] == [i + 0.5 for i in range(13)]


def test_lines_of_one_system_by_several_judges_are_told_apart_in_the_picture(tmp_path: Path) -> None:
    rows = [*geneval_rows(0.5), *geneval_rows(0.4, "geneval-mask2former-hf")]
    lines = leaderboard.geneval(leaderboard.load({"one": write(tmp_path / "one", rows)}))
    (panel, *_) = leaderboard.picture_of(lines).figure.axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert {"one (geneval)", "one (geneval-mask2former-hf)", "SDXL"} <= set(labels)


def test_the_command_draws_what_it_prints(sd3: Any, tmp_path: Path) -> None:
    write(tmp_path / "mine", geneval_rows(0.5))
    status, out, err = sd3("leaderboard", f"ours={tmp_path / 'mine'}", "--figure", str(tmp_path / "board"))
    assert status == 0, err
    assert "GenEval; published: the paper's Table 5" in out
    numbers = json.loads((tmp_path / "board.json").read_text())
    assert [line["label"] for line in numbers["lines"]].index("ours") == 12
    assert (tmp_path / "board.png").stat().st_size > 10_000


def test_a_system_without_scores_is_one_line(sd3: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = sd3("leaderboard", str(tmp_path / "empty"))
    assert (status, err.count("\n")) == (2, 1)
    assert "has no scores (evals.jsonl); sd3-jax evaluate writes them" in err
    with pytest.raises(UserError):
        leaderboard.load({"nowhere": tmp_path / "nowhere"})
