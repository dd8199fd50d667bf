"""Which GPU a task uses.

Spark's GPU-aware scheduling gives each task an address; in local mode it gives none, and GPUs are dealt
out by partition. Runs inside a task; imports no model library.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyspark import TaskContext


def task_device(requested: str) -> str:
    """Return the device for the current task.

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        `cpu`; `cuda:N`; or `auto:N`: GPU N where the model's library can use it, else the CPU.
    """
    if requested not in {"auto", "cuda"}:
        return requested
    context = TaskContext.get()
    assigned = context.resources().get("gpu") if context else None
    if assigned is not None:
        return f"cuda:{device_index(assigned.addresses[0], os.environ.get('CUDA_VISIBLE_DEVICES'))}"
    partition = context.partitionId() if context else 0
    return f"{requested}:{partition % max(1, num_visible_gpus())}"


def device_index(address: str, visible: str | None) -> int:
    """Map the address that Spark gave to the index that CUDA counts by.

    Args:
        address: From the executor's discovery script: an index, or a MIG device's UUID.
        visible: `CUDA_VISIBLE_DEVICES` of this process; None where nobody set it.
    """
    if visible is None:
        return int(address) if address.isdecimal() else 0
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    if address in devices:
        return devices.index(address)
    # Someone narrowed the list already, and the address counts within it: it must not be mapped again.
    return int(address) % max(1, len(devices)) if address.isdecimal() else 0


def num_visible_gpus() -> int:
    """Count the NVIDIA GPUs that this process may use, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in {"", "-1"}])
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0
