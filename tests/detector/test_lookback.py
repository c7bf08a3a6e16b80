"""A recorded course is judged by what came before, whatever its units; a new regime is usual after a while, and a fault is not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.published import machines
from trimtab.detector.budget import WEEK_SECONDS
from trimtab.detector.episodes import episodes, runs, strangest, usual
from trimtab.detector.forest import Forest
from trimtab.detector.lookback import TRAIN_MIN, Lookback
from trimtab.detector.patterns import Patterns
from trimtab.detector.season import profile, season_rows, without
from trimtab.detector.subspace import Subspace
from trimtab.detector.windows import WIDTH, spread, windows

SEASON, SEASONS = 96, 12


def machine(rows: int, first: int = 0, seed: int = 0) -> np.ndarray:
    """Six features that follow the hour, their own noise, and each other."""
    chance = np.random.default_rng([seed, first])
    hour = np.sin(2 * np.pi * (first + np.arange(rows)) / SEASON)
    load = 1 + 0.5 * hour + 0.05 * chance.standard_normal(rows)
    return np.stack([load * k + 0.05 * chance.standard_normal(rows) for k in range(1, 7)], axis=1)


@pytest.fixture(scope="module")
def fitted() -> Lookback:
    return Lookback(machine(SEASON * SEASONS))


def judged(test: np.ndarray) -> np.ndarray:
    return Lookback(machine(SEASON * SEASONS)).judge(test).test


@given(st.integers(30, 200), st.integers(0, 2**32 - 1), st.integers(4, 9))
@settings(max_examples=20, deadline=None)
def test_the_season_is_found(rows: int, seed: int, seasons: int) -> None:
    chance = np.random.default_rng(seed)
    phase = 2 * np.pi * np.arange(rows * seasons) / rows
    course = np.stack([np.sin(phase + k) + 0.2 * chance.standard_normal(len(phase)) for k in range(3)], axis=1)
    found = season_rows(course)
    assert found is not None
    assert abs(found - rows) <= max(1, rows // 50)


def test_noise_has_no_season() -> None:
    for seed in range(10):
        assert season_rows(np.random.default_rng(seed).standard_normal((600, 3))) is None
    assert season_rows(np.ones((600, 3))) is None


@given(st.integers(2, 40), st.integers(-100, 100))
def test_a_season_taken_off_leaves_nothing(rows: int, first: int) -> None:
    phases = np.arange(rows, dtype=np.float64)[:, None]
    course = phases[(first + np.arange(3 * rows)) % rows]
    np.testing.assert_allclose(without(course, phases, first), 0)


def test_a_course_shorter_than_its_season_has_no_profile() -> None:
    with pytest.raises(ValueError, match="less than a season"):
        profile(np.zeros((10, 1)), 11)


@given(st.integers(WIDTH, 60))
def test_a_row_gets_the_mean_of_the_windows_that_hold_it(rows: int) -> None:
    scores = np.random.default_rng(rows).random(rows - WIDTH + 1)
    expected = [np.mean([scores[k] for k in range(len(scores)) if k <= row < k + WIDTH]) for row in range(rows)]
    np.testing.assert_allclose(spread(scores, rows), expected)
    assert windows(np.zeros((rows, 2))).shape == (rows - WIDTH + 1, 2 * WIDTH)


def test_what_is_strange_stands_out(fitted: Lookback) -> None:
    test = machine(3 * SEASON, SEASON * SEASONS)
    test[150:170, 2] += 3
    found = fitted.judge(test)
    inside = np.zeros(len(test), dtype=np.bool_)
    inside[150:170] = True
    assert found.test[inside].min() > found.test[~inside & (np.abs(np.arange(len(test)) - 160) > 20)].max()
    assert found.season_rows == SEASON
    # One is where the strangest hundredth of the training begins.
    assert 0.5 < np.quantile(found.train, 0.99) < 1.5


def test_later_rows_do_not_change_what_was_judged() -> None:
    test = machine(3 * SEASON, SEASON * SEASONS)
    whole = judged(test)
    for end in (SEASON, 2 * SEASON):
        np.testing.assert_allclose(judged(test[:end])[: end - WIDTH], whole[: end - WIDTH], rtol=1e-5)


def test_units_do_not_matter() -> None:
    factors, offsets = np.asarray([1e-3, 1, 10, 1e3, 1e6, 7]), np.asarray([5, 0, 1, 1e3, 0, -4])
    train, test = machine(SEASON * SEASONS), machine(SEASON, SEASON * SEASONS)
    plain = Lookback(train).judge(test).test
    other = Lookback(train * factors + offsets).judge(test * factors + offsets).test
    np.testing.assert_allclose(plain, other, rtol=0.05, atol=0.02)


def test_the_unknown_stays_unknown(fitted: Lookback) -> None:
    test = machine(SEASON, SEASON * SEASONS)
    test[10], test[20:40, 3] = np.nan, np.nan
    found = fitted.judge(test).test
    assert np.isnan(found[10])
    assert not np.isnan(np.delete(found, 10)).any()
    assert found[20:40].max() < 1.5, "what is missing is no anomaly"


def test_a_training_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {TRAIN_MIN}"):
        Lookback(np.zeros((TRAIN_MIN - 1, 2)))


def test_a_deploy_is_told_and_then_usual_but_a_day_of_a_fault_is_not_learnt() -> None:
    train, test = machine(SEASON * SEASONS), machine(8 * SEASON, SEASON * SEASONS)
    test[SEASON:, 1] += 2
    found = Lookback(train).judge(test)
    told = episodes(found.test - usual(found.train, found.test, found.season_rows))
    assert told[SEASON : SEASON + SEASON].mean() > 0.9, "for its first day it is told"
    assert told[5 * SEASON :].mean() < 0.1, "then it is what the machine is like"
    assert not told[: SEASON - WIDTH].any(), "and before it nothing"


SCORES = st.lists(st.floats(0, 10, width=32), min_size=1, max_size=80).map(lambda v: np.asarray(v, dtype=np.float64))


@given(SCORES, st.floats(0.1, 5), st.floats(0.05, 0.95))
def test_episodes_hold_all_that_opens_and_nothing_far_below_their_peak(
    scores: np.ndarray, opens: float, keeps: float
) -> None:
    inside = episodes(scores, opens, keeps)
    assert inside[scores >= opens].all()
    for first, end in runs(inside):
        assert scores[first:end].max() >= opens
    assert not inside.any() or scores.max() >= opens


@given(SCORES, st.floats(0, 10), st.floats(0.01, 20))
def test_no_more_are_told_than_may_be_false_and_none_that_is_less_strange(
    peaks: np.ndarray, weeks: float, per_week: float
) -> None:
    told = strangest(peaks, weeks, per_week)
    assert told.sum() == min(len(peaks), math.ceil(weeks * per_week))
    assert not told.any() or told.all() or peaks[told].min() >= peaks[~told].max()


def test_on_real_servers_the_false_alarms_stay_within_the_budget_and_faults_are_told() -> None:
    per_week, false, without_budget, told_rows, weeks = 1.0, 0, 0, 0, 0.0
    for server in machines(Path(__file__).parent / "data" / "asd12"):
        found = Lookback(server.train).judge(server.test)
        above = found.test - usual(found.train, found.test, found.season_rows)
        at = runs(episodes(above))
        wrong = np.asarray([not server.labels[first:end].any() for first, end in at])
        told = strangest(
            np.asarray([above[first:end].max() for first, end in at]), len(above) * 300 / WEEK_SECONDS, per_week
        )
        false, without_budget = false + int((wrong & told).sum()), without_budget + int(wrong.sum())
        told_rows += sum(
            int(server.labels[first:end].sum()) for (first, end), tells in zip(at, told, strict=True) if tells
        )
        weeks += float((~server.labels).sum()) * 300 / WEEK_SECONDS
    assert without_budget > per_week * weeks, "these servers would break it"
    assert false <= per_week * weeks
    assert told_rows > 100


@given(SCORES, SCORES, st.integers(1, 20))
def test_what_is_usual_looks_back_only(before: np.ndarray, scores: np.ndarray, season: int) -> None:
    told = usual(before, scores, season)
    later = scores.copy()
    later[len(scores) // 2 :] += 100
    np.testing.assert_array_equal(told[: len(scores) // 2 + 1], usual(before, later, season)[: len(scores) // 2 + 1])


MEMBERS = [lambda train: Patterns(train, 20), Subspace, Forest]


@pytest.mark.parametrize("make", MEMBERS, ids=["patterns", "subspace", "forest"])
def test_every_member_keeps_the_contract(make) -> None:  # type: ignore[no-untyped-def]
    points = windows(machine(900))
    train, near, far = points[:700], points[700:], points[700:] + 5
    member = make(train)
    scores = member.score(near)
    assert scores.shape == (len(near),)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, member.score(near), "scoring changes nothing")
    order = np.random.default_rng(0).permutation(len(near))
    np.testing.assert_allclose(member.score(near[order]), scores[order], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(make(train).score(near), scores, "the same training gives the same")
    assert np.median(member.score(far)) > np.quantile(scores, 0.75)
    member.learn(far)
    assert np.median(member.score(near)) <= np.median(scores) + 1e-6, "learning more makes nothing stranger"


def test_a_pattern_that_was_learnt_is_known() -> None:
    points = windows(machine(900))
    member = Patterns(points[:700], 20)
    before = np.median(member.score(points[700:] + 5))
    member.learn(points[700:] + 5)
    assert np.median(member.score(points[700:] + 5)) < before / 2
