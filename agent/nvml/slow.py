"""What is read of a GPU every `SLOW_SECONDS`, and carried in the windows between: limits, modes, and what it counts in its life."""

from __future__ import annotations

from trimtab.agent.nvml.library import constant
from trimtab.agent.nvml.query import MEGAHERTZ, Field, Query, each, gauge, one

SLOW_SECONDS = 10.0
_SM, _MEMORY = (constant(f"NVML_CLOCK_{name}") for name in ("SM", "MEM"))
_CORRECTED, _UNCORRECTED = (constant(f"NVML_MEMORY_ERROR_TYPE_{name}") for name in ("CORRECTED", "UNCORRECTED"))
_VOLATILE, _AGGREGATE = (constant(f"NVML_{name}_ECC") for name in ("VOLATILE", "AGGREGATE"))

SLOW = (
    Query(
        "nvmlDeviceGetEncoderUtilization",
        (gauge("encoder_busy_ratio", "1", "share of the time in which its video encoders worked"),),
        lambda answer: (answer[0] / 100,),
    ),
    Query(
        "nvmlDeviceGetDecoderUtilization",
        (gauge("decoder_busy_ratio", "1", "share of the time in which its video decoders worked"),),
        lambda answer: (answer[0] / 100,),
    ),
    Query(
        "nvmlDeviceGetMaxClockInfo",
        (gauge("sm_clock_max_hertz", "Hz", "highest clock of its processors"),),
        one(MEGAHERTZ),
        (_SM,),
    ),
    Query(
        "nvmlDeviceGetMaxClockInfo",
        (gauge("memory_clock_max_hertz", "Hz", "highest clock of its memory"),),
        one(MEGAHERTZ),
        (_MEMORY,),
    ),
    Query("nvmlDeviceGetEnforcedPowerLimit", (gauge("power_limit_watts", "W", "power it may draw"),), one(1e-3)),
    Query(
        "nvmlDeviceGetPowerManagementDefaultLimit",
        (gauge("power_limit_default_watts", "W", "power it may draw unless told otherwise"),),
        one(1e-3),
    ),
    Query(
        "nvmlDeviceGetPowerManagementLimitConstraints",
        (
            gauge("power_limit_min_watts", "W", "lowest power limit that can be set"),
            gauge("power_limit_max_watts", "W", "highest power limit that can be set"),
        ),
        each(1e-3),
    ),
    *(
        Query(
            "nvmlDeviceGetTemperatureThreshold",
            (gauge(f"temperature_{name}_celsius", "°C", text),),
            one(),
            (constant(f"NVML_TEMPERATURE_THRESHOLD_{number}"),),
        )
        for name, number, text in (
            ("slowdown", "SLOWDOWN", "temperature at which the hardware slows it down"),
            ("shutdown", "SHUTDOWN", "temperature at which it switches itself off"),
            ("memory_max", "MEM_MAX", "temperature above which its memory slows it down"),
        )
    ),
    *(
        Query("nvmlDeviceGetTotalEccErrors", (gauge(name, "1", text),), one(), arguments)
        for name, arguments, text in (
            (
                "ecc_corrected_total",
                (_CORRECTED, _VOLATILE),
                "memory errors that were corrected, since the driver was loaded",
            ),
            ("ecc_corrected_lifetime", (_CORRECTED, _AGGREGATE), "memory errors that were corrected, in its life"),
            (
                "ecc_uncorrected_lifetime",
                (_UNCORRECTED, _AGGREGATE),
                "memory errors that could not be corrected, in its life",
            ),
        )
    ),
    Query(
        "nvmlDeviceGetRemappedRows",
        (
            gauge("row_remap_corrected", "1", "memory rows replaced after errors that were corrected"),
            gauge("row_remap_uncorrected", "1", "memory rows replaced after errors that could not be corrected"),
            gauge("row_remap_pending", "1", "1: a bad memory row waits for a reset to be replaced"),
            gauge("row_remap_failure", "1", "1: a bad memory row could not be replaced"),
        ),
        each(),
    ),
    Query(
        "nvmlDeviceGetCurrPcieLinkGeneration",
        (gauge("pcie_generation", "1", "generation of its PCIe link now"),),
        one(),
    ),
    Query("nvmlDeviceGetCurrPcieLinkWidth", (gauge("pcie_width", "1", "lanes of its PCIe link now"),), one()),
    Query(
        "nvmlDeviceGetMaxPcieLinkGeneration",
        (gauge("pcie_generation_max", "1", "highest generation of its PCIe link in this slot"),),
        one(),
    ),
    Query(
        "nvmlDeviceGetMaxPcieLinkWidth",
        (gauge("pcie_width_max", "1", "most lanes of its PCIe link in this slot"),),
        one(),
    ),
    Query(
        "nvmlDeviceGetPersistenceMode",
        (gauge("persistence_mode", "1", "1: the driver keeps it awake when nothing uses it"),),
        one(),
    ),
    Query(
        "nvmlDeviceGetEccMode",
        (
            gauge("ecc_mode", "1", "1: its memory is protected by ECC"),
            gauge("ecc_mode_pending", "1", "ecc_mode after the next reset"),
        ),
        each(),
    ),
    Query(
        "nvmlDeviceGetMigMode",
        (
            gauge("mig_mode", "1", "1: it is split into MIG instances"),
            gauge("mig_mode_pending", "1", "mig_mode after the next reset"),
        ),
        each(),
    ),
    Query(
        "nvmlDeviceGetGspFirmwareMode",
        (gauge("gsp_firmware", "1", "1: its own processor (GSP) runs the driver's firmware"),),
        lambda answer: (float(answer[0]),),
    ),
)
SLOW_FIELDS = (
    Field(
        "NVML_FI_DEV_RETIRED_SBE",
        gauge("retired_pages_corrected", "1", "memory pages retired after several errors that were corrected"),
    ),
    Field(
        "NVML_FI_DEV_RETIRED_DBE",
        gauge("retired_pages_uncorrected", "1", "memory pages retired after an error that could not be corrected"),
    ),
    Field(
        "NVML_FI_DEV_RETIRED_PENDING",
        gauge("retired_pages_pending", "1", "1: a bad memory page waits for a reset to be retired"),
    ),
)
SIGNALS = (*(signal for query in SLOW for signal in query.signals), *(field.signal for field in SLOW_FIELDS))
