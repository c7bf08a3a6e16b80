"""What operators say of incidents: checked, stored, and then in force, also after a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed
from trimtab.collector.by_hand import NOTE_MAX, NotFound, check_text, few, once_stored
from trimtab.collector.feed import IncidentFeed
from trimtab.collector.journal import StoredJournal
from trimtab.collector.standing import Standing, covers
from trimtab.collector.store import Store
from trimtab.collector.writer import Rows, Writer

ACKNOWLEDGEMENTS_MAX = 64
"""Most of one incident."""
SILENCES_MAX = 1024
"""Most that are in force at once."""
SILENCE_SECONDS_MAX = 366 * 86400.0
_ACKNOWLEDGE = """
INSERT INTO acknowledgements BY NAME SELECT * REPLACE (make_timestamp(acknowledged) AS acknowledged) FROM incoming
"""
_UNSILENCE = "DELETE FROM silences USING incoming WHERE silences.target = incoming.target"
_SILENCE = """
INSERT INTO silences BY NAME SELECT * REPLACE (make_timestamp(since) AS since, make_timestamp(until) AS until) FROM incoming
"""
_ACKNOWLEDGED = "SELECT incident, who, epoch_us(acknowledged), note FROM acknowledgements ORDER BY acknowledged"
_SILENCED = "SELECT target, who, epoch_us(since), epoch_us(until), reason FROM silences"


class Remarks:
    """One remark after the other takes effect, each once it is stored."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        *,
        journal: StoredJournal,
        standing: Standing,
        feed: IncidentFeed,
        clock: Clock,
        accept: Callable[[str], None],
    ) -> None:
        """Take up what is stored. `accept` is told of each incident that is accepted. Raises StoreError."""
        self._accept = accept
        self._writer, self._journal, self._standing, self._feed, self._clock = writer, journal, standing, feed, clock
        with store.reading() as connection:
            acknowledged = connection.execute(_ACKNOWLEDGED).fetchall()
            silenced = connection.execute(_SILENCED).fetchall()
        for incident, who, at, note in acknowledged:
            standing.acknowledge(incident, pb.Acknowledgement(who=who, unix_ns=at * 1000, note=note))
        for target, who, since, until, reason in silenced:
            times = {"since_unix_ns": since * 1000, "until_unix_ns": until * 1000}
            standing.silence(pb.Silence(target=target, who=who, reason=reason, **times))

    def take(self, request: pb.RemarkRequest) -> pb.RemarkReply:
        """What came of it. Raises Malformed, naming the field, NotFound, and StoreError when it cannot be stored now."""
        check_text("who", request.who, TEXT_MAX)
        match request.WhichOneof("content"):
            case "acknowledge":
                return self._acknowledge(request.who, request.acknowledge, "acknowledge", lambda _: None)
            case "accept":
                return self._acknowledge(request.who, request.accept, "accept", self._accept)
            case "silence":
                return self._silence(request.who, request.silence)
            case "unsilence":
                return self._unsilence(request.unsilence.target)
        raise Malformed("content: neither acknowledge, accept, silence nor unsilence")

    def _acknowledge(
        self, who: str, request: pb.AcknowledgeRequest | pb.AcceptRequest, field: str, then: Callable[[str], None]
    ) -> pb.RemarkReply:
        """`then` is called with the incident's id once it is stored."""
        check_text(f"{field}.id", request.id, TEXT_MAX)
        check_text(f"{field}.note", request.note, NOTE_MAX, empty=True)
        incident = self._find(request.id)
        if self._standing.acknowledgements(incident.id) >= ACKNOWLEDGEMENTS_MAX:
            raise Malformed(f"{field}.id: {incident.id} was acknowledged {ACKNOWLEDGEMENTS_MAX} times: it is enough")
        at = self._clock.unix_ns() // 1000
        said = pb.Acknowledgement(who=who, unix_ns=at * 1000, note=request.note)
        row = {"incident": incident.id, "acknowledged": at, "who": who, "note": request.note}
        key = f"acknowledgement {incident.id} {at}"

        def stored() -> None:
            self._standing.acknowledge(incident.id, said)
            then(incident.id)

        self._store(key, [(_ACKNOWLEDGE, _columns(row))], incident.id, stored)
        return pb.RemarkReply(incidents=[self._standing.on(incident)])

    def _silence(self, who: str, request: pb.SilenceRequest) -> pb.RemarkReply:
        target, now = request.target, self._clock.unix_ns() // 1000
        check_text("silence.target", target, TEXT_MAX)
        check_text("silence.reason", request.reason, NOTE_MAX, empty=True)
        if not 0 < request.seconds <= SILENCE_SECONDS_MAX:  # NaN fails too
            raise Malformed(f"silence.seconds: {request.seconds} is not in (0, {SILENCE_SECONDS_MAX:g}]")
        if _is_id(target):
            self._find(target)
        known = self._standing.silences()
        if target not in known and len(known) >= SILENCES_MAX:
            raise Malformed(
                f"silence.target: {SILENCES_MAX} silences are in force; silence a node instead, or end some"
            )
        since = known[target].since_unix_ns // 1000 if target in known else now
        until = now + round(request.seconds * 1e6)
        row = {"target": target, "since": since, "until": until, "who": who, "reason": request.reason}
        times = {"since_unix_ns": since * 1000, "until_unix_ns": until * 1000}
        silence = pb.Silence(target=target, who=who, reason=request.reason, **times)
        statements = [(_UNSILENCE, {"target": [target]}), (_SILENCE, _columns(row))]
        self._store(f"silence {target} {now}", statements, target, lambda: self._standing.silence(silence))
        return pb.RemarkReply(incidents=self._feed.known(target), silence=silence)

    def _unsilence(self, target: str) -> pb.RemarkReply:
        check_text("unsilence.target", target, TEXT_MAX)
        known = self._standing.silences()
        if target not in known:
            raise NotFound(f"{target!r} is not silenced; silenced now: {few(sorted(known))}")
        key = f"silence {target} {self._clock.unix_ns() // 1000}"
        rows = [(_UNSILENCE, {"target": [target]})]
        self._store(key, rows, target, lambda: self._standing.unsilence(target))
        return pb.RemarkReply(incidents=self._feed.known(target))

    def _find(self, incident: str) -> pb.Incident:
        # One that has just opened may wait to be stored.
        found = [one for one in self._feed.known(incident) if one.id == incident] or self._journal.incidents(
            1, incident
        )
        if not found:
            raise NotFound(f"no incident {incident!r}; `trimtab incidents` lists them")
        return found[0]

    def _store(self, key: str, rows: Rows, about: str, apply: Callable[[], None]) -> None:
        def applied() -> None:
            apply()
            self._feed.again(lambda incident: covers(about, incident))

        once_stored(self._writer, key, rows, applied)


def _is_id(target: str) -> bool:
    prefix, _, number = target.partition("-")
    return prefix == "i" and number.isdecimal()


def _columns(row: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [value] for name, value in row.items()}
