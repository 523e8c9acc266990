"""One device and eight, in every mesh: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import tiny

from sd3_jax.config import MeshConfig
from sd3_jax.evaluation import validation
from sd3_jax.training import sharding
from sd3_jax.training.step import jit_step, make_draw, make_init, make_model


def run(mesh_config: MeshConfig, devices: int, steps: int = 20) -> tuple[list[float], dict[str, float]]:
    config = tiny(**{"evaluation.examples": 13})  # not a multiple of the devices
    mesh = sharding.make_mesh(mesh_config, config.batch, jax.devices()[:devices])
    init = make_init(config, steps)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(init, jnp.uint32(0)))
    state = jax.jit(init, out_shardings=shardings)(jnp.uint32(0))
    draw = make_draw(config, mesh)
    step = jit_step(config, steps, mesh, shardings)
    losses = []
    for i in range(steps):
        state, metrics = step(state, draw(jnp.uint32(0), jnp.int32(i)))
        losses.append(float(metrics["loss"]))
    return losses, validation.make_eval(config, make_model(config.model, config.mesh), mesh)(state.ema)


@pytest.fixture(scope="module")
def single() -> tuple[list[float], dict[str, float]]:
    return run(MeshConfig(), 1)


OTHERS = [pytest.param(data, 8 // data, marks=pytest.mark.slow) for data in (8, 4, 1)]


@pytest.mark.parametrize("data, fsdp", [(2, 4), *OTHERS])
def test_eight_devices_agree_with_one(
    single: tuple[list[float], dict[str, float]], data: int, fsdp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "SMALL", 64)  # so that the tiny model's parameters really are split
    losses, scores = run(MeshConfig(data=data, fsdp=fsdp), 8)
    assert losses[-1] < 0.98 * losses[0]
    np.testing.assert_allclose(losses, single[0], rtol=1e-5)
    assert scores == pytest.approx(single[1], rel=1e-4)


@pytest.mark.slow
def test_parts_of_a_batch_one_after_another_are_the_batch(
    single: tuple[list[float], dict[str, float]],
) -> None:
    losses, scores = run(MeshConfig(accumulate=4), 4)
    np.testing.assert_allclose(losses, single[0], rtol=1e-5)
    assert scores == pytest.approx(single[1], rel=1e-4)


def test_large_parameters_are_split_and_optimizer_and_average_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SMALL", 64)
    config = tiny(**{"model.depth": 4})
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8), 16)
    shapes = jax.eval_shape(make_init(config, 1), jnp.uint32(0))
    state = sharding.state_shardings(mesh, shapes)
    kernel = lambda tree: tree["blocks"]["image"]["qkv"]["kernel"].spec  # noqa: E731
    assert kernel(state.params) == kernel(state.ema) == sharding.parameter_spec((3, 32, 96), 8, stacked=True)
    assert "fsdp" in kernel(state.params)
    assert kernel(state.params)[0] is None  # never the scanned depth axis
    split = sum(x.size for x, s in zip(*map(jax.tree.leaves, (shapes, state)), strict=True) if "fsdp" in s.spec)
    assert split / sum(x.size for x in jax.tree.leaves(shapes)) > 0.9


def test_no_stack_of_blocks_is_split_along_its_depth() -> None:
    mesh = sharding.make_mesh(MeshConfig(fsdp=8), 8)
    leaf = jax.ShapeDtypeStruct((4096, 64, 8), jnp.float32)
    for name in ("blocks", "dual_blocks", "dual_blocks_7"):
        assert sharding.state_shardings(mesh, {name: {"kernel": leaf}})[name]["kernel"].spec == P(None, "fsdp")
    assert sharding.state_shardings(mesh, {"last_block": {"kernel": leaf}})["last_block"]["kernel"].spec == P("fsdp")
