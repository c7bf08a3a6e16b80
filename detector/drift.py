"""Model drift: the predictions of a model are spread over their scores otherwise than they were.

ADWIN (`trimtab.detector.adwin`) watches the share of each bin, and says when one changed by more than chance. An incident needs besides
that the shares since then are far from what is usual.
"""

from __future__ import annotations

import logging
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from trimtab.detector import drift_cause
from trimtab.detector.history import History
from trimtab.detector.incident import Finding, Incidents, Open
from trimtab.detector.scores import BINS, Counts, Scores, distance
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.usual import Usual

if TYPE_CHECKING:
    from trimtab.detector.adwin import Adwin

log = logging.getLogger(__name__)

DELTA = 0.002
"""Chance of a change where there is none, of one bin."""
GONE_SECONDS = 600.0
"""An incident about a model that no instance has told of for longer is over."""


@dataclass
class Model:
    """One model, its row of streams, and the versions of it that were seen."""

    row: int
    usual: Usual
    versions: set[str] = field(default_factory=set)

    @property
    def streams(self) -> slice:
        return slice(BINS * self.row, BINS * (self.row + 1))


class Drift:
    """Opens and resolves the incidents about the predictions of models."""

    def __init__(self, settings: DetectorSettings, incidents: Incidents) -> None:
        self._settings, self._incidents = settings, incidents
        self._scores = Scores()
        self._models: dict[str, Model] = {}
        self._free: list[int] = []
        self._streams = 0
        self._accepted: set[str] = set()

    @cached_property
    def _adwin(self) -> Adwin:
        from trimtab.detector.adwin import Adwin  # noqa: PLC0415 - only a fleet that counts predictions needs numba

        return Adwin(0, DELTA)

    def tick(self, history: History, now_unix_ns: int, seconds: float) -> None:
        """Another `seconds` have passed."""
        new = self._scores.new(history)
        if self._models or new:
            served = self._scores.versions(history)
            self._know(new.keys(), served.keys(), now_unix_ns)
            for name in self._models:
                self._renew(name, served[name], now_unix_ns)
            for name in self._enter(new, now_unix_ns):
                self._judge(name, history, now_unix_ns)
        for subject, entry in list(self._incidents.open.items()):
            if drift_cause.is_drift(subject):
                self._settle(subject, entry, seconds, now_unix_ns)
        self._accepted.clear()

    def accept(self, subject: str) -> None:
        """A person says that the predictions are meant to be so. Takes effect with the next tick."""
        self._accepted.add(subject)

    def _know(self, counted: Set[str], served: Set[str], now_unix_ns: int) -> None:
        """Forget the models that are gone, and make room for those whose predictions are counted for the first time."""
        for name in self._models.keys() - served:
            self._adwin.forget(np.r_[self._models[name].streams])
            self._free.append(self._models.pop(name).row)
        for name in sorted(counted - self._models.keys()):
            row = self._free.pop() if self._free else len(self._models)
            self._models[name] = Model(row, Usual(now_unix_ns))
        self._streams = max(self._streams, BINS * len(self._models))
        self._adwin.resize(self._streams)

    def _renew(self, name: str, served: Set[str], now_unix_ns: int) -> None:
        """Another version may be meant to predict otherwise: what is usual is learnt anew."""
        model, subject = self._models[name], drift_cause.about(name)
        if model.versions and served - model.versions:
            self._begin(model, Usual(now_unix_ns))
            if subject in self._incidents.open:
                self._incidents.resolve(subject, now_unix_ns)
        model.versions |= served

    def _begin(self, model: Model, usual: Usual) -> None:
        self._adwin.forget(np.r_[model.streams])
        model.usual = usual

    def _enter(self, new: dict[str, Counts], now_unix_ns: int) -> list[str]:
        """Take in new predictions; the models that were looked at."""
        values = np.full(self._streams, np.nan, dtype=np.float32)
        for name, counts in new.items():
            value = self._models[name].usual.take(counts)
            if value is not None:
                values[self._models[name].streams] = value
        changed, width = self._adwin.update(values), self._adwin.width
        looked_at = [name for name, model in self._models.items() if model.usual.complete]
        for name in looked_at:
            model = self._models[name]
            kept = width[model.streams][changed[model.streams]]
            learns = drift_cause.about(name) not in self._incidents.open
            model.usual.turn(int(kept.min()) if len(kept) else None, learns, now_unix_ns)
        return looked_at

    def _judge(self, name: str, history: History, now_unix_ns: int) -> None:
        """Open an incident if the predictions since the last change are far from usual."""
        change, subject = self._models[name].usual.change, drift_cause.about(name)
        if change is None or subject in self._incidents.open:
            return
        moved, least = distance(change.before, change.after), self._settings.drift_share_min
        if moved < least:
            return
        score, symptom = moved**2 / (moved**2 + least**2), drift_cause.symptom(change)
        entry = self._incidents.raise_(Finding(subject, "", name, change.since_unix_ns, symptom, score), now_unix_ns)
        self._incidents.gather(subject, score, symptom, [drift_cause.cause(history, name, change)], last=True)
        log.warning("incident %s: %s: %s", entry.incident.id, subject, symptom)

    def _settle(self, subject: str, entry: Open, seconds: float, now_unix_ns: int) -> None:
        """Resolve the incident once the predictions are as they were before for long enough, or the model is gone for good."""
        model, told = self._models.get(entry.incident.model), drift_cause.told(entry.incident)
        entry.gone_seconds = 0.0 if model else entry.gone_seconds + seconds
        if entry.gone_seconds > GONE_SECONDS:
            self._incidents.resolve(subject, now_unix_ns)
            return
        if subject in self._accepted:
            if model:
                self._begin(model, Usual(now_unix_ns, model.usual.hours))
            self._incidents.resolve(subject, now_unix_ns)
            return
        latest = model.usual.latest if model else None
        if model is None or told is None or latest is None:
            self._incidents.settle(subject, False, True, False, seconds, now_unix_ns)
            return
        before, after = told
        nearest = min(distance(latest, after), self._settings.drift_share_min)
        # Meanwhile it may be another hour, at which something else is usual.
        away = min(distance(latest, usual) for usual in (before, *model.usual.known))
        self._incidents.settle(subject, away >= nearest, False, True, seconds, now_unix_ns)
        if subject not in self._incidents.open:
            model.usual.recover()
