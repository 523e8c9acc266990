"""The optimizer against closed forms, one golden step, and a loss that falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from sd3_jax.config import MeshConfig, OptimizerConfig
from sd3_jax.errors import UserError
from sd3_jax.training import optimizer, sharding
from sd3_jax.training.step import make_draw, make_init, make_step


def test_the_rate_warms_up_stays_drops_and_cools_down() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=10, drops=((50.0, 0.5),), cooldown=0.2)
    rate = optimizer.schedule(config, width=64, steps=100)
    values = {step: float(rate(jnp.int32(step))) for step in (0, 4, 9, 30, 49, 50, 79, 80, 90, 99)}
    expected = {0: 0.01, 4: 0.05, 9: 0.1, 30: 0.1, 49: 0.1, 50: 0.05, 79: 0.05, 80: 0.05, 90: 0.025, 99: 0.0025}
    assert values == pytest.approx(expected, rel=1e-5)
    phases = {step: optimizer.phase(config, step, 100) for step in (10, 11, 50, 51, 80, 81, 100)}
    assert phases == {
        10: "warmup",
        11: "constant",
        50: "constant",
        51: "lr_drop",
        80: "lr_drop",
        81: "cooldown",
        100: "cooldown",
    }


def test_the_rate_goes_as_one_over_width_only_if_asked() -> None:
    assert optimizer.peak_rate(OptimizerConfig(learning_rate=1e-4), 2432) == 1e-4
    assert optimizer.peak_rate(OptimizerConfig(learning_rate=4e-3, reference_width=64), 128) == pytest.approx(2e-3)


@pytest.mark.parametrize("width", [0.05, 0.10, 0.20])
def test_the_power_average_has_the_width_that_was_asked_for(width: float) -> None:
    """The weights that the recursion gives to past steps have this standard deviation, as a share of the run."""
    steps, config = 4000, OptimizerConfig(ema_relative_width=width)
    share = np.asarray(jax.vmap(lambda k: optimizer.ema_weight(config, k))(jnp.arange(1, steps + 1)), np.float64)
    kept = np.append(np.cumprod((1 - share)[::-1])[::-1][1:], 1.0)
    profile, at = share * kept, np.arange(1, steps + 1) / steps
    assert share[0] == 1  # nothing of the initial weights remains
    assert profile.sum() == pytest.approx(1, abs=1e-6)
    assert np.sqrt(profile @ at**2 - (profile @ at) ** 2) == pytest.approx(width, rel=0.01)


def test_the_average_keeps_its_digits_at_the_papers_length() -> None:
    exact = 1 - (1 - 1 / np.float64(500_000)) ** (optimizer.ema_exponent(0.10) + 1)
    assert float(optimizer.ema_weight(OptimizerConfig(), jnp.int32(500_000))) == pytest.approx(exact, rel=1e-5)


def test_the_papers_average_moves_every_hundred_steps() -> None:
    config = OptimizerConfig(ema="exponential")
    weights = [float(optimizer.ema_weight(config, jnp.int32(step))) for step in (99, 100, 101, 200)]
    assert weights == pytest.approx([0, 0.01, 0, 0.01])


def test_decay_falls_on_matrices_alone() -> None:
    config = tiny(**{"optimizer.weight_decay": 0.5, "optimizer.warmup_steps": 0})
    shapes = jax.eval_shape(make_init(config, 1), jnp.uint32(0)).params
    optim = optimizer.make(config.optimizer, config.model.width, 1)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    updates, _ = jax.jit(lambda p: optim.update(jax.tree.map(jnp.zeros_like, p), optim.init(p), p))(params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        expected = -0.5 * 1e-2 if path[-1].key == "kernel" else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_golden_step() -> None:
    """One update, pinned. If this moves, so does every run: data, noise, initialisation, model, loss or optimizer
    changed. Change the numbers only with a commit that means to, and says so."""
    config = tiny()
    mesh = sharding.make_mesh(MeshConfig(), config.batch)
    state = jax.jit(make_init(config, 8))(jnp.uint32(0))
    draw, step = make_draw(config, mesh), jax.jit(make_step(config, 8))
    losses = []
    for i in range(3):
        state, metrics = step(state, draw(jnp.uint32(0), jnp.int32(i)))
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    norms = [float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))) for tree in (state.params, state.ema)]
    golden_losses = [[1.930083, 0.5731791], [1.984241, 0.5381933], [1.818568, 0.4259842]]
    golden_norms = [19.15396, 19.15243]
    np.testing.assert_allclose(losses, golden_losses, rtol=1e-4)
    np.testing.assert_allclose(norms, golden_norms, rtol=1e-4)


@pytest.mark.parametrize("mesh, words", [({"data": 3}, "3 x fsdp 1"), ({"fsdp": 16}, "8 devices")])
def test_a_mesh_that_does_not_fit_is_one_clear_line(mesh: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sharding.make_mesh(MeshConfig(**mesh), 16)


def test_a_batch_that_the_mesh_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="batch: 12"):
        sharding.make_mesh(MeshConfig(), 12)
