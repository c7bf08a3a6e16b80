"""The XID errors that a GPU does not get over by itself, and what proves that it has. All times are seconds since the host booted.

A sticky XID (`agent.xid`) stays until one of these is seen, later than the XID:

1. the driver was loaded anew, or the host was restarted (the kernel's log then begins anew, and so does this);
2. the driver asked for a recovery of this GPU, and asks for none any more;
3. the GPU was initialised: the energy it has used since then is less than any GPU uses in the time since the XID.

A GPU that merely seems to work again proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trimtab.agent.xid import STICKY, Xid

IDLE_WATTS_MIN = 3.0
"""No GPU of a server draws less while its driver holds it."""


@dataclass(slots=True)
class _Standing:
    xid: Xid
    seen_seconds: float
    asked: bool = False
    """The driver has asked for a recovery since."""


class XidFaults:
    """Those of one GPU: at most one of each code."""

    def __init__(self) -> None:
        self._standing: dict[int, _Standing] = {}

    @property
    def gravest(self) -> Xid | None:
        """What stands, the gravest first, the longest of those; None: nothing."""
        found = min(
            self._standing.values(), key=lambda s: (-STICKY[s.xid.action], s.seen_seconds, s.xid.code), default=None
        )
        return found.xid if found else None

    def seen(self, xid: Xid, seconds: float) -> bool:
        """An XID happened. Whether a fault is raised by it that did not stand already."""
        if not xid.sticky:
            return False
        before = self._standing.get(xid.code)
        # Again is later: what would have cleared the first proves nothing of the second.
        self._standing[xid.code] = _Standing(xid, max(seconds, before.seen_seconds) if before else seconds)
        return before is None

    def recovery(self, action: int, seconds: float) -> list[Xid]:
        """What the driver asked for at that time; 0: nothing. The faults that are thereby cleared."""
        if action == 0:
            return self._clear(lambda fault: fault.asked and fault.seen_seconds < seconds)
        for fault in self._standing.values():
            fault.asked = fault.asked or fault.seen_seconds <= seconds
        return []

    def driver_loaded(self, seconds: float) -> list[Xid]:
        """The driver was loaded at that time. The faults that are thereby cleared."""
        return self._clear(lambda fault: fault.seen_seconds < seconds)

    def used(self, joules: float, seconds: float) -> list[Xid]:
        """By that time it had used so much since it was initialised. The faults that are thereby cleared."""
        if joules == 0:  # one that does not count
            return []
        return self.driver_loaded(seconds - joules / IDLE_WATTS_MIN)

    def _clear(self, over: Callable[[_Standing], bool]) -> list[Xid]:
        cleared = [code for code, fault in self._standing.items() if over(fault)]
        return [self._standing.pop(code).xid for code in cleared]
