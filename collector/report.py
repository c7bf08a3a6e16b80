"""One incident, what it did to users, and what was done about it."""

from __future__ import annotations

from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.places import PLACES
from trimtab.collector.actions import actions
from trimtab.collector.impact import impact
from trimtab.collector.scope import WITHIN
from trimtab.collector.sql import limited
from trimtab.collector.store import Connection, Store

_OF_NODE = "SELECT i.subject, i.instance FROM instances i WHERE i.node = ? ORDER BY i.subject"
_OTHERS = f"SELECT i.subject, i.instance FROM instances i WHERE {WITHIN} ORDER BY i.subject"  # noqa: S608 - WITHIN is ours
_OF_PLACE = """
SELECT i.subject, i.instance FROM instances i JOIN subjects s ON s.node = i.node AND s.kind = 'node' AND s.current
WHERE s.labels[$place] = $name ORDER BY i.subject
"""


def report(store: Store, incident: pb.Incident, now_unix_ns: int, seconds_max: float) -> pb.IncidentReportReply:
    """Raises QuestionError when it takes too long, and StoreError."""
    reply = pb.IncidentReportReply(incident=incident)
    since, until = incident.since_unix_ns, incident.resolved_unix_ns or now_unix_ns
    with store.reading() as connection, limited(connection, seconds_max):
        instances = _instances(connection, incident)
        if not instances or until <= since:
            return reply
        found = impact(connection, list(instances), since, until)
        if found:
            reply.impact.CopyFrom(found)
        done, reply.actions_left_out = actions(connection, list(instances.values()), since, until)
        reply.actions.extend(done)
    return reply


def _instances(connection: Connection, incident: pb.Incident) -> dict[int, str]:
    """Whom it is about, by number: one instance, those of a node or of a place, or those of a model."""
    if incident.subject == incident.node:
        return dict(connection.execute(_OF_NODE, [incident.node]).fetchall())
    place, _, name = incident.subject.partition(" ")
    if place in PLACES:
        return dict(connection.execute(_OF_PLACE, {"place": place, "name": name}).fetchall())
    own = dict(connection.execute(_OTHERS, {"instance": incident.subject, "model": ""}).fetchall())
    if own or not incident.model or incident.node:
        return own
    return dict(connection.execute(_OTHERS, {"instance": "", "model": incident.model}).fetchall())
