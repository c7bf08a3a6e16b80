"""Nodes that fell silent while others go on, alone or with their rack, and what reaches the collector when all of them are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.events import AGENT_STOPPED
from trimtab.agent.wire.places import places
from trimtab.detector import silent_cause
from trimtab.detector.history import History, Node
from trimtab.detector.incident import Finding, Incidents
from trimtab.detector.silent_cause import INPUT
from trimtab.detector.together import NODES_OF_PLACE_MIN, SHARE_OF_GROUP

log = logging.getLogger(__name__)

PATIENCE = 3.0
"""So many times longer than nothing is known of its instances a node must have been silent."""
GONE_SECONDS = 7 * 86400.0
"""A node that was silent for longer does not come back."""
# Of no window: whatever comes is new.
_UNHEARD = (0, 0)


@dataclass
class _Heard:
    """What was heard last of one node."""

    mark: tuple[int, int]
    last_unix_ns: int
    """Where its newest window ends."""
    slot_seconds: float
    quiet_seconds: float = 0.0
    """For how long nothing new came, by the ticks: a clock that is set makes nobody silent."""
    stopped: bool = False
    places: tuple[str, ...] = ()
    """Where it stands."""


class Silent:
    """Opens and resolves what it finds: one incident a node or a rack, not one for each instance or node there."""

    def __init__(self, stale_seconds: float, incidents: Incidents) -> None:
        self._stale_seconds, self._incidents = stale_seconds, incidents
        self._heard: dict[str, _Heard] = {}

    def start(self, heard: Sequence[wire.Heard]) -> None:
        """Expect those that were heard before this process began.

        Each is given its time, for it may have to connect again first; but who was told to be silent is so until it speaks.
        """
        for one in heard:
            known = _Heard(_UNHEARD, one.last_unix_ns, one.window_seconds, places=places(one.labels))
            if self._is_told(one.node, known):
                known.quiet_seconds = (PATIENCE + 1) * self._stale_seconds + one.window_seconds
            self._heard[one.node] = known

    def tick(self, history: History, standing: Mapping[str, tuple[str, ...]], now_unix_ns: int, seconds: float) -> None:
        """Another `seconds` have passed; `standing`: where nodes stand, of those that say so."""
        spoke = self._hear(history, standing, seconds)
        self._welcome(spoke, now_unix_ns)
        expected = {name: heard for name, heard in self._heard.items() if not heard.stopped}
        silent = {name: heard for name, heard in expected.items() if self._exceeds(heard, PATIENCE)}
        if silent and any(not self._exceeds(heard, 1) for heard in expected.values()):
            self._raise_some(expected, silent, now_unix_ns)
        elif silent and len(silent) == len(expected):
            self._raise_input(max(heard.last_unix_ns for heard in silent.values()), len(silent), now_unix_ns)
        self._forget(now_unix_ns)

    def _hear(self, history: History, standing: Mapping[str, tuple[str, ...]], seconds: float) -> set[str]:
        """Who has told something new."""
        spoke = set()
        for name, node in history.nodes.items():
            heard, mark = self._heard.get(name), (node.slot_ns, node.newest)
            if heard is None or heard.mark != mark:
                self._heard[name] = _Heard(mark, node.newest_end_ns, node.slot_seconds, places=standing.get(name, ()))
                spoke.add(name)
            elif not heard.stopped and heard.quiet_seconds:
                heard.stopped = _has_stopped(node)
        for name, heard in self._heard.items():
            heard.quiet_seconds += 0 if name in spoke else seconds
        return spoke

    def _exceeds(self, heard: _Heard, times: float) -> bool:
        # The newest window may be as old as it is long before the next one can be here.
        return heard.quiet_seconds > times * self._stale_seconds + heard.slot_seconds

    def _welcome(self, spoke: set[str], now_unix_ns: int) -> None:
        if not spoke:
            return
        if INPUT in self._incidents.open:
            self._incidents.resolve(INPUT, now_unix_ns)
            # The others are given their time again: they cannot all come back in the same second.
            for heard in self._heard.values():
                heard.quiet_seconds = 0.0
        for place in {place for name in spoke for place in self._heard[name].places if self._is_silence(place)}:
            self._welcome_place(place, now_unix_ns)
        for name in spoke & self._incidents.open.keys():
            incident = self._incidents.open[name].incident
            if silent_cause.is_silence(incident):
                log.info("incident %s: %s speaks again", incident.id, name)
                self._incidents.end_first_cause(name, now_unix_ns)

    def _welcome_place(self, place: str, now_unix_ns: int) -> None:
        """One that stands there spoke: unless most of the others are still silent, it is over."""
        there = [heard for heard in self._heard.values() if place in heard.places and not heard.stopped]
        silent = [heard for heard in there if self._exceeds(heard, PATIENCE)]
        if not _is_places(len(silent), len(there)):
            self._incidents.end_first_cause(place, now_unix_ns)
            for heard in silent:  # as when all were
                heard.quiet_seconds = 0.0

    def _raise_some(self, expected: Mapping[str, _Heard], silent: Mapping[str, _Heard], now_unix_ns: int) -> None:
        """Tell of those that are silent while others go on: of a place what fell silent together there, the largest first."""
        others = len(expected) - len(silent)
        left = {name: heard for name, heard in expected.items() if not self._is_told(name, heard)}
        there: dict[str, list[str]] = {}
        for name, heard in left.items():
            for place in heard.places:
                there.setdefault(place, []).append(name)
        awaited = set[str]()
        for place, names in sorted(there.items(), key=lambda item: -len(item[1])):
            fell = self._fell_together([name for name in names if name in left and name in silent])
            # Who fell silent with them, and is not yet known to be, may make it the fault of what they share.
            if any(self._hesitates(expected[name], fell) for name in names if name not in silent):
                awaited.update(fell)
            elif _is_places(len(fell), len(names)):
                cause = silent_cause.of_place(place, {n: left.pop(n).last_unix_ns for n in fell}, len(names), others)
                self._tell(place, "", silent_cause.SYMPTOM_OF_PLACE, cause, now_unix_ns)
        for name in (left.keys() & silent.keys()) - awaited:
            cause = silent_cause.of_node(name, left[name].last_unix_ns, others)
            self._tell(name, name, silent_cause.SYMPTOM, cause, now_unix_ns)

    def _is_told(self, name: str, heard: _Heard) -> bool:
        return any(map(self._is_silence, (name, *heard.places)))

    def _is_silence(self, subject: str) -> bool:
        entry = self._incidents.open.get(subject)
        return entry is not None and silent_cause.is_silence(entry.incident)

    def _fell_together(self, names: Sequence[str]) -> list[str]:
        """Those that fell silent within a moment of the last of them."""
        last = max((self._heard[name] for name in names), key=lambda heard: heard.last_unix_ns, default=None)
        return [name for name in names if last and self._is_near(self._heard[name], last)]

    def _hesitates(self, heard: _Heard, fell: Sequence[str]) -> bool:
        return self._exceeds(heard, 1) and any(self._is_near(heard, self._heard[name]) for name in fell)

    def _is_near(self, one: _Heard, other: _Heard) -> bool:
        apart_seconds = abs(one.last_unix_ns - other.last_unix_ns) / 1e9
        return apart_seconds <= self._stale_seconds + max(one.slot_seconds, other.slot_seconds)

    def _tell(self, subject: str, node: str, symptom: str, cause: pb.Cause, now_unix_ns: int) -> None:
        """Of an incident that is open, it is the first cause for the time being."""
        if subject in self._incidents.open:
            self._incidents.put_first_cause(subject, cause)
            return
        since = min(evidence.changed_unix_ns for evidence in cause.evidence)
        entry = self._incidents.raise_(Finding(subject, node, "", since, symptom, 1.0, cause), now_unix_ns)
        log.warning("incident %s: %s: %s", entry.incident.id, subject, symptom)

    def _raise_input(self, last_unix_ns: int, nodes: int, now_unix_ns: int) -> None:
        if INPUT not in self._incidents.open:
            cause = silent_cause.of_all(nodes, last_unix_ns)
            self._tell(INPUT, "", silent_cause.SYMPTOM_OF_ALL, cause, now_unix_ns)

    def _forget(self, now_unix_ns: int) -> None:
        for name, heard in list(self._heard.items()):
            if max(heard.quiet_seconds, (now_unix_ns - heard.last_unix_ns) / 1e9) > GONE_SECONDS:
                del self._heard[name]
        for subject, entry in list(self._incidents.open.items()):
            begun = entry.incident.since_unix_ns
            if silent_cause.is_silence(entry.incident) and now_unix_ns - begun > GONE_SECONDS * 1e9:
                self._incidents.resolve(subject, now_unix_ns)


def _is_places(silent: int, nodes: int) -> bool:
    """Whether it is the fault of what they share that so many of the nodes of a rack or a switch are silent."""
    return silent >= max(NODES_OF_PLACE_MIN, SHARE_OF_GROUP * nodes)


def _has_stopped(node: Node) -> bool:
    """Whether the last that came of it was that it ends."""
    since = node.newest_end_ns - 2 * node.slot_ns
    return any(event.name == AGENT_STOPPED and event.unix_ns >= since for event in node.events)
