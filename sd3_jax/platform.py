"""What is settled before a process imports JAX: its processors, its platform, how it keeps its memory."""

import glob
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, MutableMapping

from sd3_jax.errors import UserError

# glibc gives large buffers back to the kernel after every step and takes them again, zeroed page by page, in the
# next: on CPU that was a third of a step's time. Kept instead, in huge pages. Read once, when a process starts.
_KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.hugetlb=1"


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set up this process for JAX: call it before the first import of jax.

    ``SD3_JAX_CPUS`` (``0,1``) confines the process to these cores, so that the cells of a sweep that run side by
    side do not share any. Without an accelerator ``JAX_PLATFORMS`` becomes ``cpu``. What the user has set stays.
    """
    cpus = environ.get("SD3_JAX_CPUS")
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    if not has_accelerator(environ):
        environ.setdefault("JAX_PLATFORMS", "cpu")


def memory_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to the environment of a process that is about to start and will train on CPU."""
    return {} if "GLIBC_TUNABLES" in environ or sys.platform != "linux" else {"GLIBC_TUNABLES": _KEEP_MEMORY}


def has_accelerator(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether JAX will find a GPU or a TPU, told without importing it: a device file, and a plugin to drive it."""
    if environ.get("JAX_PLATFORMS"):
        return environ["JAX_PLATFORMS"].split(",")[0] != "cpu"
    plugins = " ".join(point.name for point in importlib.metadata.entry_points(group="jax_plugins"))
    if "cuda" in plugins and glob.glob("/dev/nvidia[0-9]*"):
        return True
    if "rocm" in plugins and os.path.exists("/dev/kfd"):
        return True
    tpus = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(tpus) and importlib.util.find_spec("libtpu") is not None


def gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def is_one_of_many(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a worker of a sweep spans hosts, and this process is the one of its host.

    So say our launchers (``SD3_JAX_HOSTS``, their number), the user (``SD3_JAX_COORDINATOR``), or a TPU slice of
    several hosts. ``SD3_JAX_ALONE``, which a worker of one host sets for its cells, says no.
    """
    if environ.get("SD3_JAX_ALONE"):
        return False
    tpu_hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    return bool(environ.get("SD3_JAX_COORDINATOR")) or len(tpu_hosts) > 1 or hosts(environ) > 1


def hosts(environ: Mapping[str, str] = os.environ) -> int:
    """SD3_JAX_HOSTS, or 1. Raises UserError where it is no number of hosts."""
    given = environ.get("SD3_JAX_HOSTS") or "1"
    if not re.fullmatch("[1-9][0-9]{0,5}", given):
        raise UserError(f"SD3_JAX_HOSTS: {given!r} is not a number of hosts")
    return int(given)


def cores() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
