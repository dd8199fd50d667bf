"""Which GPU a task uses.

Spark's GPU-aware scheduling gives each task an address, as conf/discover_gpus.sh found it; in local mode it
gives none, and GPUs are dealt out by partition. Runs inside a task; imports no model library.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pyspark import TaskContext

_UUIDS: Final = ("MIG-", "GPU-")


def task_device(requested: str) -> str:
    """Return the device for the current task.

    Where Spark gave a UUID, this process, and so the model host that it starts, sees that device alone from
    then on: CUDA shows a process one MIG device at most, whatever is listed, and no index names another. Only
    where CUDA runs in this process already (no model host, and an earlier task had another address) does it
    come too late: the worker then keeps its first device.

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
        address = assigned.addresses[0]
        if address.startswith(_UUIDS):
            os.environ["CUDA_VISIBLE_DEVICES"] = address
        return f"cuda:{device_index(address, os.environ.get('CUDA_VISIBLE_DEVICES'))}"
    partition = context.partitionId() if context else 0
    return f"{requested}:{partition % max(1, num_visible_gpus())}"


def device_index(address: str, visible: str | None) -> int:
    """Map the address that Spark gave to the index that CUDA counts by.

    Args:
        address: From the executor's discovery script: an index, or a UUID, which is then the only visible
            device.
        visible: `CUDA_VISIBLE_DEVICES` of this process; None where nobody set it.
    """
    if not address.isdecimal():
        return 0
    if visible is None:
        return int(address)
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    if address in devices:
        return devices.index(address)
    # Someone narrowed the list already, and the address counts within it: it must not be mapped again.
    return int(address) % max(1, len(devices))


def num_visible_gpus() -> int:
    """Count the NVIDIA GPUs that this process may use, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",") if device.strip() not in {"", "-1"}]
        # Of several MIG devices CUDA shows the first.
        return 1 if any(device.startswith("MIG-") for device in devices) else len(devices)
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0
