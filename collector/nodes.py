"""What is known of the agents: from the store, from who is connected, and from the newest state of the fleet."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.ledger import swept_us
from trimtab.collector.store import Store

# What arrived since the last sweep is added to the records: as the view `streams` does, but looking at nothing that was swept up before.
_NODES = """
WITH fresh AS (
    SELECT a.stream, count(*) AS windows, max(a.start) AS last_window
    FROM arrivals a JOIN stream_records r ON r.stream = a.stream AND a.seq > r.high_water_mark
    WHERE a.received >= make_timestamp(?) GROUP BY a.stream
), streams AS (
    SELECT r.* REPLACE (r.windows + coalesce(f.windows, 0) AS windows, greatest(r.last_window, f.last_window) AS last_window)
    FROM stream_records r LEFT JOIN fresh f USING (stream)
), gpus AS (SELECT node, count(*) AS gpus FROM subjects WHERE kind = 'gpu' AND current GROUP BY node)
SELECT n.node, n.agent_version, n.clock_error_seconds, coalesce(epoch_us(max(s.last_window)), 0),
       coalesce(sum(s.windows), 0)::BIGINT, coalesce(sum(s.duplicates), 0)::BIGINT,
       least(coalesce(sum(s.lost), 0), 9223372036854775807)::BIGINT, coalesce(sum(s.refused), 0)::BIGINT,
       coalesce(arg_max(s.last_refusal, s.refused_at), ''), coalesce(any_value(g.gpus), 0)
FROM nodes n LEFT JOIN streams s USING (node) LEFT JOIN gpus g USING (node)
GROUP BY n.node, n.agent_version, n.clock_error_seconds ORDER BY n.node
"""


def nodes(store: Store, connected: set[str], instances: Sequence[pb.InstanceState]) -> list[pb.Node]:
    """Every node that ever connected, by name. Raises StoreError."""
    with store.reading() as connection:
        found = connection.execute(_NODES, [swept_us(connection)]).fetchall()
    by_node: dict[str, list[pb.InstanceState]] = {}
    for instance in instances:
        by_node.setdefault(instance.node, []).append(instance)
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
            instances=by_node.get(name, []),
            gpus=gpus,
        )
        for name, version, clock_error, last_window, windows, duplicates, lost, refused, last_refusal, gpus in found
    ]
