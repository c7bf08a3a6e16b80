"""Where a GPU is plugged in, from sysfs: below which root port of PCIe, and near which memory."""

from __future__ import annotations

import os
import re

from trimtab.agent import procfs

DEVICES = "/sys/bus/pci/devices"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def slot(address: str, devices: str = DEVICES) -> dict[str, str]:
    """The labels `pcie_root` and `numa_node` of the device at a PCI address as in `kmsg`; without what is not known.

    GPUs below one root port share its link to the CPU, mostly behind one switch. In virtual machines the devices mostly stand side by
    side on the root bus, and there is nothing to share.
    """
    path = f"{devices}/{address}.0"
    out: dict[str, str] = {}
    # …/devices/pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:08.0/0000:45:00.0: root bus, root port, the two ports of a switch, GPU.
    above = [part for part in os.path.realpath(path).split("/") if _ADDRESS.fullmatch(part)][:-1]
    if above and address:
        out["pcie_root"] = above[0]
    try:
        node = procfs.read(f"{path}/numa_node").strip()
    except OSError:
        return out
    return out | ({"numa_node": node} if node.isdecimal() else {})
