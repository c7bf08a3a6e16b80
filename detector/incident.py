"""Incidents: opened, gathering causes, resolved with hysteresis, opened again when the fault returns; through restarts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.analysis import Journal
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.silent_cause import kind

REOPEN_SECONDS = 300.0
"""A fault that returns within this time is the same incident."""
# One bad tick undoes this many good ones: noise does not hold an incident open, and a fault is not outlasted.
_RELAPSE_FACTOR = 5.0
# How often the wait for an instance that cannot be seen doubles, each time it came back ill.
_DOUBLINGS_MAX = 4
_MEANINGFUL = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """A subject that was found degraded."""

    subject: str
    """An instance, a node, "rack NAME" or "switch NAME", or "model NAME"."""
    node: str
    model: str
    since_unix_ns: int
    symptom: str
    score: float
    cause: pb.Cause | None = None
    """Where it is plain from the beginning."""


@dataclass
class Open:
    """An incident that is open."""

    incident: pb.Incident
    calm_seconds: float = 0.0
    """For how long it has looked normal."""
    unseen_seconds: float = 0.0
    """For how long nothing could be seen of it, with its cause clear."""
    gone_seconds: float = 0.0
    """For how long its subject has been missing."""
    onset_unix_ns: int = 0
    """Since when it is so this time: what was opened again is explained by what happened then, not by what happened at first."""
    explained: bool = True
    """False while an incident that was opened again has only the causes of the time before."""

    def __post_init__(self) -> None:
        self.onset_unix_ns = self.onset_unix_ns or self.incident.since_unix_ns


class Incidents:
    """All incidents that are open, and those that may open again."""

    def __init__(self, settings: DetectorSettings) -> None:
        self._settings = settings
        self._journal: Journal | None = None
        self._changed: Callable[[pb.Incident], None] = lambda _: None
        self._last_number = 0
        self._resolved: dict[str, pb.Incident] = {}
        self.open: dict[str, Open] = {}
        """By subject."""

    def start(self, journal: Journal, changed: Callable[[pb.Incident], None]) -> None:
        """Take up what the journal holds."""
        self._journal, self._changed = journal, changed
        for incident in journal.incidents():
            number = incident.id.removeprefix("i-")
            self._last_number = max(self._last_number, int(number) if number.isdecimal() else 0)
            if incident.status == pb.Incident.STATUS_OPEN and incident.subject not in self.open:
                self.open[incident.subject] = Open(_copy(incident))
            elif incident.status == pb.Incident.STATUS_RESOLVED:
                last = self._resolved.get(incident.subject)
                if last is None or last.resolved_unix_ns < incident.resolved_unix_ns:
                    self._resolved[incident.subject] = _copy(incident)

    def raise_(self, finding: Finding, now_unix_ns: int) -> Open:
        """Open an incident for this subject, which has none open: the last one again if it was of that kind and resolved a moment ago."""
        last = self._resolved.pop(finding.subject, None)
        first = [finding.cause] if finding.cause else []
        if (
            last is not None
            and now_unix_ns - last.resolved_unix_ns <= REOPEN_SECONDS * 1e9
            and kind(last) == kind(pb.Incident(causes=first))
        ):
            incident = last
            incident.reopened += 1
            incident.resolved_unix_ns = 0
            incident.score = max(incident.score, finding.score)
        else:
            self._last_number += 1
            incident = pb.Incident(
                id=f"i-{self._last_number}",
                subject=finding.subject,
                node=finding.node,
                model=finding.model,
                since_unix_ns=finding.since_unix_ns,
                opened_unix_ns=now_unix_ns,
                symptom=finding.symptom,
                score=finding.score,
                causes=first,
            )
        incident.status = pb.Incident.STATUS_OPEN
        again = incident is last
        entry = Open(incident, onset_unix_ns=finding.since_unix_ns if again else 0, explained=not again)
        self.open[finding.subject] = entry
        self._save(incident)
        return entry

    def gather(self, subject: str, score: float, symptom: str, causes: Sequence[pb.Cause], last: bool = False) -> None:
        """Keep the worst score and the best explanation; stored only when that says something new.

        The `last` explanation takes the place of the same one from before: its evidence shows the course to its end.
        """
        entry = self.open[subject]
        incident = entry.incident
        worse = math.isfinite(score) and score >= incident.score + _MEANINGFUL
        if worse:
            incident.score, incident.symptom = score, symptom or incident.symptom
        kept = incident.causes[0] if incident.causes else None
        other = bool(causes) and not entry.explained and causes[0].mechanism != "unknown"
        better = other or (bool(causes) and (_better(causes[0], kept) or (last and _same(causes[0], kept))))
        entry.explained |= other
        if better:
            del incident.causes[:]
            incident.causes.extend(causes)
        if worse or better:
            self._save(incident)

    def put_first_cause(self, subject: str, cause: pb.Cause) -> None:
        """For the time being this is what there is to be said; the causes that were found stay behind it."""
        incident = self.open[subject].incident
        causes = [cause, *incident.causes]
        del incident.causes[:]
        incident.causes.extend(causes)
        self._save(incident)

    def end_first_cause(self, subject: str, now_unix_ns: int) -> None:
        """That is over, and the incident with it, unless it was open for something else before."""
        incident = self.open[subject].incident
        if len(incident.causes) < 2:
            self.resolve(subject, now_unix_ns)
            return
        del incident.causes[0]
        self._save(incident)

    def settle(
        self, subject: str, lingers: bool, unknown: bool, cause_clear: bool, seconds: float, now_unix_ns: int
    ) -> None:
        """Another `seconds` have passed: resolve the incident once it has been normal for long enough, and its cause is gone.

        What cannot be seen is not normal; but with its cause clear it is given another chance after twice the time, and
        after longer each time that it came back ill.
        """
        entry = self.open[subject]
        if lingers:
            entry.calm_seconds = max(0.0, entry.calm_seconds - _RELAPSE_FACTOR * seconds)
            entry.unseen_seconds = 0.0
        elif unknown:
            entry.unseen_seconds = entry.unseen_seconds + seconds if cause_clear else 0.0
        elif not cause_clear:
            entry.calm_seconds = 0.0
        else:
            entry.calm_seconds += seconds
        longer = 2 * 2 ** min(entry.incident.reopened, _DOUBLINGS_MAX)
        calm = entry.calm_seconds >= self._settings.resolve_seconds
        if calm or entry.unseen_seconds >= longer * self._settings.resolve_seconds:
            self.resolve(subject, now_unix_ns)

    def resolve(self, subject: str, now_unix_ns: int) -> None:
        """It is over."""
        incident = self.open.pop(subject).incident
        incident.status = pb.Incident.STATUS_RESOLVED
        incident.resolved_unix_ns = now_unix_ns
        reach = now_unix_ns - REOPEN_SECONDS * 1e9
        self._resolved = {s: i for s, i in self._resolved.items() if i.resolved_unix_ns >= reach}
        self._resolved[subject] = incident
        self._save(incident)

    def _save(self, incident: pb.Incident) -> None:
        copy = _copy(incident)
        if self._journal is not None:
            self._journal.save_incident(copy)
        self._changed(copy)


def _better(new: pb.Cause, old: pb.Cause | None) -> bool:
    if old is None or (old.mechanism == "unknown" and new.mechanism != "unknown"):
        return True
    if new.mechanism == "unknown":
        return False
    return new.confidence >= old.confidence + (_MEANINGFUL if _same(new, old) else 0.02)


def _same(new: pb.Cause, old: pb.Cause | None) -> bool:
    return old is not None and (new.mechanism, new.subject) == (old.mechanism, old.subject)


def _copy(incident: pb.Incident) -> pb.Incident:
    copy = pb.Incident()
    copy.CopyFrom(incident)
    return copy
