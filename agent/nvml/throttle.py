"""Why a GPU clocks lower than it could: each reason that NVML gives, a signal."""

from __future__ import annotations

from trimtab.agent.nvml.library import Device, call, constant
from trimtab.agent.registry import Signal

_BITS = {
    "throttle_idle": ("GpuIdle", "nothing runs on it"),
    "throttle_applications_clocks": ("ApplicationsClocksSetting", "it was told a clock"),
    "throttle_sw_power_cap": ("SwPowerCap", "of its power limit"),
    "throttle_hw_slowdown": ("HwSlowdown", "the hardware halves it at least: heat, power brake or power draw"),
    "throttle_sync_boost": ("SyncBoost", "another GPU of its group must"),
    "throttle_sw_thermal": ("SwThermalSlowdown", "the driver finds it, or its memory, too hot"),
    "throttle_hw_thermal": ("HwThermalSlowdown", "the hardware finds it too hot"),
    "throttle_hw_power_brake": ("HwPowerBrakeSlowdown", "the power supply of the host asks for it"),
    "throttle_display_clock": ("DisplayClockSetting", "a display limits it"),
}
BITS = {signal: constant(f"nvmlClocksEventReason{name}") for signal, (name, _) in _BITS.items()}
TOGETHER = {
    "throttle_thermal": ("throttle_sw_thermal", "throttle_hw_thermal"),
    "throttle_power": ("throttle_sw_power_cap", "throttle_hw_power_brake"),
    "throttle_hardware": ("throttle_hw_slowdown",),
}
ONSETS = {
    "throttle_hw_slowdown": "hardware slowdown",
    "throttle_sw_thermal": "software thermal slowdown",
    "throttle_hw_thermal": "hardware thermal slowdown",
    "throttle_sw_power_cap": "software power cap",
    "throttle_hw_power_brake": "hardware power brake",
}
"""What an event tells of: the others are neither a fault nor a limit that was reached."""
SIGNALS = (
    Signal("throttle_thermal", "1", "1: clocked lower because it is hot", "gpu"),
    Signal("throttle_power", "1", "1: clocked lower by its power cap or by a brake of the power supply", "gpu"),
    Signal("throttle_hardware", "1", "1: clocked lower by the hardware, whatever the reason", "gpu"),
    *(Signal(signal, "1", f"1: clocked lower because {why}", "gpu") for signal, (_, why) in _BITS.items()),
)


def read(device: Device) -> dict[str, float] | None:
    """Every throttle signal; None where it cannot say. Raises Lost."""
    bits = call("nvmlDeviceGetCurrentClocksEventReasons", device.handle)
    if bits is None:  # drivers before 535 know it by its old name only
        bits = call("nvmlDeviceGetCurrentClocksThrottleReasons", device.handle)
    if bits is None:
        return None
    out = {signal: float(bool(bits & bit)) for signal, bit in BITS.items()}
    return out | {signal: max(out[part] for part in parts) for signal, parts in TOGETHER.items()}


class Onsets:
    """Which reasons began since the look before; one that was there at the first look did not."""

    def __init__(self) -> None:
        self._before: frozenset[str] | None = None

    def since(self, now: dict[str, float] | None) -> list[str]:
        """Their names for people."""
        held = None if now is None else frozenset(signal for signal in ONSETS if now[signal])
        before, self._before = self._before, held
        return [] if held is None or before is None else sorted(ONSETS[signal] for signal in held - before)
