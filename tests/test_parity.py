"""Velocities, gradients and sampling equal those of diffusers' SD3Transformer2DModel (fixtures, made without us)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from sd3_jax.flow import samplers
from sd3_jax.models import convert, layers
from sd3_jax.models.mmdit import MMDiT

CASES = list(parity.MODELS)
QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time; what is computed is the same


def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(parity.FIXTURES / f"parity_{name}.npz", allow_pickle=False) as file:
        return dict(file)


def tensors(case: str) -> dict[str, np.ndarray]:
    """The reference's weights, in its own names."""
    fixture = stored(case)
    made = {name: parity.weight(case, name, tuple(shape)) for name, shape in json.loads(str(fixture["shapes"])).items()}
    assert parity.checksum(made) == fixture["checksum"]
    return made


def params(case: str) -> dict:
    theirs, model = tensors(case), parity.MODELS[case]
    convert.check({name: tensor.shape for name, tensor in theirs.items()}, model)
    return convert.from_tensors(theirs.__getitem__, model)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_no_weight_is_trivial(case: str) -> None:
    """So that nothing that is compared below could be left out unseen."""
    assert min(tensor.std() for tensor in tensors(case).values()) > 0.05


@pytest.mark.parametrize("shape", parity.SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_velocities_are_the_references(case: str, shape: str) -> None:
    net = MMDiT(parity.MODELS[case])
    ours = jax.jit(net.apply, compiler_options=QUICK)({"params": params(case)}, *parity.inputs(case, shape))
    assert distance(np.asarray(ours), stored(case)[f"velocity {shape}"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_references(case: str) -> None:
    """Of sum(v * cotangent) by every parameter; each tensor against its own largest number."""
    model, fixture, arguments = parity.MODELS[case], stored(case), parity.inputs(case, "154")
    cotangent = parity.uniform("cotangent", fixture["velocity 154"].shape)
    loss = lambda p, *a: jnp.sum(MMDiT(model).apply({"params": p}, *a) * cotangent)  # noqa: E731
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(params(case), *arguments)
    gradients = dict(convert.to_tensors(gradient, model))
    np.testing.assert_array_equal(gradients.pop("pos_embed.pos_embed"), 0)  # a buffer there, and here never trained
    theirs = {name.removeprefix("gradient "): x for name, x in fixture.items() if name.startswith("gradient ")}
    assert gradients.keys() == theirs.keys()
    unused = f"transformer_blocks.{model.depth - 1}.attn.add_q_proj"
    far = {}
    for name, ours in gradients.items():
        if name.startswith(unused) or name.endswith(f"{model.depth - 1}.attn.norm_added_q.weight"):
            np.testing.assert_array_equal(ours, 0)  # queries of a text stream that ends
        else:
            far[name] = distance(ours, theirs[name])
    assert max(far.values()) < 1e-4, far


@pytest.mark.parametrize("steps, shift", [(5, 3.0), (10, 3.0), (28, 3.0), (5, 1.0), (1, 3.0)])
def test_the_schedulers_sigmas(steps: int, shift: float) -> None:
    ours = samplers.scheduler_grid(steps, shift)
    np.testing.assert_allclose(ours, stored("flow")[f"sigmas {steps} {shift:g}"], rtol=0, atol=1e-6)


def test_the_schedulers_published_sigmas() -> None:
    vectors = {
        (5, 3.0): [1, 0.900359, 0.751121, 0.502985, 0.008929, 0],
        (10, 3.0): [1, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0],
        (5, 1.0): [1, 0.75025, 0.5005, 0.25075, 0.001, 0],
    }
    for (steps, shift), sigmas in vectors.items():
        np.testing.assert_allclose(samplers.scheduler_grid(steps, shift), sigmas, rtol=0, atol=1e-6)


def test_guided_sampling_equals_the_references_step_by_step() -> None:
    model, weights = parity.MODELS["dual"], params("dual")
    z, _, tokens, pooled = parity.inputs("dual", "154")
    grid = samplers.scheduler_grid(parity.SAMPLER_STEPS, parity.SCHEDULE_SHIFT)

    def step(z: jax.Array, interval: jax.Array, tokens: jax.Array, pooled: jax.Array) -> jax.Array:
        said = lambda z, t: MMDiT(model).apply({"params": weights}, z, t, tokens, pooled)  # noqa: E731
        none = lambda z, t: MMDiT(model).apply({"params": weights}, z, t, 0 * tokens, 0 * pooled)  # noqa: E731
        return samplers.euler(samplers.guided(said, none, parity.GUIDANCE), z, interval)

    step = jax.jit(step, compiler_options=QUICK)
    theirs = stored("dual")["latents"]
    assert len(theirs) == parity.SAMPLER_STEPS
    for i, latents in enumerate(theirs):
        z = step(z, grid[i : i + 2], tokens, pooled)
        assert distance(np.asarray(z), latents) < 1e-5


def test_positions_are_the_references() -> None:
    """Its table is computed in float32 from float32 coordinates, ours in float64: 1e-6 apart."""
    ours = layers.positions(np.arange(6), np.arange(6), 16)
    np.testing.assert_allclose(ours, stored("flow")["positions"], rtol=0, atol=1e-6)
