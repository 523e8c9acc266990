"""What votes say: against closed forms, another way of counting, and simulation."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from synthetic import SETTING, write_sweep

import analysis
from sd3_jax import records
from sd3_jax.evaluation import preference
from sd3_jax.voting import results


def vote_rows(rng: np.random.Generator, strengths: dict[str, float], prompts: int, raters: int = 2) -> list[dict]:
    """Votes of raters who follow Bradley and Terry, as anyone's rows."""
    names = list(strengths)
    rows = []
    for prompt in range(prompts):
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                for rater in range(raters):
                    p = strengths[a] / (strengths[a] + strengths[b])
                    winner = "tie" if rng.random() < 0.2 else "a" if rng.random() < p else "b"
                    sides = {"model_a": a, "model_b": b, "winner": winner}
                    if rng.random() < 0.5:  # rows of anyone's have them either way
                        turned = {"a": "b", "b": "a"}.get(winner, winner)
                        sides = {"model_a": b, "model_b": a, "winner": turned}
                    rows.append({"rater": f"r{rater}", "axis": "quality", "prompt_id": prompt, **sides})
    return rows


def test_votes_are_counted_as_preferences_of_any_rater_are() -> None:
    rows = vote_rows(np.random.default_rng(0), {"x": 1.0, "y": 2.0, "z": 4.0}, prompts=40)
    found = results.tally(rows, reference="x", resamples=200)
    [one] = found["axes"]
    by = {row["model"]: row for row in one["models"]}
    value = {"a": 1.0, "tie": 0.5, "b": 0.0}
    won: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for row in rows:
        for i, j, points in (("a", "b", value[row["winner"]]), ("b", "a", 1 - value[row["winner"]])):
            won.setdefault((row[f"model_{i}"], row[f"model_{j}"]), []).append((points, row["prompt_id"]))
    for name in ("y", "z"):
        points, prompt = np.array(won[name, "x"]).T
        assert by[name]["against_reference"]["value"] == pytest.approx(points.mean(), abs=1e-12)
        assert by[name]["against_reference"]["se"] == pytest.approx(
            preference.cluster_se(points, prompt.astype(int)), abs=1e-12
        )
        low, high = by[name]["against_reference"]["ci95"]
        assert low < points.mean() < high
    # Bradley and Terry's likelihood, with the prior's wins, is stationary there.
    names = list(by)
    wins = np.array([[sum(p for p, _ in won.get((i, j), [])) for j in names] for i in names])
    strength = np.array([10 ** ((by[name]["elo"] - 1000) / 400) for name in names])
    wins = (wins + preference.PRIOR_WINS) * (1 - np.eye(3))
    expected = (wins + wins.T) * strength[:, None] / (strength[:, None] + strength)
    np.testing.assert_allclose(wins.sum(axis=1), expected.sum(axis=1), rtol=1e-6)
    assert by["x"]["elo"] == 1000
    assert by["x"]["elo"] < by["y"]["elo"] < by["z"]["elo"]
    assert (found["votes"], found["raters"], one["prompts"]) == (240, 2, 40)
    pair = {frozenset((row["a"], row["b"])): row for row in one["pairs"]}
    assert {row["n"] for row in pair.values()} == {80}


def test_complete_votes_score_as_the_same_rewards_do() -> None:
    rng = np.random.default_rng(1)
    rewards = {name: rng.normal(size=60) + shift for name, shift in (("x", 0.0), ("y", 0.5), ("z", 1.0))}
    prompts = np.arange(60) // 2
    rows = [
        {"rater": "r", "axis": "quality", "prompt_id": int(prompts[i]), "model_a": a, "model_b": b,
         "image_a": str(i), "image_b": str(i), "winner": "a" if rewards[a][i] > rewards[b][i] else "b"}
        for i in range(60) for a, b in (("x", "y"), ("x", "z"), ("y", "z"))
    ]  # fmt: skip
    [one] = results.tally(rows, "x", resamples=300)["axes"]
    expected = preference.scores(rewards, prompts, "x", resamples=300)
    for row in one["models"]:
        score = expected[row["model"]]
        assert row["elo"] == pytest.approx(score.value, abs=1e-6)
        assert row["elo_se"] == pytest.approx(score.se, rel=0.25, abs=1e-9)  # other draws: prompts sorted as text


def test_intervals_cover_where_votes_on_a_prompt_are_alike() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(150):
        luck = rng.normal(size=40)  # of a with each prompt, which its four raters share
        rows = [
            {"rater": f"r{rater}", "axis": "quality", "prompt_id": prompt, "model_a": "x", "model_b": "y",
             "winner": "a" if rng.random() < 1 / (1 + math.exp(-1.5 * luck[prompt])) else "b"}
            for prompt in range(40) for rater in range(4)
        ]  # fmt: skip
        [one] = results.tally(rows, "x", resamples=200)["axes"]
        low, high = one["models"][1]["against_reference"]["ci95"]
        bottom, top = one["models"][1]["elo_ci95"]
        covered.append((low <= 0.5 <= high, bottom <= 1000 <= top))
    assert np.all(np.mean(covered, axis=0) > 0.88)
    assert np.all(np.mean(covered, axis=0) < 0.995)


def test_what_raters_are_like_is_told() -> None:
    base = {"axis": "quality", "model_a": "x", "model_b": "y"}
    said = {0: "aa", 1: "ab", 2: "tt", 3: "a"}
    full = {"a": "a", "b": "b", "t": "tie"}
    rows = [
        base | {"rater": f"r{i}", "prompt_id": prompt, "winner": full[letter], "left": "a" if prompt else "b"}
        for prompt, letters in said.items() for i, letter in enumerate(letters)
    ]  # fmt: skip
    rows.append(base | {"rater": "r9", "prompt_id": 3, "winner": "skip"})
    rows.append({**base, "rater": "r9", "prompt_id": 0, "winner": "b", "model_a": "y", "model_b": "x"})  # x again
    [one] = results.tally(rows)["axes"]
    assert (one["agreement"], one["asked_twice"]) == (pytest.approx(5 / 5 - 1 / 5), 5)
    assert one["left_wins"] == pytest.approx(2 / 5)  # of aa (left b), ab, a
    assert (one["votes"], one["ties"], one["skipped"], one["raters"]) == (8, 2, 1, 3)


def test_results_of_little_are_given_without_errors_and_of_nothing_are_one_line(tmp_path, sd3) -> None:
    row = {"rater": "r", "axis": "own question", "prompt_id": 0, "model_a": "x", "model_b": "y", "winner": "a"}
    (tmp_path / "v.jsonl").write_text(json.dumps(row) + "\n7\n")
    code, out, err = sd3("votes", "v.jsonl", "--json", "-", "--figure", "f", "--page", "p.html")
    assert code == 0
    assert "note: v.jsonl:2: is not a vote; left out" in err
    [one] = json.loads(out)["axes"]
    assert one["models"][0]["overall"] == {"value": 1.0, "se": None, "ci95": None, "prompts": 1, "n": 1, "ties": 0}
    assert one["models"][1]["elo_ci95"] == [None, None]
    for content, words in (
        ("", "there are no votes yet"),
        ("{}\nx\n", "v.jsonl:1: is not a vote, nor is any other line"),
        (json.dumps(row | {"winner": "skip"}), "there are no votes yet"),
        ("[" * 100_000, "is not a vote"),
        (json.dumps(row | {"model_b": "x"}), "is not a vote"),
        (json.dumps(row | {"winner": ["a"]}), "is not a vote"),
    ):
        (tmp_path / "v.jsonl").write_text(content)
        code, out, err = sd3("votes", "v.jsonl")
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    (tmp_path / "v.jsonl").write_text(json.dumps(row))
    assert "reference 'q': nobody voted on it; there are x, y" in sd3("votes", "v.jsonl", "--reference", "q")[2]
    assert "none.jsonl: no such file of votes" in sd3("votes", "none.jsonl")[2]


def test_names_are_text_on_the_page_and_in_the_picture(tmp_path, sd3) -> None:
    names = {"<script>alert(1)</script>$x_": 1.0, "b$\\frac": 2.0}
    rows = vote_rows(np.random.default_rng(3), names, prompts=5)
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row | {"axis": "<i>$"}) + "\n" for row in rows))
    code, out, _ = sd3("votes", "v.jsonl", "--figure", "fig/votes", "--page", "p.html")
    assert code == 0
    assert "<script>alert(1)</script>$x_" in out
    text = (tmp_path / "p.html").read_text()
    assert "<script" not in text
    assert "<i>" not in text
    assert text.count("&lt;script&gt;") == 2
    numbers = json.loads((tmp_path / "fig/votes.json").read_text())
    assert numbers["systems"] == list(results.tally(rows)["systems"])
    assert Image.open(tmp_path / "fig/votes.png").size[0] == 1400


def test_votes_on_the_pictures_of_runs_are_scores_that_correlations_read(tmp_path, sd3) -> None:
    root = write_sweep(tmp_path / "sweep", seeds=1)
    folders, worth = {}, {}
    for run_dir in records.find_runs(root):
        last = records.last_row(records.read_rows(run_dir / "metrics.jsonl")[0], "validation")
        folders[run_dir.name], worth[run_dir.name] = run_dir / "samples" / "drawn", math.exp(-40 * last["loss"])
        folders[run_dir.name].mkdir(parents=True)
        setting = SETTING | {"step": last["step"], "prompts": "0a1b2c3d", "identity": "x", "images": 30}
        (folders[run_dir.name] / "settings.json").write_text(json.dumps(setting))
    rows = vote_rows(np.random.default_rng(4), worth, prompts=30)
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [word for name, folder in folders.items() for word in ("--record", f"{name}={folder}")]
    for _ in range(2):  # again: in place of the former
        code, _, err = sd3("votes", "v.jsonl", "--reference", "d02-s0", "--bootstrap", "50", *options)
        assert (code, err) == (0, "18 scores in the evals.jsonl of 6 runs\n")
    scores = analysis.load_scores(root)
    assert len(scores) == 18
    assert set(scores["reference"]) == {f"d02-s0@{last['step']}"}
    [one] = results.tally(rows, "d02-s0", resamples=2)["axes"]
    overall = scores[(scores["name"] == "votes-quality") & (scores["group"] == "overall")].set_index("run")
    for row in one["models"]:
        expected = row["against_reference"] or {"value": 0.5, "se": 0.0}
        assert overall["value"][row["model"]] == pytest.approx(expected["value"], abs=1e-12)
        assert overall["se"][row["model"]] == pytest.approx(expected["se"], abs=1e-12)
    points = analysis.score_points(scores, "votes-quality")
    assert [len(values) for values in points["by_prompt"]] == [30] * 6
    code, out, _ = sd3("correlate", str(root), "--score", "votes-quality", "--json", "-")
    assert code == 0
    expected = stats.spearmanr(points["loss"], points["value"]).statistic
    assert json.loads(out)[0]["correlation"]["last"]["spearman"]["value"] == pytest.approx(expected)
    assert expected < -0.5
    (tmp_path / "other").mkdir()
    code, _, err = sd3("votes", "v.jsonl", "--record", "other")
    assert code == 2
    assert "other: is not a folder of pictures that a run drew" in err
