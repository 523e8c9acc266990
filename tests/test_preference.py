"""Win rates and Bradley-Terry strengths against closed forms, another way of fitting, and simulation."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize, root

from sd3_jax.errors import UserError
from sd3_jax.evaluation import preference
from sd3_jax.evaluation.preference import bradley_terry, cluster_se, elo, rated, scores, win_rate


def test_a_win_rate_by_hand() -> None:
    win = win_rate(np.array([1.0, 2, 0, 5, 3]), np.array([0.0, 2, 1, 4, 3]), np.array([4, 4, 9, 9, 9]))
    assert win.value == pytest.approx((1 + 0.5 + 0 + 1 + 0.5) / 5)
    np.testing.assert_allclose(win.by_prompt, [0.75, 0.5])
    assert (win.n, win.n_prompts) == (5, 2)
    sigmoid = 1 / (1 + np.exp(-np.array([1.0, 0, -1, 1, 0])))
    assert win.soft.value == pytest.approx(sigmoid.mean())
    assert win.ci95[0] <= win.value <= win.ci95[1]


def test_a_run_against_itself_draws_and_two_runs_share_one() -> None:
    rng = np.random.default_rng(0)
    a, b, prompts = rng.normal(size=(2, 60)), rng.normal(size=60), np.arange(60) // 3
    itself = win_rate(b, b, prompts)
    assert (itself.value, itself.se, itself.ci95, itself.soft.value) == (0.5, 0, (0.5, 0.5), 0.5)
    there, back = win_rate(a[0], b, prompts), win_rate(b, a[0], prompts)
    assert there.value + back.value == pytest.approx(1)
    assert there.soft.value + back.soft.value == pytest.approx(1)
    assert there.se == pytest.approx(back.se)
    # Only the order of a pair matters to the hard rate, and not a shift of both by what suits the prompt.
    assert win_rate(np.exp(a[0]), np.exp(b), prompts).value == there.value
    assert win_rate(a[0] + 7 * prompts, b + 7 * prompts, prompts).by_prompt == pytest.approx(there.by_prompt)


def test_huge_rewards_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        win = win_rate([1e4, -1e4], [-1e4, 1e4], [0, 1])
    assert win.soft.value == pytest.approx(0.5)


def test_the_clustered_error_is_the_formula_and_with_one_picture_to_a_prompt_the_usual_one() -> None:
    rng = np.random.default_rng(1)
    x, cluster = rng.normal(size=30), rng.integers(0, 7, 30)
    total = sum((x[cluster == g] - x.mean()).sum() ** 2 for g in range(7))
    assert cluster_se(x, cluster) == pytest.approx(np.sqrt(7 / 6 * total) / 30)
    assert cluster_se(x, np.arange(30)) == pytest.approx(x.std(ddof=1) / np.sqrt(30))
    # Copies of a picture say nothing new.
    assert cluster_se(np.repeat(x, 5), np.repeat(np.arange(30), 5)) == pytest.approx(x.std(ddof=1) / np.sqrt(30))
    assert win_rate(x, 0 * x, cluster + 100).se == pytest.approx(cluster_se(1.0 * (x > 0), cluster))


def negative_log_likelihood(theta: np.ndarray, wins: np.ndarray) -> float:
    return float(np.sum(wins * np.logaddexp(0, theta[None, :] - theta[:, None])))


@pytest.mark.parametrize("seed", range(5))
def test_strengths_are_those_of_an_independent_maximum_likelihood_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = 2 + seed
    wins = rng.integers(1, 20, (runs, runs)) * (1 - np.eye(runs))
    best = minimize(negative_log_likelihood, np.zeros(runs), (wins,), "BFGS", options={"gtol": 1e-8}).x
    strengths = bradley_terry(wins, prior=0)
    np.testing.assert_allclose(np.log(strengths), best - best.mean(), atol=1e-5)
    assert np.prod(strengths) == pytest.approx(1)
    # The gradient is zero: each run wins as often as expected.
    chance = strengths[:, None] / (strengths[:, None] + strengths)
    np.testing.assert_allclose(np.sum((wins + wins.T) * chance * (1 - np.eye(runs)), 1), wins.sum(1), rtol=1e-6)
    # Many tables at once are each fitted as alone; the prior is wins like any others.
    np.testing.assert_allclose(bradley_terry(np.stack([wins, wins.T]), prior=0)[0], strengths, rtol=1e-6)
    np.testing.assert_allclose(bradley_terry(wins, prior=1.5), bradley_terry(wins + 1.5, prior=0), rtol=1e-6)


def test_two_runs_have_the_odds_of_their_wins() -> None:
    assert elo(bradley_terry([[0, 30], [10, 0]], prior=0), 1)[0] == pytest.approx(1000 + 400 * np.log10(3))


def test_a_run_that_wins_everything_has_a_finite_strength_by_the_prior_only() -> None:
    wins = np.array([[0, 9, 9], [0, 0, 5], [0, 4, 0]])
    strengths = bradley_terry(wins)
    assert np.all(np.isfinite(strengths))
    assert strengths[0] > strengths[1] > strengths[2]
    for table in (wins, wins.T):
        with pytest.raises(UserError, match="never lost"):
            bradley_terry(table, prior=0)


@pytest.mark.parametrize("wins", [np.ones((2, 3)), np.ones(4), [[0.0]], [[0, np.nan], [1, 0]], [[0, -1], [1, 0]]])
def test_tables_that_are_none(wins) -> None:
    with pytest.raises(UserError, match=r"^wins: [^\n]*$"):
        bradley_terry(wins)


def simulated(rng: np.random.Generator, prompts: int = 40, images: int = 8) -> tuple[dict, np.ndarray]:
    """Three runs: rewards share the prompt's difficulty; each run has luck of its own with each prompt."""
    prompt = np.repeat(np.arange(prompts), images)
    rewards = {
        name: mean + rng.normal(size=prompts)[prompt] + rng.normal(size=len(prompt))
        for name, mean in (("a", 0.0), ("b", 0.5), ("c", 1.0))
    }
    return rewards, prompt


def test_scores_do_not_depend_on_order_reference_or_the_rewards_scale() -> None:
    rewards, prompt = simulated(np.random.default_rng(2))
    base = scores(rewards, prompt, "a", resamples=50)
    assert base["a"] == (1000, 0, (1000, 1000))
    assert base["a"].value < base["b"].value < base["c"].value
    assert all(score.ci95[0] <= score.value <= score.ci95[1] for score in base.values())
    other = scores(dict(reversed(rewards.items())), prompt, "c", resamples=50)
    assert list(other) == ["c", "b", "a"]
    for name, score in base.items():
        assert score.value - base["c"].value == pytest.approx(other[name].value - 1000, abs=1e-5)
    shuffled = np.random.default_rng(3).permutation(len(prompt))
    moved = {name: 5 * row[shuffled] + prompt[shuffled] for name, row in rewards.items()}
    again = scores(moved, prompt[shuffled], "a", resamples=50)
    for name, score in base.items():
        assert again[name].value == pytest.approx(score.value, abs=1e-5)
        assert again[name].ci95 == pytest.approx(score.ci95, abs=1e-5)
    assert scores(rewards, prompt, "a", resamples=50, seed=1)["b"].ci95 != base["b"].ci95


def test_two_runs_score_the_logit_of_their_win_rate() -> None:
    rewards, prompt = simulated(np.random.default_rng(4))
    pair = {name: rewards[name] for name in "ac"}
    won, n, prior = win_rate(pair["c"], pair["a"], prompt).value, len(prompt), preference.PRIOR_WINS
    odds = (n * won + prior) / (n * (1 - won) + prior)
    assert scores(pair, prompt, "a", resamples=10)["c"].value == pytest.approx(1000 + 400 * np.log10(odds))


def test_intervals_cover_the_truth_where_pictures_of_a_prompt_are_alike() -> None:
    rng = np.random.default_rng(5)
    many, prompt = simulated(rng, prompts=20_000)
    truth_rate = win_rate(many["c"], many["a"], prompt, resamples=2).value
    truth_elo = scores(many, prompt, "a", resamples=2)["c"].value
    hits, naive = [], []
    for trial in range(150):
        rewards, prompt = simulated(rng)
        win = win_rate(rewards["c"], rewards["a"], prompt, resamples=200, seed=trial)
        score = scores(rewards, prompt, "a", resamples=200, seed=trial)["c"]
        covered = [low <= truth <= high for truth, (low, high) in ((truth_rate, win.ci95), (truth_elo, score.ci95))]
        hits.append([*covered, abs(win.value - truth_rate) < 1.96 * win.se])
        naive.append(abs(win.value - truth_rate) < 1.96 * np.sqrt(win.value * (1 - win.value) / len(prompt)))
    coverage = np.mean(hits, axis=0)
    assert np.all((coverage > 0.88) & (coverage < 0.995)), coverage
    assert np.mean(naive) < 0.85  # what forgetting the prompts would cost


@pytest.mark.parametrize(
    "rewards, reference, prompts, words",
    [
        ([1.0, 2], [1.0], [0, 1], "reference"),
        ([1.0, 2, 3], [1.0, 2, 3], [0, 1], "rewards"),
        ([1.0, np.nan], [1.0, 2], [0, 1], "not finite"),
        ([1.0, 2], [1.0, np.inf], [0, 1], "not finite"),
        ([1.0, 2], [1.0, 2], [3, 3], "1 prompt"),
        ([], [], [], "0 prompt"),
        ([1.0, 2], [1.0, 2], [[0, 1]], "prompts"),
    ],
)
def test_bad_rewards_are_one_line(rewards, reference, prompts, words) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
        win_rate(rewards, reference, prompts)
    with pytest.raises(UserError, match=r"^[^\n]*$"):
        scores({"rewards": rewards, "reference": reference}, prompts, "reference")


def test_unknown_reference_single_run_and_too_few_resamples() -> None:
    with pytest.raises(UserError, match="'z' is not one of the runs a, b"):
        scores({"a": [1, 2], "b": [2, 3]}, [0, 1], "z")
    with pytest.raises(UserError, match="two runs"):
        scores({"a": [1, 2]}, [0, 1], "a")
    with pytest.raises(UserError, match="resamples: 1"):
        win_rate([1, 2], [2, 3], [0, 1], resamples=1)


# --- a judge as a rater ---------------------------------------------------------------------------------------------


def judged(rng: np.random.Generator, prompts: int = 40, images: int = 4) -> dict[str, dict[str, list[float]]]:
    """Scores of three systems; the pictures of a prompt share its difficulty, and a system's luck with it."""
    rewards, prompt = simulated(rng, prompts, images)
    return {
        name: {f"prompt {i}": row[prompt == i].tolist() for i in range(prompts)} for name, row in rewards.items()
    }  # fmt: skip


def test_a_judges_preference_by_hand() -> None:
    found = {
        "x": {"cat": [1.0, 2.0], "dog": [0.5], "x's own": [9.0]},
        "y": {"dog": [0.5, 7.0], "cat": [3.0, 1.0, 8.0]},  # dog ties; cat wins one and loses one; the rest has no match
    }
    x, y = rated(found, "x", log_odds=2.0, resamples=50)
    assert (x["system"], x["value"], x["elo"], x["soft"]) == ("x", 0.5, 1000, 0.5)
    assert (y["value"], y["n"], y["prompts"], x["n"], x["prompts"]) == (0.5, 3, 2, 4, 3)
    chance = 1 / (1 + np.exp(-2 * np.array([2.0, -1.0, 0.0])))
    assert y["soft"] == pytest.approx(chance.mean())
    assert y["elo"] == pytest.approx(1000)
    assert y["ci95"][0] <= y["value"] <= y["ci95"][1]
    assert not any(name.startswith("soft") for name in rated(found, "x", resamples=50)[1])
    assert json.loads(json.dumps([x, y])) == [x, y]


def test_a_judge_that_saw_everything_says_what_paired_rewards_say() -> None:
    rewards, prompt = simulated(np.random.default_rng(6))
    found = {name: {str(i): row[prompt == i].tolist() for i in range(40)} for name, row in rewards.items()}
    rows = {row["system"]: row for row in rated(found, "b", log_odds=1.0, resamples=100)}
    whole = scores(rewards, prompt, "b", resamples=100)
    for name, row in rows.items():
        win = win_rate(rewards[name], rewards["b"], prompt, resamples=100)
        assert (row["value"], row["n"], row["prompts"]) == (win.value, 320, 40)
        assert row["se"] == pytest.approx(win.se)
        assert row["ci95"] == pytest.approx(win.ci95)
        assert (row["soft"], row["soft_se"]) == pytest.approx((win.soft.value, win.soft.se))
        assert (row["elo"], *row["elo_ci95"]) == pytest.approx((whole[name].value, *whole[name].ci95), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_judges_strengths_where_not_all_was_seen_are_those_of_an_independent_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = judged(rng)
    found["b"] = dict(list(found["b"].items())[:25])
    found["c"] = {prompt: own[: rng.integers(1, 5)] for prompt, own in found["c"].items()}
    names = list(found)
    wins = np.full((3, 3), preference.PRIOR_WINS)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            for prompt in found[one].keys() & found[other].keys():
                pairs = zip(found[one][prompt], found[other][prompt], strict=False)
                wins[i, j] += (i != j) * sum(mine > other_one for mine, other_one in pairs)
    np.fill_diagonal(wins, 0)

    def slope(free: np.ndarray) -> np.ndarray:
        """Of the log-likelihood in each system's log-strength, the first's being 0."""
        theta = np.array([0.0, *free])
        chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
        return (wins - (wins + wins.T) * chance).sum(axis=1)[1:]

    best = root(slope, np.zeros(2), tol=1e-13).x
    rows = rated(found, "a", resamples=10)
    strengths = [(row["elo"] - 1000) * np.log(10) / 400 for row in rows]
    np.testing.assert_allclose(strengths, [0.0, *best], atol=1e-6)


def test_a_judges_intervals_cover() -> None:
    rng = np.random.default_rng(7)
    truth = {row["system"]: row for row in rated(judged(rng, 20_000), "a", 1.0, resamples=2)}
    covered = []
    for trial in range(120):
        rows = rated(judged(rng), "a", log_odds=1.0, resamples=200, seed=trial)
        covered += [
            [
                row[ci][0] <= truth[row["system"]][name] <= row[ci][1]
                for name, ci in (("value", "ci95"), ("soft", "soft_ci95"), ("elo", "elo_ci95"))
            ]
            + [abs(row["value"] - truth[row["system"]]["value"]) < 1.96 * row["se"]]
            for row in rows[1:]
        ]
    assert np.all(np.mean(covered, axis=0) > 0.88), np.mean(covered, axis=0)
    assert np.all(np.mean(covered, axis=0) < 0.995), np.mean(covered, axis=0)


@pytest.mark.parametrize("found, words", [
    ({"a": {"p": [1.0], "q": [2.0]}}, "two systems"), ({"b": {}, "c": {}}, "'a' is not one of the systems b, c"),
    ({"a": {"p": [1.0], "q": [2.0]}, "b": {"p": [1.0], "r": [2.0]}}, "b: shares 1 prompts"),
    ({"a": {"p": [1.0], "q": []}, "b": {"p": [1.0], "q": [2.0]}}, "a: shares 1 prompts"),
    ({"a": {"p": [1.0], "q": [2.0]}, "b": {"p": [1.0], "q": [float("nan")]}}, "b: 1 of 2 scores"),
])  # fmt: skip
def test_a_judges_scores_that_cannot_be_compared_are_one_line(found, words) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
        rated(found, "a")
