"""The flow against closed forms: t = 0 is data, t = 1 is noise, and Euler finds its way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sd3_jax.config import FlowConfig
from sd3_jax.flow import objectives, paths, samplers, timesteps


def test_euler_on_the_true_velocity_returns_the_data() -> None:
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    for steps in (1, 7):
        out = samplers.euler(lambda z, t: paths.velocity(x0, eps), eps, samplers.time_grid(steps))
        np.testing.assert_allclose(out, x0, atol=2e-6)


def test_the_path_ends_in_data_and_noise_and_its_slope_is_the_velocity() -> None:
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    np.testing.assert_array_equal(paths.interpolate(x0, eps, jnp.zeros(3)), x0)
    np.testing.assert_array_equal(paths.interpolate(x0, eps, jnp.ones(3)), eps)
    along = lambda t: paths.interpolate(x0, eps, jnp.full(3, t))  # noqa: E731
    _, slope = jax.jvp(along, (0.3,), (1.0,))
    np.testing.assert_allclose(slope, paths.velocity(x0, eps), atol=1e-6)


def gaussian_velocity(mean: float, deviation: float):
    """E[eps - x0 | z_t] for data N(mean, deviation^2): the optimum of the loss."""

    def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
        t = t.reshape(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * deviation**2 + t**2
        centred = z - (1 - t) * mean
        return (t - (1 - t) * deviation**2) / variance * centred - mean

    return velocity


def test_euler_on_the_exact_velocity_of_a_gaussian_returns_its_moments() -> None:
    mean, deviation, n = 0.7, 0.4, 20_000
    noise = jax.random.normal(jax.random.key(1), (n, 1, 1, 2))
    out = samplers.euler(gaussian_velocity(mean, deviation), noise, samplers.time_grid(400))
    # The flow of a Gaussian is affine, x0 = mean + deviation * eps: exact up to Euler's error, O(1 / steps).
    np.testing.assert_allclose(out, mean + deviation * noise, atol=0.02)
    sample = np.asarray(out).reshape(n, 2)
    np.testing.assert_allclose(sample.mean(axis=0), mean, atol=4 * deviation / np.sqrt(n))
    np.testing.assert_allclose(np.cov(sample.T), deviation**2 * np.eye(2), atol=0.01)


def test_eulers_error_is_of_first_order() -> None:
    noise = jnp.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
    exact = 0.7 + 0.4 * noise
    error = [
        float(jnp.abs(samplers.euler(gaussian_velocity(0.7, 0.4), noise, samplers.time_grid(n)) - exact).max())
        for n in (50, 100, 200)
    ]
    assert np.log2(error[0] / error[1]) == pytest.approx(1, abs=0.1)
    assert np.log2(error[1] / error[2]) == pytest.approx(1, abs=0.1)


def test_the_exact_velocity_minimises_the_loss() -> None:
    key = jax.random.split(jax.random.key(2), 3)
    x0 = 0.7 + 0.4 * jax.random.normal(key[0], (50_000, 1, 1, 1))
    eps = jax.random.normal(key[1], x0.shape)
    t = jax.random.uniform(key[2], (50_000,))
    exact = gaussian_velocity(0.7, 0.4)
    best = objectives.velocity_loss(exact, x0, eps, t)
    # E ||v - u||^2 is the conditional variance, deviation^2 / ((1 - t)^2 deviation^2 + t^2).
    closed = 0.4**2 / ((1 - t) ** 2 * 0.4**2 + t**2)
    error = float(jnp.std(best - closed)) / np.sqrt(len(t))
    assert abs(float(jnp.mean(best - closed))) < 4 * error
    for off in (0.9, 1.1):
        assert jnp.mean(objectives.velocity_loss(lambda z, t, k=off: k * exact(z, t), x0, eps, t)) > jnp.mean(best)


def test_guidance_interpolates_and_extrapolates() -> None:
    conditional, unconditional = (lambda z, t: z + 1.0), (lambda z, t: z - 1.0)
    z, t = jnp.zeros((2, 1, 1, 1)), jnp.zeros(2)
    for scale in (0.0, 1.0, 2.5):
        out = samplers.guided(conditional, unconditional, scale)(z, t)
        np.testing.assert_allclose(out, -1 + 2 * scale)


@pytest.mark.parametrize(
    "flow, closed",
    [
        (FlowConfig(density="uniform"), stats.uniform.cdf),
        (FlowConfig(mean=0.5, scale=0.6), lambda t: stats.norm.cdf((np.log(t / (1 - t)) - 0.5) / 0.6)),
    ],
)
def test_samples_of_t_follow_their_density(flow: FlowConfig, closed) -> None:
    keys = jax.random.split(jax.random.key(3), 20_000)
    t = np.asarray(jax.vmap(lambda k: timesteps.sample(k, flow))(keys), np.float64)
    assert t.min() > 0
    assert t.max() < 1
    assert stats.kstest(t, closed).pvalue > 1e-3


def test_logit_normal_density_is_the_derivative_of_its_distribution() -> None:
    t = np.linspace(0.02, 0.98, 49)
    cdf = lambda t: stats.norm.cdf((np.log(t / (1 - t)) + 0.5) / 1.4)  # noqa: E731
    slope = (cdf(t + 1e-5) - cdf(t - 1e-5)) / 2e-5
    np.testing.assert_allclose(timesteps.logit_normal_pdf(jnp.asarray(t), -0.5, 1.4), slope, rtol=1e-4)


def test_shift_lowers_log_snr_by_two_log_alpha() -> None:
    t = jnp.linspace(0.05, 0.95, 19)
    moved = timesteps.shift(t, 3.0)
    np.testing.assert_allclose(paths.log_snr(t) - paths.log_snr(moved), 2 * np.log(3.0), rtol=1e-4)
    np.testing.assert_allclose(timesteps.shift(jnp.float32(0.5), 3.0), 0.75, rtol=1e-6)
    grid = samplers.time_grid(5, 3.0)
    assert grid[0] == 1
    assert grid[-1] == 0


def test_levels_are_eight_and_pure_noise() -> None:
    np.testing.assert_allclose(timesteps.levels(), np.linspace(0, 1, 9))
