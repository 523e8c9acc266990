"""A checksum notices any change of one number, and is the same on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sd3_jax.training.checksums import checksum, checksums, differing


def by_hand(x: np.ndarray) -> int:
    """In whole numbers without end, one place after another."""
    bits = np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")
    return sum(int(value) * (2 * place + 1) for place, value in enumerate(bits)) % 2**32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2)])
def test_equals_the_sum_by_hand(dtype, shape: tuple[int, ...]) -> None:
    x = jnp.asarray(100 * np.random.default_rng(0).normal(size=shape), dtype)
    assert int(checksum(x)) == by_hand(np.asarray(x))


def test_every_flip_of_every_bit_is_noticed() -> None:
    x = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    flipped = np.repeat(x[None], 24 * 32, axis=0).view(np.uint32).reshape(24 * 32, 24)
    for number in range(24 * 32):
        flipped[number, number // 32] ^= np.uint32(1) << (number % 32)
    sums = jax.vmap(checksum)(jnp.asarray(flipped.view(np.float32).reshape(-1, 4, 6)))
    assert not (np.asarray(sums) == int(checksum(jnp.asarray(x)))).any()


def test_any_mesh_gives_the_same_sums_and_names_what_differs() -> None:
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tree = {"a": jnp.arange(64.0).reshape(8, 8), "b": {"c": jnp.ones((16,))}}
    sums = checksums(tree)
    for spec in (P("fsdp"), P("data"), P(("data", "fsdp")), P()):
        at = jax.sharding.NamedSharding(mesh, spec)
        split = jax.device_put(tree, jax.tree.map(lambda _, at=at: at, tree))
        assert differing(split, sums) == []
        split["b"]["c"] = split["b"]["c"].at[3].set(1.0000001)
        assert differing(split, sums) == ["b/c"]
