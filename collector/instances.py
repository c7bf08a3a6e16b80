"""The serving instances: from the store, each with its newest state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.sql import limited
from trimtab.collector.store import Store

PART = 500
"""Instances in one reply: far below the largest message."""
_INSTANCES = """
SELECT instance, node, coalesce(model, ''), coalesce(runtime, ''), coalesce(addresses, ''), current
FROM instances
WHERE ($node = '' OR node = $node) AND (current OR $gone)
  AND ($model = '' OR model = $model OR list_contains(string_split(model, ','), $model))
ORDER BY instance
"""


def instances(
    store: Store, request: pb.InstancesRequest, states: Mapping[str, pb.InstanceState], seconds_max: float
) -> Iterator[pb.InstancesReply]:
    """By name, in parts; `states` by instance. Raises StoreError, and QuestionError when it takes too long."""
    parameters = {"node": request.node, "model": request.model, "gone": request.gone}
    with store.reading() as connection, limited(connection, seconds_max):
        connection.execute(_INSTANCES, parameters)
        while found := connection.fetchmany(PART):
            yield pb.InstancesReply(
                instances=[
                    pb.Instance(
                        id=name,
                        node=node,
                        model=model,
                        runtime=runtime,
                        addresses=[address for address in addresses.split(",") if address],
                        current=current,
                        state=states.get(name),
                    )
                    for name, node, model, runtime, addresses, current in found
                ]
            )
