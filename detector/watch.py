"""The analysis that the collector runs: windows in, incidents and the state of the fleet out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.analysis import Journal
from trimtab.collector.window import Window
from trimtab.detector import memory
from trimtab.detector.callers import Callers, Standing
from trimtab.detector.decide import ERRORS, Judge, Verdicts, margins
from trimtab.detector.drift import Drift
from trimtab.detector.drift_cause import is_drift
from trimtab.detector.explain import Explainer
from trimtab.detector.features import Readings, read
from trimtab.detector.fleet import state
from trimtab.detector.force import in_force
from trimtab.detector.history import INSTANCE, MERGE_SECONDS, History
from trimtab.detector.incident import Finding, Incidents, Open
from trimtab.detector.mates import Mates
from trimtab.detector.onset import onset, symptom
from trimtab.detector.robust import Array
from trimtab.detector.rows import Rows
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.silent import Silent
from trimtab.detector.silent_cause import is_silence
from trimtab.detector.together import SHARE_OF_GROUP, Common, Places
from trimtab.detector.topology import Topology

log = logging.getLogger(__name__)

SILENT_SECONDS_MAX = 600.0
"""An instance that is silent for longer is forgotten."""
PEERS_MAX = 64
"""Medians of more tell nothing new; of a large fleet this many are compared with, spread over it."""
# While its evidence still grows, an incident is explained anew this often, for so long.
_EXPLAIN_SECONDS = 3.0
_PROOF = 0.92
"""Confidence of a cause that leaves little doubt: a quota that came into force, a worker that died."""
_GATHER_SECONDS = 30.0
# What is learnt in a minute may be lost with a process.
_REMEMBER_SECONDS = 60.0


class Watch:
    """See `trimtab.collector.analysis.Analysis`."""

    def __init__(self, settings: DetectorSettings, explainer: Explainer, history_seconds: float) -> None:
        self._settings, self._explainer = settings, explainer
        self._history = History(history_seconds)
        self._judge, self._common = Judge(settings), Common(settings)
        # The merge of the last seconds remembers what is over.
        self._places = Places(math.ceil(settings.open_seconds + MERGE_SECONDS))
        self._incidents = Incidents(settings)
        self._drift = Drift(settings, self._incidents)
        self._silent = Silent(settings.stale_seconds, self._incidents)
        self._rows = Rows()
        self._topology = Topology()
        # An incident about all instances of a callee's model takes the longest.
        patience = settings.common_open_seconds + settings.open_seconds
        self._callers = Callers(explainer, patience, margins(settings))
        self._mates = Mates()
        self._explained: dict[str, tuple[int, int]] = {}
        self._agreed: dict[str, str] = {}
        """By subject of an incident of one instance: how many views called it odd when it opened."""
        self._agreement: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._last_tick_ns: int | None = None
        self._ignored = 0
        self._journal: Journal | None = None
        self._remembered, self._remembered_ns = "", 0

    def start(self, journal: Journal, changed: Callable[[pb.Incident], None]) -> None:
        self._incidents.start(journal, changed)
        self._journal = journal
        self._silent.start(journal.heard())
        try:
            memory.restore(self._judge.budget, journal.memory())
        except ValueError as error:
            journal.refuse_memory(str(error))
        self._remembered = memory.written(self._judge.budget)

    def observe(self, windows: Sequence[Window]) -> None:
        self._history.observe_all(windows)

    def accept(self, incident: str) -> None:
        for subject in [
            s for s, entry in self._incidents.open.items() if entry.incident.id == incident and is_drift(s)
        ]:
            self._drift.accept(subject)

    def tick(self, now_unix_ns: int) -> pb.FleetState:
        seconds = min(10.0, max(0.0, (now_unix_ns - (self._last_tick_ns or now_unix_ns)) / 1e9))
        self._last_tick_ns = now_unix_ns
        self._take_stock(now_unix_ns)
        self._silent.tick(self._history, self._topology.places, now_unix_ns, seconds)
        readings = read(self._history, self._rows.ids, now_unix_ns, self._settings.stale_seconds)
        verdicts, self._agreement = self._judge.judge(readings, self._rows.groups, self._rows.node_groups), None
        self._places.observe(verdicts, self._rows)
        for subject, rows in self._common.observe(verdicts, self._rows):
            self._raise_common(subject, rows, readings, verdicts, now_unix_ns)
        for row in np.flatnonzero(verdicts.opens).tolist():
            self._raise_instance(row, readings, verdicts, now_unix_ns)
        for row in np.flatnonzero(verdicts.suspected & ~verdicts.opens).tolist():
            if self._proved(row, readings, verdicts, now_unix_ns):
                self._raise_instance(row, readings, verdicts, now_unix_ns)
        self._callers.forget(now_unix_ns)
        self._mates.forget(
            self._incidents.open, lambda i: i in self._rows.row and bool(verdicts.worse[self._rows.row[i]])
        )
        self._explain(now_unix_ns, readings, verdicts)
        self._settle(verdicts, seconds, now_unix_ns)
        self._drift.tick(self._history, now_unix_ns, seconds)
        self._judge.learn(readings, self._rows.groups, verdicts, *self._spoken_of())
        self._remember(now_unix_ns)
        told = self._mates.told(self._incidents.open)
        return state(self._history, self._rows, readings, verdicts, told, now_unix_ns)

    def _remember(self, now_unix_ns: int) -> None:
        """Have what was learnt stored, now and then."""
        if self._journal is None or 0 <= now_unix_ns - self._remembered_ns < _REMEMBER_SECONDS * 1e9:
            return
        learnt = memory.written(self._judge.budget)
        if learnt != self._remembered:
            self._journal.remember(learnt)
            self._remembered, self._remembered_ns = learnt, now_unix_ns

    def _take_stock(self, now_unix_ns: int) -> None:
        """Which instances there are."""
        self._history.forget(now_unix_ns, SILENT_SECONDS_MAX)
        instances: dict[str, str] = {}
        for node in self._history.nodes.values():
            table = node.tables.get(INSTANCE)
            reach = (now_unix_ns - SILENT_SECONDS_MAX * 1e9) / node.slot_ns
            if table is not None and (table.seen >= reach).all():
                instances |= table.models
            elif table is not None:
                instances |= {
                    i: table.models[i] for i, seen in zip(table.ids, table.seen, strict=True) if seen >= reach
                }
        self._topology.update(self._history)
        forgotten = self._rows.update(instances, self._topology.places)
        self._judge.forget(forgotten)
        self._judge.resize(len(self._rows.ids))
        if self._history.ignored > self._ignored:
            log.info("%d windows were too old to judge by", self._history.ignored - self._ignored)
            self._ignored = self._history.ignored

    def _raise_common(
        self, subject: str, rows: NDArray[np.int64], readings: Readings, verdicts: Verdicts, now_unix_ns: int
    ) -> None:
        members = [self._rows.ids[row] for row in rows.tolist()]
        ill = [row for row in rows.tolist() if verdicts.common[row]]
        if subject in self._rows.places(ill[0]):
            self._raise_place(subject, ill, readings, verdicts, now_unix_ns)
            return
        # An instance that is drained loads the others, and a node's fault is its models' too: neither is a second fault.
        if self._open_about(subject, [*members, *(s for row in ill for s in self._above(row))]):
            return
        looked_at = ill[:: math.ceil(len(ill) / PEERS_MAX)]
        held = [row for row in looked_at if self._is_held(row, readings, verdicts, now_unix_ns)]
        if len(held) <= (1 - SHARE_OF_GROUP) * len(looked_at):
            self._open(subject, ill, verdicts.by_own, readings, verdicts, now_unix_ns)

    def _raise_place(
        self, place: str, ill: Sequence[int], readings: Readings, verdicts: Verdicts, now_unix_ns: int
    ) -> None:
        untold = [row for row in ill if not self._open_about(self._rows.ids[row], self._above(row))]
        if untold:
            self._open(place, ill, verdicts.by_own, readings, verdicts, now_unix_ns)

    def _raise_instance(self, row: int, readings: Readings, verdicts: Verdicts, now_unix_ns: int) -> None:
        instance, node = self._rows.ids[row], self._rows.nodes[row]
        if self._is_held(row, readings, verdicts, now_unix_ns):
            return
        # What may be the fault of all that stands there waits until that is known.
        if shared := [place for place in self._rows.places(row) if self._places.is_worse(place)]:
            if lasting := [place for place in shared if self._places.lasts(place)]:
                ill = [r for r in self._rows.members(lasting[0]) if verdicts.fresh[r] and verdicts.worse[r]]
                self._raise_place(lasting[0], ill, readings, verdicts, now_unix_ns)
            return
        # So does what most who serve its model have: whoever has the worst of it is not the only one who has it.
        answers = not (readings.dead[row] or readings.silent[row])
        if answers and self._common.is_worse(f"model {self._rows.models[row]}"):
            return
        mates = [r for r in self._rows.members(node) if verdicts.fresh[r]]
        ill = [r for r in mates if verdicts.alone[r]]
        # When all of a node's instances stick out from their peers at once, the fault is the node's.
        whole = len(mates) > 1 and len(ill) == len(mates)
        whole = whole and not any(self._is_held(r, readings, verdicts, now_unix_ns) for r in ill)
        subject, rows = (node, ill) if whole else (instance, [row])
        about = [subject, instance, *self._above(row)]
        if any(s in self._incidents.open for s in about) or (
            whole and self._open_about(node, [self._rows.ids[r] for r in ill])
        ):
            return
        if not whole and self._mates.holds(
            self._history,
            instance,
            self._incidents.open,
            lambda: self._causes_now(row, readings, verdicts, now_unix_ns),
        ):
            return
        if not whole:
            self._agreed[subject] = self._in_views(row, readings)
        self._open(subject, rows, verdicts.score, readings, verdicts, now_unix_ns)

    def _above(self, row: int) -> list[str]:
        """The subjects besides itself whose fault may be this instance's."""
        return [self._rows.nodes[row], f"model {self._rows.models[row]}", *self._rows.places(row)]

    def _since(self, rows: Sequence[int], readings: Readings, verdicts: Verdicts, now_unix_ns: int) -> int:
        """When it began: for what crept in, as the minutes tell, for a change point is looked for in the last one only."""
        crept = verdicts.creeping_seconds[list(rows)]
        if np.isnan(crept).all():
            return self._onset(rows, readings, verdicts, now_unix_ns)
        return now_unix_ns - round(float(np.nanmax(crept)) * 1e9)

    def _in_views(self, row: int, readings: Readings) -> str:
        """What is added to a symptom; the views are asked at most once a tick."""
        if self._agreement is None:
            self._agreement = self._judge.agreement(readings, self._rows.groups)
        odd, known = (int(counts[row]) for counts in self._agreement)
        return f", in {odd} of {known} views" if known > 1 else ""

    def _proved(self, row: int, readings: Readings, verdicts: Verdicts, now_unix_ns: int) -> bool:
        """Whether the cause of what ails this one instance is plain already."""
        instance = self._rows.ids[row]
        about = self._above(row)
        mates = {r for subject in about for r in self._rows.members(subject)} - {row}
        # What ails several at once takes its time to tell whose fault it is.
        if self._open_about(instance, about) or any(verdicts.worse[r] for r in mates):
            return False
        return self._causes_now(row, readings, verdicts, now_unix_ns)[0].confidence >= _PROOF

    def _causes_now(self, row: int, readings: Readings, verdicts: Verdicts, now_unix_ns: int) -> list[pb.Cause]:
        instance = self._rows.ids[row]
        since = self._onset([row], readings, verdicts, now_unix_ns)
        return self._explainer.explain(self._history, instance, since, self._well(instance, verdicts))

    def _is_held(self, row: int, readings: Readings, verdicts: Verdicts, now_unix_ns: int) -> bool:
        """Whether this instance only suffers from one that it calls, whose incident it is."""
        instance = self._rows.ids[row]
        if instance not in self._topology.callees:
            return False

        def standing(callee: str) -> Standing:
            of = self._rows.row.get(callee)
            if of is None:
                return ""
            told = self._open_about(callee, self._above(of))
            return "told" if told else "worse" if verdicts.worse[of] else ""

        return self._callers.holds(
            self._history,
            instance,
            readings.matrix()[row],
            lambda: self._onset([row], readings, verdicts, now_unix_ns),
            standing,
            now_unix_ns,
        )

    def _open_about(self, subject: str, members: Sequence[str]) -> bool:
        return any(s in self._incidents.open for s in (subject, *members))

    def _onset(self, rows: Sequence[int], readings: Readings, verdicts: Verdicts, now_unix_ns: int) -> int:
        at = list(rows)
        excess = readings.error_ratio[at] - np.nan_to_num(verdicts.expected[at, ERRORS])
        signals = ["request_latency"]
        if (readings.dead[at] | readings.silent[at]).all():
            signals = ["workers_ready", "runtime_answers"]
        elif np.nan_to_num(excess).max() >= self._settings.error_ratio_min:
            signals = ["error_ratio"]
        instances = [self._rows.ids[row] for row in at]
        well = self._well(instances[0], verdicts) if len(at) == 1 else []
        # Those of its own node tell best which noise was not its own.
        near = [peer for peer in well if peer.startswith(f"{self._rows.nodes[at[0]]}/")]
        return onset(self._history, instances, near or well, signals, now_unix_ns)

    def _well(self, subject: str, verdicts: Verdicts) -> list[str]:
        """The peers of an instance that are not worse than they were: beyond `PEERS_MAX` those of its node and that many others."""
        well = [peer for peer in self._rows.peers(subject) if not verdicts.worse[self._rows.row[peer]]]
        if len(well) <= PEERS_MAX:
            return well
        home = f"{subject.partition('/')[0]}/"
        near, far = [p for p in well if p.startswith(home)], [p for p in well if not p.startswith(home)]
        return near + far[:: math.ceil(len(far) / PEERS_MAX)]

    def _open(
        self, subject: str, rows: Sequence[int], scores: Array, readings: Readings, verdicts: Verdicts, now_unix_ns: int
    ) -> None:
        models, nodes = {self._rows.models[row] for row in rows}, {self._rows.nodes[row] for row in rows}
        finding = Finding(
            subject=subject,
            node=nodes.pop() if len(nodes) == 1 else "",
            model=models.pop() if len(models) == 1 else "",
            since_unix_ns=self._since(rows, readings, verdicts, now_unix_ns),
            symptom=symptom(readings, verdicts, rows) + self._agreed.get(subject, ""),
            score=float(np.nanmax(scores[list(rows)], initial=0)),
        )
        entry = self._incidents.raise_(finding, now_unix_ns)
        log.warning("incident %s: %s: %s", entry.incident.id, finding.subject, finding.symptom)

    def _explain(self, now_unix_ns: int, readings: Readings, verdicts: Verdicts) -> None:
        """Look for the causes of what opened lately."""
        for subject, entry in self._incidents.open.items():
            first, last = self._explained.get(subject, (now_unix_ns, 0))
            if now_unix_ns - first > _GATHER_SECONDS * 1e9 or now_unix_ns - last < _EXPLAIN_SECONDS * 1e9:
                continue
            rows = self._rows.members(subject)
            if not any(verdicts.fresh[row] for row in rows):
                continue
            self._explained[subject] = first, now_unix_ns
            peers = self._well(subject, verdicts)
            causes = self._explainer.explain(self._history, subject, entry.onset_unix_ns, peers)
            scores = verdicts.score[rows]
            worst = float(np.nanmax(scores)) if np.isfinite(scores).any() else np.nan
            last_time = now_unix_ns - first > (_GATHER_SECONDS - _EXPLAIN_SECONDS) * 1e9
            told = symptom(readings, verdicts, rows) + self._agreed.get(subject, "")
            self._incidents.gather(subject, worst, told, causes, last_time)
        self._explained = {s: v for s, v in self._explained.items() if s in self._incidents.open}
        self._agreed = {s: v for s, v in self._agreed.items() if s in self._incidents.open}

    def _settle(self, verdicts: Verdicts, seconds: float, now_unix_ns: int) -> None:
        for subject, entry in list(self._incidents.open.items()):
            if is_drift(subject) or is_silence(entry.incident):
                continue
            rows = self._rows.members(subject)
            causes = entry.incident.causes
            force = in_force(self._history, causes[0]) if causes else False
            unknown = bool(verdicts.unknown[rows].all())
            known = [row for row in rows if not verdicts.unknown[row]]
            lingers = bool(known) and bool(verdicts.lingers[known].mean() >= 0.5)
            clear = force is False if unknown else force is not True
            self._incidents.settle(subject, lingers, unknown, clear, seconds, now_unix_ns)
            if subject in self._incidents.open and self._gone(entry, rows, seconds):
                self._incidents.resolve(subject, now_unix_ns)

    def _gone(self, entry: Open, rows: Sequence[int], seconds: float) -> bool:
        entry.gone_seconds = 0.0 if rows else entry.gone_seconds + seconds
        return entry.gone_seconds > SILENT_SECONDS_MAX

    def _spoken_of(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """bool [rows], twice: instances that an open incident speaks of, and those of them whose incident has a cause."""
        excluded, explained = np.zeros((2, len(self._rows.ids)), dtype=np.bool_)
        held = [self._rows.row[i] for i in self._callers.held | self._mates.held if i in self._rows.row]
        excluded[held] = explained[held] = True
        for subject, entry in self._incidents.open.items():
            members, causes = self._rows.members(subject), entry.incident.causes
            excluded[members] = True
            explained[members] |= bool(causes) and causes[0].mechanism != "unknown"
        return excluded, explained
