"""Checksums of arrays that do not depend on how they are laid out over devices.

Orbax gives back a flipped byte of a data file as another number, in silence. A CRC of each shard's bytes would notice,
but could be checked on the mesh that saved it alone; this sum is the same on any mesh and host count, and is computed
where the numbers are, by the compiled program, so that what is checked is what arrived on the devices.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

_BITS: dict[int, Any] = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksum(x: Shaped[Array, "*s"]) -> UInt32[Array, ""]:
    """sum_i bits_i (2 i + 1) modulo 2^32, bits_i those of the number in place i, row by row.

    A change of one number by any of its bits always changes the sum: an odd weight divides no power of two.
    """
    bits = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def checksums(tree: Any) -> Any:
    """Of every leaf, in the same tree, whole on every device."""
    return _program(getattr(jax.tree.leaves(tree)[0].sharding, "mesh", None))(tree)


@cache
def _program(mesh: Mesh | None) -> Any:
    whole = NamedSharding(mesh, PartitionSpec()) if mesh is not None else None
    return jax.jit(lambda tree: jax.tree.map(checksum, tree), out_shardings=whole)


def differing(tree: Any, sums: Any) -> list[str]:
    """The paths of the leaves whose checksum is not the one that was stored."""
    ours = jax.tree_util.tree_leaves_with_path(jax.device_get(checksums(tree)))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, own), stored in zip(ours, jax.tree.leaves(sums), strict=True)
        if int(own) != int(stored)
    ]
