"""NVIDIA's management library, behind one class: the only file that imports pynvml."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml as nvml

from trimtab.agent.registry import Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

DEVICES_MAX = 64
MEGAHERTZ = 1e6
MILLIWATTS = 1e3
REASONS = {
    "hardware slowdown": nvml.nvmlClocksEventReasonHwSlowdown,
    "software thermal slowdown": nvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hardware thermal slowdown": nvml.nvmlClocksEventReasonHwThermalSlowdown,
    "software power cap": nvml.nvmlClocksEventReasonSwPowerCap,
    "hardware power brake": nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}
"""Why a GPU may clock lower than it could, other than being idle or told to."""


class Lost(Exception):
    """The GPU fell off the bus."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as it was found."""

    handle: Any
    """None where it was lost before it was found."""
    index: int
    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class State:
    """What a GPU says now. None: it cannot say."""

    utilisation_ratio: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_celsius: float | None
    sm_clock_hertz: float | None
    sm_clock_max_hertz: float | None
    throttled_by: frozenset[str] | None
    """Names of REASONS."""
    ecc_uncorrected_total: float | None
    """Since the driver was loaded."""
    row_remap_pending: float | None
    row_remap_failure: float | None
    pcie_generation: float | None
    pcie_width: float | None
    pcie_replays: float | None
    """Since the driver was loaded."""
    pids: frozenset[int] | None
    """Processes that compute on it."""


def connect() -> tuple[Device, ...]:
    """The GPUs of this host. Raises Unavailable where there is no driver or none of them."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise Unavailable("no NVIDIA driver, which only a host with GPUs needs") from error
        raise Unavailable(f"no NVML: {error}", 'load the NVIDIA driver, or set agent.disable = ["gpu"]') from error
    devices = []
    for index in range(min(_ask(nvml.nvmlDeviceGetCount) or 0, DEVICES_MAX)):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            devices.append(Device(handle, index, nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)))
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                devices.append(Device(None, index, f"index-{index}", "lost"))
            else:
                log.warning("GPU %d is left out: %s", index, error)
    if not devices:
        disconnect()
        raise Unavailable("NVML sees no GPU")
    return tuple(devices)


def disconnect() -> None:
    """Let go of the library."""
    _ask(nvml.nvmlShutdown)


def state(device: Device) -> State:
    """Raises Lost."""
    handle = device.handle
    if handle is None:
        raise Lost
    utilisation = _ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    remapped = _ask(nvml.nvmlDeviceGetRemappedRows, handle)
    reasons = _ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:  # drivers before 535 know it by its old name only
        reasons = _ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    processes = _ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    uncorrected = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    return State(
        utilisation_ratio=_scaled(utilisation and utilisation.gpu, 0.01),
        memory_used_bytes=memory and memory.used,
        memory_total_bytes=memory and memory.total,
        power_watts=_scaled(_ask(nvml.nvmlDeviceGetPowerUsage, handle), 1 / MILLIWATTS),
        power_limit_watts=_scaled(_ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1 / MILLIWATTS),
        temperature_celsius=_ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        sm_clock_hertz=_scaled(_ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM), MEGAHERTZ),
        sm_clock_max_hertz=_scaled(_ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM), MEGAHERTZ),
        throttled_by=None if reasons is None else frozenset(name for name, bit in REASONS.items() if reasons & bit),
        ecc_uncorrected_total=_ask(nvml.nvmlDeviceGetTotalEccErrors, handle, *uncorrected),
        row_remap_pending=remapped and remapped[2],
        row_remap_failure=remapped and remapped[3],
        pcie_generation=_ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        pcie_width=_ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        pcie_replays=_ask(nvml.nvmlDeviceGetPcieReplayCounter, handle),
        pids=None if processes is None else frozenset(process.pid for process in processes),
    )


def _ask(query: Callable[..., T], *arguments: Any) -> T | None:
    """None for whatever this GPU or driver does not support. Raises Lost."""
    try:
        return query(*arguments)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
            raise Lost from error
        return None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
