"""NVIDIA GPUs, from NVML: load, heat, power, clocks and what holds them down, memory and bus errors."""

from __future__ import annotations

from trimtab.agent import gpu_nvml
from trimtab.agent.counters import Rise
from trimtab.agent.processes import tree
from trimtab.agent.registry import Host, Reading, Signal
from trimtab.agent.wire.columns import TEXT_MAX

AS_THEY_ARE = (
    "utilisation_ratio",
    "memory_used_bytes",
    "memory_total_bytes",
    "power_watts",
    "power_limit_watts",
    "temperature_celsius",
    "sm_clock_hertz",
    "sm_clock_max_hertz",
    "ecc_uncorrected_total",
    "row_remap_pending",
    "row_remap_failure",
    "pcie_generation",
    "pcie_width",
)
THROTTLES = {
    "throttle_thermal": {"software thermal slowdown", "hardware thermal slowdown"},
    "throttle_power": {"software power cap", "hardware power brake"},
    "throttle_hardware": {"hardware slowdown"},
}


class Gpu:
    """Reads each GPU; one that fell off the bus is lost, and all else of it unknown."""

    name = "gpu"
    signals = (
        Signal("utilisation_ratio", "1", "share of the time in which it ran a kernel", "gpu"),
        Signal("memory_used_bytes", "bytes", "its memory in use", "gpu"),
        Signal("memory_total_bytes", "bytes", "its memory", "gpu"),
        Signal("power_watts", "W", "power it draws", "gpu"),
        Signal("power_limit_watts", "W", "power it may draw", "gpu"),
        Signal("temperature_celsius", "°C", "temperature of the chip", "gpu"),
        Signal("sm_clock_hertz", "Hz", "clock of its processors", "gpu"),
        Signal("sm_clock_max_hertz", "Hz", "highest clock of its processors", "gpu"),
        Signal("throttle_thermal", "1", "1: clocked lower because it is hot", "gpu"),
        Signal("throttle_power", "1", "1: clocked lower by its power cap or by a brake of the power supply", "gpu"),
        Signal("throttle_hardware", "1", "1: clocked lower by the hardware, whatever the reason", "gpu"),
        Signal(
            "ecc_uncorrected_total",
            "1",
            "memory errors that could not be corrected, since the driver was loaded",
            "gpu",
        ),
        Signal("row_remap_pending", "1", "1: a bad memory row waits for a reset to be replaced", "gpu"),
        Signal("row_remap_failure", "1", "1: a bad memory row could not be replaced", "gpu"),
        Signal("pcie_generation", "1", "generation of its PCIe link now", "gpu"),
        Signal("pcie_width", "1", "lanes of its PCIe link now", "gpu"),
        Signal("pcie_replays_per_second", "1/s", "PCIe packets sent again", "gpu", rate=True),
        Signal("lost", "1", "1: it fell off the bus; 0: it answers", "gpu"),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._devices = gpu_nvml.connect()
        self._replays: Rise[str] = Rise()
        self._throttled: dict[str, frozenset[str]] = {}
        self._lost: set[str] = set()

    def read(self, reading: Reading) -> None:
        owners = {member.pid: instance.id for instance in reading.instances for member in tree(instance.pid)}
        replays: dict[str, float] = {}
        for device in self._devices:
            subject = f"{self._node}/gpu/{device.uuid}"
            reading.label("gpu", subject, index=str(device.index), name=device.name)
            try:
                state = gpu_nvml.state(device)
            except gpu_nvml.Lost:
                self._report_lost(reading, subject)
                continue
            self._lost.discard(subject)
            reading.set("gpu", subject, "lost", 0)
            for name in AS_THEY_ARE:
                reading.set("gpu", subject, name, getattr(state, name))
            self._report_throttling(reading, subject, state.throttled_by)
            if state.pcie_replays is not None:
                replays[subject] = state.pcie_replays
            if state.pids is not None:
                instances = sorted({owners[pid] for pid in state.pids if pid in owners})
                reading.label("gpu", subject, instances=",".join(instances)[:TEXT_MAX])
        for subject, rose in self._replays.since(replays).items():
            reading.set("gpu", subject, "pcie_replays_per_second", rose / reading.seconds)

    def close(self) -> None:
        gpu_nvml.disconnect()

    def _report_lost(self, reading: Reading, subject: str) -> None:
        reading.set("gpu", subject, "lost", 1)
        if subject not in self._lost:
            self._lost.add(subject)
            reading.event("gpu", subject, "gpu_lost", detail="it fell off the bus; the host must be restarted")

    def _report_throttling(self, reading: Reading, subject: str, reasons: frozenset[str] | None) -> None:
        if reasons is None:
            self._throttled.pop(subject, None)
            return
        for name, group in THROTTLES.items():
            reading.set("gpu", subject, name, float(bool(reasons & group)))
        before = self._throttled.get(subject, reasons)
        self._throttled[subject] = reasons
        for reason in sorted(reasons - before):
            reading.event("gpu", subject, "throttle_onset", detail=reason)


COLLECTOR = Gpu
