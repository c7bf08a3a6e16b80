"""What the detector asks of whoever finds the cause. The rootcause floor answers; `trimtab collector` puts the two together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import History


class Explainer(Protocol):
    """Finds causes."""

    def explain(self, history: History, subject: str, since_unix_ns: int, peers: Sequence[str]) -> list[pb.Cause]:
        """Why `subject` (an instance, a node or "model NAME") is degraded since then, the most likely cause first; never empty.

        `peers` are healthy instances that serve the same model. The first evidence of a cause is its leading signal: as long as
        that is nearer to `after` than to `before`, the cause is still in force.
        """

    def blamed(self, history: History, instance: str, since_unix_ns: int) -> list[str]:
        """The instances that it calls, directly or not, and that add most of what it suffers from since then, the worst first.

        Empty where it calls none, or where what it suffers from is its own.
        """
