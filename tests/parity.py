"""What the fixtures of parity are made of: sizes, inputs and weights that torch and we make alike, from a seed.

Weights and inputs are not stored: each array is drawn by name (uniform numbers, which NumPy's bit generators fix),
and the fixture holds a checksum of them.
"""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from sd3_jax.config import ModelConfig

FIXTURES = Path(__file__).parent / "fixtures"
_SMALL = ModelConfig(head_dim=4, latent_size=16, text_dim=24, pooled_dim=20, position_table=True, position_grid=12)
MODELS = {
    "plain": dataclasses.replace(_SMALL, depth=4, head_dim=8),
    "qk_norm": dataclasses.replace(_SMALL, depth=6, qk_norm=True),
    "dual": dataclasses.replace(_SMALL, depth=5, head_dim=8, qk_norm=True, dual_attention=(0, 1, 2)),
}
SHAPES = {  # batch, text tokens, latent height and width
    "77": (1, 77, 16, 16),
    "154": (3, 154, 8, 20),
    "333": (1, 333, 24, 10),
}
GUIDANCE, SCHEDULE_SHIFT, SAMPLER_STEPS = 5.0, 3.0, 6


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in (-1, 1), a function of the name and the shape alone."""
    return (2 * np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 1).astype(np.float32)


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the reference, none of it trivial: gains about 1, matrices of the scale of their fan-in."""
    numbers = uniform(f"{case} {name}", shape)
    if ".norm_" in name:
        return 1 + 0.5 * numbers
    if name.endswith("weight"):
        return numbers * np.float32(np.sqrt(3 / np.prod(shape[1:])))
    return 0.5 * numbers


def inputs(case: str, shape: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """z [b h w c], t [b], tokens [b m text_dim], pooled [b pooled_dim]."""
    model, (batch, tokens, height, width) = MODELS[case], SHAPES[shape]
    sizes = {
        "z": (batch, height, width, model.latent_channels),
        "t": (batch,),
        "tokens": (batch, tokens, model.text_dim),
        "pooled": (batch, model.pooled_dim),
    }
    z, t, states, pooled = (uniform(f"{case} {shape} {name}", size) for name, size in sizes.items())
    return 2 * z, (t + 1) / 2, 2 * states, 2 * pooled


def checksum(arrays: dict[str, np.ndarray]) -> int:
    """Of names and bits."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), total))
    return total
