"""Approaches 1, 2 and 3 on the same table."""

import numpy as np
import pandas as pd
import pytest
from synthetic import law_loss
from test_isoflop import SYMMETRIC, valleys

from analysis.approaches import compare_approaches
from analysis.laws import fit_points

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def curves(sizes=16, noise=3e-4, seed=0):
    """Runs of every size over the same compute: at each C smaller and larger sizes are in the race."""
    rng = np.random.default_rng(seed)
    compute, tables = np.geomspace(3e18, 1e22, 60), []
    for i, params in enumerate(np.geomspace(2e7, 4e10, sizes)):
        images = compute / (6 * params)
        loss = law_loss(TRUTH, params, images) * np.exp(noise * rng.standard_normal())
        tables.append(
            pd.DataFrame({"run": f"r{i}", "params": params, "images": images, "flops": compute, "loss": loss})
        )
    return pd.concat(tables, ignore_index=True)


def test_all_approaches_find_the_exponents_of_curves_and_agree():
    found = compare_approaches(curves(), resamples=100)
    assert [one.name for one in found.approaches] == ["envelope", "isoFLOP, parabola", "isoFLOP, Akima", "parametric"]
    a = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    for one in found.approaches:
        assert one.exponents["a"] == pytest.approx(a, abs=0.02), one
        assert one.exponents["a"] + one.exponents["b"] == pytest.approx(1, abs=1e-6)  # C = 6 N D
        low, high = one.intervals["a"].ci95
        assert low < one.exponents["a"] < high
        assert high - low < 0.1
    assert found.agree
    assert found.sentence == "The 95 % intervals of 4 approaches share values of a and b."


def test_approaches_that_disagree_are_found_out():
    asymmetric = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.465, "beta": 0.155}
    other = fit_points(valleys(asymmetric, noise=1e-4), resamples=100)
    found = compare_approaches(valleys(SYMMETRIC, noise=1e-4), other, resamples=100)
    assert found.agree is False
    assert found.sentence.startswith("The approaches disagree: the 95 % intervals of a of ")
    assert "parametric" in found.sentence
    assert found.sentence.endswith(" are apart.")


def test_what_a_table_does_not_allow_is_said():
    found = compare_approaches(valleys(SYMMETRIC, noise=1e-3), resamples=100)
    envelope = found.approaches[0]
    assert envelope.exponents == {}
    assert envelope.why.startswith("frontier censored")  # no size has points at two budgets
    few = compare_approaches(curves(sizes=5), resamples=100)
    assert all(one.intervals == {} for one in few.approaches)
    assert few.agree is None
    assert few.sentence == "Fewer than two approaches have intervals: nothing is compared."
