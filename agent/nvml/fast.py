"""What is read of a GPU in every window: what changes within a second, and what detection waits for.

A call takes 10 µs to 1 ms in a real driver: all that NVML has to say would cost more in every window than the rest of the agent.
nvmlDeviceGetPcieThroughput is left out altogether: it measures for 20 ms a direction while the caller waits. Newer drivers count the bytes,
which is one field.
"""

from __future__ import annotations

from trimtab.agent.nvml.library import constant
from trimtab.agent.nvml.query import MEGAHERTZ, Field, Query, gauge, one
from trimtab.agent.registry import Signal

FAST = (
    Query(
        "nvmlDeviceGetUtilizationRates",
        (
            gauge("utilisation_ratio", "1", "share of the time in which it ran a kernel"),
            gauge("memory_busy_ratio", "1", "share of the time in which its memory was read or written"),
        ),
        lambda rates: (rates.gpu / 100, rates.memory / 100),
    ),
    Query(
        "nvmlDeviceGetMemoryInfo",
        (gauge("memory_used_bytes", "bytes", "its memory in use"), gauge("memory_total_bytes", "bytes", "its memory")),
        lambda memory: (memory.used, memory.total),
    ),
    Query("nvmlDeviceGetPowerUsage", (gauge("power_watts", "W", "power it draws"),), one(1e-3)),
    Query(
        "nvmlDeviceGetTemperature",
        (gauge("temperature_celsius", "°C", "temperature of the chip"),),
        one(),
        (constant("NVML_TEMPERATURE_GPU"),),
        "nvmlDeviceGetTemperatureV",
    ),
    Query(
        "nvmlDeviceGetClockInfo",
        (gauge("sm_clock_hertz", "Hz", "clock of its processors"),),
        one(MEGAHERTZ),
        (constant("NVML_CLOCK_SM"),),
    ),
    Query(
        "nvmlDeviceGetClockInfo",
        (gauge("memory_clock_hertz", "Hz", "clock of its memory"),),
        one(MEGAHERTZ),
        (constant("NVML_CLOCK_MEM"),),
    ),
    Query(
        "nvmlDeviceGetPerformanceState",
        (gauge("performance_state", "1", "0 fastest to 15 slowest, the state that clocks and voltages are in"),),
        lambda state: (float(state) if state <= 15 else None,),
    ),
    Query(
        "nvmlDeviceGetPcieReplayCounter",
        (Signal("pcie_replays_per_second", "1/s", "PCIe packets sent again", "gpu", rate=True),),
        one(),
    ),
    Query(
        "nvmlDeviceGetTotalEccErrors",
        (
            gauge(
                "ecc_uncorrected_total",
                "1",
                "memory errors that could not be corrected, since the driver was loaded or the GPU reset",
            ),
        ),
        one(),
        (constant("NVML_MEMORY_ERROR_TYPE_UNCORRECTED"), constant("NVML_VOLATILE_ECC")),
    ),
)
_WRAPS_BYTES = float(1 << 32)
"""Drivers count bytes of PCIe in 32 bits, which wrap several times a second: only a count beyond those is one."""
FAST_FIELDS = (
    Field("NVML_FI_DEV_MEMORY_TEMP", gauge("memory_temperature_celsius", "°C", "temperature of its memory")),
    Field(
        "NVML_FI_DEV_PCIE_COUNT_TX_BYTES",
        Signal("pcie_sent_bytes_per_second", "bytes/s", "bytes it sent over PCIe", "gpu", rate=True),
        _WRAPS_BYTES,
    ),
    Field(
        "NVML_FI_DEV_PCIE_COUNT_RX_BYTES",
        Signal("pcie_received_bytes_per_second", "bytes/s", "bytes it received over PCIe", "gpu", rate=True),
        _WRAPS_BYTES,
    ),
)
SIGNALS = (*(signal for query in FAST for signal in query.signals), *(field.signal for field in FAST_FIELDS))
GROWING = frozenset(signal.name for signal in SIGNALS if signal.rate)
"""Those whose calls and fields give a counter: the signal is its growth."""
