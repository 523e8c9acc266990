"""The sixty-one formulations: their names, and each against the paper's equations and the closed form of a Gaussian."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from analysis import published
from sd3_jax import cli, formulations, overlays
from sd3_jax.config import FlowConfig
from sd3_jax.errors import UserError
from sd3_jax.flow import objectives, paths, samplers, timesteps
from sd3_jax.sweep import spec

ALL = {name: FlowConfig(**formulations.parse(name)) for name in formulations.members()}
# Densities aside, which closed forms do not depend on: the velocity, and 20 others.
DISTINCT = {name: flow for name, flow in ALL.items() if name == "rf" or not name.startswith("rf/")}
FREE = {
    "v on rf": FlowConfig(prediction="v"),
    "eps on rf": FlowConfig(prediction="eps"),
    "velocity on cosine": FlowConfig(path="cosine", density="uniform"),
    "velocity on linear": FlowConfig(path="linear", density="uniform"),
    "F on linear": FlowConfig(path="linear", prediction="F", data_scale=1.0),
    "eps on edm": FlowConfig(path="edm", prediction="eps", density="mode"),
}

# --- names ----------------------------------------------------------------------------------------------------------


def test_there_are_sixty_one_and_the_papers_tables_name_some_of_them() -> None:
    assert len(ALL) == 61
    assert len({dataclasses.astuple(flow) for flow in ALL.values()}) == 61
    families = [name.partition("(")[0] for name in ALL]
    counts = {family: families.count(family) for family in families}
    assert counts == {
        "eps/linear": 1, "v/linear": 1, "eps/cos": 1, "v/cos": 1, "rf": 1, "rf/mode": 8, "rf/lognorm": 30,
        "rf/cosmap": 1, "edm": 15, "edm/rf": 1, "edm/cos": 1,
    }  # fmt: skip
    assert {*published.TABLE_1, *published.TABLE_2} <= {*ALL}


def test_a_name_and_its_fields_are_one_to_one() -> None:
    for name, flow in ALL.items():
        assert formulations.name_of(flow) == name
        assert FlowConfig(**formulations.parse(name.replace(" ", ""))) == flow
    names = [formulations.name_of(flow) for flow in FREE.values()]
    assert len({*names, *ALL}) == len(FREE) + 61


def test_numbers_that_are_none_of_the_61_are_taken_as_they_are() -> None:
    assert formulations.parse("rf/lognorm(0.1, 0.7)")["mean"] == 0.1
    assert formulations.parse("edm(-0.4, 1.0)")["log_sigma_mean"] == -0.4
    assert formulations.parse("rf/mode(1.3)")["mode_scale"] == 1.3
    assert formulations.parse("edm(\u22121.20, 1.20)") == formulations.parse("edm(-1.20, 1.20)")  # as a PDF has it


@pytest.mark.parametrize(
    "name",
    ["rf/mode(1.751)", "rf/mode(1.7519)", "rf/lognorm(-0.004, 1.00)", "rf/lognorm(0.00, 0.001)", "edm(1e-05, 0.60)"],
)
def test_numbers_that_two_decimals_do_not_say_are_said_in_full(name: str) -> None:
    """Else a run would be taken for another seed of the member that it rounds to."""
    flow = FlowConfig(**formulations.parse(name))
    assert formulations.name_of(flow) == name
    assert name not in ALL


def test_diffusers_names_where_they_mean_the_same() -> None:
    assert FlowConfig(**formulations.parse("logit_normal")) == ALL["rf/lognorm(0.00, 1.00)"]
    assert FlowConfig(**formulations.parse("logit_normal(0, 0.6)")) == ALL["rf/lognorm(0.00, 0.60)"]
    assert formulations.parse("mode")["mode_scale"] == 1.29
    assert FlowConfig(**formulations.parse("none")) == ALL["rf"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("rf/mode(1.76)", r"s = 1.76 is out of range; valid: -1 to 1.75194"),
        ("rf/mode(-1.1)", "s = -1.1 is out of range"),
        ("rf/lognorm(0, 0)", "s = 0 is out of range; valid: 0.001 to 10"),
        ("rf/lognorm(11, 1)", "m = 11 is out of range; valid: -10 to 10"),
        ("edm(0, 1e9)", "P_s = 1e.09 is out of range"),
        ("edm(1.2.3, 1)", "a number that is none"),
        ("eps/rf", "names no formulation; valid: rf/lognorm"),
        ("cosmap", "a weight of uniformly drawn t in diffusers"),
        ("sigma_sqrt", "not in the paper"),
        ("logit_normal(0.5, 1)", r"diffusers mirrors t.*rf/lognorm\(-0.5, 1\)"),
    ],
)
def test_other_names_are_refused_in_a_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        formulations.parse(name)
    assert "\n" not in str(error.value)


def test_a_name_stands_for_all_of_a_flow_but_its_shift() -> None:
    config = overlays.resolve({"steps": 1, "flow.shift": 3.0, "flow.mean": 0.5}, {"flow": "v/cos"})
    assert config.flow == dataclasses.replace(ALL["v/cos"], shift=3.0)
    config = overlays.resolve({"steps": 1, "flow": "rf"}, {"flow.shift": 2.0, "flow": "edm(0.60, 1.20)"})
    assert config.flow == dataclasses.replace(ALL["edm(0.60, 1.20)"], shift=2.0)


def test_cells_are_named_after_their_formulations() -> None:
    cells = spec.cells({"steps": 1}, {}, [{"flow": [*ALL], "model.depth": 4}])
    assert len({cell.name for cell in cells}) == 61
    names = {formulations.name_of(cell.config.flow): cell.name for cell in cells}
    assert names["rf/lognorm(0.50, 0.60)"] == "d04-rf-lognorm0.50_0.60-s0"
    assert names["edm(-1.20, 1.20)"] == "d04-edm-1.20_1.20-s0"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"flow.path": "edm"}, "edm's own velocity has no bound"),
        ({"flow.mode_scale": 1.0}, "flow.mode_scale: 1 is of flow.density mode, and it is logit-normal"),
        ({"flow.log_sigma_scale": 1.0}, "is of flow.path edm, and it is rf"),
        ({"flow": "rf/cosmap", "flow.mean": 1.0}, "flow.mean: 1 is of flow.density logit-normal, and it is cosmap"),
        ({"flow.density": "mode", "flow.scale": 2.0}, "flow.scale: 2 is of flow.density logit-normal, and it is mode"),
        ({"flow.data_scale": 1.0}, "is of flow.prediction F, and it is velocity"),
        ({"flow.density": "mode", "flow.mode_scale": 1.76}, "flow.mode_scale: 1.76 is out of range"),
        ({"flow": "rf/mode(2)"}, "s = 2 is out of range"),
        ({"flow": 3}, "flow"),
    ],
)
def test_a_flow_that_makes_no_sense_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        overlays.resolve({"steps": 1}, fields)


# --- the paper's equations ------------------------------------------------------------------------------------------


def paper_path(flow: FlowConfig, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a_t and b_t as the paper has them, in float64 and independent of ours."""
    if flow.path == "rf" and flow.prediction == "F":
        return np.ones_like(t), t / (1 - t)
    if flow.path == "rf":
        return 1 - t, t
    if flow.path == "cosine" and flow.prediction == "F":
        return np.ones_like(t), np.tan(np.pi * t / 2)
    if flow.path == "cosine":
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    if flow.path == "edm":
        return np.ones_like(t), np.exp(stats.norm.ppf(t, flow.log_sigma_mean, flow.log_sigma_scale))
    steps = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    product = np.cumprod(1 - steps)
    snr = np.interp(t * 999, np.arange(1000), np.log(product / (1 - product)))
    return np.sqrt(1 / (1 + np.exp(-snr))), np.sqrt(1 / (1 + np.exp(snr)))


def log_snr_and_rate(flow: FlowConfig, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    level = lambda t: 2 * np.log(np.divide(*paper_path(flow, t)))  # noqa: E731
    return level(t), (level(t + 1e-6) - level(t - 1e-6)) / 2e-6


def paper_weight(flow: FlowConfig, t: np.ndarray) -> np.ndarray:
    """w_t of the loss -(1/2) w_t lambda'_t ||eps_hat - eps||^2 for t ~ U(0, 1)."""
    level, rate = log_snr_and_rate(flow, t)
    a, _ = paper_path(flow, t)
    if flow.prediction == "F":  # plain squared error of F: Karras's weight over sigma_d^2, times the density of lambda
        return -2 / rate * (np.exp(-level) + flow.data_scale**2) / flow.data_scale**2
    if flow.path == "rf":
        return t / (1 - t)
    if flow.path == "cosine":
        return 1 / np.pi / np.cosh(level / 2) if flow.prediction == "eps" else 2 / np.pi * np.exp(-level / 2)
    return -2 / rate if flow.prediction == "eps" else -2 / (rate * a**2)


@pytest.mark.parametrize("name", DISTINCT)
def test_the_loss_is_the_papers_weighted_error_of_the_noise(name: str) -> None:
    flow = DISTINCT[name]
    rng = np.random.default_rng(0)
    t = rng.uniform(0.05, 0.95, 64)
    x0, eps, said = rng.standard_normal((3, 64, 2, 2, 3))
    ours = objectives.loss(lambda z, time: jnp.float32(said), flow, *map(jnp.float32, (x0, eps)), jnp.float32(t))
    a, b = (one[:, None, None, None] for one in paper_path(flow, t))
    z = a * x0 + b * eps  # and the noise that the network's output means, solved from the paper's definitions
    if flow.prediction == "eps":
        noise = said
    elif flow.prediction == "v":  # v = a eps - b x0
        noise = b * z + a * said
    elif flow.prediction == "F":  # D = c_skip z + c_out F
        variance = b**2 + flow.data_scale**2
        denoised = flow.data_scale**2 / variance * z + b * flow.data_scale / np.sqrt(variance) * said
        noise = (z - denoised) / b
    else:
        noise = z + (1 - t)[:, None, None, None] * said
    _, rate = log_snr_and_rate(flow, t)
    theirs = -0.5 * paper_weight(flow, t) * rate * np.mean((noise - eps) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5 if flow.path == "linear" else 1e-5)


def test_edms_weight_is_the_papers_up_to_a_constant() -> None:
    flow, t = ALL["edm(0.60, 1.20)"], np.linspace(0.05, 0.95, 19)
    level, _ = log_snr_and_rate(flow, t)
    printed = stats.norm.pdf(level, -2 * 0.6, 2 * 1.2) * (np.exp(-level) + 0.5**2)
    ratio = paper_weight(flow, t) / printed
    np.testing.assert_allclose(ratio, 2 / 0.5**2, rtol=1e-4)


def test_log_snr_of_rf_and_of_the_cosine_path() -> None:
    t = jnp.linspace(0.05, 0.95, 19)
    rate = jax.vmap(jax.grad(paths.log_snr))(t)
    np.testing.assert_allclose(rate, -2 / (t * (1 - t)), rtol=1e-5)
    np.testing.assert_allclose(-0.5 * rate * t**2, t / (1 - t), rtol=1e-5)
    np.testing.assert_allclose(t / (1 - t), jnp.exp(-paths.log_snr(t) / 2), rtol=1e-5)
    cosine = ALL["v/cos"]
    level = paths.log_snr(t, cosine)
    rate = jax.vmap(jax.grad(lambda t: paths.log_snr(t, cosine)))(t)
    np.testing.assert_allclose(-2 / rate, 1 / jnp.pi / jnp.cosh(level / 2), rtol=1e-5)
    np.testing.assert_allclose(-2 / (rate * jnp.cos(jnp.pi * t / 2) ** 2), 2 / jnp.pi * jnp.exp(-level / 2), rtol=1e-5)


@pytest.mark.parametrize("name", [*DISTINCT, *FREE])
def test_shares_and_log_snr_agree_and_the_own_time_leads_back(name: str) -> None:
    flow, t = (DISTINCT | FREE)[name], jnp.linspace(0.02, 0.98, 25)
    a, b = paths.shares(t, flow)
    np.testing.assert_allclose(a + b, 1, rtol=1e-6)
    np.testing.assert_allclose(2 * (jnp.log(a) - jnp.log(b)), paths.log_snr(t, flow), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(paths.own_time(a, b, flow), t, atol=2e-5)
    assert (jnp.diff(b) > 0).all()


def test_linear_is_stable_diffusions_schedule() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.sqrt(np.cumprod(1 - betas))
    a, b = paths.shares(jnp.array([0.0, 500 / 999, 1.0]), ALL["eps/linear"])
    np.testing.assert_allclose(a / jnp.hypot(a, b), signal[[0, 500, 999]], rtol=1e-5)
    assert signal[999] == pytest.approx(0.0683, abs=1e-4)  # never noise alone


@pytest.mark.parametrize("weight", ["eps", "v", "velocity", "F"])
@pytest.mark.parametrize("name", ["rf", "eps/linear", "v/cos", "edm/rf"])
def test_a_weight_is_the_squared_error_of_another_prediction(name: str, weight: str) -> None:
    """The same network, its output turned into the other prediction, has the other's own loss."""
    flow = dataclasses.replace(ALL[name], weight=weight)
    other = dataclasses.replace(flow, prediction=weight, weight="own")
    rng = np.random.default_rng(1)
    x0, eps, noise = (jnp.float32(one) for one in rng.standard_normal((3, 32, 2, 2, 3)))
    t = jnp.float32(rng.uniform(0.1, 0.9, 32))
    a, b = paths.shares(t, flow)
    wide = [one[:, None, None, None] for one in (a, b)]
    guessed = (wide[0] * x0 + wide[1] * eps - wide[1] * noise) / wide[0]  # the data that a guess of the noise means
    said, asked = (objectives.target(one, guessed, noise, a, b, t) for one in (flow, other))
    ours = objectives.loss(lambda z, time: said, flow, x0, eps, t)
    theirs = objectives.loss(lambda z, time: asked, other, x0, eps, t)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*DISTINCT, *FREE])
def test_losses_and_gradients_are_finite_at_both_ends(name: str, dtype) -> None:
    flow = (DISTINCT | FREE)[name]
    t = jnp.array([0.0, 1e-7, 1e-6, 1e-5, 1 - 1e-5, 1 - 1e-6, 1 - 6e-8, 1.0], jnp.float32)
    x0, eps = jax.random.normal(jax.random.key(0), (2, len(t), 2, 2, 3))

    def network(scale):
        def said(z, time):
            return (scale * z.astype(dtype) + jnp.sin(time)[:, None, None, None].astype(dtype)).astype(dtype)

        return said

    value, slope = jax.value_and_grad(lambda s: jnp.sum(objectives.loss(network(s), flow, x0, eps, t)))(dtype(0.7))
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope)
    velocity = objectives.velocity_of(network(dtype(0.7)), flow)
    assert jnp.isfinite(velocity(x0, t)).all()


# --- densities ------------------------------------------------------------------------------------------------------


def mode_cdf(t: np.ndarray, scale: float) -> np.ndarray:
    u = np.linspace(0, 1, 2_000_001)
    f = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    return 1 - np.interp(-t, -f, u)


CDFS = {
    "rf/lognorm(-0.50, 1.40)": lambda t: stats.norm.cdf((np.log(t / (1 - t)) + 0.5) / 1.4),
    "rf/mode(1.29)": lambda t: mode_cdf(t, formulations.MODES[-2]),
    "rf/mode(1.75)": lambda t: mode_cdf(t, 1.75),
    "rf/mode(-1.00)": lambda t: mode_cdf(t, -1.0),
    "rf/cosmap": lambda t: 2 / np.pi * np.arctan2(t, 1 - t),
}


@pytest.mark.parametrize("name", CDFS)
def test_t_follows_its_density(name: str) -> None:
    flow = ALL[name]
    keys = jax.random.split(jax.random.key(3), 50_000)
    t = np.asarray(jax.vmap(lambda key: timesteps.sample(key, flow))(keys), np.float64)
    assert t.min() >= 0
    assert t.max() <= 1
    assert stats.kstest(t, CDFS[name]).pvalue > 1e-3
    grid = np.linspace(0.03, 0.97, 48)  # and the density is the distribution's derivative
    slope = (CDFS[name](grid + 1e-5) - CDFS[name](grid - 1e-5)) / 2e-5
    np.testing.assert_allclose(timesteps.pdf(jnp.float32(grid), flow), slope, rtol=5e-3)


def test_the_modes_density_at_its_ends_and_middle() -> None:
    for scale in (-1 + 1e-3, -0.5, 0.0, 1.29, 1.75):
        found = timesteps.mode_pdf(jnp.array([0.0, 0.5, 1.0]), scale)
        closed = np.array([1 / (1 + scale), 1 / (1 - scale * (np.pi / 2 - 1)), 1 / (1 + scale)])
        np.testing.assert_allclose(found, closed, rtol=2e-3)
    assert timesteps.mode_pdf(jnp.array([0.5]), 1.75)[0] > 850  # the spike


def test_cosmap_gives_rf_the_log_snr_of_the_cosine_path() -> None:
    u = jnp.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(paths.log_snr(timesteps.cosmap(u)), paths.log_snr(u, ALL["v/cos"]), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["rf/lognorm(0.00, 1.00)", "eps/linear", "v/cos", "edm(0.00, 1.20)"])
def test_the_shift_lowers_every_paths_log_snr_alike(name: str) -> None:
    flow = ALL[name]
    keys = jax.random.split(jax.random.key(0), 500)
    draw = jax.vmap(lambda key, flow: timesteps.sample(key, flow), in_axes=(0, None))
    before, after = draw(keys, flow), draw(keys, dataclasses.replace(flow, shift=3.0))
    inside = (before > 0.05) & (after < 0.95)
    fell = paths.log_snr(before, flow) - paths.log_snr(after, flow)
    np.testing.assert_allclose(fell[inside], 2 * np.log(3), rtol=2e-3)


# --- the optimum for a Gaussian, in the network's place --------------------------------------------------------------

MEAN, DEVIATION = np.array([0.7, -0.4]), np.array([0.4, 1.3])


def optimum(flow: FlowConfig):
    """What the best network says of data N(MEAN, DEVIATION^2), by its input and time alone, in the paper's terms."""

    def network(z, time):
        if flow.prediction == "F":
            sigma = jnp.exp(4 * time)
            a, b, c_in = jnp.ones_like(time), sigma, 1 / jnp.sqrt(sigma**2 + flow.data_scale**2)
        else:
            a, b = paths.shares(time, flow)
            norm = 1.0 if flow.path == "rf" else jnp.hypot(a, b)
            a, b, c_in = a / norm, b / norm, jnp.ones_like(time)
        a, b, c_in = (one[:, None, None, None] for one in (a, b, c_in))
        z = z / c_in
        variance = (a * DEVIATION) ** 2 + b**2
        data = MEAN + a * DEVIATION**2 / variance * (z - a * MEAN)
        noise = b / variance * (z - a * MEAN)
        match flow.prediction:
            case "eps":
                return noise
            case "v":
                return (a * noise - b * data) / jnp.hypot(a, b)
            case "F":
                scale = flow.data_scale
                return (data - scale**2 / (b**2 + scale**2) * z) * jnp.sqrt(b**2 + scale**2) / (b * scale)
            case "velocity" if flow.path == "rf":
                return noise - data
        slope = paths.angular_rate(time, flow)[:, None, None, None]
        return slope * (a * noise - b * data)

    return network


@pytest.mark.parametrize(
    "name, grid",
    [(name, "own") for name in (*FREE, *DISTINCT) if not name.startswith("edm(")]
    + [("edm(-1.20, 1.20)", "own"), ("edm(0.60, 0.60)", "own")]
    + [pytest.param(name, "own", marks=pytest.mark.slow) for name in DISTINCT if name.startswith("edm(")]
    + [(name, "uniform") for name in ("rf", "eps/linear", "v/cos", "edm(-1.20, 1.20)", "edm/cos")],
)
def test_samplers_return_the_gaussian_with_the_order_that_they_promise(name: str, grid: str) -> None:
    """To the path's end by the grid, and where that is short of data, to the mean of the data given it in one step."""
    flow = (DISTINCT | FREE)[name]
    first, last = samplers.span(flow)
    with jax.enable_x64(True):
        start = np.sqrt(2) * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])  # of mean 0 and covariance 1
        marginal = lambda t: (1 - t) * MEAN + np.hypot((1 - t) * DEVIATION, t) * start  # noqa: E731
        velocity = objectives.velocity_of(optimum(flow), flow)
        for method, order in (("euler", 1), ("heun", 2)):
            errors = []
            run = jax.jit(lambda z, times, method=method: samplers.integrate(velocity, z, times, method)[0])
            for steps in (768, 1536):
                times = np.asarray(samplers.GRIDS[grid](steps, 1.0, flow), np.float64)
                assert times[0] == pytest.approx(first)
                assert times[-1] == 0
                times = times[:-1] if last else times
                noise, exact = jnp.asarray(marginal(times[0])).reshape(4, 1, 1, 2), marginal(times[-1])
                padded = np.append(times, [times[-1]] * (1537 - len(times)))  # no step at all, and one program
                out = np.asarray(run(noise, jnp.asarray(padded))).reshape(4, 2)
                errors.append(np.abs(out - exact).max())
            assert errors[1] < (0.05 if method == "euler" else 2e-3)
            assert np.log2(errors[0] / errors[1]) > order - 0.2
            at_end = marginal(last)
            np.testing.assert_allclose(out.mean(axis=0), at_end.mean(axis=0), atol=errors[1])
            np.testing.assert_allclose(np.cov(out.T, bias=True), np.cov(at_end.T, bias=True), atol=4 * errors[1])
        if last:
            ended = jnp.asarray(at_end).reshape(4, 1, 1, 2)
            data = samplers.euler(velocity, ended, jnp.array([last, 0.0])).reshape(4, 2)
            gain = (1 - last) * DEVIATION**2 / np.hypot((1 - last) * DEVIATION, last) ** 2
            np.testing.assert_allclose(data, MEAN + gain * (at_end - (1 - last) * MEAN), atol=2e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", [*DISTINCT, *FREE])
def test_grids_fall_and_stay_where_the_path_was_trained(name: str, shift: float) -> None:
    flow = (DISTINCT | FREE)[name]
    first, last = samplers.span(flow)
    for grid in samplers.GRIDS.values():
        times = np.asarray(grid(7, shift, flow), np.float64)
        assert len(times) == 8
        assert times[0] == pytest.approx(first, abs=1e-5)
        assert times[-1] == 0
        assert times[-2] >= last - 1e-5
        assert (np.diff(times) <= 0).all()


# --- training -------------------------------------------------------------------------------------------------------


@functools.cache
def trained(name: str) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Train an affine network of z on the Gaussian: its loss and the optimum's, and the moments of what it samples."""
    flow = (ALL | FREE)[name]
    centres = jnp.linspace(0, 1, 24)

    def features(time):  # bumps of the share of noise that the time stands for
        share = jax.nn.sigmoid(4 * time) if flow.prediction == "F" else paths.shares(time, flow)[1]
        bumps = jnp.exp(-(((share[:, None] - centres) * 24) ** 2) / 2)
        return bumps / bumps.sum(axis=1, keepdims=True)

    def network(params, z, time):
        slope, level = (jnp.tensordot(features(time), params[key], 1) for key in ("slope", "level"))
        return slope[:, None, None] * z + level[:, None, None]

    def batch(key, size):
        keys = jax.random.split(key, 3)
        x0 = MEAN + DEVIATION * jax.random.normal(keys[0], (size, 1, 1, 2))
        t = jax.vmap(lambda k: timesteps.sample(k, flow))(jax.random.split(keys[2], size))
        return x0, jax.random.normal(keys[1], x0.shape), t

    def mean_loss(params, examples):
        return jnp.mean(objectives.loss(functools.partial(network, params), flow, *examples))

    optim = optax.adam(optax.cosine_decay_schedule(0.1, 600))

    def step(state, key):
        params, opt = state
        slopes = jax.grad(mean_loss)(params, batch(key, 512))
        updates, opt = optim.update(slopes, opt)
        return (optax.apply_updates(params, updates), opt), None

    params = {"slope": jnp.zeros((24, 2)), "level": jnp.zeros((24, 2))}
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 600)))(
        (params, optim.init(params))
    )
    examples = batch(jax.random.key(1), 20_000)
    reached, best = mean_loss(params, examples), jnp.mean(objectives.loss(optimum(flow), flow, *examples))
    first, _ = samplers.span(flow)  # from the path's own marginal, where it begins short of noise
    noise = jax.random.normal(jax.random.key(2), (4000, 1, 1, 2))
    noise = (1 - first) * MEAN + np.hypot((1 - first) * DEVIATION, first) * noise
    velocity = objectives.velocity_of(functools.partial(network, params), flow)
    out = np.asarray(samplers.heun(velocity, noise, samplers.own_grid(50, 1.0, flow))).reshape(-1, 2)
    return float(reached), float(best), out.mean(axis=0), np.cov(out.T)


def check_trained(name: str) -> None:
    reached, best, mean, covariance = trained(name)
    assert best <= reached * 1.0001
    assert reached < 1.05 * best
    flow = (ALL | FREE)[name]
    if flow.density == "logit-normal" and flow.scale < 1:
        return  # such a density all but never draws the ends of the path: there the least loss leaves the network free
    np.testing.assert_allclose(mean, MEAN, atol=0.2)
    _, last = samplers.span(flow)  # from where a path that ends short of data goes to the data's mean
    expected = (1 - last) * DEVIATION**2 / np.hypot((1 - last) * DEVIATION, last)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), expected, rtol=0.15)


@pytest.mark.parametrize("name", ["rf/mode(1.29)", "eps/linear", "v/cos", "edm(-1.20, 1.20)"])
def test_a_formulation_trains_and_samples_to_the_optimum(name: str) -> None:
    check_trained(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_formulation_trains_and_samples_to_the_optimum(name: str) -> None:
    check_trained(name)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_lists_them_and_draws_their_densities(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["formulations", "--json", "-", "--plot", str(tmp_path / "flows")])
    assert stopped.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*ALL]
    assert all(set(row) == {"name", "z", "predicts", "weight", "t"} and all(row.values()) for row in rows)
    drawn = json.loads((tmp_path / "flows.json").read_text())
    assert (tmp_path / "flows.png").read_bytes().startswith(b"\x89PNG")
    for name, curve in drawn["densities"]["lognorm"].items():  # each is a density, and of what it says
        assert np.trapezoid(curve["density"], curve["t"]) == pytest.approx(1, abs=0.03)
        np.testing.assert_allclose(
            curve["density"], timesteps.pdf(jnp.float32(curve["t"]), ALL[name]), rtol=1e-3, atol=1e-6
        )
    for name in ("rf", "v/cos", "edm(-1.20, 1.20)"):
        spread = drawn["spreads"][name]
        assert -np.trapezoid(spread["density"], spread["log_snr"]) == pytest.approx(1, abs=0.02)


def test_the_command_takes_names_and_refuses_others_in_a_line(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["formulations", "rf/mode(1.29)", "v/cos"])
    assert stopped.value.code == 0
    assert "2 formulations" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["formulations", "rf/mode(5)"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "sd3-jax: error: flow: 'rf/mode(5)': s = 5 is out of range; valid: -1 to 1.75194\n"
    )
