"""What operators have said of incidents, as it stands now: who acknowledged which, and what is silenced until when."""

from __future__ import annotations

import threading

from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb


def covers(target: str, incident: pb.Incident) -> bool:
    """Whether a silence of `target` is about this incident: it names it, its subject, or the node or the model that it is of."""
    return target in {incident.id, incident.subject, incident.node, f"model {incident.model}"}


class Standing:
    """For any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._acknowledgements: dict[str, list[pb.Acknowledgement]] = {}
        self._silences: dict[str, pb.Silence] = {}

    def on(self, incident: pb.Incident) -> pb.Incident:
        """A copy that says what was said of it, and nothing else of the kind."""
        copy = pb.Incident()
        copy.CopyFrom(incident)
        del copy.acknowledgements[:]
        copy.ClearField("silence")
        with self._lock:
            copy.acknowledgements.extend(self._acknowledgements.get(copy.id, ()))
            silences = [one for one in self._in_force() if covers(one.target, copy)]
        if silences:
            copy.silence.CopyFrom(max(silences, key=lambda one: one.until_unix_ns))
        return copy

    def acknowledgements(self, incident: str) -> int:
        """How often it was acknowledged."""
        with self._lock:
            return len(self._acknowledgements.get(incident, ()))

    def silences(self) -> dict[str, pb.Silence]:
        """Those in force, by target."""
        with self._lock:
            return {one.target: one for one in self._in_force()}

    def acknowledge(self, incident: str, acknowledgement: pb.Acknowledgement) -> None:
        with self._lock:
            self._acknowledgements.setdefault(incident, []).append(acknowledgement)

    def silence(self, silence: pb.Silence) -> None:
        """In place of another one of the same target."""
        with self._lock:
            self._silences = {one.target: one for one in self._in_force()} | {silence.target: silence}

    def unsilence(self, target: str) -> None:
        with self._lock:
            self._silences.pop(target, None)

    def _in_force(self) -> list[pb.Silence]:
        now = self._clock.unix_ns()
        return [one for one in self._silences.values() if one.until_unix_ns > now]
