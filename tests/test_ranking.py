"""Ranks by non-dominated sorting: against a peel by brute force, by invariants, and by hand."""

import numpy as np
import pandas as pd
import pytest
from synthetic import SAMPLERS

from analysis.ranking import fronts, rank
from sd3_jax.errors import UserError


def peel(up, down):
    """Take away, again and again, all that no remaining point beats."""
    front, left, number = {}, set(range(len(up))), 0
    while left:
        number += 1
        beaten = {
            i
            for i in left
            for j in left
            if up[j] >= up[i] and down[j] <= down[i] and (up[j] > up[i] or down[j] < down[i])
        }
        front |= dict.fromkeys(left - beaten, number)
        left = beaten
    return [front[i] for i in range(len(up))]


@pytest.mark.parametrize(
    "up,down,expected",
    [
        ([1, 2, 3], [3, 2, 1], [3, 2, 1]),  # one order in both: a chain
        ([1, 2, 3], [1, 2, 3], [1, 1, 1]),  # a trade of one for the other: nobody is beaten
        ([2, 2, 2], [5, 5, 5], [1, 1, 1]),  # equal points share a front
        ([2, 2, 1], [1, 2, 1], [1, 2, 2]),  # no worse in both and better in one
        ([5, 4, 4, 1], [9, 2, 2, 3], [1, 1, 1, 2]),
        ([1], [1], [1]),
    ],
)
def test_fronts_by_hand(up, down, expected):
    assert fronts(np.array(up, float), np.array(down, float)).tolist() == expected


@pytest.mark.parametrize("levels", [3, 8, 10**6])  # few levels make many ties
@pytest.mark.parametrize("n", [2, 7, 61])
def test_fronts_are_those_of_a_brute_force_peel(n, levels):
    rng = np.random.default_rng(n * levels)
    up, down = rng.integers(0, levels, (2, 15, n)).astype(float)
    found = fronts(up, down)
    assert found.shape == (15, n)
    for own, x, y in zip(found, up, down, strict=True):
        assert own.tolist() == peel(x, y)


def test_fronts_depend_on_nothing_but_who_beats_whom():
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(2, 61)).round(1)
    found = fronts(up, down)
    beats = (up >= up[:, None]) & (down <= down[:, None]) & ((up > up[:, None]) | (down < down[:, None]))
    assert (found[:, None] > found[None, :])[beats].all()  # a strictly dominated variant has the larger index
    order = rng.permutation(61)
    assert (fronts(up[order], down[order]) == found[order]).all()
    assert (fronts(np.exp(up), down**3 - 7) == found).all()
    assert set(found) == set(range(1, found.max() + 1))
    with pytest.raises(UserError, match="no number cannot be ranked"):
        fronts(np.array([1.0, np.nan]), np.array([1.0, 2.0]))


KEYS = ("data_set", "steps", "guidance", "weights")
SETTINGS = [(d, s, g, w) for d in ("a", "b") for w in ("ema", "raw") for s, g in SAMPLERS]


def table(up, down, error=0.0, settings=SETTINGS, seeds=(0,), **extra):
    """Points of [seed, setting, formulation] values, formulations named f00, f01, ..."""
    up, down = (np.broadcast_to(one, (len(seeds), len(settings), np.shape(one)[-1])) for one in (up, down))
    rows = []
    for (k, s, f), value in np.ndenumerate(up):
        where = dict(zip(KEYS, settings[s], strict=True)) | {"sampler": "euler", "shift": 1.0, "grid": "uniform"}
        whose = {"formulation": f"f{f:02d}", "run": f"{where['data_set']}{f}-{k}", "seed": seeds[k]}
        own = {key: each[s, f] for key, each in extra.items()}
        rows.append(where | whose | {"up": value, "up_se": error, "down": down[k, s, f], "down_se": error} | own)
    return pd.DataFrame(rows)


def test_a_rank_is_the_mean_of_fronts_over_settings():
    rng = np.random.default_rng(3)
    up, down = rng.normal(size=(2, 1, 24, 9))
    found = rank(table(up, down), resamples=20)
    by_hand = np.array([peel(x, y) for x, y in zip(up[0], down[0], strict=True)])
    assert found.mean() == pytest.approx(by_hand.mean(axis=0))
    assert np.allclose(24 * found.mean() % 1, 0)  # every value of the paper's Table 1 is k / 24
    five = (found.settings["steps"] == 5).to_numpy()
    places = [i for i, setting in enumerate(SETTINGS) if setting[1] == 5]
    assert found.mean(five) == pytest.approx(by_hand[places].mean(axis=0))
    assert five.sum() == 4
    # Without errors every draw is the estimate.
    assert [end.tolist() for end in found.interval()] == [found.mean().tolist()] * 2


def test_what_lacks_a_setting_is_left_out_and_named():
    up, down = np.arange(5.0), np.arange(5.0)[::-1]
    whole = table(up, down)
    holes = (whole["formulation"] == "f04") & (whole["steps"] == 5) & (whole["data_set"] == "b")
    extra = table(up[:2], down[:2], settings=[("a", 100, 5.0, "ema")])
    found = rank(pd.concat([whole[~holes], extra], ignore_index=True), resamples=0)
    assert found.formulations == ("f00", "f01", "f02", "f03")
    assert len(found.settings) == 24
    assert found.mean().tolist() == [4, 3, 2, 1]  # the best of all is not there to be beaten by
    assert np.isnan(found.interval()).all()
    words = "f04 is left out: it lacks b, 5 euler steps, guidance 5, ema; b, 5 euler steps, guidance 5, raw."
    assert words in found.notes
    assert "left out, as few formulations have it: a, 100 euler steps, guidance 5, ema." in found.notes
    with pytest.raises(UserError, match="and there is f00 alone"):
        rank(whole[whole["formulation"] == "f00"])


def test_seeds_are_averaged_and_each_alone_is_told():
    up = np.array([[[0.50, 0.60]], [[0.80, 0.60]]])  # the mean of the first, 0.65, is better; its first seed is not
    found = rank(table(up, np.zeros(2), seeds=(0, 7)), resamples=200)
    assert dict(zip(found.formulations, found.mean(), strict=True)) == {"f00": 1, "f01": 2}
    assert found.by_seed == {"f00": {0: 2, 7: 1}, "f01": {0: 2, 7: 2}}
    low, high = found.interval()
    assert low[1] < 2  # seeds differ by more than the two do
    alone = rank(table(up[:1], np.zeros(2)), resamples=200)
    assert alone.by_seed == {}
    assert any(note.startswith("one training seed of each") for note in alone.notes)


def test_a_prompt_that_is_hard_for_all_moves_no_rank():
    rng = np.random.default_rng(5)
    up, hard = rng.normal(0, 0.01, 8), rng.normal(size=20)
    common, own = np.empty((24, 8), object), np.empty((24, 8), object)
    for place in np.ndindex(24, 8):
        common[place], own[place] = hard, rng.normal(size=20)
    paired = rank(table(up, np.zeros(8), 0.0, up_parts=common)).interval()
    assert paired[0].tolist() == paired[1].tolist()
    apart = rank(table(up, np.zeros(8), 0.0, up_parts=own)).interval()
    assert (apart[1] - apart[0]).min() > 0.5


@pytest.mark.parametrize("error", [0.1, 0.4])
def test_intervals_hold_the_rank_of_the_true_scores(error):
    rng = np.random.default_rng(1)
    held = []
    for _ in range(12):
        own = rng.normal(size=12)
        up, down = own + 0.5 * rng.normal(size=(24, 12)), -own + 0.8 * rng.normal(size=(24, 12))
        noisy = [one + error * rng.normal(size=one.shape) for one in (up, down)]
        low, high = rank(table(noisy[0][None], noisy[1][None], error), resamples=200).interval()
        truth = fronts(up, down).mean(axis=0)
        held.append((low <= truth) & (truth <= high))
    assert 0.7 <= np.mean(held) <= 0.95  # 80 % intervals, of 144 ranks
