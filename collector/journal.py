"""Incidents and decisions as rows. The message itself is stored too, so that what is asked back is exactly what was saved."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed
from trimtab.agent.wire.events import AGENT_STOPPED
from trimtab.agent.wire.overrides import OVERRIDES_MAX
from trimtab.collector.arrow import Columns
from trimtab.collector.store import Store
from trimtab.collector.writer import Rows, Writer

log = logging.getLogger(__name__)

REPLY_MAX = 1000
"""Most incidents or decisions in one reply."""
WEIGHTS_MAX = 16384
TARGETS_MAX = 64
_STATUSES = {pb.Incident.STATUS_OPEN: "open", pb.Incident.STATUS_RESOLVED: "resolved"}
_INCIDENT = """
INSERT INTO incident_records BY NAME
SELECT * REPLACE (make_timestamp(since) AS since, make_timestamp(opened) AS opened,
                  if(resolved = 0, NULL, make_timestamp(resolved)) AS resolved, from_hex(message) AS message)
FROM incoming
"""
_CAUSES = "INSERT INTO causes BY NAME SELECT * FROM incoming"
_EVIDENCE = """
INSERT INTO evidence BY NAME
SELECT * REPLACE (if(changed = 0, NULL, make_timestamp(changed)) AS changed) FROM incoming
"""
_DECISION = """
INSERT INTO decision_records BY NAME
SELECT * REPLACE (make_timestamp(decided) AS decided, from_hex(message) AS message) FROM incoming
"""
_WEIGHTS = "INSERT INTO weights BY NAME SELECT * REPLACE (make_timestamp(decided) AS decided) FROM incoming"
_MEMORY = "analysis_memory"
_FORGET = "DELETE FROM meta USING incoming WHERE meta.key = incoming.key"
_REMEMBER = "INSERT INTO meta BY NAME SELECT * FROM incoming"
_FIND_MEMORY = "SELECT value FROM meta WHERE key = ?"
_HEARD = """
WITH lately AS (
    SELECT r.node, max(a.start) AS start, arg_max(a.duration_seconds, a.start) AS seconds
    FROM arrivals a JOIN stream_records r USING (stream)
    WHERE a.start >= (SELECT max(last_window) FROM streams) - to_seconds($within) GROUP BY r.node
)
SELECT node, epoch_us(start), seconds, labels FROM lately JOIN nodes USING (node)
WHERE NOT EXISTS (
    SELECT 1 FROM events e
    WHERE e.node = lately.node AND e.name = $goodbye AND e.occurred >= lately.start - to_seconds(ceil(seconds)::BIGINT)
)
ORDER BY node
"""
_HEARD_SECONDS = 3600
_SEEN = """
INSERT INTO decision_states BY NAME SELECT * REPLACE (make_timestamp(decided) AS decided, from_hex(seen) AS seen) FROM incoming
"""
_FIND_INCIDENTS = """
SELECT message FROM incident_records WHERE ($id = '' OR id = $id) AND (NOT $open OR status = 'open')
ORDER BY opened DESC, id DESC LIMIT $limit
"""
_FIND_DECISIONS = """
WITH newest AS (SELECT decided, version, message FROM decision_records ORDER BY decided DESC, version DESC LIMIT $limit)
SELECT message, seen FROM newest LEFT JOIN (SELECT * FROM decision_states WHERE $seen) USING (decided, version)
ORDER BY decided DESC, version DESC
"""
_COLUMNS_MAX = 64


class StoredJournal:
    """The Journal (collector/analysis.py) of this store, and the decisions beside it."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self.memories_refused = 0

    def incidents(self, limit: int = REPLY_MAX, incident: str = "", open_only: bool = False) -> list[pb.Incident]:
        """Stored incidents, newest first. Raises StoreError."""
        with self._store.reading() as connection:
            wanted = {"id": incident, "open": open_only, "limit": limit}
            found = connection.execute(_FIND_INCIDENTS, wanted).fetchall()
        return [pb.Incident.FromString(message) for (message,) in found]

    def decisions(self, limit: int, seen: bool = False) -> list[pb.Decision]:
        """Stored decisions, newest first; with what the policies saw, if it is asked for and there. Raises StoreError."""
        with self._store.reading() as connection:
            found = connection.execute(_FIND_DECISIONS, {"limit": limit, "seen": seen}).fetchall()
        out = [pb.Decision.FromString(message) for message, _ in found]
        for decision, (_, saw) in zip(out, found, strict=True):
            if saw is not None:
                decision.seen.ParseFromString(saw)
        return out

    def save_incident(self, incident: pb.Incident) -> None:
        """Returns once it is queued."""
        self._writer.save(f"incident {incident.id}", _incident_rows(incident))

    def memory(self) -> str:
        """What the analysis asked to be remembered last; empty for nothing. Raises StoreError."""
        with self._store.reading() as connection:
            found = connection.execute(_FIND_MEMORY, [_MEMORY]).fetchone()
        return str(found[0]) if found else ""

    def heard(self) -> list[wire.Heard]:
        """Who sent windows lately (see `Journal`). Raises StoreError."""
        with self._store.reading() as connection:
            wanted = {"within": _HEARD_SECONDS, "goodbye": AGENT_STOPPED}
            found = connection.execute(_HEARD, wanted).fetchall()
        return [
            wire.Heard(
                node=node,
                last_unix_ns=start * 1000 + round(seconds * 1e9),
                window_seconds=seconds,
                labels=json.loads(labels),
            )
            for node, start, seconds, labels in found
        ]

    def remember(self, memory: str) -> None:
        """Returns once it is queued. Raises StoreError when too much waits."""
        rows = [(_FORGET, {"key": [_MEMORY]}), (_REMEMBER, {"key": [_MEMORY], "value": [memory]})]
        self._writer.save("memory of the analysis", rows)

    def refuse_memory(self, why: str) -> None:
        self.memories_refused += 1
        log.warning("what the analysis had learnt cannot be used, and it learns anew: %s", why)

    def record(self, decision: pb.Decision) -> Future[None]:
        """Queue a checked decision; the future is done once it is stored."""
        return self._writer.save(f"decision {decision.unix_ns} {decision.version}", _decision_rows(decision))


def check_decision(decision: pb.Decision) -> None:
    """Raises Malformed, naming the field."""
    if not 0 < decision.unix_ns < 1 << 63 or decision.version >= 1 << 63:
        raise Malformed("decision.unix_ns or version: not in [1, 2^63)")
    if decision.mode not in {"neutral", "active", "shadow"}:
        raise Malformed(f"decision.mode: {decision.mode[:TEXT_MAX]!r} is not neutral, active or shadow")
    if (
        len(decision.weights) > WEIGHTS_MAX
        or len(decision.targets) > TARGETS_MAX
        or len(decision.overrides) > OVERRIDES_MAX
    ):
        raise Malformed(f"decision: over {WEIGHTS_MAX} weights, {TARGETS_MAX} targets or {OVERRIDES_MAX} overrides")
    texts = [decision.policy, decision.reason, *decision.targets.keys(), *decision.targets.values()]
    for override in decision.overrides:
        texts += [override.target, override.who, override.reason]
        if override.frozen or not 0 <= override.weight <= 1:
            raise Malformed(f"decision.overrides[{override.target[:TEXT_MAX]}]: not brief, or no weight in [0, 1]")
    for weight in decision.weights:
        texts += [weight.instance, weight.model, weight.reason]
        where = f"decision.weights[{weight.instance[:TEXT_MAX]}]"
        if not 0 <= weight.weight <= 1:
            raise Malformed(f"{where}.weight: {weight.weight} is not in [0, 1]")
        if not (math.isnan(weight.wished) or 0 <= weight.wished <= 1):
            raise Malformed(f"{where}.wished: {weight.wished} is not in [0, 1], nor NaN for none")
    if decision.HasField("seen"):
        texts += _check_seen(decision)
    if max(map(len, texts)) > 4 * TEXT_MAX:
        raise Malformed(f"decision: a text of over {4 * TEXT_MAX} characters")
    if len({weight.instance for weight in decision.weights}) != len(decision.weights):
        raise Malformed("decision.weights: an instance comes twice")


def _check_seen(decision: pb.Decision) -> list[str]:
    """Its texts. Raises Malformed."""
    seen, instances = decision.seen, {weight.instance for weight in decision.weights}
    if len(seen.columns) > _COLUMNS_MAX or len(seen.values) != 4 * len(seen.columns) * len(decision.weights):
        raise Malformed(f"decision.seen: over {_COLUMNS_MAX} columns, or not a float32 for each column and weight")
    if not seen.incidents.keys() | seen.mechanisms.keys() <= instances:
        raise Malformed("decision.seen: an incident of an instance that has no weight")
    return [*seen.columns, *seen.incidents.values(), *seen.mechanisms.values()]


def _incident_rows(incident: pb.Incident) -> Rows:
    own = {
        "id": incident.id,
        "status": _STATUSES[incident.status],
        "subject": incident.subject,
        "node": incident.node,
        "model": incident.model,
        "since": incident.since_unix_ns // 1000,
        "opened": incident.opened_unix_ns // 1000,
        "resolved": incident.resolved_unix_ns // 1000,
        "symptom": incident.symptom,
        "score": incident.score,
        "reopened": incident.reopened,
        "message": incident.SerializeToString().hex(),
    }
    causes = [
        {"incident": incident.id, "rank": rank, **_fields(cause, "subject mechanism confidence summary remedy")}
        for rank, cause in enumerate(incident.causes)
    ]
    evidence = [
        {
            "incident": incident.id,
            "rank": rank,
            "position": position,
            **_fields(item, "subject signal unit before after peers deviation event"),
            "changed": item.changed_unix_ns // 1000,
        }
        for rank, cause in enumerate(incident.causes)
        for position, item in enumerate(cause.evidence)
    ]
    out: list[tuple[str, Columns]] = []
    for table, column, statement, rows in (
        ("incident_records", "id", _INCIDENT, [own]),
        ("causes", "incident", _CAUSES, causes),
        ("evidence", "incident", _EVIDENCE, evidence),
    ):
        delete = f"DELETE FROM {table} USING incoming WHERE {table}.{column} = incoming.incident"  # noqa: S608 - our own names
        out.append((delete, {"incident": [incident.id]}))
        if rows:
            out.append((statement, _columns(rows)))
    return out


def _decision_rows(decision: pb.Decision) -> Rows:
    stamp = {"decided": decision.unix_ns // 1000, "version": decision.version}
    record = pb.Decision()
    record.CopyFrom(decision)
    record.ClearField("seen")
    own = {**stamp, **_fields(decision, "mode policy reason"), "message": record.SerializeToString().hex()}
    weights = [{**stamp, **_fields(w, "instance model wished weight reason")} for w in decision.weights]
    rows = [(_DECISION, _columns([own])), *([(_WEIGHTS, _columns(weights))] if weights else [])]
    if decision.HasField("seen"):
        rows.append((_SEEN, _columns([{**stamp, "seen": decision.seen.SerializeToString().hex()}])))
    return rows


def _fields(message: Any, names: str) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names.split()}


def _columns(rows: Sequence[dict[str, Any]]) -> Columns:
    return {name: [row[name] for row in rows] for name in rows[0]}
