"""Model drift: predictions that move are one incident, wherever and since when they moved; what does not move is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.detector.faults import slow
from tests.detector.fleet import MODEL, SCORES, START_NS, Fleet, Noise, Recorder, Scene, Stage
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.webhook import message
from trimtab.detector.drift import Drift
from trimtab.detector.history import History
from trimtab.detector.hours import LEARNT_MIN, Hours
from trimtab.detector.incident import Incidents
from trimtab.detector.scores import BINS, Counts, Scores, distance, shares
from trimtab.detector.settings import DetectorSettings

ROOT = Path(__file__).resolve().parents[2]
SECOND = 1_000_000_000
LEARNT = 32 * 13
"""Values until what is usual is known."""
MOVED = (0.1, 0.1, 0.1, 0.05, 0.05, 0.15, 0.2, 0.25)


def drifting(scores: Sequence[float], *instances: str) -> Callable[[Scene, float], None]:
    """From now on these instances, or all, predict so."""

    def fault(scene: Scene, elapsed: float) -> None:
        scene.scores |= {i: scores for i in scene.scores if not instances or i in instances}

    return fault


def staged(window_seconds: float = 1.0) -> Stage:
    """Three instances whose usual predictions are known."""
    noise = Noise(blips_per_second=0, bursts_per_second=0)
    stage = Stage(Fleet([("a",) * 3], seed=1, noise=noise, window_seconds=window_seconds, scored=True))
    stage.run(LEARNT + 20)
    return stage


class Bench:
    """A Drift that is told what each model predicts, second by second."""

    def __init__(self, seed: int = 0, predictions: int = 40, step_seconds: float = 1.0) -> None:
        self.step_seconds = step_seconds
        self.chance, self.predictions, self.now = np.random.default_rng(seed), predictions, START_NS
        self.journal = Recorder()
        self.counts: dict[str, Counts] = {}
        self.restart()

    def restart(self) -> None:
        self.incidents = Incidents(DetectorSettings())
        self.incidents.start(self.journal, lambda _: None)
        self.drift = Drift(DetectorSettings(), self.incidents)
        self.drift._scores = self  # type: ignore[assignment]
        self.history = History(60)

    def run(self, values: int, **scores: Sequence[float]) -> None:
        for _ in range(values):
            self.now += round(self.step_seconds * SECOND)
            drawn = {m: self.chance.multinomial(self.predictions, s).astype(float) for m, s in scores.items()}
            self.tick(drawn)

    def tick(self, new: dict[str, Counts]) -> None:
        self.counts = new
        self.drift.tick(self.history, self.now, self.step_seconds)

    def new(self, history: History) -> dict[str, Counts]:
        """In the place of `Scores`."""
        return self.counts

    def versions(self, history: History) -> dict[str, set[str]]:
        """In the place of `Scores`."""
        return {model: {""} for model in self.counts}

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(i.subject, i.status) for i in self.journal.incidents()[::-1]]


OPEN, RESOLVED = pb.Incident.STATUS_OPEN, pb.Incident.STATUS_RESOLVED


def test_predictions_that_move_are_one_incident() -> None:
    stage = staged()
    assert stage.incidents == []
    stage.fleet.strike(drifting(MOVED))
    stage.run(100)
    (incident,) = stage.incidents
    assert (incident.subject, incident.model, incident.node) == ("predictions of model a", "a", "")
    assert abs(incident.since_unix_ns - stage.fleet.onset_ns) <= 32 * SECOND
    (cause,) = incident.causes
    assert cause.mechanism == "model drift"
    assert "all of its 3 instances" in cause.summary
    before = {e.signal: e.before for e in cause.evidence}
    after = {e.signal: e.after for e in cause.evidence}
    assert len(before) == BINS
    assert cause.evidence[0].signal == "prediction_share_bin_0"
    for k in range(BINS):
        assert before[f"prediction_share_bin_{k}"] == pytest.approx(SCORES[k], abs=0.02)
        assert after[f"prediction_share_bin_{k}"] == pytest.approx(MOVED[k], abs=0.03)
    course = cause.evidence[0].course
    assert np.nanmean(course[: len(course) // 2]) > 0.25 > 0.15 > np.nanmean(course[len(course) // 2 :])
    alert = message(incident)["alerts"][0]
    assert alert["annotations"]["mechanism"] == "model drift"
    assert alert["labels"]["model"] == "a"


def test_a_slow_model_is_another_incident_and_routing_knows_only_that() -> None:
    stage = staged()
    stage.fleet.strike(drifting(MOVED))
    stage.run(100)
    assert {s.incident for s in stage.state.instances} == {""}

    def both(scene: Scene, elapsed: float) -> None:
        drifting(MOVED)(scene, elapsed)
        slow(5)(scene, elapsed)

    stage.fleet.strike(both)
    stage.run(60)
    assert [i.subject for i in stage.incidents] == ["predictions of model a", "model a"]


def test_only_one_instance_that_predicts_otherwise_is_named() -> None:
    stage = staged(5.0)
    odd = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    stage.fleet.strike(drifting(odd, "n0/8090"))
    stage.run(100)
    (incident,) = stage.incidents
    assert "only on 1 of its 3 instances: n0/8090/a" in incident.causes[0].summary
    # Longer than an incident of which no instance is left would last.
    stage.run(150)
    assert [i.status for i in stage.incidents] == [OPEN]


def test_another_version_begins_anew() -> None:
    stage = staged()
    stage.fleet.strike(drifting(MOVED))
    stage.run(100)
    (node,) = stage.fleet.nodes
    node.version = "2.0"
    node.schema = node._schema()
    stage.run(1)
    assert [i.status for i in stage.incidents] == [RESOLVED]
    stage.run(100)
    assert len(stage.incidents) == 1


def test_it_is_over_when_the_predictions_moved_back_also_after_a_restart() -> None:
    for restart in (False, True):
        bench = Bench()
        bench.run(LEARNT, a=SCORES)
        bench.run(300, a=MOVED)
        if restart:
            bench.restart()
            bench.run(300, a=MOVED)
        assert bench.told == [("predictions of model a", OPEN)]
        bench.run(31, a=SCORES)
        assert bench.told == [("predictions of model a", OPEN)]
        bench.run(32 + 60 + 32, a=SCORES)
        assert bench.told == [("predictions of model a", RESOLVED)]
        # What was of the drift did not become usual.
        bench.run(0 if restart else 400, a=SCORES)
        assert bench.told == [("predictions of model a", RESOLVED)]


def test_it_comes_back_as_the_same_incident() -> None:
    bench = Bench()
    bench.run(LEARNT, a=SCORES)
    for scores in (MOVED, SCORES, MOVED):
        bench.run(160, a=scores)
    (incident,) = bench.journal.incidents()
    assert (incident.status, incident.reopened) == (OPEN, 1)


def test_another_distribution_still_is_a_drift() -> None:
    bench = Bench()
    bench.run(LEARNT, a=SCORES)
    bench.run(160, a=MOVED)
    bench.run(400, a=MOVED[::-1])
    assert bench.told == [("predictions of model a", OPEN)]


def test_what_hardly_moves_is_no_incident() -> None:
    bench = Bench(predictions=2000)
    bench.run(LEARNT, a=SCORES)
    bench.run(400, a=(0.22, 0.2, 0.1, 0.05, 0.05, 0.05, 0.1, 0.23))
    assert bench.told == []


def test_a_creeping_drift_is_found() -> None:
    bench = Bench()
    bench.run(LEARNT, a=SCORES)
    for step in range(50):
        part = step / 50
        bench.run(32, a=[(1 - part) * s + part * m for s, m in zip(SCORES, MOVED, strict=True)])
    assert bench.told == [("predictions of model a", OPEN)]


def test_a_seldom_used_model_is_judged_by_as_many_predictions() -> None:
    bench = Bench(predictions=5)
    bench.run(4 * LEARNT, a=SCORES)
    bench.run(4 * 100, a=MOVED)
    assert bench.told == [("predictions of model a", OPEN)]


def test_nothing_is_found_where_nothing_moves() -> None:
    bench = Bench(seed=2, predictions=20)
    spreads = {f"m{k}": bench.chance.dirichlet(np.ones(BINS)) for k in range(40)}
    bench.run(1500, **spreads)
    assert bench.told == []


def test_a_model_that_is_gone_is_forgotten_and_its_incident_is_over() -> None:
    bench = Bench()
    bench.run(LEARNT, a=SCORES, b=SCORES)
    bench.run(100, a=MOVED, b=SCORES)
    bench.run(599, b=SCORES)
    assert bench.told == [("predictions of model a", OPEN)]
    bench.run(2, b=SCORES)
    assert bench.told == [("predictions of model a", RESOLVED)]
    # Its row now stands for another, of which nothing is known.
    bench.run(200, b=SCORES, c=MOVED)
    assert len(bench.told) == 1


def test_the_watch_accepts_a_drift_and_nothing_else() -> None:
    stage = staged()
    stage.fleet.strike(drifting(MOVED))
    stage.run(100)
    stage.watch.accept("i-2")
    stage.run(1)
    assert [i.status for i in stage.incidents] == [OPEN]
    stage.watch.accept("i-1")
    stage.run(1)
    assert [i.status for i in stage.incidents] == [RESOLVED]


HOUR_SECONDS = 3600
ODD = (0.05, 0.05, 0.3, 0.25, 0.2, 0.05, 0.05, 0.05)


def day_and_night(bench: Bench, hours: int, night: Sequence[float], day: Sequence[float] = SCORES) -> None:
    """So many hours, of which those from eight to eight are of the night: by a quarter of an hour, now sooner, now later."""
    for _ in range(round(hours * HOUR_SECONDS / bench.step_seconds)):
        hour = bench.now / SECOND / HOUR_SECONDS
        strays = 0.25 * np.sin(2.1 * (hour // 12))
        is_day = 8 <= (hour + strays) % 24 < 20
        bench.run(1, a=day if is_day else night)


def rhythmic() -> Bench:
    """From noon on; ten seconds a value."""
    bench = Bench(step_seconds=10.0)
    bench.now = bench.now // (86400 * SECOND) * 86400 * SECOND + 12 * HOUR_SECONDS * SECOND
    return bench


def test_what_comes_back_every_day_is_told_on_the_first_only() -> None:
    bench = rhythmic()
    day_and_night(bench, 9, MOVED)
    assert bench.told == [("predictions of model a", OPEN)]
    day_and_night(bench, 15, MOVED)
    assert bench.told == [("predictions of model a", RESOLVED)]
    day_and_night(bench, 72, MOVED)
    assert [(i.status, i.reopened) for i in bench.journal.incidents()] == [(RESOLVED, 0)]


def test_a_drift_of_a_model_that_has_a_rhythm_is_told_by_day_and_by_night() -> None:
    for hours in (51, 63):  # until three in the afternoon, and at night
        bench = rhythmic()
        day_and_night(bench, hours, MOVED)
        before = len(bench.told)
        day_and_night(bench, 1, ODD, ODD)
        assert bench.told[before:] == [("predictions of model a", OPEN)], hours
        # It is not usual because it was so yesterday: that was a drift.
        day_and_night(bench, 30, ODD, ODD)
        assert bench.told[before:] == [("predictions of model a", OPEN)], hours
        day_and_night(bench, 2, MOVED)
        assert bench.told[before:] == [("predictions of model a", RESOLVED)], hours


def test_what_is_so_for_a_day_from_the_first_on_cannot_be_told_from_a_rhythm() -> None:
    bench = rhythmic()
    day_and_night(bench, 3, SCORES)
    day_and_night(bench, 22, ODD, ODD)
    assert bench.told == [("predictions of model a", OPEN)]
    day_and_night(bench, 5, ODD, ODD)
    assert bench.told == [("predictions of model a", RESOLVED)]


def test_a_drift_that_is_meant_to_be_is_usual_from_then_on() -> None:
    bench = Bench()
    bench.run(LEARNT, a=SCORES, b=SCORES)
    bench.run(100, a=MOVED, b=SCORES)
    assert bench.told == [("predictions of model a", OPEN)]
    bench.drift.accept("predictions of model b")  # which has none
    bench.drift.accept("predictions of model a")
    bench.run(1, a=MOVED, b=SCORES)
    assert bench.told == [("predictions of model a", RESOLVED)]
    bench.run(LEARNT + 400, a=MOVED, b=ODD)
    assert bench.told == [("predictions of model a", RESOLVED), ("predictions of model b", OPEN)]
    bench.run(100, a=SCORES, b=ODD)
    assert [s for _, s in bench.told] == [RESOLVED, OPEN, OPEN]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2 * LEARNT_MIN)), max_size=60), st.integers(0, 200))
def test_an_hour_knows_of_the_days_before_only(steps: list[tuple[int, int]], later: int) -> None:
    hours, known, at = Hours(), list[tuple[int, Counts]](), 0
    for step, predictions in steps:
        at += step
        counts = np.eye(BINS)[at % BINS] * predictions
        hours.learn(counts, at * HOUR_SECONDS * SECOND)
        known.append((at, counts))
    now = at + later
    earlier = sum((c for then, c in known if then % 24 == now % 24 and then < now), np.zeros(BINS))
    usual = hours.usual(now * HOUR_SECONDS * SECOND)
    if earlier.sum() < LEARNT_MIN:
        assert usual is None
    else:
        np.testing.assert_allclose(usual, shares(earlier))


def test_silence_is_not_normal() -> None:
    bench = Bench()
    bench.run(LEARNT, a=SCORES)
    bench.run(100, a=MOVED)
    bench.restart()
    for _ in range(1000):
        bench.now += SECOND
        bench.tick({"a": np.zeros(BINS)})
    assert bench.told == [("predictions of model a", OPEN)]


def test_a_fleet_that_counts_no_predictions_needs_no_numba() -> None:
    told = "import sys; from tests.detector.fleet import Fleet, Stage; Stage(Fleet({})).run(5); print('numba' in sys.modules)"
    for arguments, loaded in (("", "False"), ("scored=True", "True")):
        command, env = (
            [sys.executable, "-c", told.format(arguments)],
            os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded


def test_each_slot_is_read_once() -> None:
    fleet, history, scores = Fleet([("a", "b"), ("a",)], scored=True), History(180), Scores()
    sent = {"a": np.zeros(BINS), "b": np.zeros(BINS)}
    read = {"a": np.zeros(BINS), "b": np.zeros(BINS)}
    for second in range(60):
        windows = fleet.step()
        history.observe_all(windows)
        if second % 3 == 0:
            for model, counts in scores.new(history).items():
                read[model] += counts
        for node, window in zip(fleet.nodes, windows, strict=True):
            # The newest slot may not be complete when it is read.
            if second < 57:
                values = np.frombuffer(window.message.values[-1]).reshape(len(MODEL), -1)
                for subject, counts in zip(node.scored, values.T, strict=True):
                    sent[subject[-1]] += counts
    for model, counts in sent.items():
        np.testing.assert_allclose(read[model], counts, rtol=1e-5)


COUNTS = (
    st.lists(st.integers(0, 1000), min_size=BINS, max_size=BINS).filter(any).map(lambda c: np.asarray(c, dtype=float))
)


@given(COUNTS, COUNTS, COUNTS)
def test_the_distance_of_two_distributions(one: Counts, other: Counts, third: Counts) -> None:
    a, b, c = shares(one), shares(other), shares(third)
    assert distance(a, a) == 0
    assert distance(a, b) == distance(b, a)
    assert 0 <= distance(a, b) <= 1 + 1e-12
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12
    assert distance(a, shares(10 * one)) == pytest.approx(0, abs=1e-12)
