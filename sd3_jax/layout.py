"""How a run lies on its chips, in closed form: the mesh, and an estimate of the memory of one chip.

What the compiler itself says of the memory, :mod:`sd3_jax.sweep.compile` asks.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from sd3_jax import flops
from sd3_jax.config import MeshConfig, RunConfig
from sd3_jax.errors import UserError

# mesh.remat, from what keeps most for the backward pass to what computes most again.
POLICIES = ("none", "elementwise", "dots", "full")
# Of a parameter: itself, both Adam moments and the average of the weights, float32.
STATE_BYTES = 16


class ChipMemory(NamedTuple):
    """Bytes on one chip while it trains, by what they hold."""

    state: int  # parameters, moments, average
    gradients: int
    batch: int  # a chip's examples
    kept: int  # by the forward pass, for the backward pass
    block: int  # of the one block that is at work

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self)


def mesh_shape(mesh: MeshConfig, batch: int, devices: int, sides: Sequence[int] = ()) -> tuple[int, int]:
    """(data, fsdp) over so many devices; data = -1 means what is left.

    ``sides`` of a torus of chips, whose links the mesh's axes follow: each takes whole sides.
    Raises UserError if devices, batch or sides do not divide so.

    >>> mesh_shape(MeshConfig(fsdp=16), batch=4096, devices=64, sides=(4, 4, 4))
    (4, 16)
    """
    data, fsdp = mesh.data, mesh.fsdp
    data = devices // fsdp if data == -1 else data
    if data * fsdp != devices:
        raise UserError(f"mesh: data {mesh.data} x fsdp {mesh.fsdp} does not fit {devices} devices")
    if batch % (devices * mesh.accumulate):
        parts = f" times {mesh.accumulate} parts (mesh.accumulate)" if mesh.accumulate > 1 else ""
        raise UserError(f"batch: {batch} is not divisible by the {devices} devices of the mesh{parts}")
    products = {math.prod(some) for n in range(len(sides) + 1) for some in itertools.combinations(sides, n)}
    if sides and fsdp not in products:
        torus, valid = "x".join(map(str, sides)), ", ".join(map(str, sorted(products)))
        raise UserError(f"mesh: data {data} x fsdp {fsdp} does not lie along the sides of {torus} chips; fsdp: {valid}")
    return data, fsdp


def estimate(config: RunConfig, data: int, fsdp: int, number_bytes: int = 2) -> ChipMemory:
    """Memory of one chip of a mesh of data x fsdp; a number that matmuls read takes ``number_bytes``.

    Large parameters, moments, averages and gradients are split over fsdp. What the blocks keep is counted in numbers
    of the residual stream (policies of :data:`sd3_jax.models.mmdit.KEPT`), and scores of attention, heads x tokens^2
    of an image, where they are kept or made again. XLA counts up to 1.35 times as much (small models on eight CPU
    devices, ``tests/test_compile.py``; 1.25 times at depth 38 of figure8, on v5p-128 and on v6e-256), and it alone says
    that a run fits.
    """
    model = config.model
    images = config.batch / (data * fsdp * config.mesh.accumulate)  # that are in the blocks at once
    parameters = flops.parameters(model).total / fsdp
    latents = model.latent_size**2 * model.latent_channels
    examples = 4 * (2 * latents + model.text_tokens * model.text_dim + model.pooled_dim)
    stream = images * (model.image_tokens + model.text_tokens) * model.width * number_bytes
    scores = images * model.heads * (model.image_tokens + model.text_tokens) ** 2 * 4  # a softmax is float32
    matmuls = (5 + model.mlp_ratio) * stream  # queries, keys, values, the attention's and the MLP's output; its inside
    inside = matmuls + (9 + 3 * model.mlp_ratio) * stream + 3 * scores
    kept = {"full": stream, "dots": stream + matmuls, "elementwise": 2 * stream + matmuls, "none": stream + inside}
    return ChipMemory(
        state=round(STATE_BYTES * parameters),
        gradients=round(4 * parameters),
        batch=round(config.batch / (data * fsdp) * examples),
        kept=round((model.depth - 1) * kept[config.mesh.remat]),
        block=round(inside),
    )
