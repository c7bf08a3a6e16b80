"""When all instances of a model, of a node, or of what nodes share are worse together: one fault, and whose it is."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.decide import MOST, Bools, Verdicts
from trimtab.detector.rows import Rows
from trimtab.detector.settings import DetectorSettings

SHARE_OF_GROUP = 2 / 3
"""So many of its members must be worse for a group to be so as a whole."""
NODES_OF_PLACE_MIN = 2
# Where so many of the others suffer too, if only a little so far, it is not the fault of what they do not share.
_OTHERS_WELL = 0.5

Found = list[tuple[str, NDArray[np.int64]]]


def is_places(group: Sequence[int], ill: Bools, verdicts: Verdicts, rows: Rows) -> bool:
    """Whether it is the fault of a rack or a switch that these rows, all of those that stand there, are `ill`.

    Most of them are, on two nodes or more most of each, and those elsewhere are well. Where one model suffers and is served nowhere
    else, nothing tells its fault from theirs, and it is rather the model's.
    """
    sick = [row for row in group if ill[row]]
    if not sick or len(sick) < SHARE_OF_GROUP * len(group):
        return False
    of_node, sick_of_node = (Counter(rows.nodes[row] for row in some) for some in (group, sick))
    struck = sum(sick_of_node[node] >= SHARE_OF_GROUP * count for node, count in of_node.items())
    others = np.setdiff1d(np.flatnonzero(verdicts.fresh), group)
    if struck < NODES_OF_PLACE_MIN or not _are_well(others, verdicts):
        return False
    served = {rows.models[row] for row in sick}
    return len(served) > 1 or "" in served or any(rows.models[row] in served for row in others.tolist())


class Places:
    """Tells since when a rack or a switch is worse than usual as a whole."""

    def __init__(self, ticks: int) -> None:
        """It is so lastingly when it was in most of so many ticks."""
        self._ticks = ticks
        self._last: dict[str, deque[bool]] = {}

    def observe(self, verdicts: Verdicts, rows: Rows) -> None:
        """Take note of this tick."""
        fresh = verdicts.fresh
        groups = {place: [row for row in group if fresh[row]] for place, group in rows.of_places.items()}
        self._last = {place: self._last.get(place, deque(maxlen=self._ticks)) for place in groups}
        for place, group in groups.items():
            self._last[place].append(is_places(group, verdicts.worse, verdicts, rows))

    def is_worse(self, place: str) -> bool:
        """In this tick."""
        return place in self._last and self._last[place][-1]

    def lasts(self, place: str) -> bool:
        """In most of the last ones, and in this one."""
        return self.is_worse(place) and sum(self._last[place]) >= MOST * self._ticks


class Common:
    """Tells when all instances of a model, a node or a place are worse together."""

    def __init__(self, settings: DetectorSettings) -> None:
        self._ticks = max(2, math.ceil(settings.common_open_seconds))
        self._last: dict[str, deque[bool]] = {}

    def is_worse(self, subject: str) -> bool:
        """Whether it was so as a whole in the last tick that was observed."""
        return subject in self._last and self._last[subject][-1]

    def observe(self, verdicts: Verdicts, rows: Rows) -> Found:
        """Take note of this tick; the subjects that are lastingly worse as a whole, with their rows."""
        members: dict[str, list[int]] = {}
        places: set[str] = set()
        for row in np.flatnonzero(verdicts.fresh).tolist():
            places.update(rows.places(row))
            for subject in (
                rows.nodes[row],
                *rows.places(row),
                *([f"model {rows.models[row]}"] * bool(rows.models[row])),
            ):
                members.setdefault(subject, []).append(row)
        members = {subject: group for subject, group in members.items() if len(group) > 1}
        common = verdicts.common.tolist()
        now = {s: sum([common[row] for row in g]) >= SHARE_OF_GROUP * len(g) for s, g in members.items()}
        for place in places & now.keys():
            now[place] = now[place] and is_places(members[place], verdicts.common, verdicts, rows)
        self._last = {s: self._last.get(s, deque(maxlen=self._ticks)) for s in members}
        for subject, ill in now.items():
            self._last[subject].append(ill)
        lasting = {s for s in members if now[s] and sum(self._last[s]) >= MOST * self._ticks}
        found = [(place, np.asarray(members[place], dtype=np.int64)) for place in sorted(places & lasting)]
        # What is of a place that may soon be known to be worse as a whole waits for that.
        covered = {row for place in places if now.get(place) for row in members[place]}
        return found + _widest(lasting - places, members, covered, verdicts, rows)


def _widest(
    lasting: set[str], members: dict[str, list[int]], covered: set[int], verdicts: Verdicts, rows: Rows
) -> Found:
    """One subject for one fault: the node where others are well or several models suffer, else the model."""
    found: dict[str, NDArray[np.int64]] = {}
    for subject in sorted(lasting, key=lambda s: (s.startswith("model "), s)):
        widest = subject
        if not subject.startswith("model "):
            served = {rows.models[row] for row in members[subject]}
            others = np.setdiff1d(np.flatnonzero(verdicts.fresh), members[subject])
            shared = not _are_well(others, verdicts)
            widest = f"model {served.pop()}" if len(served) == 1 and shared else subject
        group = members.get(widest, [])
        if {row for row in group if verdicts.common[row]} - covered:
            covered.update(group)
            found[widest] = np.asarray(group, dtype=np.int64)
    return list(found.items())


def _are_well(others: NDArray[np.int64], verdicts: Verdicts) -> bool:
    """Where there are none, nothing is known of them."""
    return bool(len(others)) and float(np.mean(verdicts.raised[others])) < _OTHERS_WELL
