"""Accelerators by name: the chips, hosts and shape of a TPU slice, or of hosts with GPUs. Data and one lookup.

TPUs keep the names that Google gives them, which count tensor cores for v4 and v5p and chips for v5e and v6e: a
v5p-128 has 64 chips, a v6e-256 has 256. GPUs are ``h100x8``, or ``h100x16`` for two hosts of eight. A chip is one
device to JAX in every case.
"""

import difflib
import math
import re
from typing import NamedTuple

from sd3_jax.errors import UserError

_NEAREST = 6


class Hardware(NamedTuple):
    """A TPU slice, or hosts with GPUs. What only TPUs have is empty for GPUs."""

    name: str
    generation: str  # v5p, h100, ...
    device_kind: str  # as JAX names the devices, and flops.PEAK_FLOPS with it
    chips: int  # in all: devices, as JAX counts them
    hosts: int
    hbm_bytes: int  # of one chip, as data sheets count them
    topology: str = ""  # of the chips: 4x4x4
    gke_accelerator: str = ""  # the node label cloud.google.com/gke-tpu-accelerator
    accelerator_type: str = ""  # gcloud's --accelerator-type
    runtime_version: str = ""  # gcloud's --runtime-version

    @property
    def chips_per_host(self) -> int:
        """How many chips one host has; every host has as many."""
        return self.chips // self.hosts


class _Generation(NamedTuple):
    device_kind: str
    hbm_bytes: int
    cores: int  # tensor cores of a chip, where names count those
    gke_accelerator: str
    prefix: str  # of gcloud's accelerator types
    runtime_version: str
    topologies: str


_3D = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x4x12 4x8x8 4x8x12 8x8x8 8x8x12 8x8x16 8x16x16 16x16x16"
_2D = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_TPUS = {
    "v4": _Generation("TPU v4", 32 * 10**9, 2, "tpu-v4-podslice", "v4", "tpu-ubuntu2204-base", _3D),
    "v5e": _Generation("TPU v5 lite", 16 * 10**9, 1, "tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite", _2D),
    "v5p": _Generation("TPU v5p", 95 * 10**9, 2, "tpu-v5p-slice", "v5p", "v2-alpha-tpuv5", f"{_3D} 16x16x24"),
    "v6e": _Generation("TPU v6e", 32 * 10**9, 1, "tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e", _2D),
}
_GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", 80 * 10**9),
    "h100": ("NVIDIA H100 80GB HBM3", 80 * 10**9),
    "h200": ("NVIDIA H200", 141 * 10**9),
}
_GPUS_PER_HOST = 8


def _slice(generation: str, topology: str) -> Hardware:
    about = _TPUS[generation]
    sides = [int(side) for side in topology.split("x")]
    chips = math.prod(sides)
    # Hosts hold four chips, but for the flat slices that fit one host: one chip, or eight.
    per_host = chips if len(sides) == 2 and chips <= 8 else 4
    size = chips * about.cores
    return Hardware(
        name=f"{generation}-{size}",
        generation=generation,
        device_kind=about.device_kind,
        chips=chips,
        hosts=chips // per_host,
        hbm_bytes=about.hbm_bytes,
        topology=topology,
        gke_accelerator=about.gke_accelerator,
        accelerator_type=f"{about.prefix}-{size}",
        runtime_version=about.runtime_version,
    )


def _gpus(generation: str, chips: int) -> Hardware:
    device_kind, hbm_bytes = _GPUS[generation]
    return Hardware(f"{generation}x{chips}", generation, device_kind, chips, -(-chips // _GPUS_PER_HOST), hbm_bytes)


HARDWARE: dict[str, Hardware] = {
    each.name: each
    for each in (
        *(_slice(name, topology) for name, about in _TPUS.items() for topology in about.topologies.split()),
        *(_gpus(name, 2**power) for name in _GPUS for power in range(10)),
    )
}


def find(name: str) -> Hardware:
    """The hardware of this name; ``v5litepod-16`` is v5e-16. Raises UserError that lists the nearest names.

    >>> v5p = find("v5p-128")
    >>> v5p.chips, v5p.hosts, v5p.chips_per_host, v5p.topology
    (64, 16, 4, '4x4x4')
    >>> find("h100x16").hosts
    2
    """
    key = name.strip().lower().replace("v5litepod-", "v5e-")
    if key not in HARDWARE:
        raise UserError(f"--hardware: {name!r} is not known; nearest: {', '.join(_nearest(key)[:_NEAREST])}")
    return HARDWARE[key]


def _nearest(name: str) -> list[str]:
    """Of the same generation by size, where there is one of that generation; else by spelling."""
    asked = re.fullmatch(r"(v\d\w?|[a-z]\d+)(?:[-x](\d{1,9}))?", name)
    kin = [each for each in HARDWARE.values() if asked and each.generation == asked[1]]
    if not asked or not kin:
        return sorted(HARDWARE, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    size = max(1, int(asked[2] or 1))
    return [each.name for each in sorted(kin, key=lambda each: abs(math.log(_size(each.name) / size)))]


def _size(name: str) -> int:
    return int(re.split("[-x]", name)[1])
