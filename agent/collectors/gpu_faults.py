"""XID errors of NVIDIA GPUs, from the kernel log and from NVML, each told once; and whether one stands that the GPU does not get over.

Cost: a read of /dev/kmsg and a poll of NVML in every window, one NVML call a GPU every 10 s. What clears a fault is in docs/gpu.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.agent import kmsg
from trimtab.agent.nvml import library
from trimtab.agent.nvml.sightings import Sightings, Source
from trimtab.agent.nvml.slow import SLOW_SECONDS
from trimtab.agent.nvml.xid_events import XidEvents
from trimtab.agent.nvml.xid_faults import XidFaults
from trimtab.agent.registry import Host, Reading, Signal, Unavailable
from trimtab.agent.wire.columns import TEXT_MAX
from trimtab.agent.xid import RECOVERY_CHANGED, Xid, look_up

NVML_EVENTS_MAX = 1024
GPUS_MAX = 256
"""GPUs that the kernel log names; more are not looked at."""
HISTORY_MAX = 1 << 18
_RECOVERY = (library.constant("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"), 0)
_ENERGY = (library.constant("NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION"), 0)


@dataclass(slots=True)
class _Seen:
    """The same error of the same GPU in one window."""

    xid: Xid
    text: str
    times: int = 0


class GpuFaults:
    """Works with the kernel log alone where the driver does not answer, and with NVML alone where the log may not be read."""

    name = "gpu_faults"
    signals = (
        Signal("xids_per_second", "1/s", "XID errors", "gpu", rate=True),
        Signal(
            "fault_xid",
            "1",
            "code of the gravest XID error that it has not recovered from; 0: none that is known of",
            "gpu",
        ),
        Signal(
            "recovery_action",
            "1",
            "what the driver asks for: 0 nothing, 1 a GPU reset, 2 a restart of the host; others in docs/gpu.md",
            "gpu",
        ),
    )

    def __init__(self, open_log: Callable[[], kmsg.Log] = kmsg.Log) -> None:
        self._open_log = open_log

    def open(self, host: Host) -> None:
        self._node, self._clock = host.node, host.clock
        self._devices: list[library.Device] = []
        no_nvml = no_log = None
        try:
            self._devices = list(library.connect())
        except Unavailable as error:
            if not error.remedy:  # there is no NVIDIA driver here, or no GPU
                raise
            no_nvml = error
        self._log: kmsg.Log | None = None
        try:
            self._log = self._open_log()
        except Unavailable as error:
            no_log = error
        if no_nvml and no_log:
            raise Unavailable(f"{no_nvml.reason}, and {no_log.reason}", no_nvml.remedy)
        self._events = XidEvents(self._devices)
        self._uuids = {device.address: device.uuid for device in self._devices if device.address}
        self._faults: defaultdict[str, XidFaults] = defaultdict(XidFaults)
        self._sightings = Sightings()
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._actions: dict[str, float] = {}
        self._due_at = -math.inf
        self._read_log(live=False)

    def read(self, reading: Reading) -> None:
        now = self._clock.monotonic()
        self._seen = {}
        standing = {subject: faults.gravest for subject, faults in self._faults.items()}
        self._read_log(live=True)
        self._read_nvml(now)
        # What the first look at the driver clears, was over before the agent came.
        first = self._due_at == -math.inf
        if now >= self._due_at:
            self._due_at = now + SLOW_SECONDS
            self._ask_for_recovery(now)
        self._report_xids(reading)
        self._report_faults(reading, standing, first)

    def close(self) -> None:
        self._events.close()
        if self._log is not None:
            self._log.close()
        if self._devices:
            library.disconnect()

    def _read_log(self, live: bool) -> None:
        if self._log is None:
            return
        now = self._clock.monotonic()
        for record in self._log.records() if live else self._log.records(HISTORY_MAX):
            # The log's own clock may be minutes off after months; what is read as it comes needs it not.
            seconds = now if live else min(record.seconds, now)
            if kmsg.driver_loaded(record.message):
                for faults in self._faults.values():
                    faults.driver_loaded(seconds)
            elif named := kmsg.gpu_at(record.message):
                if len(self._uuids) < GPUS_MAX:
                    self._uuids.setdefault(*named)
            elif error := kmsg.xid(record.message):
                uuid = self._uuids.get(error.address, f"PCI-{error.address}")
                self._saw("kernel log", uuid, error.code, error.text, seconds, live)

    def _read_nvml(self, now: float) -> None:
        for device, code in self._events.poll(NVML_EVENTS_MAX):
            self._saw("NVML", device.uuid if device else "unknown", code, "", now, live=True)

    def _saw(self, source: Source, uuid: str, code: int, text: str, seconds: float, live: bool) -> None:
        subject = f"{self._node}/gpu/{uuid}"
        if subject not in self._faults and len(self._faults) >= GPUS_MAX:
            return
        xid = look_up(code, text)
        faults = self._faults[subject]
        faults.seen(xid, seconds)
        action = kmsg.recovery_action(text) if code == RECOVERY_CHANGED else None
        if action is not None:
            faults.recovery(action, seconds)
        if live:
            seen = self._seen.setdefault((subject, code), _Seen(xid, text))
            if text and not seen.text:  # the log says more than NVML
                seen.xid, seen.text = xid, text
            seen.times += self._sightings.is_new(source, subject, code, self._clock.monotonic())

    def _ask_for_recovery(self, now: float) -> None:
        self._actions.clear()
        for position, known in enumerate(self._devices):
            device = self._devices[position] = known if known.handle is not None else self._find(known)
            subject = f"{self._node}/gpu/{device.uuid}"
            try:
                found = {} if device.handle is None else library.fields(device, (_RECOVERY, _ENERGY))
            except library.Lost:
                continue
            faults = self._faults[subject]
            if _RECOVERY in found:
                self._actions[subject] = found[_RECOVERY]
                faults.recovery(int(found[_RECOVERY]), now)
            if _ENERGY in found:
                faults.used(found[_ENERGY] / 1e3, now)

    def _find(self, lost: library.Device) -> library.Device:
        """One that was lost when the agent came, if it is there now."""
        device = library.found_again(lost)
        if device is not lost:
            self._events.listen(device)
            self._uuids[device.address] = device.uuid
            self._faults.pop(f"{self._node}/gpu/{lost.uuid}", None)
        return device

    def _report_xids(self, reading: Reading) -> None:
        times: Counter[str] = Counter()
        for (subject, code), seen in self._seen.items():
            times[subject] += seen.times
            if seen.times:
                often = f" ({seen.times} times)" if seen.times > 1 else ""
                reading.event("gpu", subject, "xid", code, f"{seen.xid}{often}; {seen.text}"[:TEXT_MAX].rstrip("; "))
        for device in self._devices:
            self._faults[f"{self._node}/gpu/{device.uuid}"]
        for subject in self._faults:
            reading.set("gpu", subject, "xids_per_second", times[subject] / reading.seconds)

    def _report_faults(self, reading: Reading, before: dict[str, Xid | None], first: bool) -> None:
        for subject, faults in self._faults.items():
            gravest = faults.gravest
            # Without the log, what was before the agent started is not known.
            if gravest is not None or self._log is not None:
                reading.set("gpu", subject, "fault_xid", gravest.code if gravest else 0.0)
            reading.set("gpu", subject, "recovery_action", self._actions.get(subject))
            old = before.get(subject)
            if gravest is not None and gravest != old:
                reading.event("gpu", subject, "fault_raised", gravest.code, f"fault_xid: {gravest}")
            elif old is not None and gravest is None and not first:
                reading.event("gpu", subject, "fault_cleared", old.code, f"fault_xid: XID {old.code} is over")


COLLECTOR = GpuFaults
