"""The second lever: how many requests an instance may have at once.

What waits in the balancer goes to whoever is free first; what waits at an instance waits for that one.
"""

from __future__ import annotations

from trimtab.agent.wire import query_pb2 as pb

WORKERS_MAX = 10_000
"""More than that nobody has: it is no measurement."""


def at_once(instance: pb.InstanceState) -> int:
    """As many as it has workers; 0 for no limit, where that is not known or where it batches: what waits there fills its next batch."""
    return int(instance.workers) if instance.batch_size == 1 and 1 <= instance.workers <= WORKERS_MAX else 0
