"""NVIDIA GPUs, from NVML: load, heat, power, clocks and what holds them down, memory, links and modes, faults that last.

Cost: 11 NVML calls a GPU in every window, some 30 more and one a NVLink every 10 s (docs/gpu.md); what is read every 10 s is carried in
the windows between. Who uses a GPU is read every 10 s, and at once when the serving instances change. XID errors are in `gpu_faults`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trimtab.agent.nvml import fabric, fast, faults, library, nvlink, slow, tenants, throttle
from trimtab.agent.nvml.card import Card
from trimtab.agent.nvml.slot import slot
from trimtab.agent.nvml.slow import SLOW_SECONDS
from trimtab.agent.registry import Host, Reading, Signal

_NOT_SENT = {"nvlink_links_up_most"}


@dataclass(slots=True)
class _Gpu:
    card: Card
    slot: dict[str, str]
    faults: faults.Faults = field(default_factory=faults.Faults)
    was_lost: bool = False


class Gpu:
    """Reads each GPU; one that fell off the bus is lost, and all else of it unknown but the faults that it had."""

    name = "gpu"
    signals = (
        *fast.SIGNALS,
        *slow.SIGNALS,
        *throttle.SIGNALS,
        *nvlink.SIGNALS,
        *fabric.SIGNALS,
        *faults.SIGNALS,
        Signal("lost", "1", "1: it fell off the bus, or waits for a reset; 0: it answers", "gpu"),
        *tenants.SIGNALS,
    )

    def open(self, host: Host) -> None:
        self._node, self._clock = host.node, host.clock
        devices = library.connect()
        now = self._clock.monotonic()
        # The slow readings of several GPUs are spread: none of the windows pays for all of them.
        self._gpus = [
            _Gpu(Card(one, now + SLOW_SECONDS * (1 + n) / len(devices)), slot(one.address))
            for n, one in enumerate(devices)
        ]
        self._driver = str(library.call("nvmlSystemGetDriverVersion") or "")
        self._tenants = tenants.Tenants(self._node)

    def read(self, reading: Reading) -> None:
        now = self._clock.monotonic()
        present = [gpu.card.device for gpu in self._gpus if self._read(gpu, reading, now)]
        self._tenants.read(reading, present, now)

    def close(self) -> None:
        library.disconnect()

    def _read(self, gpu: _Gpu, reading: Reading, now: float) -> bool:
        values: dict[str, float] = {"lost": 1.0}
        onsets: list[str] = []
        why = ""
        try:
            found, onsets = gpu.card.read(now, reading.seconds)
            values = found | ({"lost": 0.0} if found else {})
        except library.Lost as lost:
            why = str(lost)
        device = gpu.card.device
        subject = f"{self._node}/gpu/{device.uuid}"
        reading.label(
            "gpu",
            subject,
            index=str(device.index),
            name=device.name,
            driver=self._driver,
            pci=device.address,
            **gpu.slot,
            **gpu.card.labels,
        )
        changes = gpu.faults.step(now, values)
        for name, value in (values | gpu.faults.values).items():
            if name not in _NOT_SENT:
                reading.set("gpu", subject, name, value)
        if why and not gpu.was_lost:
            reading.event("gpu", subject, "gpu_lost", detail=f"{why}; the host must be restarted, or the GPU reset")
        gpu.was_lost = bool(why)
        for reason in onsets:
            reading.event("gpu", subject, "throttle_onset", detail=reason)
        for fault, raised in ((change.fault, change.raised) for change in changes):
            event, what = ("fault_raised", fault.what) if raised else ("fault_cleared", "it is over")
            reading.event("gpu", subject, event, detail=f"{fault.signal}: {what}")
        return not why


COLLECTOR = Gpu
