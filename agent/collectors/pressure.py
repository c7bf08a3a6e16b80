"""Pressure stall information: the share of the window in which tasks waited for a resource. Cost: 0.1 ms a window."""

from __future__ import annotations

from trimtab.agent import procfs
from trimtab.agent.counters import Rise
from trimtab.agent.registry import Host, Reading, Signal, Unavailable

SERIES = (("cpu", "some"), ("memory", "some"), ("memory", "full"), ("io", "some"), ("io", "full"))
WHO = {"some": "at least one task waited", "full": "every task that could have run waited"}
WHAT = {"cpu": "a core", "memory": "memory", "io": "a disk"}


class Pressure:
    """From the `total=` counters of /proc/pressure, not from the kernel's own averages, which lag."""

    name = "pressure"
    signals = tuple(
        Signal(
            f"psi_{source}_{kind}_ratio", "1", f"share of the window in which {WHO[kind]} for {WHAT[source]}", "node"
        )
        for source, kind in SERIES
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._rise: Rise[tuple[str, str]] = Rise()
        try:
            _totals()
        except OSError as error:
            raise Unavailable(f"no pressure stall information: {error.strerror}", "boot with psi=1") from error

    def read(self, reading: Reading) -> None:
        for (source, kind), seconds in self._rise.since(_totals()).items():
            # The kernel's clock and ours differ by a little.
            reading.set("node", self._node, f"psi_{source}_{kind}_ratio", min(1.0, seconds / reading.seconds))

    def close(self) -> None:
        pass


def _totals() -> dict[tuple[str, str], float]:
    stalled = {source: procfs.pressure(procfs.read(f"/proc/pressure/{source}")) for source in WHAT}
    return {(source, kind): stalled[source][kind] for source, kind in SERIES if kind in stalled[source]}


COLLECTOR = Pressure
