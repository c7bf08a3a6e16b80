"""One signal: nothing that comes later is looked at, one change is one alarm, and the compiled range equals a plain one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.detector.outside import HISTORY_MIN, outside, within
from trimtab.detector.single import ALARM, REARM_ROWS, hindsight, news, novelty, strange

SEEDS = st.integers(0, 2**32 - 1)


def course(rows: int, seed: int, season: int = 24) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return 10 + np.sin(2 * np.pi * np.arange(rows) / season) + 0.3 * chance.standard_normal(rows)


def plain(series: np.ndarray, gap: int, rare: float) -> np.ndarray:
    """`outside`, told anew at every row that is due."""
    out, told, usual = np.zeros(len(series)), -1, (0.0, 0.0, 0.0)
    for t, value in enumerate(series):
        past = series[: max(t - gap + 1, 0)]
        if len(past) >= HISTORY_MIN and (told < 0 or t - told >= max(10, t // 100)):
            known = sorted(past[~np.isnan(past)])
            if len(known) >= HISTORY_MIN:
                last = len(known) - 1
                usual = known[int(rare * last)], known[len(known) // 2], known[int((1 - rare) * last)]
                told = t
        if told >= 0 and not np.isnan(value):
            low, middle, high = usual
            least = max(0.2 * max(high - middle, middle - low), 1e-9 + 1e-3 * abs(middle))
            out[t] = (
                (value - middle) / max(high - middle, least)
                if value > middle
                else (middle - value) / max(middle - low, least)
            )
    return out


@given(SEEDS, st.integers(1, 30), st.sampled_from([0.002, 0.05, 0.25]), st.floats(0, 0.5))
@settings(max_examples=25, deadline=None)
def test_the_compiled_range_equals_the_plain_one(seed: int, gap: int, rare: float, missing: float) -> None:
    series = course(300, seed)
    series[np.random.default_rng(seed).random(300) < missing] = np.nan
    np.testing.assert_allclose(outside(series, gap, rare), plain(series, gap, rare), rtol=1e-9)


@given(SEEDS, st.integers(100, 399))
@settings(max_examples=25, deadline=None)
def test_novelty_is_online(seed: int, end: int) -> None:
    series = course(400, seed)
    np.testing.assert_array_equal(novelty(series, 24)[:end], novelty(series[:end], 24))


@given(SEEDS, st.floats(0.001, 1000))
@settings(max_examples=25, deadline=None)
def test_the_unit_does_not_matter(seed: int, factor: float) -> None:
    series = course(400, seed)
    np.testing.assert_allclose(novelty(series, 24), novelty(series * factor, 24), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(hindsight(series, 24), hindsight(series * factor, 24), rtol=1e-6)


def test_a_jump_is_one_alarm_and_quiet_is_none() -> None:
    series = course(1200, 3)
    assert (news(novelty(series, 24))[200:] < ALARM).all()
    series[700:] += 8
    alarms = np.flatnonzero(news(novelty(series, 24)) >= ALARM)
    assert len(alarms)
    assert alarms[0] in range(700, 706)
    # The views of longer means tell it again within their length; nothing else does.
    assert (alarms < 700 + 40).all()


def test_of_equal_alarms_the_first_counts() -> None:
    scores = np.zeros(3 * REARM_ROWS)
    scores[10] = scores[10 + REARM_ROWS] = scores[12 + 2 * REARM_ROWS] = 2
    scores[11] = 3
    assert np.flatnonzero(news(scores)).tolist() == [10, 11, 12 + 2 * REARM_ROWS]


def test_in_hindsight_the_rows_of_the_fault_are_told() -> None:
    series = course(720, 5)
    series[300:310] += 12
    found = np.flatnonzero(strange(series, 24))
    assert found.tolist() == list(range(300, 310))


@given(SEEDS)
def test_within_is_one_at_its_quantiles(seed: int) -> None:
    series = course(101, seed)
    for rare in (0.25, 0.05):
        low, high = np.quantile(series, [rare, 1 - rare])
        edges = within(np.append(series, [low, high]), rare)[-2:]
        assert np.all((edges > 0.8) & (edges < 1.25))
