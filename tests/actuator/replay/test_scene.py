"""What is made of a recording: laws that hold whatever was recorded."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.replay.made import ONSET, SECOND_NS, incident, packed, recording
from trimtab import TrimtabError
from trimtab.actuator.fleetsim.scenario import Balancers
from trimtab.actuator.replay.arrivals import arrivals, whole
from trimtab.actuator.replay.recording import Latencies
from trimtab.actuator.replay.scene import scene
from trimtab.actuator.replay.stretches import stretches
from trimtab.actuator.replay.usual import _sharpened, usual
from trimtab.agent.sketch.loglinear import merge, of_seconds


def course(*parts: tuple[int, float], before: int = ONSET) -> list[float]:
    """By how much the first instance is slower: nothing before the onset, then so many seconds of each factor."""
    return [1.0] * before + [factor for seconds, factor in parts for _ in range(seconds)]


@given(st.lists(st.floats(-50, 500), min_size=1, max_size=60))
def test_whole_requests_keep_the_sum(counts: list[float]) -> None:
    found = whole(np.asarray(counts))
    assert (found >= 0).all()
    assert found.sum() == np.rint(max(0.0, sum(counts)))


@given(seed=st.integers(0, 1000), rates=st.lists(st.floats(3, 60), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_as_many_arrive_as_were_recorded(seed: int, rates: list[float]) -> None:
    made = recording(rates=rates, service_seconds=[0.001] * len(rates), seed=seed)
    counts, gaps = arrivals(made)
    assert counts.sum() == made.requests.sum()
    assert gaps == 0
    scenario = scene(made).scenario(seed, Balancers())
    found = np.bincount(np.floor(scenario.arrivals.times_seconds).astype(int), minlength=made.seconds)
    assert found.tolist() == counts.tolist()


def test_who_waits_and_who_gives_up_has_arrived() -> None:
    made = recording()
    waiting = np.zeros_like(made.requests)
    waiting[70:, 0] = 30
    aborted = np.zeros_like(made.requests)
    aborted[80, 1] = 5
    counts, _ = arrivals(replace(made, in_flight=waiting, aborted=aborted))
    assert counts.sum() == made.requests.sum() + 35
    assert counts[70] == made.requests[70].sum() + 30


@pytest.mark.parametrize("lost", ["requests", "service_seconds", "latency_seconds", "workers"])
def test_what_is_unknown_is_an_error_or_an_assumption_and_never_zero(lost: str) -> None:
    made = recording()
    blind = np.array(getattr(made, lost))
    blind[:, 1] = np.nan
    changed = replace(made, **{lost: blind})
    if lost == "requests":
        with pytest.raises(TrimtabError, match="nothing is known of the requests of n/1 in 100 of 100 s"):
            scene(changed)
        return
    found = scene(changed)
    assert all(i.speed > 0 and i.workers >= 1 for i in found.instances)
    if lost == "workers":
        assert "workers of n/1: 1 each, for the runtime does not tell" in found.assumptions
    if lost == "service_seconds":
        assert any(a.startswith("service time of n/1: the latency shared") for a in found.assumptions)


def test_a_few_seconds_that_nobody_told_are_like_those_around_them() -> None:
    made = recording()
    gap = np.array(made.requests)
    gap[75:78, 1] = np.nan
    found = scene(replace(made, requests=gap))
    assert "3 s of which some instance told nothing are like those around them" in found.assumptions
    assert found.arrivals[75:78].min() >= made.requests[75:78][:, [0, 2]].sum(axis=1).min()


def test_too_little_is_one_line_that_says_what_is_missing() -> None:
    made = recording(rates=(0.2, 0.2, 0.2))
    with pytest.raises(
        TrimtabError, match=r"incident i-1: \d+ requests in the 60 s before its onset; it takes 100"
    ) as error:
        scene(made)
    assert (error.value.exit_code, "\n" in str(error.value)) == (1, False)


@given(
    parts=st.lists(
        st.tuples(st.integers(1, 15), st.sampled_from([1.0, 1.1, 2.0, 4.0, 8.0, 0.5])), min_size=1, max_size=5
    ),
    told=st.booleans(),
    seed=st.integers(0, 50),
    drained=st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_stretches_cover_the_incident_and_their_factors_are_above_zero(
    parts: list[tuple[int, float]], told: bool, seed: int, drained: int
) -> None:
    factor = course(*parts)
    made = recording(len(factor), factor=factor, told=told, seed=seed)
    quiet = np.array(made.requests)
    quiet[ONSET + 2 : ONSET + 2 + drained, 0] = 0
    weights = np.ones_like(quiet)
    weights[ONSET + 2 : ONSET + 2 + drained, 0] = 0.005
    made = replace(made, requests=quiet, weights=weights)
    for instance in range(3):
        found = stretches(made, usual(made), instance)
        assert (found[0].first, found[-1].end) == (ONSET, made.seconds)
        assert all(a.end == b.first for a, b in pairwise(found))
        assert all(s.factor > 0 and 0 <= s.error_ratio <= 1 for s in found)
    scene(made).scenario(seed, Balancers())


@pytest.mark.parametrize("told", [True, False])
def test_a_slow_stretch_is_found_where_it_is(told: bool) -> None:
    factor = course((5, 1), (20, 2.5), (15, 1))
    made = recording(len(factor), factor=factor, told=told)
    known = usual(made)
    assert known.service_seconds == pytest.approx([0.02] * 3, rel=0.3)
    first, slow, last = stretches(made, known, 0)
    assert (slow.first, slow.end) == (ONSET + 5, ONSET + 25)
    assert slow.factor == pytest.approx(2.5, rel=0.05 if told else 0.35)
    assert (first.factor, last.factor) == (1, 1)
    assert [s.factor for s in stretches(made, known, 1)] == [1]
    [fault] = scene(made).faults
    assert (fault.kind, fault.instance, fault.onset_seconds, fault.end_seconds) == ("slow", 0, ONSET + 5, ONSET + 25)
    # An incident is told when it was opened, 8 s after its onset, and while it is open.
    assert [fault.told(ONSET + s) for s in (7.5, 8.5, 39.5)] == [False, True, True]


def test_what_was_drained_stays_as_it_was_seen_last() -> None:
    factor = course((40, 4))
    made = recording(len(factor), factor=factor)
    quiet, weights = np.array(made.requests), np.ones_like(made.requests)
    quiet[ONSET + 10 :, 0], weights[ONSET + 10 :, 0] = 0, 0.005
    found = scene(replace(made, requests=quiet, weights=weights))
    [fault] = found.faults
    assert (fault.kind, fault.end_seconds) == ("slow", made.seconds)
    assert fault.factor == pytest.approx(4, rel=0.1)
    assert "n/0 answered nobody in 30 s: it is taken to have stayed as it was seen last" in found.assumptions


def test_errors_are_a_fail_fast_fault_with_their_ratio() -> None:
    made = recording()
    errors = np.zeros_like(made.requests)
    errors[70:90, 0] = np.rint(0.6 * made.requests[70:90, 0])
    found = scene(replace(made, errors=errors))
    [fault] = found.faults
    assert (fault.kind, fault.onset_seconds, fault.end_seconds) == ("fail_fast", 70, 90)
    assert fault.ratio == pytest.approx(0.6, abs=0.05)
    assert 0 < fault.error_seconds < 0.02


def test_errors_of_a_full_queue_are_left_to_the_simulator() -> None:
    made = recording()
    errors, queue = np.zeros_like(made.requests), np.zeros_like(made.requests)
    errors[70:90, 0], queue[70:90, 0] = 5, 100
    found = scene(replace(made, errors=errors, queue=queue, queue_max=np.full(3, 100.0)))
    assert found.instances[0].queue_max == 100
    assert "fail_fast" not in {f.kind for f in found.faults}


@pytest.mark.parametrize(("waiting", "stuck"), [(12.0, True), (0.0, False)])
def test_requests_under_way_and_no_answer_is_stuck(waiting: float, stuck: bool) -> None:
    made = recording()
    requests, in_flight = np.array(made.requests), np.zeros_like(made.requests)
    requests[70:85, 0], in_flight[70:85, 0] = 0, waiting
    weights = np.ones_like(requests)
    weights[70:85, 0] = 0.001
    found = scene(replace(made, requests=requests, in_flight=in_flight, weights=weights))
    kinds = [(f.kind, f.onset_seconds, f.end_seconds) for f in found.faults if f.kind == "stuck"]
    assert kinds == ([("stuck", 70, 85)] if stuck else [])


def test_a_full_share_of_the_traffic_and_no_answer_is_stuck_too() -> None:
    made = recording()
    requests = np.array(made.requests)
    requests[70:85, 0] = 0
    assert ("stuck", 70) in {(f.kind, f.onset_seconds) for f in scene(replace(made, requests=requests)).faults}


def test_an_incident_of_which_nothing_shows_is_told_all_the_same() -> None:
    resolved = {"resolved_unix_ns": incident().since_unix_ns + 20 * SECOND_NS}
    [fault] = scene(recording(incident=incident(**resolved))).faults
    assert (fault.factor, fault.mechanism) == (1, "CPU contention")
    heat = scene(recording(incident=incident(mechanism="GPU thermal throttling")))
    assert any(a.startswith("what the GPU announced") for a in heat.assumptions)
    assert [fault.told(ONSET + s) for s in (7, 9, 19, 21)] == [False, True, True, False]


@given(st.floats(0.05, 1.5), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_a_distribution_is_made_narrower_but_never_wider(cv: float, seed: int) -> None:
    table = np.sort(np.random.default_rng(seed).lognormal(0, 0.8, 500))
    found, has = _sharpened(table, cv)
    as_it_was = _sharpened(table, math.inf)[1]
    assert (np.diff(found) >= 0).all()
    assert (found[1:] + found[:-1]).mean() / 2 == pytest.approx(1)
    assert has == pytest.approx(min(cv, as_it_was), rel=0.01)


def test_an_earlier_fault_is_no_part_of_what_is_usual() -> None:
    factor: Any = course((40, 3))
    factor[5:25] = [8.0] * 20
    made = recording(100, factor=factor, rates=(5, 5, 5))
    known = usual(made)
    assert known.service_seconds[0] == pytest.approx(0.02, rel=0.01)
    assert not known.seconds[8:22].any()
    assert any("before the onset were unlike the others" in a for a in scene(made).assumptions)


def test_while_requests_wait_a_worker_takes_what_lies_between_its_answers() -> None:
    """The runtime tells of 20 ms a request, and answers 25 a second: there is more to a request than it tells."""
    made = recording(rates=(10, 10, 10))
    requests, queue = np.array(made.requests), np.zeros_like(made.requests)
    requests[ONSET:, 0], queue[ONSET:, 0] = 25, 40
    found = stretches(replace(made, requests=requests, queue=queue), usual(made), 0)
    assert [s.factor for s in found] == [pytest.approx(2, rel=0.05)]
    queue[ONSET + 3 :: 4, 0] = 0
    found = stretches(replace(made, requests=requests, queue=queue), usual(made), 0)
    assert [s.factor for s in found] == [1]


def test_what_is_lost_between_queue_and_service_counts_as_service() -> None:
    made = recording(rates=(5, 5, 5))
    slow = np.array(made.latency_seconds)
    slow[ONSET:, 0] += 0.1
    [fault] = scene(replace(made, latency_seconds=slow)).faults
    assert fault.factor == pytest.approx(6, rel=0.1)


def test_an_instance_that_got_stuck_before_the_onset_was_noticed_is_stuck_from_then_on() -> None:
    made = recording()
    requests, in_flight = np.array(made.requests), np.zeros_like(made.requests)
    requests[ONSET - 4 : ONSET + 10, 0], in_flight[ONSET - 4 : ONSET + 10, 0] = 0, 5
    requests[20:30, 0], in_flight[20:30, 0] = 0, 5
    found = stretches(replace(made, requests=requests, in_flight=in_flight), usual(made), 0)
    assert [(s.first, s.end, s.stuck) for s in found] == [
        (ONSET - 4, ONSET + 10, True),
        (ONSET + 10, made.seconds, False),
    ]


def test_fewer_workers_are_less_capacity() -> None:
    made = recording(workers=np.full((100, 3), 4.0))
    gone = np.array(made.workers)
    gone[ONSET:, 0] = 2
    [fault] = scene(replace(made, workers=gone)).faults
    assert fault.factor == pytest.approx(2, rel=0.05)


def test_latencies_are_merged_as_sketches_are() -> None:
    """Those of the instances and seconds that are wanted, and of no other; fewer samples count for more."""
    values = [np.full(k, 0.001 * k) for k in (1, 2, 3, 4)]
    lists = packed(values)
    some = Latencies(
        np.array([5, 5, 6, 7]), np.array([0, 1, 0, 0]), replace(lists, probabilities=np.array([1, 1, 0.5, 1]))
    )
    wanted = np.zeros(10, dtype=bool)
    wanted[5:7] = True
    found = some.merged(wanted, [0])
    expected = merge([of_seconds(values[0]), of_seconds(values[2], probability=0.5)])
    assert (found.counts == expected.counts).all()
    assert found.count == 7
    assert found.sum_seconds == pytest.approx(expected.sum_seconds, rel=0.01)
    assert some.merged(np.zeros(10, dtype=bool), [0, 1]).sampled == 0
