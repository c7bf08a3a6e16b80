"""Merging many sketches of the same streams: the collector's kernel, the `ddsketch` package, and Apache DataSketches' KLL."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from datasketches import kll_floats_sketch
from ddsketch import DDSketch

from trimtab.agent.sketch.loglinear import BUCKETS, RELATIVE_ERROR_MAX, bucket_of, quantiles_seconds
from trimtab.collector.packed import SketchList

SKETCHES, VALUES = 2000, 100
_Q = 0.99


def measure(quick: bool) -> dict[str, float]:
    """CPU time a merged sketch, medians over rounds, and how far each p99 is from the exact one."""
    streams = np.random.default_rng(5).lognormal(-4, 0.8, (SKETCHES, VALUES))
    exact = float(np.sort(streams.ravel())[int(np.ceil(_Q * streams.size)) - 1])
    rounds = 5 if quick else 15
    ours, theirs, kll = _ours(streams), _ddsketch(streams), _kll(streams)
    times = {name: statistics.median(_cpu(merge) for _ in range(rounds)) for name, merge in _each(ours, theirs, kll)}
    errors = {name: abs(merge() / exact - 1) for name, merge in _each(ours, theirs, kll)}
    return {
        "merge_us": times["ours"] / SKETCHES * 1e6,
        "merge_vs_ddsketch": times["ddsketch"] / times["ours"],
        "merge_vs_kll": times["kll"] / times["ours"],
        "merge_error": errors["ours"],
        "merge_error_ddsketch": errors["ddsketch"],
        "merge_error_kll": errors["kll"],
    }


def _each(*merges: Callable[[], float]) -> list[tuple[str, Callable[[], float]]]:
    return list(zip(("ours", "ddsketch", "kll"), merges, strict=True))


def _cpu(merge: Callable[[], float]) -> float:
    begun = time.process_time()
    merge()
    return time.process_time() - begun


def _ours(streams: Any) -> Callable[[], float]:
    found = [np.unique(bucket_of(np.round(stream * 1e9).astype(np.int64)), return_counts=True) for stream in streams]
    offsets = np.concatenate([[0], np.cumsum([len(buckets) for buckets, _ in found])]).astype(np.int64)
    listed = SketchList(
        offsets,
        np.concatenate([buckets for buckets, _ in found]).astype(np.uint16),
        np.concatenate([counts for _, counts in found]).astype(np.uint32),
        np.ones(len(found)),
    )
    groups = np.zeros(len(found), dtype=np.int64)

    def merge() -> float:
        merged = listed.merge(groups, 1)
        dense = np.zeros(BUCKETS)
        dense[merged.buckets] = merged.counts
        return quantiles_seconds(dense, (_Q,))[0]

    return merge


def _ddsketch(streams: Any) -> Callable[[], float]:
    sketches = []
    for stream in streams:
        sketches.append(DDSketch(RELATIVE_ERROR_MAX))
        for value in stream.tolist():
            sketches[-1].add(value)

    def merge() -> float:
        total = DDSketch(RELATIVE_ERROR_MAX)
        for sketch in sketches:
            total.merge(sketch)
        return float(total.get_quantile_value(_Q))

    return merge


def _kll(streams: Any) -> Callable[[], float]:
    sketches = []
    for stream in streams:
        sketches.append(kll_floats_sketch(200))
        sketches[-1].update(stream.astype(np.float32))

    def merge() -> float:
        total = kll_floats_sketch(200)
        for sketch in sketches:
            total.merge(sketch)
        return float(total.get_quantile(_Q))

    return merge
