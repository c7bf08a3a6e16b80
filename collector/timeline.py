"""Where a window belongs in the collector's time, however wrong the node's clock is."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Malformed

ERROR_SECONDS_MAX = 2.0
"""A clock error up to here is left as it is: it is within what the network hides."""
FUTURE_SECONDS_MAX = 60.0
DURATION_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Timeline:
    """Both clocks of a node against the collector's, as they were at Hello."""

    collector_unix_ns: int
    node_unix_ns: int
    node_boottime_ns: int

    @property
    def error_seconds(self) -> float:
        """The node's clock minus the collector's."""
        return (self.node_unix_ns - self.collector_unix_ns) / 1e9

    @property
    def wrong(self) -> bool:
        """Whether the node's own stamps cannot be used."""
        return abs(self.error_seconds) > ERROR_SECONDS_MAX

    def start_unix_ns(self, window: pb.Window, now_unix_ns: int) -> int:
        """When the window began, by the collector's clock. Raises Malformed for a time or a duration that cannot be."""
        if not 0 < window.duration_ns <= DURATION_SECONDS_MAX * 1e9:
            raise Malformed(f"window.duration_ns: {window.duration_ns} is not in (0, {DURATION_SECONDS_MAX:.0f} s]")
        own, boottime = window.start_unix_ns, window.start_boottime_ns
        by_boot_clock = self._booted_unix_ns + boottime
        latest = now_unix_ns + FUTURE_SECONDS_MAX * 1e9
        for stamp in (by_boot_clock, own) if self._stepped(own, boottime) else (own, by_boot_clock):
            if 0 <= stamp <= latest:
                return stamp
        ahead = (own - now_unix_ns) / 1e9
        raise Malformed(
            f"window.start_unix_ns: {ahead:.0f} s ahead of the collector; at most {FUTURE_SECONDS_MAX:.0f} s"
        )

    @property
    def _booted_unix_ns(self) -> int:
        """When the node's boot clock was 0, by the collector's clock."""
        return self.collector_unix_ns - self.node_boottime_ns

    def _stepped(self, start_unix_ns: int, start_boottime_ns: int) -> bool:
        """Whether the node's clock was wrong when it stamped a window, so that its boot clock, which never steps, knows better."""
        if self.wrong:
            return True
        step_ns = (start_unix_ns - start_boottime_ns) - (self.node_unix_ns - self.node_boottime_ns)
        # A window left over from an earlier boot counts from another zero: that is no step.
        earlier_boot = start_boottime_ns < self.node_boottime_ns and start_unix_ns < self._booted_unix_ns
        return abs(step_ns) > ERROR_SECONDS_MAX * 1e9 and not earlier_boot
