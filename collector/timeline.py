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
        stamps = [window.start_unix_ns]
        if self.wrong:
            # A window left over from an earlier boot counts from another zero, mostly a time yet to come; its own stamp is next best.
            stamps.insert(0, self.collector_unix_ns - (self.node_boottime_ns - window.start_boottime_ns))
        latest = now_unix_ns + FUTURE_SECONDS_MAX * 1e9
        start = next((stamp for stamp in stamps if 0 <= stamp <= latest), None)
        if start is None:
            ahead = (stamps[0] - now_unix_ns) / 1e9
            raise Malformed(
                f"window.start_unix_ns: {ahead:.0f} s ahead of the collector; at most {FUTURE_SECONDS_MAX:.0f} s"
            )
        return start
