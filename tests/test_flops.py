"""Parameters and FLOPs are the published integers, and those of the network itself."""

import math

import jax
import jax.numpy as jnp
import pytest

from sd3_jax import flops
from sd3_jax.config import MeshConfig, ModelConfig
from sd3_jax.errors import UserError
from sd3_jax.overlays import resolve
from sd3_jax.training.step import init_params, make_model

# depth: parameters, forward FLOPs an image, exact training FLOPs an image, at 256 px (256 + 154 tokens)
PAPER = {
    15: (496_066_624, 144_766_264_320, 433_051_806_720),
    18: (856_159_552, 247_428_255_744, 740_788_383_744),
    21: (1_358_950_720, 389_932_139_520, 1_168_050_637_824),
    22: (1_562_387_264, 447_418_470_400, 1_340_426_498_048),
    24: (2_028_328_000, 578_823_192_576, 1_734_474_399_744),
    30: (3_962_392_384, 1_121_947_914_240, 3_363_349_770_240),
    38: (8_056_617_792, 2_265_974_247_424, 6_794_763_710_464),
}


@pytest.mark.parametrize("depth", PAPER)
def test_the_papers_sizes(depth: int) -> None:
    model = ModelConfig(depth=depth)
    parameters, forward, exact = PAPER[depth]
    assert flops.parameters(model).total == parameters
    assert flops.forward_flops(model).total == forward
    assert flops.train_flops(model) == 3 * forward
    assert flops.exact_train_flops(model) == exact


def test_the_released_sizes() -> None:
    """SD3-medium, SD3.5-large and SD3.5-medium."""
    assert flops.parameters(ModelConfig(depth=24)).total == 2_028_328_000
    assert flops.parameters(ModelConfig(depth=38, qk_norm=True)).total == 8_056_627_520
    dual = tuple(range(13))
    assert flops.parameters(ModelConfig(depth=24, qk_norm=True, dual_attention=dual)).total == 2_243_171_520


DUAL = {
    "none": lambda depth: (),
    "first half": lambda depth: range((depth + 1) // 2),
    "scattered": lambda depth: sorted({depth // 3, depth - 1}),
}


@pytest.mark.parametrize("depth", [1, 2, 15, 24, 38])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("dual", DUAL)
def test_parameters_are_those_of_the_network(depth: int, qk_norm: bool, dual: str) -> None:
    model = ModelConfig(depth=depth, qk_norm=qk_norm, dual_attention=tuple(DUAL[dual](depth)))
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == flops.parameters(model).total


RIVALS = {
    "DiT": {"weight_sets": 1},
    "three sets": {"weight_sets": 3},
    "CrossDiT": {"architecture": "crossdit"},
    "UViT": {"architecture": "uvit"},
    "UViT, two levels": {"architecture": "uvit", "patch": 4, "level_blocks": 3},
}


@pytest.mark.parametrize("depth", [1, 2, 15, 24, 38])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("name", RIVALS)
def test_parameters_are_those_of_the_rivals(depth: int, qk_norm: bool, name: str) -> None:
    model = ModelConfig(depth=depth, qk_norm=qk_norm, **RIVALS[name])
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == flops.parameters(model).total


def test_a_stored_table_is_no_parameter() -> None:
    model = ModelConfig(depth=2, position_table=True, position_grid=384)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert shapes.pop("position_table").shape == (384, 384, model.width)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == flops.parameters(model).total


@pytest.mark.parametrize("dual", [(), (0,), (0, 1), (1, 2), (0, 2)])
def test_forward_flops_are_the_matmuls_of_the_traced_network(dual: tuple[int, ...]) -> None:
    _check_traced(ModelConfig(depth=3, head_dim=8, dual_attention=dual, **SMALL))


@pytest.mark.parametrize("name", RIVALS)
def test_forward_flops_are_the_matmuls_of_the_traced_rivals(name: str) -> None:
    _check_traced(ModelConfig(depth=3, head_dim=8, **SMALL | RIVALS[name]))


SMALL = {"latent_size": 8, "text_tokens": 5, "clip_tokens": 2, "text_dim": 24, "pooled_dim": 12, "time_dim": 10}


def _check_traced(model: ModelConfig) -> None:
    """An independent count: every matmul and convolution in the jaxprs of the network and of its gradient."""
    net, batch = make_model(model, MeshConfig()), 2
    shape = (batch, 8, 8, model.latent_channels)
    arguments = (jnp.zeros(shape), jnp.zeros(batch), jnp.zeros((batch, 5, 24)), jnp.zeros((batch, 12)))
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    apply = lambda p: net.apply({"params": p}, *arguments)  # noqa: E731
    assert _matmul_flops(jax.make_jaxpr(apply)(params).jaxpr) == batch * flops.forward_flops(model).total
    gradient = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(apply(p) ** 2)))(params)
    assert _matmul_flops(gradient.jaxpr) == batch * flops.exact_train_flops(model)


def _matmul_flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = 1
            for axis in contracted:
                depth *= left[axis]
            total += 2 * equation.outvars[0].aval.size * depth
        elif equation.primitive.name == "conv_general_dilated":
            _, *contracted = equation.params["dimension_numbers"].rhs_spec
            kernel = equation.invars[1].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(kernel[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * _matmul_flops(inner)
    return total


def test_a_budget_is_never_exceeded_and_never_a_step_short() -> None:
    config = resolve({"flops": 1e19, "batch": 64})
    steps = flops.total_steps(config)
    cost = 64 * flops.train_flops(config.model)
    assert steps * cost <= 1e19 < (steps + 1) * cost
    assert flops.total_steps(resolve({"images": 1000, "batch": 64})) == 15


@pytest.mark.parametrize("length", [{"flops": 1e10}, {"images": 255}])
def test_a_budget_below_one_step_is_refused(length: dict) -> None:
    with pytest.raises(UserError, match="too small for one step"):
        flops.total_steps(resolve(length))
