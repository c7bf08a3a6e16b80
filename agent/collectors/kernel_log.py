"""The kernel's log, from /dev/kmsg: how many errors it holds, and those of NVSwitches. Cost: some 2 µs a line, 3 µs a window without any.

Lines from before the agent started are not looked at. The XID errors of GPUs are in `gpu_faults`.
"""

from __future__ import annotations

from collections.abc import Callable

from trimtab.agent import kmsg
from trimtab.agent.registry import Host, Reading, Signal
from trimtab.agent.xid import is_fatal

EVENTS_MAX = 64
"""Of one window; a storm of more says nothing more."""


class KernelLog:
    """Reads the log on, window by window."""

    name = "kernel_log"
    signals = (
        Signal(
            "kernel_log_errors_per_second",
            "1/s",
            "lines of the kernel itself at level error or worse",
            "node",
            rate=True,
        ),
        Signal(
            "kernel_log_lost_per_second",
            "1/s",
            "lines that were overwritten before the agent read them; XID and NVSwitch errors may be among them",
            "node",
            rate=True,
        ),
    )

    def __init__(self, open_log: Callable[[], kmsg.Log] = kmsg.Log) -> None:
        self._open_log = open_log

    def open(self, host: Host) -> None:
        self._node = host.node
        self._log = self._open_log()
        self._log.to_end()
        self._lost_before = 0

    def read(self, reading: Reading) -> None:
        errors = events = 0
        for record in self._log.records():
            errors += record.by_kernel and record.level <= kmsg.ERROR
            switch = kmsg.sxid(record.message)
            if switch is not None and events < EVENTS_MAX:
                events += 1
                reading.event("node", self._node, "sxid", switch.code, _detail(switch))
        lost, self._lost_before = self._log.lost - self._lost_before, self._log.lost
        reading.set("node", self._node, "kernel_log_errors_per_second", errors / reading.seconds)
        reading.set("node", self._node, "kernel_log_lost_per_second", lost / reading.seconds)

    def close(self) -> None:
        self._log.close()


def _detail(switch: kmsg.XidLine) -> str:
    fate = "fatal: the links it names are down until a reset" if is_fatal(switch.text) else "not fatal"
    return f"NVSwitch {switch.address}, SXID {switch.code}, {fate}: {switch.text}"


COLLECTOR = KernelLog
