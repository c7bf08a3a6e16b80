"""What the detectors look at: how slow and how faulty the answers of each instance were over the last seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.detector import robust
from trimtab.detector.base import Matrix
from trimtab.detector.history import ERROR_RATES, GPU, INSTANCE, MERGE_SECONDS, History, Node
from trimtab.detector.quantiles import quantiles_seconds
from trimtab.detector.robust import Array

FEATURES = ("typical latency", "tail latency", "errors")
SCALE_FLOORS = (0.08, 0.10, 0.02)
"""Least standard deviation of each: 8 % and 10 % of latency, 2 % errors."""
REQUESTS_MIN = 5
"""With fewer requests nothing is said of latency and errors."""
RECENT_SECONDS = 2.0
"""What tells whether it still goes on."""
QUANTILES = (0.5, 0.95, 0.99)


@dataclass
class Readings:
    """The last seconds of each of `ids`, every array float32 [instances] unless said otherwise; NaN where unknown."""

    ids: Sequence[str]
    newest: NDArray[np.int64]
    """int64 [instances]: number of the newest slot that told of it; -1 for never."""
    dead: NDArray[np.bool_]
    """bool: no worker is left."""
    silent: NDArray[np.bool_]
    """bool: its own API does not answer, and neither does it answer requests."""
    served: NDArray[np.bool_]
    """bool: it has been seen to serve within the history."""
    quantiles: Array
    """float32 [len(QUANTILES), instances], seconds."""
    age_seconds: Array
    slot_seconds: Array
    requests: Array
    """How many requests the figures rest on."""
    requests_per_second: Array
    latency_log: Array
    """Mean of the logarithm of the latency in seconds: what a typical request sees; one stray request hardly moves it."""
    latency_log_newest: Array
    """The same of the newest slot alone."""
    tail_log_newest: Array
    """Logarithm of the 95th percentile of the newest slot alone."""
    latency_mean: Array
    errors: Array
    errors_recent: Array
    error_ratio: Array
    in_flight: Array
    queue: Array
    utilisation: Array
    memory_bytes: Array

    def matrix(self) -> Matrix:
        """float32 [instances, FEATURES], higher is worse."""
        return np.stack([self.latency_log, np.log(self.quantiles[1]), self.error_ratio], axis=1)


_FLOATS = list(Readings.__annotations__)[6:]


class _Slice:
    """The newest slots of those instances of a node that are asked for: `here` are their rows in the node's table."""

    def __init__(self, node: Node, rows: dict[str, int]) -> None:
        self.node, self.table = node, node.tables[INSTANCE]
        self.here = np.asarray([k for k, i in enumerate(self.table.ids) if i in rows], dtype=np.int64)
        self.there = np.asarray([rows[self.table.ids[k]] for k in self.here], dtype=np.int64)
        self._columns = {name: column for column, name in enumerate(self.table.names)}
        self._last = node.last(INSTANCE, node.merge_slots())[:, :, self.here]
        self._means = robust.mean(self._last, 0)
        self._unknown: Array = np.full(len(self.here), np.nan, dtype=np.float32)

    def series(self, name: str, seconds: float) -> Array:
        """float32 [slots, instances], newest first."""
        if name not in self._columns:
            return self._unknown[None]
        course: Array = self._last[: self.node.merge_slots(seconds), self._columns[name]]
        return course

    def mean(self, name: str) -> Array:
        """float32 [instances] of what is known; NaN where nothing is."""
        mean: Array = self._means[self._columns[name]] if name in self._columns else self._unknown
        return mean

    def total(self, name: str, seconds: float = MERGE_SECONDS) -> Array:
        """Sum over the slots of what is known; NaN where nothing is."""
        course = self.series(name, seconds)
        known = ~np.isnan(course)
        total: Array = np.where(known.any(axis=0), np.where(known, course, 0).sum(axis=0), np.nan)
        return total


def read(history: History, ids: Sequence[str], now_unix_ns: int, stale_seconds: float) -> Readings:
    """What is known of these instances now. Of those whose last window is older than `stale_seconds` nothing is."""
    rows, n = {instance: row for row, instance in enumerate(ids)}, len(ids)
    out = Readings(
        ids=ids,
        newest=np.full(n, -1, dtype=np.int64),
        dead=np.zeros(n, dtype=np.bool_),
        silent=np.zeros(n, dtype=np.bool_),
        served=np.zeros(n, dtype=np.bool_),
        quantiles=np.full((len(QUANTILES), n), np.nan, dtype=np.float32),
        **{name: np.full(n, np.nan, dtype=np.float32) for name in _FLOATS},
    )
    for node in history.nodes.values():
        if INSTANCE not in node.tables:
            continue
        age_seconds = (now_unix_ns - node.newest_end_ns) / 1e9
        part = _Slice(node, rows)
        seen = part.table.seen[part.here]
        out.newest[part.there], out.slot_seconds[part.there] = seen, node.slot_seconds
        out.age_seconds[part.there] = np.maximum(0, age_seconds + (node.newest - seen) * node.slot_seconds)
        # The newest window may be as old as it is long before the next one can be here.
        if age_seconds > stale_seconds + node.slot_seconds:
            continue
        figures: dict[str, Array] = _latency(part) | _errors(part) | _load(part)
        for name, values in figures.items():
            getattr(out, name)[part.there] = values
        _hard(part, out)
        _quantiles(part, out)
    return out


def _latency(part: _Slice) -> dict[str, Array]:
    count = part.total("latency_count")
    enough = np.where(count >= REQUESTS_MIN, count, np.nan)
    newest = part.total("latency_count", 0)
    log = part.total("latency_log_sum") / enough
    log_newest = part.total("latency_log_sum", 0) / np.where(newest >= REQUESTS_MIN, newest, np.nan)
    # Without eBPF: the serving runtime's own means. They leave out the network and the frontend.
    blind = np.isnan(count) & np.isnan(part.mean("requests_per_second"))
    counted = part.mean("predictions_per_second") * part.node.merge_slots() * part.node.slot_seconds
    told = part.mean("inference_latency_seconds") + np.nan_to_num(part.mean("queue_latency_seconds"))
    told = np.where((counted >= REQUESTS_MIN) & (told > 0), told, np.nan)
    return {
        "requests": np.where(blind, counted, count),
        "latency_log": np.where(blind, np.log(told), log),
        "latency_log_newest": np.where(blind, np.log(told), log_newest),
        "latency_mean": np.where(blind, told, part.total("latency_sum") / enough),
    }


def _errors(part: _Slice) -> dict[str, Array]:
    seen = part.mean("requests_per_second")
    rate = np.where(np.isnan(seen), part.mean("predictions_per_second"), seen)
    seconds = part.node.merge_slots() * part.node.slot_seconds
    errors = np.fmax(*(part.mean(name) for name in ERROR_RATES)) * seconds
    requests = rate * seconds
    ratio = errors / np.where(requests >= REQUESTS_MIN, requests, np.nan)
    return {
        "requests_per_second": rate,
        "errors": errors,
        "errors_recent": np.fmax(*(part.total(name, RECENT_SECONDS) for name in ERROR_RATES)),
        # Errors and requests are counted at different ends of a request.
        "error_ratio": np.minimum(ratio, 1),
    }


def _load(part: _Slice) -> dict[str, Array]:
    used, limit = part.mean("cpu_used_cores"), part.mean("cpu_limit_cores")
    utilisation = np.divide(used, limit, out=np.full_like(used, np.nan), where=limit > 0)
    gpus = part.node.tables.get(GPU)
    if gpus and "utilisation_ratio" in gpus.names:
        recent = part.node.last(GPU, part.node.merge_slots())[:, gpus.names.index("utilisation_ratio")]
        for column, gpu in enumerate(gpus.ids):
            users = gpus.labels[gpu].get("instances", "").split(",")
            mine = np.asarray([part.table.ids[k] in users for k in part.here], dtype=np.bool_)
            utilisation[mine] = robust.mean(recent[:, column])
    return {
        "in_flight": part.mean("requests_in_flight"),
        "queue": part.mean("queue_depth"),
        "utilisation": utilisation,
        "memory_bytes": part.mean("memory_resident_bytes"),
    }


def _hard(part: _Slice, out: Readings) -> None:
    def all_zero(name: str) -> NDArray[np.bool_]:
        course = part.series(name, RECENT_SECONDS)
        zero: NDArray[np.bool_] = (np.nan_to_num(course) == 0).all(axis=0) & ~np.isnan(course).all(axis=0)
        return zero

    answered = np.nan_to_num(part.total("latency_count", RECENT_SECONDS)) > 0
    out.dead[part.there] = all_zero("workers_ready") & ~answered
    out.silent[part.there] = all_zero("runtime_answers") & ~answered
    ready = [part.table.names.index(n) for n in ("workers_ready", "latency_count") if n in part.table.names]
    out.served[part.there] = (part.table.values[:, ready][:, :, part.here] > 0).any(axis=(0, 1))


def _quantiles(part: _Slice, out: Readings) -> None:
    pieces = [p for some in part.node.pieces.values() for p in some]
    found = quantiles_seconds(pieces, len(part.table.ids), QUANTILES)[:, part.here]
    out.quantiles[:, part.there] = np.where(np.isnan(out.latency_log[part.there]), np.nan, found)
    newest = quantiles_seconds(part.node.pieces.get(part.node.newest, []), len(part.table.ids), (0.95,))[0, part.here]
    out.tail_log_newest[part.there] = np.where(np.isnan(out.latency_log_newest[part.there]), np.nan, np.log(newest))
