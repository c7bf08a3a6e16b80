"""The schema of each node, as both ends of the line to the analysis know it."""

from __future__ import annotations

from trimtab.agent.wire import telemetry_pb2 as pb

NODES_MAX = 16384
"""Of more, the one whose schema is the oldest is forgotten: by both ends, for both see the same changes in the same order."""


class Schemas:
    """One schema a node."""

    def __init__(self) -> None:
        self._of: dict[str, pb.Schema] = {}

    def put(self, node: str, schema: pb.Schema) -> bool:
        """This is the node's schema from now on; whether it was not before."""
        known = self._of.get(node)
        if known is not None and (known is schema or known.hash == schema.hash):
            return False
        self._of.pop(node, None)
        self._of[node] = schema
        if len(self._of) > NODES_MAX:
            del self._of[next(iter(self._of))]
        return True

    def of(self, node: str) -> pb.Schema:
        """Raises KeyError for a node that has none."""
        return self._of[node]
