"""What the detectors look at: how slow and how faulty the answers of each instance were over the last seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix
from trimtab.detector.history import ERROR_RATES, INSTANCE, History, Node
from trimtab.detector.quantiles import quantiles_seconds
from trimtab.detector.robust import Array
from trimtab.detector.side_by_side import Cells, Part, Selection, select

FEATURES = ("typical latency", "tail latency", "errors")
SCALE_FLOORS = (0.08, 0.10, 0.02)
"""Least standard deviation of each: 8 % and 10 % of latency, 2 % errors."""
REQUESTS_MIN = 5
"""With fewer requests nothing is said of latency and errors."""
RECENT_SECONDS = 2.0
"""What tells whether it still goes on."""
QUANTILES = (0.5, 0.95, 0.99)
THROTTLING = ("throttle_thermal", "throttle_power", "throttle_hardware")
"""Reasons for a lower clock that are a fault; to be idle, or told so, is none."""


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
    latency_mean_seconds: Array
    errors: Array
    errors_recent: Array
    error_ratio: Array
    in_flight: Array
    queue: Array
    utilisation: Array
    memory_bytes: Array
    service_seconds: Array
    workers: Array
    batch_size: Array
    gpu_throttled: Array
    gpu_memory_fault: Array
    gpu_xid: Array

    def matrix(self) -> Matrix:
        """float32 [instances, FEATURES], higher is worse."""
        return np.stack([self.latency_log, np.log(self.quantiles[1]), self.error_ratio], axis=1)


FLOATS = list(Readings.__annotations__)[6:]


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
        **{name: np.full(n, np.nan, dtype=np.float32) for name in FLOATS},
    )
    alike: dict[tuple[int, tuple[str, ...]], list[tuple[Node, Selection]]] = {}
    for node in history.nodes.values():
        if INSTANCE not in node.tables:
            continue
        table, age_seconds = node.tables[INSTANCE], (now_unix_ns - node.newest_end_ns) / 1e9
        here, there = select(table.ids, rows)
        seen = table.seen[here]
        out.newest[there], out.slot_seconds[there] = seen, node.slot_seconds
        out.age_seconds[there] = np.maximum(0, age_seconds + (node.newest - seen) * node.slot_seconds)
        # The newest window may be as old as it is long before the next one can be here.
        if len(there) and age_seconds <= stale_seconds + node.slot_seconds:
            alike.setdefault((node.slot_ns, table.layout), []).append((node, (here, there)))
    for nodes in alike.values():
        part = Part(nodes)
        figures: dict[str, Array] = _latency(part) | _errors(part) | _load(part) | _gpu(part)
        for name, values in figures.items():
            getattr(out, name)[part.there] = values
        _hard(part, out)
    _quantiles([node for nodes in alike.values() for node in nodes], out)
    return out


def _latency(part: Part) -> dict[str, Array]:
    count = part.total("latency_count")
    enough = np.where(count >= REQUESTS_MIN, count, np.nan)
    newest = part.total("latency_count", 0)
    log = part.total("latency_log_sum") / enough
    log_newest = part.total("latency_log_sum", 0) / np.where(newest >= REQUESTS_MIN, newest, np.nan)
    # Without eBPF: the serving runtime's own means. They leave out the network and the frontend.
    blind = np.isnan(count) & np.isnan(part.mean("requests_per_second"))
    counted = part.mean("predictions_per_second") * part.merged_seconds
    told = part.mean("inference_latency_seconds") + np.nan_to_num(part.mean("queue_latency_seconds"))
    told = np.where((counted >= REQUESTS_MIN) & (told > 0), told, np.nan)
    return {
        "requests": np.where(blind, counted, count),
        "latency_log": np.where(blind, np.log(told), log),
        "latency_log_newest": np.where(blind, np.log(told), log_newest),
        "latency_mean_seconds": np.where(blind, told, part.total("latency_sum") / enough),
    }


def _errors(part: Part) -> dict[str, Array]:
    seen = part.mean("requests_per_second")
    rate = np.where(np.isnan(seen), part.mean("predictions_per_second"), seen)
    seconds = part.merged_seconds
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


def _load(part: Part) -> dict[str, Array]:
    used, limit = part.mean("cpu_used_cores"), part.mean("cpu_limit_cores")
    utilisation = np.divide(used, limit, out=np.full_like(used, np.nan), where=limit > 0)
    utilisation = np.where(part.has_gpu, part.of_gpu("utilisation_ratio"), utilisation)
    return {
        "in_flight": part.mean("requests_in_flight"),
        "queue": part.mean("queue_depth"),
        "utilisation": utilisation,
        "memory_bytes": part.mean("memory_resident_bytes"),
        "service_seconds": part.mean("inference_latency_seconds"),
        # TorchServe's workers take as many requests as fill a batch.
        "workers": part.mean("workers_ready") * np.fmax(np.nan_to_num(part.mean("batch_size_max")), 1),
        "batch_size": part.mean("batch_size_max"),
    }


def _gpu(part: Part) -> dict[str, Array]:
    """What the GPU tells before requests do."""

    def any_of(names: Sequence[str]) -> Array:
        return reduce(np.fmax, [part.of_gpu(name, RECENT_SECONDS) for name in names])

    return {
        "gpu_throttled": any_of(THROTTLING),
        "gpu_memory_fault": any_of(("fault_row_remap", "fault_retired_pages")),
        "gpu_xid": part.of_gpu("fault_xid", RECENT_SECONDS),
    }


def _hard(part: Part, out: Readings) -> None:
    def all_zero(name: str) -> NDArray[np.bool_]:
        course = part.series(name, RECENT_SECONDS)
        zero: NDArray[np.bool_] = (np.nan_to_num(course) == 0).all(axis=0) & ~np.isnan(course).all(axis=0)
        return zero

    answered = np.nan_to_num(part.total("latency_count", RECENT_SECONDS)) > 0
    out.dead[part.there] = all_zero("workers_ready") & ~answered
    out.silent[part.there] = all_zero("runtime_answers") & ~answered
    out.served[part.there] = part.served


def _quantiles(nodes: Sequence[tuple[Node, Selection]], out: Readings) -> None:
    every, newest = Cells(), Cells()
    for node, selection in nodes:
        for slot, pieces in node.pieces.items():
            every.add(node, selection, pieces)
            if slot == node.newest:
                newest.add(node, selection, pieces)
    found = quantiles_seconds(every.pieces(), len(out.ids), QUANTILES)
    out.quantiles[:] = np.where(np.isnan(out.latency_log), np.nan, found)
    tail = quantiles_seconds(newest.pieces(), len(out.ids), (0.95,))[0]
    out.tail_log_newest[:] = np.where(np.isnan(out.latency_log_newest), np.nan, np.log(tail))
