"""What is known of the agents: from the store, from who is connected, and from the newest state of the fleet."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.store import Store

_NODES = """
SELECT n.node, n.agent_version, n.clock_error_seconds, coalesce(epoch_us(max(s.last_window)), 0),
       coalesce(sum(s.windows), 0)::BIGINT, coalesce(sum(s.duplicates), 0)::BIGINT,
       least(coalesce(sum(s.lost), 0), 9223372036854775807)::BIGINT, coalesce(sum(s.refused), 0)::BIGINT,
       coalesce(arg_max(s.last_refusal, s.refused_at), ''),
       (SELECT count(*) FROM subjects g WHERE g.node = n.node AND g.kind = 'gpu' AND g.current)
FROM nodes n LEFT JOIN streams s USING (node) GROUP BY n.node, n.agent_version, n.clock_error_seconds ORDER BY n.node
"""


def nodes(store: Store, connected: set[str], instances: Sequence[pb.InstanceState]) -> list[pb.Node]:
    """Every node that ever connected, by name. Raises StoreError."""
    with store.reading() as connection:
        found = connection.execute(_NODES).fetchall()
    return [
        pb.Node(
            name=name,
            agent_version=version,
            connected=name in connected,
            last_window_unix_ns=last_window * 1000,
            windows=windows,
            duplicates=duplicates,
            lost=lost,
            refused=refused,
            last_refusal=last_refusal,
            clock_error_seconds=clock_error,
            instances=[instance for instance in instances if instance.node == name],
            gpus=gpus,
        )
        for name, version, clock_error, last_window, windows, duplicates, lost, refused, last_refusal, gpus in found
    ]
