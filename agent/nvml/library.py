"""NVIDIA's management library (NVML): the only file that imports pynvml, and the errors of NVML as ours.

What a GPU or its driver does not support is None, never an error and never 0.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any

import pynvml as nvml

from trimtab.agent.kmsg import canonical
from trimtab.agent.registry import Unavailable

log = logging.getLogger(__name__)

DEVICES_MAX = 64
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Of a field's value, by its type."""
_NO_HANDLE = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_UNKNOWN)
"""What drivers answer who asks for a GPU that they count and cannot reach."""
_ENDS = {nvml.NVML_NVLINK_DEVICE_TYPE_GPU: "nvlink_gpus", nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH: "nvlink_switches"}
_missing: set[str] = set()
"""Calls that this driver does not have: looking for one again costs more than a call."""


class Lost(Exception):
    """The GPU does not answer: it fell off the bus, or waits for a reset."""

    def __init__(self, why: str = "it fell off the bus") -> None:
        super().__init__(why)


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a MIG instance of one, as it was found."""

    handle: Any
    """None where it was lost before it was found."""
    index: int
    uuid: str
    name: str
    address: str
    """PCI address, as in `kmsg`; empty where unknown."""


def connect() -> tuple[Device, ...]:
    """The GPUs of this host. Raises Unavailable where there is no driver or none of them. Counted: each needs its `disconnect`."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise Unavailable("no NVIDIA driver, which only a host with GPUs needs") from error
        raise Unavailable(f"no NVML: {error}", 'load the NVIDIA driver, or set agent.disable = ["gpu"]') from error
    count = min(call("nvmlDeviceGetCount") or 0, DEVICES_MAX)
    devices = tuple(device for index in range(count) if (device := _device(index)) is not None)
    if not devices:
        disconnect()
        raise Unavailable("NVML sees no GPU")
    return devices


def disconnect() -> None:
    """Let go of the library."""
    call("nvmlShutdown")


def found_again(device: Device) -> Device:
    """The GPU at the same index, now; the same object where it is still lost."""
    again = _device(device.index)
    return device if again is None or again.handle is None else again


def call(name: str, *arguments: Any) -> Any | None:
    """What an NVML call answers; None where this GPU or driver does not support it. Raises Lost."""
    if name in _missing:
        return None
    try:
        return getattr(nvml, name)(*arguments)
    except nvml.NVMLLibraryMismatchError:
        _missing.add(name)
        return None
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            _missing.add(name)
        if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
            raise Lost from error
        if error.value == nvml.NVML_ERROR_RESET_REQUIRED:
            raise Lost("it waits for a reset") from error
        return None


def fields(device: Device, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Field values by (id, scope), in one call; those that are not supported are left out. Raises Lost if none is known for that."""
    found = call("nvmlDeviceGetFieldValues", device.handle, list(wanted))
    out: dict[tuple[int, int], float] = {}
    for one in found or ():
        if one.nvmlReturn == nvml.NVML_SUCCESS and one.valueType < len(_MEMBERS):
            out[one.fieldId, one.scopeId] = float(getattr(one.value, _MEMBERS[one.valueType]))
    # The driver may know by itself what it asks for of a GPU that is lost.
    if not out and any(one.nvmlReturn == nvml.NVML_ERROR_GPU_IS_LOST for one in found or ()):
        raise Lost
    return out


def constant(name: str) -> int:
    """A constant by its name in nvml.h."""
    return int(getattr(nvml, name))


def fabric(device: Device) -> tuple[int, bool, int] | None:
    """(state, whether it was joined in vain, health mask) of its NVLink fabric; None where it belongs to none. Raises Lost."""
    info = nvml.c_nvmlGpuFabricInfo_v2_t()
    answer = call("nvmlDeviceGetGpuFabricInfoV", device.handle, byref(info))
    if answer is None or info.state == nvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return None
    # The status is of a registration that has ended; before that it says nothing.
    failed = info.state == nvml.NVML_GPU_FABRIC_STATE_COMPLETED and info.status != nvml.NVML_SUCCESS
    return int(info.state), failed, int(info.healthMask)


def nvlink_end(device: Device, link: int) -> tuple[str, str] | None:
    """What a link leads to, as (label, PCI address); None where that is neither a GPU nor a switch, or not known. Raises Lost."""
    label = _ENDS.get(call("nvmlDeviceGetNvLinkRemoteDeviceType", device.handle, link))
    pci = call("nvmlDeviceGetNvLinkRemotePciInfo", device.handle, link) if label else None
    return (label, canonical(_text(pci.busId))) if label and pci and pci.busId else None


def _device(index: int) -> Device | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        pci = call("nvmlDeviceGetPciInfo", handle)
    except Lost:
        return Device(None, index, f"index-{index}", "lost", "")
    except nvml.NVMLError as error:
        if error.value in _NO_HANDLE:
            return Device(None, index, f"index-{index}", "lost", "")
        log.warning("GPU %d is left out: %s", index, error)
        return None
    return Device(handle, index, uuid, name, "" if pci is None else canonical(_text(pci.busId)))


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
