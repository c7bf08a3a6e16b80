"""What a run is said to have done to users."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.actuator.replay.made import ONSET, recording
from trimtab.actuator.fleetsim.scenario import Balancers
from trimtab.actuator.replay.play import Played, play
from trimtab.actuator.replay.scene import Scene, scene
from trimtab.actuator.replay.verdict import before, judge, rows

COUNT = 100
SCENE: Scene = scene(recording())


def played(latency: float = 0.01, hit_before: int = 0, **changes: object) -> Played:
    """100 requests before the onset and 100 after it, of which `hit_before` were slow before."""
    arrived = np.concatenate([np.linspace(0, ONSET - 1, COUNT), np.linspace(ONSET, ONSET + 30, COUNT)])
    latencies = np.concatenate([np.where(np.arange(COUNT) < hit_before, 5.0, 0.01), np.full(COUNT, latency)])
    made = Played(
        arrived=arrived,
        latency_seconds=latencies,
        failed=np.zeros(2 * COUNT, dtype=bool),
        second=np.floor(arrived).astype(np.int64),
        instance=np.zeros(2 * COUNT, dtype=np.int64),
        weights=np.ones((SCENE.seconds, 3)),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_users_hit_are_those_beyond_the_usual_and_each_once() -> None:
    usual = before(SCENE, played())
    assert (usual.p95_seconds, usual.hit_share) == (pytest.approx(0.01), 0)
    failed = np.zeros(2 * COUNT, dtype=bool)
    failed[COUNT : COUNT + 30] = True
    slow = np.array(played().latency_seconds)
    slow[COUNT + 20 : COUNT + 50] = 1.0
    run = judge(SCENE, played(latency_seconds=slow, failed=failed), usual)
    assert (run.requests, run.errors, run.hit) == (COUNT, 30, 50)
    assert run.mean_seconds == pytest.approx((20 * 1 + 50 * 0.01) / 70)


def test_whoever_was_slow_before_the_onset_does_not_look_better_after_it() -> None:
    """What is usual is as it was, and not what a policy made of it."""
    usual = before(SCENE, played(hit_before=3))
    assert usual.hit_share == 0.03
    calm, hasty = (judge(SCENE, played(0.02, hit_before=k), usual) for k in (3, 60))
    assert calm.hit == hasty.hit == COUNT - 3


def test_what_it_did_when() -> None:
    weights = np.ones((SCENE.seconds, 3))
    weights[ONSET + 4 :, 0], weights[ONSET + 9 :, 0], weights[ONSET + 6 :, 2] = 0.5, 0.1, 0.7
    usual = before(SCENE, played())
    steered, still = judge(SCENE, played(weights=weights), usual), judge(SCENE, played(0.5), usual)
    assert (steered.first_change_seconds, steered.lowest_weight, steered.lowest_instance) == (4, 0.1, 0)
    assert math.isnan(still.first_change_seconds)
    base, other = rows(SCENE, {"as it was": [still, still], "x": [steered, steered]}, "as it was")
    assert (base.hit_more.mean, other.hit_more.mean, other.hit_more.half) == (0, -COUNT, 0)
    assert (other.lowest_instance, other.first_change_seconds) == ("n/0", 4)


def test_a_request_that_nobody_answers_counts_with_how_long_it_has_waited() -> None:
    """Instance 0 is stuck to the end, and gets a third of the requests."""
    made = recording()
    requests, waiting = np.array(made.requests), np.array(made.in_flight)
    requests[ONSET:, 0], waiting[ONSET:, 0] = 0, np.arange(1, made.seconds - ONSET + 1) * 20
    stuck = scene(replace(made, requests=requests, in_flight=waiting))
    run = play(stuck.scenario(0, Balancers("random")), lambda tick: np.ones(3), np.ones(3), lambda: None)
    never = run.second < 0
    # Its queue and its worker are full; the others are turned away.
    assert np.count_nonzero(never & (run.arrived < stuck.seconds - 5)) == 101
    assert run.latency_seconds[never] == pytest.approx(stuck.seconds - run.arrived[never])
    told = judge(stuck, run, before(stuck, run))
    assert told.hit == pytest.approx(told.requests / 3, rel=0.15)
    assert told.p99_seconds > 30
    assert told.errors == pytest.approx(told.requests / 3 - 101, rel=0.3)
