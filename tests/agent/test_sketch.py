"""The laws of the sketch: its error bound, that merging is the same as having seen everything at once, and what sampling adds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
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
from trimtab.agent.sketch.sampling import count_error, rank_bounds
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


# What is promised in words: 1 % from 1 µs to 100 s. Kept with room to spare.
SHORTEST_NS, LONGEST_NS = 1_000, 100_000_000_000
assert RELATIVE_ERROR_MAX < 0.01
assert LONGEST_NS < VALUE_MAX_NS
QUANTILES = (0.0, 0.001, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)
REAL = sorted((Path(__file__).parent / "data").glob("*_microseconds.txt"))


def check_the_bound(ns: list[int]) -> None:
    wanted = [exact(ns, q) for q in QUANTILES]
    assert sketch(ns).quantiles_seconds(QUANTILES) == pytest.approx(wanted, rel=RELATIVE_ERROR_MAX)


@st.composite
def latencies(draw: st.DrawFn, most: int = 5_000) -> list[int]:
    """Nanoseconds of a distribution such as servers have, between the shortest and the longest."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    n = draw(st.integers(1, most))
    typical = 10 ** draw(st.floats(3, 10))
    match draw(st.sampled_from(["pareto", "lognormal", "bimodal", "constant"])):
        case "pareto":
            drawn = typical * (rng.pareto(draw(st.floats(0.3, 4)), n) + 1)
        case "lognormal":
            drawn = typical * rng.lognormal(0, draw(st.floats(0.01, 3)), n)
        case "bimodal":
            slow = rng.random(n) < draw(st.floats(0, 1))
            drawn = typical * np.where(slow, draw(st.floats(2, 10_000)), 1) * rng.normal(1, 0.05, n)
        case _:
            drawn = np.full(n, typical)
    return [int(value) for value in np.clip(drawn, SHORTEST_NS, LONGEST_NS)]


@settings(deadline=None, max_examples=60)
@given(latencies())
def test_the_bound_holds_for_heavy_tails(ns: list[int]) -> None:
    check_the_bound(ns)


def real(path: Path) -> list[int]:
    return [int(line) * 1000 for line in path.read_text().split() if int(line) * 1000 <= LONGEST_NS]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_the_bound_holds_for_real_durations_whole_and_split_into_windows(path: Path) -> None:
    ns = real(path)
    assert len(ns) > 2_000
    assert max(ns) > 10_000 * min(ns)
    check_the_bound(ns)
    whole = sketch(ns)
    for length in (1, 17, 500):
        parts = [sketch(ns[start : start + length]) for start in range(0, len(ns), length)]
        assert (merge(parts).counts == whole.counts).all()


def test_there_are_real_durations() -> None:
    assert len(REAL) == 2


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


# What sampling adds.


def thinned(rng: np.random.Generator, ns: list[int], probability: float) -> Sketch:
    """As the kernel does it: each observation by itself."""
    return sketch(
        [value for value, kept in zip(ns, rng.random(len(ns)) < probability, strict=True) if kept], probability
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.data())
def test_the_ranks_bound_the_quantile_as_often_as_they_say(population: int, data: st.DataObject) -> None:
    sampled = data.draw(st.integers(1, population))
    q = data.draw(st.floats(0, 1))
    confidence = data.draw(st.floats(0.5, 0.999))
    low, high = rank_bounds(q, population, sampled / population, confidence)
    rank = min(max(math.ceil(q * population * (1 - 1e-12)), 1), population)
    # Of all samples of this size: those with so many of the smallest in them that the ranks lie on both sides.
    ways = {k: math.comb(rank, k) * math.comb(population - rank, sampled - k) for k in range(min(rank, sampled) + 1)}
    right = sum(number for k, number in ways.items() if low <= k and (k < high or sampled == population))
    assert right / sum(ways.values()) >= confidence - 1e-9
    assert 0 <= low <= high <= sampled + 1


def test_large_samples_bound_closely() -> None:
    low, high = rank_bounds(0.5, 10_000_000, 0.1, 0.95)
    # 1.96 · sqrt(10⁶ · ½ · ½ · 0.9) on either side.
    assert (500_000 - low, high - 500_000) == (pytest.approx(930, abs=3), pytest.approx(930, abs=3))
    assert rank_bounds(0.99, 100, 0.1, 0.95)[1] == 11


@pytest.mark.parametrize("probability", [0.5, 0.05])
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_sampled_counts_are_unbiased_and_the_errors_are_as_large_as_they_say(path: Path, probability: float) -> None:
    rng, ns, times = np.random.default_rng(11), real(path), 200
    covered = dict.fromkeys((0.5, 0.9, 0.99), 0)
    estimates, errors = [], []
    for _ in range(times):
        one = thinned(rng, ns, probability)
        estimates.append(one.count)
        errors.append(one.count_error)
        for q in covered:
            low, high = one.quantile_bounds_seconds(q)
            # NaN says that it cannot be known: not a miss.
            covered[q] += not (low > exact(ns, q) or high < exact(ns, q))
    spread = math.sqrt(len(ns) * (1 - probability) / probability)
    assert np.mean(estimates) == pytest.approx(len(ns), abs=4 * spread / math.sqrt(times))
    assert np.std(estimates) == pytest.approx(spread, rel=0.2)
    assert np.mean(errors) == pytest.approx(spread, rel=0.05)
    # 95 % are promised; of 200 trials, 178 are four standard deviations below.
    assert min(covered.values()) >= 178


def test_a_merge_of_unlike_probabilities_is_as_uncertain_as_its_parts_together() -> None:
    rng, ns, times = np.random.default_rng(12), real(REAL[1]), 200
    cuts, probabilities = (ns[:700], ns[700:1400], ns[1400:]), (1.0, 0.3, 0.05)
    estimates, errors, covered = [], [], 0
    for _ in range(times):
        parts = [thinned(rng, part, p) for part, p in zip(cuts, probabilities, strict=True)]
        one = merge(parts)
        assert one.count_error == pytest.approx(math.hypot(*(part.count_error for part in parts)), rel=0.01)
        estimates.append(one.count)
        errors.append(one.count_error)
        low, high = one.quantile_bounds_seconds(0.5)
        covered += not (low > exact(ns, 0.5) or high < exact(ns, 0.5))
    assert np.mean(estimates) == pytest.approx(len(ns), abs=4 * np.std(estimates) / math.sqrt(times))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.2)
    assert covered >= 178


@given(st.lists(st.tuples(values, st.floats(0.01, 1)), min_size=2, max_size=5))
def test_the_error_of_a_merge_does_not_depend_on_what_was_merged_first(parts: list[tuple[list[int], float]]) -> None:
    sketches = [sketch(ns, probability) for ns, probability in parts]
    at_once = merge(sketches)
    one_by_one = merge([merge(sketches[:-1]), sketches[-1]])
    # Counts of a merge are whole numbers: in each of the three, a filled bucket may be off by half of one that was sampled.
    halves = sum(0.5 / max(p for _, p in merged) for merged in (parts, parts, parts[:-1]))
    assert one_by_one.count == pytest.approx(at_once.count, abs=halves * sum(len(ns) for ns, _ in parts))
    assert at_once.effective_probability is not None
    assert (
        min(p for _, p in parts) * (1 - 1e-9) <= at_once.effective_probability <= max(p for _, p in parts) * (1 + 1e-9)
    )
    together = math.hypot(*(one.count_error for one in sketches))
    assert count_error(sum(one.count for one in sketches), at_once.effective_probability) == pytest.approx(
        together, abs=1e-4
    )


@given(values, ranks)
def test_without_sampling_there_is_no_error_but_the_buckets(ns: list[int], q: float) -> None:
    one = sketch(ns)
    low, high = one.quantile_bounds_seconds(q)
    assert one.count_error == 0
    assert low <= exact(ns, q) * (1 + 1e-12)
    assert high >= exact(ns, q) * (1 - 1e-12)
    assert high - low <= 2.1 * RELATIVE_ERROR_MAX * exact(ns, q) + 1e-12


def test_an_empty_sketch_knows_nothing() -> None:
    empty = Sketch(np.zeros(BUCKETS, dtype=np.int64), 0.0)
    assert empty.count == 0
    assert math.isnan(empty.mean_seconds)
    assert all(map(math.isnan, empty.quantiles_seconds((0.0, 0.5, 1.0))))
    assert all(map(math.isnan, empty.quantile_bounds_seconds(0.5)))
    assert merge([empty, empty]).count_error == 0
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
    dense = np.zeros((len(sketches), BUCKETS), dtype=np.int64)
    dense[back.owners, back.buckets] = back.counts
    assert (dense == np.stack([s.counts for s in sketches])).all()
    assert back.sums.tolist() == [s.sum_seconds for s in sketches]
    assert back.probabilities.tolist() == [s.probability for s in sketches]
