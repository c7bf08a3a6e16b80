"""What moves together with the other features, as it does on healthy peers, is explained; what moves alone is not."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.detector.spanned import GROUPS_MAX, Spanned

LOAD, LATENCY, OTHER = range(3)
FLOORS = (0.01,) * 4


def windows(chance: np.random.Generator, rows: int, together: bool) -> np.ndarray:
    """Latency follows load, or each goes its own way; two features are only noise."""
    load, noise = chance.standard_normal(rows), chance.standard_normal((rows, 4))
    out = 0.3 * noise
    out[:, LOAD] += load
    out[:, LATENCY] += load if together else chance.standard_normal(rows)
    return out.astype(np.float32)


def learnt(together: bool = True, groups: int = 1, rows: int = 10, count: int = 200) -> tuple[Spanned, np.ndarray]:
    chance, detector = np.random.default_rng(0), Spanned(FLOORS, 20)
    of = np.repeat(np.arange(groups), rows)
    detector.resize(len(of))
    for _ in range(count):
        # Only the first group is as asked, the others go their own ways.
        window = np.concatenate([windows(chance, rows, together and k == 0) for k in range(groups)])
        detector.learn(window, of, np.ones(len(of), dtype=np.bool_))
    return detector, of


def scored(detector: Spanned, groups: np.ndarray, **values: float) -> np.ndarray:
    """All rows as usual but for these features."""
    window = np.zeros((len(groups), 4), dtype=np.float32)
    for name, value in values.items():
        window[:, {"load": LOAD, "latency": LATENCY, "other": OTHER}[name]] = value
    return detector.score(window, groups)


def test_load_explains_latency_and_nothing_explains_latency_alone() -> None:
    detector, groups = learnt()
    assert scored(detector, groups, load=3, latency=3).max() < 0.2
    assert scored(detector, groups, latency=3).min() > 0.5
    apart, _ = learnt(together=False)
    assert scored(apart, groups, latency=3).max() < scored(detector, groups, latency=3).min()


def test_what_is_far_beyond_all_that_was_healthy_is_not_explained() -> None:
    detector, groups = learnt()
    assert scored(detector, groups, load=40, latency=40).min() > 0.5


def test_each_group_has_its_own_and_keeps_it_when_groups_are_numbered_anew() -> None:
    detector, groups = learnt(groups=2)
    scores = scored(detector, groups, latency=3)
    assert scores[:10].min() > scores[10:].max()
    np.testing.assert_array_equal(scored(detector, 7 - groups, latency=3), scores)
    detector.learn(np.zeros((20, 4), dtype=np.float32), 7 - groups, np.zeros(20, dtype=np.bool_))
    np.testing.assert_array_equal(scored(detector, 7 - groups, latency=3), scores)


def test_a_new_instance_has_the_covariance_of_its_peers() -> None:
    detector, groups = learnt(groups=2)
    detector.resize(21)
    wider = np.append(groups, 0)
    chance = np.random.default_rng(1)
    for _ in range(20):
        detector.learn(windows(chance, 21, together=True), wider, np.arange(21) == 20)
    scores = scored(detector, wider, load=3, latency=3)
    assert scores[20] < 0.3 < scored(detector, wider, latency=3)[20]


def test_a_feature_that_is_missing_is_not_taken_for_usual() -> None:
    detector, groups = learnt()
    missing = scored(detector, groups, load=np.nan, latency=3)
    assert not np.isnan(missing).any()
    # Load may be high: without it, high latency is no sign.
    assert missing.max() < scored(detector, groups, load=0, latency=3).min()


def test_memory_is_bounded_in_groups() -> None:
    detector, groups = Spanned(FLOORS, 2), np.arange(3 * GROUPS_MAX)
    detector.resize(len(groups))
    chance = np.random.default_rng(0)
    for _ in range(4):
        detector.learn(windows(chance, len(groups), together=True), groups, np.ones(len(groups), dtype=np.bool_))
    assert len(detector.save()["shared_windows"]) == GROUPS_MAX + 1
    assert not np.isnan(scored(detector, groups, latency=3)).any()


def test_a_place_that_is_free_is_used_again() -> None:
    detector, groups = Spanned(FLOORS, 2), np.arange(4)
    detector.resize(4)
    for turn in range(3 * GROUPS_MAX):
        detector.forget(np.asarray([turn % 4]))
        detector.learn(np.zeros((4, 4), dtype=np.float32), groups, np.ones(4, dtype=np.bool_))
    state = detector.save()
    assert len(state["shared_windows"]) <= 6
    assert (state["slot"] > 0).all()
    assert len(set(state["slot"].tolist())) == 4


@pytest.mark.parametrize(
    "name",
    ["slot", "shared_products", "shared_counts", "shared_basis", "shared_rest", "shared_reach", "shared_windows"],
)
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    detector, _ = learnt(count=3)
    state = dict(detector.save())
    with pytest.raises(ValueError, match=name):
        Spanned(FLOORS, 20).restore({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match=r"shared_|slot"):
        Spanned(FLOORS, 20).restore({**state, name: state[name] + 5 if name == "slot" else state[name][:-1]})
