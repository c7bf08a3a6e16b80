"""What the e-detector promises holds by simulation, and so does what its guarantee rests on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trimtab.detector.evidence import KAPPAS, Evidence, ranks

ALPHA, STREAMS, WINDOWS = 1 / 100, 1000, 1500
Draw = Callable[[np.random.Generator], np.ndarray]


def run_lengths(draw: Draw, seed: int) -> np.ndarray:
    """Windows until the first alarm of each stream, cut at `WINDOWS`: their mean is no more than the true one."""
    chance, evidence = np.random.default_rng(seed), Evidence(STREAMS)
    first = np.full(STREAMS, WINDOWS)
    for window in range(1, WINDOWS + 1):
        evidence.update(draw(chance))
        alarms = (evidence.value >= 1 / ALPHA) & (first == WINDOWS)
        first[alarms] = window
    return first


def in_groups(chance: np.random.Generator) -> np.ndarray:
    """Ranks among ten, of values whose tail is so heavy that they have no mean."""
    return np.concatenate([ranks(group) for group in chance.standard_cauchy((STREAMS // 10, 10))])


DRAWS: dict[str, Draw] = {
    "uniform": lambda chance: 1 - chance.random(STREAMS),
    "ranks of the fleet": lambda chance: ranks(chance.standard_cauchy(STREAMS)),
    "ranks among ten": in_groups,
    "cautious": lambda chance: np.sqrt(1 - chance.random(STREAMS)),
    "half unknown": lambda chance: np.where(chance.random(STREAMS) < 0.5, np.nan, 1 - chance.random(STREAMS)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_while_nothing_is_wrong_the_mean_time_to_an_alarm_is_at_least_1_over_alpha(draw: Draw) -> None:
    lengths = run_lengths(draw, 1)
    assert lengths.mean() + 3 * lengths.std() / np.sqrt(STREAMS) >= 1 / ALPHA


def test_the_simulation_notices_p_values_that_are_none() -> None:
    lengths = run_lengths(lambda chance: (1 - chance.random(STREAMS)) ** 2, 1)
    assert lengths.mean() + 3 * lengths.std() / np.sqrt(STREAMS) < 1 / ALPHA


@pytest.mark.parametrize("row", [0, 2, 17])
def test_who_lasts_among_the_highest_is_told_and_since_when(row: int) -> None:
    chance, evidence, told = np.random.default_rng(row), Evidence(50), list[int]()
    for window in range(400):
        values = chance.standard_normal(50)
        values[row] += 2.0 if window >= 300 else 0.0
        evidence.update(ranks(values))
        if evidence.value[row] >= 1e6 and window >= 300:
            told.append(window)
            break
    assert told
    assert told[0] < 340
    assert abs(evidence.age[row] - (told[0] - 299)) <= 6
    assert int(np.argmax(evidence.value)) == row


@settings(deadline=None)
@given(st.integers(2, 2000), st.sampled_from(KAPPAS))
def test_an_e_value_of_a_rank_has_a_mean_of_at_most_one(rows: int, kappa: float) -> None:
    p = np.arange(1, rows + 1) / rows
    assert (kappa * p ** (kappa - 1)).mean() <= 1 + 1e-12


P = st.one_of(st.just(np.nan), st.floats(1e-6, 1))


@settings(deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.just(4)), elements=P), st.permutations(range(4)))
def test_laws(windows: np.ndarray, order: list[int]) -> None:
    evidence, mixed, more = Evidence(4), Evidence(4), Evidence(4)
    for p in windows:
        before = evidence.value, evidence.age
        evidence.update(p)
        mixed.update(p[order])
        # Smaller p-values are more evidence.
        more.update(p / 2)
        unknown = np.isnan(p)
        assert (evidence.value[unknown] == before[0][unknown]).all()
        assert (evidence.age[unknown] == before[1][unknown]).all()
    np.testing.assert_allclose(mixed.value, evidence.value[order])
    assert (more.value >= evidence.value).all()
    assert np.isfinite(evidence.value).all()
    assert (evidence.age <= len(windows)).all()
    twin = Evidence()
    twin.restore(evidence.save())
    twin.update(windows[0])
    evidence.update(windows[0])
    np.testing.assert_array_equal(twin.value, evidence.value)
    evidence.resize(6)
    evidence.forget(np.asarray([1]))
    assert (evidence.value[[1, 4, 5]] == 0).all()
    np.testing.assert_array_equal(evidence.value[[0, 2, 3]], twin.value[[0, 2, 3]])


def test_it_stays_finite() -> None:
    evidence = Evidence(1)
    for _ in range(2000):
        evidence.update(np.asarray([1e-9]))
    assert np.isfinite(evidence.value).all()


@pytest.mark.parametrize("wrong", [0.0, -0.1, 1.5, np.inf])
def test_what_is_no_p_value_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        Evidence(2).update(np.asarray([0.5, wrong]))
    with pytest.raises(ValueError, match="expected"):
        Evidence(2).update(np.asarray([0.5]))


@pytest.mark.parametrize("name", ["sums", "run", "age"])
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    state = dict(Evidence(3).save())
    for wrong in (state[name][:-1] if name != "age" else state["run"][:, None], -1.0 - state[name], None):
        with pytest.raises(ValueError, match=name):
            Evidence().restore(
                {**state, name: wrong} if wrong is not None else {k: v for k, v in state.items() if k != name}
            )


VALUES = st.one_of(st.just(np.nan), st.floats(-100, 100), st.integers(0, 3).map(float))


@settings(deadline=None)
@given(arrays(np.float64, st.integers(0, 12), elements=VALUES))
def test_ranks_count_those_that_are_as_high(values: np.ndarray) -> None:
    found, known = ranks(values), values[~np.isnan(values)]
    for value, rank in zip(values, found, strict=True):
        if np.isnan(value) or len(known) < 2:
            assert np.isnan(rank)
        else:
            assert rank == (known >= value).sum() / len(known)
