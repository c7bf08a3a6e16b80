"""From scores to "degraded": large enough to matter, different from the peers, and for long enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix
from trimtab.detector.baseline import deviations, worst
from trimtab.detector.budget import Budget
from trimtab.detector.creep import Creep
from trimtab.detector.features import FEATURES, SCALE_FLOORS, Readings
from trimtab.detector.own import Own
from trimtab.detector.peers import Peers, peers_median
from trimtab.detector.robust import Array
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.views import Views

Bools = NDArray[np.bool_]
TYPICAL, TAIL, ERRORS = range(len(FEATURES))
ERRORS_MIN = 3
MOST = 0.8
"""Share of the last ticks that must be bad, so that one good second does not hide a fault, nor one bad second make one."""
# An instance that was never seen to serve may still be loading its model.
_LOADING_FACTOR = 15.0
# With too few peers, or with nobody at all to compare with, only that it lasts tells a fault from a busy host.
_FEW_FACTOR, _ALONE_FACTOR = 2.0, 3.0
# How much less patience it takes where the cause is nearly proved.
_SUSPECT_FACTOR = 0.5
# A slot alone is judged a little more gently than the merge, for it is noisier.
_NEWEST_FLOOR = 0.7
# When one request in ten is slow, not every second has one.
_TAIL_FACTOR, _MOST_OF_TAIL = 2.0, 0.6
# What has to be left of the effect for "not yet normal".
_LATENCY_FACTOR_LEFT = 1.25
_FLAGS = SHARP, LONG, HARD = range(3)
# What lasts is what is reached in so many of the ticks of `open_seconds`: as many as a slow tail must show in.
_LASTS = _MOST_OF_TAIL


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What is thought of each instance now, every array [instances]."""

    score: Array
    """float32 in [0, 1]: anomalous by its own history and, where it has peers, by theirs; NaN while that is not known."""
    by_own: Array
    """float32 in [0, 1]: by its own history alone."""
    fresh: Bools
    worse: Bools
    """Far from its own history; its peers may be too."""
    alone: Bools
    """Far from its own history, and from its peers where it has them."""
    opens: Bools
    """Alone, and for long enough, or by what crept in."""
    creeps: Bools
    """Worse than is usual at this hour and than its peers, by minutes that add up (detector/creep.py)."""
    creeping_seconds: Array
    """float32 [instances]: for how long it seems to have crept in; NaN where nothing did."""
    suspected: Bools
    """Alone, and for half as long: enough where the cause is nearly proved."""
    common: Bools
    """Worse by so much that it counts as a sign that all are."""
    raised: Bools
    """Somewhat above what is usual for itself, be it a fault or not."""
    lingers: Bools
    """Not yet back to normal."""
    unknown: Bools
    """Nothing is known of latency or errors: it is drained, idle or silent."""
    lasting: Array
    """float32, in robust standard deviations: how far it was from its own history and its peers for most of `open_seconds`."""
    expected: Matrix
    """What its own history says its features should be."""
    peers: Matrix
    """The median of its peers now."""


def margins(settings: DetectorSettings) -> Array:
    """float32 [features]: how much more of each is bad."""
    slower = math.log(settings.latency_factor_min)
    return np.asarray([slower, slower, settings.error_ratio_min], dtype=np.float32)


class Judge:
    """Remembers the last verdicts, to tell what lasts. Rows are instances, as in `Detector`."""

    def __init__(self, settings: DetectorSettings) -> None:
        self._settings = settings
        self._margins = margins(settings)
        self._own = Own(SCALE_FLOORS, settings.warmup_windows)
        self._peers = Peers(SCALE_FLOORS, settings.warmup_windows)
        longest = max(settings.common_open_seconds, _LOADING_FACTOR * (settings.open_seconds + 1))
        self._depth = min(1024, math.ceil(longest) + 2)
        self._ring = np.zeros((len(_FLAGS), 0, self._depth), dtype=np.bool_)
        self._newest = np.zeros(0, dtype=np.int64)
        self.budget = Budget(settings.false_alarms_per_week)
        self._creep = Creep(settings)
        self._views = Views(settings.warmup_windows)
        self._strays: Array = np.full((0, math.ceil(settings.open_seconds) + 1), np.nan, dtype=np.float32)
        """float32 [instances, ticks]: the last deviations, newest first."""

    def resize(self, instances: int) -> None:
        """Room for this many rows."""
        more = instances - len(self._newest)
        self._own.resize(instances)
        self._peers.resize(instances)
        self._ring = np.concatenate([self._ring, np.zeros((len(_FLAGS), more, self._depth), dtype=np.bool_)], axis=1)
        self._newest = np.concatenate([self._newest, np.full(more, -1, dtype=np.int64)])
        self.budget.resize(instances)
        self._creep.resize(instances)
        self._views.resize(instances)
        empty = np.full((more, self._strays.shape[1]), np.nan, dtype=np.float32)
        self._strays = np.concatenate([self._strays, empty])

    def forget(self, rows: NDArray[np.int64]) -> None:
        """These rows now stand for other instances."""
        self._own.forget(rows)
        self._peers.forget(rows)
        self.budget.forget(rows)
        self._creep.forget(rows)
        self._views.forget(rows)
        self._ring[:, rows] = False
        self._newest[rows] = -1
        self._strays[rows] = np.nan

    def learn(
        self, readings: Readings, groups: NDArray[np.int64], verdicts: Verdicts, excluded: Bools, explained: Bools
    ) -> None:
        """Take the instances that look healthy as examples.

        `excluded` are those that an open incident speaks of, `explained` those of them whose incident has a cause.
        """
        window, fresh = readings.matrix(), verdicts.fresh & self._advanced(readings)
        by_peers = self._peers.score(window, groups)
        by_own = self._own.score(window, groups)
        # A shift that the peers share is learnt, or a slow change of the load would never become usual.
        suspicious = np.where(np.isnan(by_peers), by_own >= 0.5, by_peers >= 0.5)
        # What is far slower on all at once is a fault until it is known to be none: in its first minutes everything would be learnt.
        healthy = fresh & ~suspicious & ~verdicts.common & ~excluded & ~readings.dead & ~readings.silent
        self._own.learn(window, groups, healthy)
        self._peers.learn(window, groups, healthy)
        self._views.learn(window, groups, healthy)
        if fresh.any():
            well = fresh & ~explained & ~readings.dead & ~readings.silent
            self.budget.learn(verdicts.lasting, well, float(np.median(readings.slot_seconds[fresh])))
        self._creep.learn(groups, verdicts.fresh & ~excluded & ~readings.dead & ~readings.silent)
        self._newest = np.maximum(self._newest, readings.newest)

    def agreement(self, readings: Readings, groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 [instances], twice: how many of the five views call an instance odd, and how many of them know it."""
        window = readings.matrix()
        deciding = [self._own.score(window, groups), self._peers.score(window, groups), self._creep.score(groups)]
        return self._views.agree(window, groups, deciding)

    def judge(self, readings: Readings, groups: NDArray[np.int64], nodes: NDArray[np.int64]) -> Verdicts:
        """What to think of the instances now; `groups` and `nodes` are int64 [instances], equal for peers and for node mates."""
        settings, window = self._settings, readings.matrix()
        fresh = readings.age_seconds <= settings.stale_seconds + readings.slot_seconds
        own, of_group = self._own.scores(window, groups), self._peers.scores(window, groups)
        by_own, by_peers = worst(own), worst(of_group)
        expected, of_peers = self._own.expected(window, groups), self._peers.expected(window, groups)
        odd, apart = own >= 0.5, np.isnan(of_group) | (of_group >= 0.5)
        odd &= fresh[:, None] & self._matters(readings, window, expected, settings.latency_factor_min)
        large = odd & self._matters(readings, window, expected, settings.common_latency_factor_min)
        matters_to_peers = self._matters(readings, window, of_peers, settings.latency_factor_min)
        sole = odd & apart & (np.isnan(of_peers) | matters_to_peers)
        hard = fresh & (readings.dead | readings.silent)
        no_peers = np.isnan(by_peers)
        unusual = np.where(fresh[:, None], window - expected, np.nan)
        of_mates = np.fmax(_mean_of_others(unusual, groups), _mean_of_others(unusual, nodes))
        sole &= ~(no_peers[:, None] & (unusual - of_mates < self._margins))
        slow = self._slow_now(readings, window, groups, nodes, expected, of_peers, sole)
        sharp = self._remember(readings, sole, slow, hard)
        # What the others of its model or its node suffer from as well is not its own straying.
        shared = np.clip(np.nan_to_num(of_mates / np.where(unusual > 0, unusual, np.nan)), 0, 1)
        strays = np.where(np.isnan(of_group), deviations(own) * (1 - shared), deviations(np.fmin(own, of_group)))
        lasting = self._stray(readings, strays.astype(np.float32), fresh)
        # Peers elsewhere know nothing of this host: what its other instances suffer from as well may be only noise of the host.
        with_node = ~(sole & ~(unusual - _mean_of_others(unusual, nodes) < self._margins)).any(axis=1)
        alone = no_peers & np.isnan(of_mates).all(axis=1)
        patience = np.where(alone, _ALONE_FACTOR, np.where(no_peers | with_node, _FEW_FACTOR, 1.0))
        both = np.where(no_peers, by_own, np.minimum(by_own, by_peers))
        crept = self._crept(readings, window, groups, fresh)
        return Verdicts(
            score=np.where(hard, 1, np.where(fresh, both, np.nan)).astype(np.float32),
            by_own=np.where(hard, 1, by_own).astype(np.float32),
            fresh=fresh,
            worse=odd.any(axis=1) | hard | crept,
            alone=sole.any(axis=1) | hard | crept,
            opens=crept | self._lasting(readings, sole, sharp, hard, patience) & (hard | self.budget.too_far(lasting)),
            creeps=crept,
            creeping_seconds=np.where(crept, self._creep.seconds(), np.nan).astype(np.float32),
            suspected=self._lasting(readings, sole, sharp, hard, _SUSPECT_FACTOR * patience),
            common=large.any(axis=1) | hard,
            raised=hard | (fresh & self._raised(window, expected)),
            lingers=hard | (fresh & (self._creep.lingers | self._lingers(readings, window, expected, groups))),
            unknown=~hard & ~(fresh & ~np.isnan(window).all(axis=1)),
            lasting=lasting,
            expected=np.where(crept[:, None], self._creep.expected(), expected),
            peers=peers_median(window, groups),
        )

    def _crept(self, readings: Readings, window: Matrix, groups: NDArray[np.int64], fresh: Bools) -> Bools:
        """Which rows are worse by what crept in."""
        now = fresh & self._advanced(readings)
        if now.any():
            unix_seconds = float(np.median(readings.newest[now] * readings.slot_seconds[now].astype(np.float64)))
            self._creep.observe(window, groups, now, unix_seconds, readings.slot_seconds)
        crept: Bools = self._creep.creeps & fresh
        return crept

    def _advanced(self, readings: Readings) -> Bools:
        advanced: Bools = readings.newest > self._newest
        return advanced

    def _matters(self, readings: Readings, window: Matrix, expected: Matrix, factor: float) -> Bools:
        """Whether a feature is so far above `expected` that a user would mind."""
        out = np.zeros(window.shape, dtype=np.bool_)
        for feature in (TYPICAL, TAIL):
            now, before = window[:, feature], expected[:, feature]
            more = np.exp(now) - np.exp(before) >= self._settings.latency_seconds_min
            out[:, feature] = (now - before >= math.log(factor)) & more
        enough = readings.errors >= ERRORS_MIN - 0.5
        out[:, ERRORS] = (window[:, ERRORS] - expected[:, ERRORS] >= self._settings.error_ratio_min) & enough
        return out

    def _slow_now(
        self,
        readings: Readings,
        window: Matrix,
        groups: NDArray[np.int64],
        nodes: NDArray[np.int64],
        expected: Matrix,
        of_peers: Matrix,
        sole: Bools,
    ) -> Bools:
        """bool [instances, 2]: whether the newest slot by itself is slow; where it holds too few requests, what the merge says."""
        newest, latency = np.stack([readings.latency_log_newest, readings.tail_log_newest], axis=1), slice(0, TAIL + 1)
        usual, floor = expected[:, latency], _NEWEST_FLOOR * math.log(self._settings.latency_factor_min)
        usual_difference = of_peers[:, latency] - peers_median(window, groups)[:, latency]
        reference = peers_median(newest, groups) + usual_difference
        of_mates = np.fmax(_mean_of_others(newest - usual, groups), _mean_of_others(newest - usual, nodes))
        reference = np.where(np.isnan(reference), usual + of_mates, reference)
        slow = (newest >= usual + floor) & ~(newest < reference + floor)
        judged: Bools = np.where(np.isnan(newest), sole[:, latency], slow)
        return judged

    def _remember(self, readings: Readings, sole: Bools, slow: Bools, hard: Bools) -> Bools:
        """Enter this tick into the ring; which rows are slow or failing in this very second."""
        advanced = self._advanced(readings)
        self._ring[:, advanced] = np.roll(self._ring[:, advanced], 1, axis=2)
        failing = sole[:, ERRORS] & ~(readings.errors_recent <= 0)
        sharp: Bools = slow[:, TYPICAL] | failing
        self._ring[:, advanced, 0] = np.stack([sharp, slow[:, TAIL], hard])[:, advanced]
        return sharp

    def _stray(self, readings: Readings, far: Matrix, fresh: Bools) -> Array:
        """Enter how far out each instance is now, float32 [instances, features]; float32 [instances]: what it kept to for most ticks."""
        advanced = self._advanced(readings)
        self._strays[advanced] = np.roll(self._strays[advanced], 1, axis=1)
        self._strays[advanced, 0] = worst(far)[advanced]
        slot = float(np.median(readings.slot_seconds[fresh])) if fresh.any() else 1.0
        ticks = min(max(math.ceil((self._settings.open_seconds + 1) / slot), 2), self._strays.shape[1])
        # What is unknown was not reached: an instance with few requests has such seconds, and is judged by the others.
        ordered = np.sort(np.where(np.isnan(self._strays), -np.inf, self._strays)[:, :ticks], axis=1)[:, ::-1]
        kept_to = ordered[:, math.ceil(_LASTS * ticks) - 1]
        reached: Array = np.where(np.isinf(kept_to), np.nan, kept_to)
        return reached

    def _lasting(
        self, readings: Readings, sole: Bools, sharp: Bools, hard: Bools, patience: NDArray[np.float64]
    ) -> Bools:
        """Which rows are bad now and were so in most of the last ticks; `patience` is in times `open_seconds`."""
        seconds = patience * (self._settings.open_seconds + 1)
        loading = np.where(readings.served, patience.clip(max=1), _LOADING_FACTOR)
        # A single second is noisy, and the merge remembers a blip for seconds after it is over: both must say so.
        return (
            (sharp & (sole[:, TYPICAL] | sole[:, ERRORS]) & self._most(SHARP, seconds, readings))
            | (sole[:, TAIL] & self._most(LONG, _TAIL_FACTOR * seconds, readings, _MOST_OF_TAIL))
            | (hard & self._most(HARD, self._settings.open_seconds * loading, readings))
        )

    def _most(self, flag: int, seconds: NDArray[np.float64], readings: Readings, share: float = MOST) -> Bools:
        with np.errstate(invalid="ignore"):
            ticks = np.ceil(np.nan_to_num(seconds / readings.slot_seconds, nan=self._depth))
        ticks = np.clip(ticks, 2, self._depth).astype(np.int64)
        counts = np.cumsum(self._ring[flag], axis=1, dtype=np.int64)
        most: Bools = np.take_along_axis(counts, ticks[:, None] - 1, axis=1)[:, 0] >= share * ticks
        return most

    def _raised(self, window: Matrix, usual: Matrix) -> Bools:
        slow = window[:, TYPICAL] - usual[:, TYPICAL] >= math.log(_LATENCY_FACTOR_LEFT)
        raised: Bools = slow | (
            window[:, ERRORS] - np.nan_to_num(usual[:, ERRORS]) >= self._settings.error_ratio_min / 2
        )
        return raised

    def _lingers(self, readings: Readings, window: Matrix, expected: Matrix, groups: NDArray[np.int64]) -> Bools:
        """Whether an instance that was degraded still is; after a restart only its peers can tell."""
        peers = peers_median(window, groups)
        usual = np.where(np.isnan(expected), peers, expected)
        tail = self._matters(readings, window, usual, self._settings.latency_factor_min)[:, TAIL]
        typical = window[:, TYPICAL] - usual[:, TYPICAL] >= math.log(_LATENCY_FACTOR_LEFT)
        errors = window[:, ERRORS] - np.nan_to_num(usual[:, ERRORS]) >= self._settings.error_ratio_min / 2
        slow_peers = peers[:, TYPICAL] + math.log(_LATENCY_FACTOR_LEFT) >= window[:, TYPICAL]
        lingers: Bools = errors | ((tail | typical) & ~slow_peers)
        return lingers


def _mean_of_others(values: NDArray[Any], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [rows, columns]: the mean of what is known of the other rows of the group; NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.stack([np.bincount(groups, column) for column in np.where(known, values, 0).T], axis=1)
    count = np.stack([np.bincount(groups, column) for column in known.T], axis=1)
    others = count[groups] - known
    rest = total[groups] - np.where(known, values, 0)
    mean: NDArray[np.float64] = np.divide(rest, others, out=np.full_like(rest, np.nan), where=others > 0)
    return mean
