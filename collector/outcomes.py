"""Takes what an analysis in a process of its own has found: to the journal, and to those who watch."""

from __future__ import annotations

import logging

from google.protobuf.message import DecodeError

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX
from trimtab.collector.analysis import MEMORY_MAX, Journal
from trimtab.collector.feed import FleetSlot, IncidentFeed
from trimtab.collector.line import Garbled
from trimtab.collector.store import StoreError

log = logging.getLogger(__name__)

KNOWN_MAX = 1000
_STATUSES = {pb.Incident.STATUS_OPEN, pb.Incident.STATUS_RESOLVED}


class Outcomes:
    """What one analysis after another has found. For one thread."""

    def __init__(self, journal: Journal, fleet: FleetSlot, feed: IncidentFeed) -> None:
        self._journal, self._fleet, self._feed = journal, fleet, feed
        # The store has them a moment later than we do, or much later when its disk is full.
        self._newest: dict[str, pb.Incident] = {}
        self._unsaved: dict[str, pb.Incident] = {}
        self._memory: str | None = None
        self._memory_unsaved = False

    def start(self) -> wire.Start:
        """What the next analysis takes up. Raises StoreError."""
        return wire.Start(incidents=self.known(), memory=self.memory(), heard=self._journal.heard())

    def known(self) -> list[pb.Incident]:
        """What the next analysis takes up, newest first. Raises StoreError."""
        found = {incident.id: incident for incident in self._journal.incidents(KNOWN_MAX)} | self._newest
        return sorted(found.values(), key=lambda incident: -incident.opened_unix_ns)[:KNOWN_MAX]

    def memory(self) -> str:
        """What the next analysis remembers. Raises StoreError."""
        return self._journal.memory() if self._memory is None else self._memory

    def take(self, data: bytes) -> None:
        """An `Outcome`, whole. Raises Garbled, and then nothing of it was taken."""
        outcome = _checked(data)
        for incident in outcome.saved:
            self._newest.pop(incident.id, None)
            self._newest[incident.id] = self._unsaved[incident.id] = incident
        while len(self._newest) > KNOWN_MAX:
            del self._newest[next(iter(self._newest))]
        if outcome.memory_refused:
            self._journal.refuse_memory(outcome.memory_refused)
        if outcome.HasField("memory"):
            self._memory, self._memory_unsaved = outcome.memory, True
        self._save()
        for incident in outcome.changed:
            self._feed.publish(incident)
        if outcome.HasField("fleet"):
            self._fleet.put(outcome.fleet)

    def _save(self) -> None:
        for incident in list(self._unsaved.values()):
            try:
                self._journal.save_incident(incident)
            except StoreError as error:
                log.debug("incident %s is not saved yet: %s", incident.id, error)
                return
            del self._unsaved[incident.id]
        if self._memory_unsaved and self._memory is not None:
            try:
                self._journal.remember(self._memory)
            except StoreError as error:
                log.debug("what is to be remembered is not saved yet: %s", error)
                return
            self._memory_unsaved = False


def _checked(data: bytes) -> wire.Outcome:
    try:
        outcome = wire.Outcome.FromString(data)
    except DecodeError as error:
        raise Garbled("a message that cannot be read") from error
    for incident in (*outcome.saved, *outcome.changed):
        if not 0 < len(incident.id) <= TEXT_MAX or incident.status not in _STATUSES:
            raise Garbled(f"an incident {incident.id[:TEXT_MAX]!r} with the status {incident.status}")
    if max(len(outcome.memory), len(outcome.memory_refused)) > MEMORY_MAX:
        raise Garbled(f"a memory of over {MEMORY_MAX} characters")
    return outcome
