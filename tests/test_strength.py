"""Strengths of Bradley and Terry on a line of the loss: known slopes are found, with intervals that hold them."""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from synthetic import SETTING, write_scores, write_sweep

from analysis import quality, strength
from analysis.scores import load_scores
from sd3_jax import records
from sd3_jax.errors import UserError
from sd3_jax.evaluation import preference

SLOPE = -9.0


def elo_rows(seed=0, depths=6, noise=0.0):
    """Elo scores whose strengths are SLOPE x loss, plus a scatter of runs."""
    rng = np.random.default_rng(seed)
    depth, step = (one.ravel() for one in np.meshgrid(np.arange(3, 3 + depths), [100, 200, 400], indexing="ij"))
    loss = 0.3 + 0.5 / depth + 3 / step + 0.002 * rng.standard_normal(len(depth))
    theta = SLOPE * (loss - loss.max()) + noise * rng.standard_normal(len(depth))
    return pd.DataFrame(
        {"name": strength.ELO, "group": "overall", "phase": "constant", "cooldown": False, "depth": depth, "step": step,
         "loss": loss, "value": 1000 + 400 * theta / np.log(10), "se": 20.0}
    )  # fmt: skip


def test_a_line_is_least_squares_and_its_win_rate_the_logistic():
    rows = elo_rows(noise=0.1)
    found = strength.of_elo(rows, resamples=0)
    theta = np.log(10.0 ** ((rows["value"] - 1000) / 400))
    expected = stats.linregress(rows["loss"], theta)
    assert (found.slope, found.intercept) == pytest.approx((expected.slope, expected.intercept))
    residual = theta - expected.intercept - expected.slope * rows["loss"]
    assert found.residual_rms == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert found.noise == pytest.approx(20 * np.log(10) / 400)
    assert found.wins[0] == pytest.approx(special.expit(-expected.slope * np.ptp(rows["loss"])))
    assert np.isnan([found.low, found.high]).all()
    exact = strength.of_elo(elo_rows(), resamples=50)
    assert (exact.slope, exact.low, exact.high) == pytest.approx([SLOPE] * 3)
    assert exact.residual_rms == pytest.approx(0, abs=1e-12)


def test_intervals_over_depths_hold_the_slope():
    # 200 sweeps of six depths with independent scatter: three standard deviations of a binomial share.
    found = [strength.of_elo(elo_rows(seed, noise=0.15), resamples=100) for seed in range(200)]
    share = np.mean([one.low <= SLOPE <= one.high for one in found])
    assert abs(share - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 200), share


def test_elo_and_win_rates_of_one_strength_a_run_have_one_slope(tmp_path):
    # Rewards with logistic noise obey Bradley and Terry exactly: their scores, as the comparison writes them.
    root = write_scores(write_sweep(tmp_path, seeds=1, noise=0.001), earlier=0)
    rng, losses = np.random.default_rng(4), {}
    for run in sorted(records.find_runs(root)):
        rows = records.read_rows(run / "metrics.jsonl")[0]
        losses[run] = [r["loss"] for r in rows if r["split"] == "validation" and r["weights"] == "ema"][-1]
    prompts = np.repeat(np.arange(300), 4)
    reference = max(losses, key=losses.get)
    strengths = {run: SLOPE * loss + rng.gumbel(size=len(prompts)) for run, loss in losses.items()}
    elo = preference.scores({run.name: one for run, one in strengths.items()}, prompts, reference.name, resamples=20)
    for run in losses:
        wins = preference.win_rate(strengths[run], strengths[reference], prompts, resamples=20)
        common = {"step": 2000, **SETTING, "prompt_list": "0a1b2c3d", "reference": reference.name, "n": wins.n}
        own = {"value": wins.value, "se": wins.se, "prompts": 300}
        task = own | {"by_prompt": wins.by_prompt.tolist(), "images_by_prompt": [4] * 300}
        records.write_rows(
            run / "evals.jsonl",
            [
                common | {"name": "proxy-preference", "group": "single_object"} | task,
                common | {"name": "proxy-preference", "group": "overall"} | own,
                common
                | {"name": strength.ELO, "group": "overall", "value": elo[run.name].value, "se": elo[run.name].se},
            ],
        )
    relation = quality.relate(load_scores(root), "proxy-preference", resamples=200)
    by = {one.of: one for one in relation.strengths}
    assert set(by) == {"elo", "wins"}
    for one in by.values():
        assert one.low <= SLOPE <= one.high
        assert one.slope == pytest.approx(SLOPE, rel=0.25)
    text = "\n".join(quality.describe("proxy-preference", relation))
    assert f"slope {by['elo'].slope:.1f} [{by['elo'].low:.1f}, {by['elo'].high:.1f}] per unit of loss" in text
    assert quality.numbers("proxy-preference", relation)["strengths"][0]["slope"] == by["elo"].slope


def test_lines_that_disagree_are_said_and_too_few_depths_refused():
    one = strength.of_elo(elo_rows(noise=0.05), resamples=50)
    other = one._replace(of="wins", low=one.high + 1, high=one.high + 2)
    assert "the two slopes disagree" in strength.describe((one, other))[-1]
    assert len(strength.describe((one, one._replace(of="wins")))) == 2
    with pytest.raises(UserError, match="a line of strengths needs 3 depths; there are 2"):
        strength.of_elo(elo_rows(depths=2))
    with pytest.raises(UserError, match="no score 'proxy-preference-elo'"):
        strength.of_elo(elo_rows().assign(name="other"))
