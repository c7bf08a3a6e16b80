"""The forest is grown seldom, from few samples, always the same, and its scores mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.detector import isolation
from trimtab.detector.isolation import SAMPLES_MAX, Isolation

ROWS, WARMUP = 40, 10
GROUPS, WELL = np.zeros(ROWS, dtype=np.int64), np.ones(ROWS, dtype=np.bool_)


def window(chance: np.random.Generator) -> np.ndarray:
    return chance.standard_normal((ROWS, 8)).astype(np.float32)


def learnt(windows: int) -> tuple[Isolation, np.random.Generator]:
    detector, chance = Isolation((0.1,) * 8, WARMUP), np.random.default_rng(0)
    detector.resize(ROWS)
    for _ in range(windows):
        detector.learn(window(chance), GROUPS, WELL)
    return detector, chance


def test_it_is_grown_at_each_doubling_and_then_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "REFIT_WINDOWS", 300)
    grown = []
    monkeypatch.setattr(Isolation, "_fit", lambda self, points: grown.append((int(self._windows[0]), len(points))))
    learnt(1000)
    assert [count for count, _ in grown] == [10, 20, 40, 80, 160, 300, 600, 900]
    assert max(points for _, points in grown) == SAMPLES_MAX


def test_half_is_the_strangest_fortieth_of_healthy_windows() -> None:
    detector, chance = learnt(320)
    scores = np.concatenate([detector.score(window(chance), GROUPS) for _ in range(50)])
    assert 0.2 / 40 < (scores >= 0.5).mean() < 2 / 40


def test_the_same_windows_make_the_same_forest() -> None:
    (one, chance), (other, _) = learnt(80), learnt(80)
    at = window(chance)
    np.testing.assert_array_equal(one.score(at, GROUPS), other.score(at, GROUPS))


@pytest.mark.parametrize("name", ["ring", "fitted", "taken", "windows"])
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    state = dict(learnt(20)[0].save())
    twin = Isolation((0.1,) * 8, WARMUP)
    with pytest.raises(ValueError, match=name):
        twin.restore({k: v for k, v in state.items() if k != f"shared_{name}"})
    with pytest.raises(ValueError, match="state"):
        twin.restore({**state, f"shared_{name}": state[f"shared_{name}"][..., None]})
