"""Since when: the last time that it became worse, whatever was before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.detector.onset import _rise

WELL, ILL, WORSE = -4.0, -2.6, 1.0


def course(*levels: tuple[float, int], noise: float = 0.1, gaps: float = 0.0, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    values = np.concatenate([np.full(length, level) for level, length in levels])
    values += chance.normal(0, noise, len(values))
    values[chance.random(len(values)) < gaps] = np.nan
    return values.astype(np.float32)


@given(before=st.integers(20, 90), since=st.integers(4, 50), seed=st.integers(0, 1000))
def test_one_step_is_found_where_it_is(before: int, since: int, seed: int) -> None:
    assert _rise(course((WELL, before), (ILL, since), seed=seed), 1) == before


@pytest.mark.parametrize("gaps", [0.0, 0.5])
@pytest.mark.parametrize("trouble", [10, 26, 40])
def test_the_end_of_a_greater_trouble_before_is_not_the_beginning_of_this_one(trouble: int, gaps: float) -> None:
    began = trouble + 68
    found = _rise(course((WORSE, trouble), (WELL, 68), (ILL, 26), gaps=gaps), began + 26 - 60)
    assert found is not None
    # Where half of the windows are empty, the first known one is as near as it gets.
    assert abs(found - began) <= (3 if gaps else 0)


def test_what_only_became_better_has_no_beginning() -> None:
    assert _rise(course((WORSE, 40), (WELL, 40), noise=0), 1) is None


def test_nothing_known() -> None:
    assert _rise(np.full(40, np.nan, dtype=np.float32), 1) is None
