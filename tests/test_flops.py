"""Parameters and FLOPs are the published integers, and those of the network itself."""

import jax
import jax.numpy as jnp
import pytest

from sd3_jax import flops
from sd3_jax.config import ModelConfig, resolve
from sd3_jax.errors import UserError
from sd3_jax.models.mmdit import MMDiT
from sd3_jax.training.step import init_params

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


def test_a_stored_table_is_no_parameter() -> None:
    model = ModelConfig(depth=2, position_table=True, position_grid=384)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert shapes.pop("position_table").shape == (384, 384, model.width)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == flops.parameters(model).total


@pytest.mark.parametrize("dual", [(), (0,), (0, 1), (1, 2), (0, 2)])
def test_forward_flops_are_the_matmuls_of_the_traced_network(dual: tuple[int, ...]) -> None:
    """An independent count: every dot_general in the unrolled network's jaxpr."""
    sizes = {"latent_size": 6, "text_tokens": 5, "text_dim": 24, "pooled_dim": 12, "time_dim": 10}
    model = ModelConfig(depth=3, head_dim=8, dual_attention=dual, **sizes)
    net, batch = MMDiT(model, unroll=1), 2
    shape = (batch, 6, 6, model.latent_channels)
    arguments = (jnp.zeros(shape), jnp.zeros(batch), jnp.zeros((batch, 5, 24)), jnp.zeros((batch, 12)))
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    jaxpr = jax.make_jaxpr(lambda p: net.apply({"params": p}, *arguments))(params)
    assert _matmul_flops(jaxpr.jaxpr) == batch * flops.forward_flops(model).total


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
