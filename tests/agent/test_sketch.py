"""The laws of the sketch: its error bound, and that merging is the same as having seen everything at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agent.sketch.loglinear import (
    BUCKETS,
    MIDDLES_SECONDS,
    RELATIVE_ERROR_MAX,
    VALUE_MAX_NS,
    Sketch,
    bucket_of,
    merge,
    of_seconds,
)
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import pack_sketches, unpack_sketches

# Uniform over the octaves, so that the long ones do not take all.
nanoseconds = st.integers(0, 36).flatmap(lambda k: st.integers(1 << k, (1 << (k + 1)) - 1))
values = st.lists(nanoseconds, min_size=1, max_size=300)
ranks = st.floats(0, 1)


def sketch(ns: list[int], probability: float = 1.0) -> Sketch:
    return of_seconds(np.array(ns, dtype=np.float64) / 1e9, probability)


def exact(ns: list[int], q: float) -> float:
    """The value of rank ceil(q * n), seconds."""
    rank = max(1, math.ceil(q * len(ns) * (1 - 1e-12)))
    return sorted(ns)[rank - 1] / 1e9


@given(values, ranks)
def test_every_quantile_is_within_the_bound(ns: list[int], q: float) -> None:
    (estimate,) = sketch(ns).quantiles_seconds((q,))
    assert estimate == pytest.approx(exact(ns, q), rel=RELATIVE_ERROR_MAX + 1e-12)


@pytest.mark.parametrize("shape", [0.5, 1.1, 3.0])
def test_the_bound_holds_for_heavy_tails(shape: float) -> None:
    rng = np.random.default_rng(7)
    ns = np.minimum((rng.pareto(shape, 20_000) + 1) * 1e5, VALUE_MAX_NS).astype(np.int64).tolist()
    q = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
    wanted = [exact(ns, one) for one in q]
    assert sketch(ns).quantiles_seconds(q) == pytest.approx(wanted, rel=RELATIVE_ERROR_MAX)


@given(nanoseconds)
def test_the_middle_of_a_bucket_is_near_all_its_values(ns: int) -> None:
    bucket = int(bucket_of(np.array([ns]))[0])
    assert abs(MIDDLES_SECONDS[bucket] * 1e9 - ns) <= RELATIVE_ERROR_MAX * ns


def test_buckets_rise_with_the_value_and_end_at_the_last() -> None:
    edges = np.unique(np.concatenate([np.arange(300), *([(1 << k) - 1, 1 << k, (1 << k) + 1] for k in range(1, 38))]))
    assert (np.diff(bucket_of(edges)) >= 0).all()
    assert bucket_of(np.array([-5, 0, 1, VALUE_MAX_NS, VALUE_MAX_NS + 1, 1 << 60])).tolist() == [
        0, 0, 1, BUCKETS - 1, BUCKETS - 1, BUCKETS - 1,
    ]  # fmt: skip


@given(st.lists(values, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merging_is_concatenation_in_any_order(parts: list[list[int]], random: object) -> None:
    sketches = [sketch(part) for part in parts]
    shuffled = sketches[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    whole = sketch([ns for part in parts for ns in part])
    for merged in (merge(sketches), merge(shuffled)):
        assert (merged.counts == whole.counts).all()
        assert merged.sum_seconds == pytest.approx(whole.sum_seconds)
        assert merged.probability == 1.0


@given(values, st.floats(0.01, 1))
def test_counts_are_weighted_by_the_sampling_probability(ns: list[int], probability: float) -> None:
    one = sketch(ns, probability)
    assert one.sampled == len(ns)
    assert one.count == pytest.approx(len(ns) / probability)
    assert one.mean_seconds == pytest.approx(sum(ns) / len(ns) / 1e9)


def test_merging_unlike_probabilities_keeps_the_expected_count() -> None:
    half, all_ = sketch([1_000_000] * 500, 0.5), sketch([2_000_000] * 1000)
    merged = merge([half, all_])
    assert merged.count == half.count + all_.count == 2000
    assert merged.quantiles_seconds((0.25, 0.75)) == pytest.approx((0.001, 0.002), rel=RELATIVE_ERROR_MAX)


def test_an_empty_sketch_knows_nothing() -> None:
    empty = Sketch(np.zeros(BUCKETS, dtype=np.int64), 0.0)
    assert empty.count == 0
    assert math.isnan(empty.mean_seconds)
    assert all(map(math.isnan, empty.quantiles_seconds((0.0, 0.5, 1.0))))
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


@given(st.lists(st.tuples(values, st.floats(0.01, 1)), min_size=1, max_size=4))
def test_the_wire_changes_nothing(parts: list[tuple[list[int], float]]) -> None:
    sketches = [sketch(ns, probability) for ns, probability in parts]
    subjects = [pb.Subject(id=f"n/{i}") for i in range(len(parts))]
    schema = pb.Schema(tables=[pb.Table(kind=pb.SUBJECT_KIND_INSTANCE, subjects=subjects)])
    column = pack_sketches(0, "request_latency", "s", range(len(parts)), sketches)
    back = unpack_sketches(pb.SketchColumn.FromString(column.SerializeToString()), schema)
    assert (back.table, back.name, back.unit) == (0, "request_latency", "s")
    assert (back.dense == np.stack([s.counts for s in sketches])).all()
    assert back.sums.tolist() == [s.sum_seconds for s in sketches]
    assert back.probabilities.tolist() == [s.probability for s in sketches]
