"""Where arrays live: a mesh of (data, fsdp), one rule by shape for parameters, batches split over both axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sd3_jax.config import MeshConfig
from sd3_jax.errors import UserError

SMALL = 2**18  # numbers; smaller parameters are replicated


def make_mesh(config: MeshConfig, batch: int, among: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) as data x fsdp; data = -1 means what is left.

    Raises UserError if they, or the batch, do not divide.
    """
    devices = len(among or jax.devices())
    data, fsdp = config.data, config.fsdp
    data = devices // fsdp if data == -1 else data
    if data * fsdp != devices:
        raise UserError(f"mesh: data {config.data} x fsdp {config.fsdp} does not fit {devices} devices")
    if batch % (devices * config.accumulate):
        parts = f" times {config.accumulate} parts (mesh.accumulate)" if config.accumulate > 1 else ""
        raise UserError(f"batch: {batch} is not divisible by the {devices} devices of the mesh{parts}")
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=auto, devices=among)


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
