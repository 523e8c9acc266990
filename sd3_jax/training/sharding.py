"""Where arrays live: a mesh of (data, fsdp), one rule by shape for parameters, batches split over both axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sd3_jax.config import MeshConfig
from sd3_jax.layout import mesh_shape

SMALL = 2**18  # numbers; smaller parameters are replicated


def make_mesh(config: MeshConfig, batch: int, among: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) as data x fsdp; data = -1 means what is left.

    Raises UserError if they, the batch, or the sides of a torus of chips do not divide.
    """
    devices = jax.devices() if among is None else among
    shape = mesh_shape(config, batch, len(devices))
    auto = (AxisType.Auto, AxisType.Auto)
    try:
        return jax.make_mesh(shape, ("data", "fsdp"), axis_types=auto, devices=devices)
    except NotImplementedError:  # JAX's word, at length, for axes that do not follow the links between the chips
        sides = np.max([getattr(device, "coords", (0,)) for device in devices], axis=0) + 1
        mesh_shape(config, batch, len(devices), [int(side) for side in sides if side > 1])
        raise


def parameter_spec(shape: tuple[int, ...], fsdp: int, stacked: bool) -> P:
    """The largest dimension that divides is split over fsdp, never the scanned depth axis; small ones are whole.

    >>> parameter_spec((14, 960, 2880), 8, stacked=True) == P(None, None, "fsdp")
    True
    """
    if math.prod(shape) >= SMALL and fsdp > 1:
        for i in sorted(range(int(stacked), len(shape)), key=lambda i: -shape[i]):
            if shape[i] % fsdp == 0:
                return P(*[None] * i, "fsdp")
    return P()


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for every leaf of a train state (arrays or their shapes); optimizer and EMA go as parameters do."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        stacked = any("blocks" in str(getattr(key, "key", "")) for key in path)  # blocks, dual_blocks, blocks_7
        return NamedSharding(mesh, parameter_spec(np.shape(leaf), mesh.shape["fsdp"], stacked))

    return jax.tree_util.tree_map_with_path(sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on every device."""
    return NamedSharding(mesh, P())
