"""A signal is measured by its own steps, and blame goes to who adds what the users suffer from."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.rootcause.blame import blame, reached
from trimtab.rootcause.shift import AFTER_ROWS, BEFORE_ROWS, shifts, steps, strength

ROWS, ONSET = 200, 150
QUIET = np.arange(ROWS) < ONSET - 5


def courses(seed: int, signals: int = 3) -> np.ndarray:
    return 50 + np.random.default_rng(seed).standard_normal((ROWS, signals))


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_unit_and_offset_do_not_matter(seed: int, factor: float, offset: float) -> None:
    plain = courses(seed)
    plain[ONSET:, 0] += 9
    np.testing.assert_allclose(shifts(plain, QUIET, ONSET), shifts(plain * factor + offset, QUIET, ONSET), rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_step_beyond_all_before_it_counts_and_wandering_does_not(seed: int) -> None:
    found = courses(seed)
    found[ONSET:, 0] += 9
    # It steps as far in either direction all day long.
    found[:, 1] += 9 * (np.arange(ROWS) // 13 % 2)
    moved = shifts(found, QUIET, ONSET)
    assert moved[0] > 2
    assert moved[1] < 2
    assert moved[0] > moved[1:].max()


@given(st.integers(0, 2**32 - 1), st.integers(BEFORE_ROWS, ROWS - AFTER_ROWS))
@settings(max_examples=30, deadline=None)
def test_a_step_is_mean_less_median(seed: int, row: int) -> None:
    found = courses(seed)
    found[np.random.default_rng(seed).random(found.shape) < 0.1] = np.nan
    for signal, step in enumerate(steps(found)[row]):
        before, after = found[row - BEFORE_ROWS : row, signal], found[row : row + AFTER_ROWS, signal]
        if np.isnan(before).sum() <= BEFORE_ROWS // 2 and np.isnan(after).sum() <= AFTER_ROWS // 2:
            np.testing.assert_allclose(step, np.nanmean(after) - np.nanmedian(before))
        else:
            assert np.isnan(step)


def test_missing_is_missing() -> None:
    found = courses(1)
    found[:, 1] = np.nan
    found[ONSET:, 2] = np.nan
    moved = shifts(found, QUIET, ONSET)
    assert np.isnan(moved[1:]).all()
    assert strength(moved[1:]) == 0
    assert np.isnan(shifts(found[:5], QUIET[:5], 2)).all(), "too short for any step"


@given(st.lists(st.floats(0, 100), max_size=9), st.floats(0, 100))
def test_more_signals_never_weaken(moved: list[float], another: float) -> None:
    assert strength(np.asarray([*moved, another])) >= strength(np.asarray(moved)) - 1e-9


CALLEES = {"web": ["search", "pay", "cache"], "search": ["db"], "pay": ["db", "bank"], "other": ["db"]}


def test_who_adds_it_is_blamed_not_who_calls_it() -> None:
    sure = dict.fromkeys(["web", "search", "pay", "cache", "db", "bank", "other"], 1.0)
    shares = blame({"web": 25, "search": 24, "db": 1, "cache": 2}, sure, CALLEES, "web")
    assert max(shares, key=lambda s: shares[s]) == "search"
    assert "other" not in shares, "who is not called cannot be the cause"
    deeper = blame({"web": 25, "search": 24, "db": 23}, sure, CALLEES, "web")
    assert max(deeper, key=lambda s: deeper[s]) == "db"
    alone = blame({"web": 25}, sure, CALLEES, "web")
    assert alone["web"] == 1


@given(
    # What is next to nothing has no tenth that a float could hold.
    st.dictionaries(st.sampled_from("abcdef"), st.floats(-10, 100, allow_subnormal=False), max_size=6),
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=4), max_size=6),
    st.floats(0.01, 100),
)
def test_shares_add_up_whatever_the_graph(
    added: dict[str, float], callees: dict[str, list[str]], factor: float
) -> None:
    sure = dict.fromkeys("abcdef", 1.0)
    shares = blame(added, sure, callees, "a")
    assert set(shares) == set(reached(callees, "a")), "cycles end"
    assert all(0 <= share <= 1 for share in shares.values())
    total = sum(shares.values())
    assert total == 0 or abs(total - 1) < 1e-9
    scaled = blame({s: v * factor for s, v in added.items()}, sure, callees, "a")
    assert all(abs(scaled[s] - shares[s]) < 1e-6 for s in shares)


def test_what_is_unsure_is_not_blamed() -> None:
    assert blame({"a": 5}, {}, {}, "a") == {"a": 0.0}
