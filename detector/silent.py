"""Nodes that fell silent while others go on, and what reaches the collector when all of them are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire.events import AGENT_STOPPED
from trimtab.detector import silent_cause
from trimtab.detector.history import History, Node
from trimtab.detector.incident import Finding, Incidents
from trimtab.detector.silent_cause import INPUT

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


class Silent:
    """Opens and resolves what it finds: one incident a node, not one for each of its instances."""

    def __init__(self, stale_seconds: float, incidents: Incidents) -> None:
        self._stale_seconds, self._incidents = stale_seconds, incidents
        self._heard: dict[str, _Heard] = {}

    def start(self, heard: Sequence[wire.Heard]) -> None:
        """Expect those that were heard before this process began: each is given its time, for it may have to connect again first."""
        self._heard = {one.node: _Heard(_UNHEARD, one.last_unix_ns, one.window_seconds) for one in heard}

    def tick(self, history: History, now_unix_ns: int, seconds: float) -> None:
        """Another `seconds` have passed."""
        spoke = self._hear(history, seconds)
        self._welcome(spoke, now_unix_ns)
        expected = {name: heard for name, heard in self._heard.items() if not heard.stopped}
        silent = {name: heard for name, heard in expected.items() if self._exceeds(heard, PATIENCE)}
        if any(not self._exceeds(heard, 1) for heard in expected.values()):
            for name, heard in silent.items():
                self._raise_node(name, heard, len(expected) - len(silent), now_unix_ns)
        elif silent and len(silent) == len(expected):
            self._raise_input(max(heard.last_unix_ns for heard in silent.values()), len(silent), now_unix_ns)
        self._forget(now_unix_ns)

    def _hear(self, history: History, seconds: float) -> set[str]:
        """Who has told something new."""
        spoke = set()
        for name, node in history.nodes.items():
            heard, mark = self._heard.get(name), (node.slot_ns, node.newest)
            if heard is None or heard.mark != mark:
                self._heard[name] = _Heard(mark, node.newest_end_ns, node.slot_seconds)
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
        for name in spoke & self._incidents.open.keys():
            incident = self._incidents.open[name].incident
            if silent_cause.is_silence(incident):
                log.info("incident %s: %s speaks again", incident.id, name)
                self._incidents.end_first_cause(name, now_unix_ns)

    def _raise_node(self, name: str, heard: _Heard, others: int, now_unix_ns: int) -> None:
        entry = self._incidents.open.get(name)
        if entry and silent_cause.is_silence(entry.incident):
            return
        cause = silent_cause.of_node(name, heard.last_unix_ns, others)
        if entry:
            self._incidents.put_first_cause(name, cause)
        else:
            self._raise(Finding(name, name, "", heard.last_unix_ns, silent_cause.SYMPTOM, 1.0, cause), now_unix_ns)

    def _raise_input(self, last_unix_ns: int, nodes: int, now_unix_ns: int) -> None:
        if INPUT not in self._incidents.open:
            cause = silent_cause.of_all(nodes, last_unix_ns)
            self._raise(Finding(INPUT, "", "", last_unix_ns, silent_cause.SYMPTOM_OF_ALL, 1.0, cause), now_unix_ns)

    def _raise(self, finding: Finding, now_unix_ns: int) -> None:
        entry = self._incidents.raise_(finding, now_unix_ns)
        log.warning("incident %s: %s: %s", entry.incident.id, finding.subject, finding.symptom)

    def _forget(self, now_unix_ns: int) -> None:
        for name, heard in list(self._heard.items()):
            if max(heard.quiet_seconds, (now_unix_ns - heard.last_unix_ns) / 1e9) > GONE_SECONDS:
                del self._heard[name]
        for subject, entry in list(self._incidents.open.items()):
            begun = entry.incident.since_unix_ns
            if silent_cause.is_silence(entry.incident) and now_unix_ns - begun > GONE_SECONDS * 1e9:
                self._incidents.resolve(subject, now_unix_ns)


def _has_stopped(node: Node) -> bool:
    """Whether the last that came of it was that it ends."""
    since = node.newest_end_ns - 2 * node.slot_ns
    return any(event.name == AGENT_STOPPED and event.unix_ns >= since for event in node.events)
