"""The validation loss: what it averages, what it fixes, and when it is due."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from sd3_jax.config import MeshConfig
from sd3_jax.data import scenes
from sd3_jax.evaluation import validation
from sd3_jax.training import sharding
from sd3_jax.training.step import init_params, make_model

fresh_params = jax.jit(lambda model: init_params(model, jax.random.key(0)), static_argnums=0)


@pytest.mark.slow
def test_a_model_that_says_zero_scores_the_targets_own_size() -> None:
    """v = 0 has the loss E||eps - x0||^2 at every level: the same for all of them but for their noise."""
    config = tiny(**{"evaluation.examples": 40})
    mesh = sharding.make_mesh(MeshConfig(), config.batch)
    params = fresh_params(config.model)  # the final layer is zero
    scores = validation.make_eval(config, make_model(config.model, config.mesh), mesh)(params)
    levels = [scores[f"loss_t{k}"] for k in range(9)]
    keys = jax.vmap(lambda i: scenes.example_key(0, scenes.VALIDATION, 0, i))(jnp.arange(40))
    data_keys = jax.vmap(jax.random.split)(keys)[:, 0]
    x0 = scenes.batch(data_keys, config.data, config.model, 0.0).x0
    expected = 1 + float(jnp.mean(x0**2))
    error = 4 * np.sqrt(2 / x0.size) * expected
    np.testing.assert_allclose(levels, expected, atol=2 * error)
    assert len(set(levels)) == 9  # each level has noise of its own
    assert scores["loss"] == pytest.approx(np.mean(levels[:-1]), rel=1e-6)


def test_it_is_the_same_for_every_run_seed_and_batch_but_not_for_every_evaluation_seed() -> None:
    def score(**overlay) -> dict[str, float]:
        config = tiny(**overlay)
        mesh = sharding.make_mesh(MeshConfig(), config.batch, jax.devices()[:1])
        params = fresh_params(config.model)
        params["final"]["bias"] = jnp.ones_like(params["final"]["bias"])
        return validation.make_eval(config, make_model(config.model, config.mesh), mesh)(params)

    base = score()
    assert score(seed=5) == base
    assert score(batch=10) == pytest.approx(base, rel=1e-5)
    assert score(**{"evaluation.seed": 1})["loss"] != pytest.approx(base["loss"], rel=1e-5)


def test_the_summary_against_its_closed_form() -> None:
    table = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    row = validation.summarize(table)
    each = table[:, :8].mean(axis=1)
    assert row["loss"] == pytest.approx(each.mean(), rel=1e-6)
    assert row["loss_se"] == pytest.approx(each.std(ddof=1) / np.sqrt(7), rel=1e-5)
    assert row["loss_t8"] == pytest.approx(table[:, 8].mean(), rel=1e-6)


def test_due_steps_do_not_depend_on_the_length_of_the_run() -> None:
    overlay = {"evaluation.per_decade": 10, "evaluation.first_step": 10, "evaluation.every": 70}

    def steps(total: int) -> list[int]:
        config = tiny(**overlay, steps=total)
        return [s for s in range(1, total + 1) if validation.due(config, s, total, frozenset({3}))]

    short, long = steps(150), steps(600)
    grid = {10, 13, 16, 20, 25, 32, 40, 50, 63, 79, 100, 126}
    assert set(short) == grid | {3, 70, 140, 150}
    assert set(short) - {150} == {s for s in long if s < 150}
    assert long[-1] == 600
