"""The contract of `trimtab.detector.base.Detector`, as checks that find every detector."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator

import numpy as np

from trimtab import detector as floor
from trimtab.detector.base import Detector, Matrix
from trimtab.detector.baseline import DEPTH

INSTANCES, FEATURES, WARMUP = 8, 3, 8
_GROUPS = np.asarray([0, 0, 0, 0, 1, 1, 1, 1])
_ALL = np.ones(INSTANCES, dtype=np.bool_)

Make = Callable[[tuple[float, ...], int], Detector]


def discover() -> Iterator[Make]:
    """Every module of `trimtab.detector` that has a `DETECTOR`."""
    for module in sorted(pkgutil.iter_modules(floor.__path__), key=lambda m: m.name):
        make = getattr(importlib.import_module(f"{floor.__name__}.{module.name}"), "DETECTOR", None)
        if make is not None:
            yield make


def check_detector(make: Make, seed: int = 0) -> None:
    """Raises AssertionError, naming the law that `make(floors, warmup_windows)` breaks."""
    chance = np.random.default_rng(seed)
    _warms_up(make, chance)
    _sees_what_is_worse(make, chance)
    _scoring_changes_nothing(make, chance)
    _does_not_learn_the_ill(make, chance)
    _knows_no_order(make, chance)
    _resizes_and_forgets(make, chance)
    _saves_and_restores(make, chance)
    _keeps_the_unknown(make, chance)


def _window(chance: np.random.Generator) -> Matrix:
    return (3 + 0.1 * chance.standard_normal((INSTANCES, FEATURES))).astype(np.float32)


def _learnt(make: Make, chance: np.random.Generator, windows: int = 4 * WARMUP) -> Detector:
    detector = make((0.05,) * FEATURES, WARMUP)
    detector.resize(INSTANCES)
    for _ in range(windows):
        detector.learn(_window(chance), _GROUPS, _ALL)
    return detector


def _equal(a: Matrix, b: Matrix) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))


def _warms_up(make: Make, chance: np.random.Generator) -> None:
    early = _learnt(make, chance, WARMUP - 1).score(_window(chance), _GROUPS)
    assert np.isnan(early).all(), "a score within the warm-up must be NaN"
    score = _learnt(make, chance, WARMUP).score(_window(chance), _GROUPS)
    assert score.shape == (INSTANCES,), "one score an instance"
    assert score.dtype == np.float32, "scores are float32"
    assert ((score >= 0) & (score <= 1)).all(), "scores lie in [0, 1]"


def _sees_what_is_worse(make: Make, chance: np.random.Generator) -> None:
    detector, window = _learnt(make, chance), np.full((INSTANCES, FEATURES), 3, dtype=np.float32)
    better, worse, worst = window.copy(), window.copy(), window.copy()
    better[0], worse[0, 0], worst[0, 0] = 0, 4, 40
    scores = [float(detector.score(w, _GROUPS)[0]) for w in (better, window, worse, worst)]
    assert scores == sorted(scores), "a higher value is never less anomalous"
    assert scores[0] < 0.1, "what is better is no anomaly"
    assert scores[2] > 0.5, "what is far worse is one"


def _scoring_changes_nothing(make: Make, chance: np.random.Generator) -> None:
    detector, window = _learnt(make, chance), _window(chance)
    before, first = detector.save(), detector.score(window, _GROUPS)
    assert _equal(first, detector.score(window, _GROUPS)), "scoring twice gives the same"
    after = detector.save()
    assert all(_equal(before[k], after[k]) for k in before), "scoring changes what is learnt"


def _does_not_learn_the_ill(make: Make, chance: np.random.Generator) -> None:
    detector, window = _learnt(make, chance), _window(chance)
    first = detector.score(window, _GROUPS)
    for _ in range(2 * DEPTH):
        detector.learn(window + 100, _GROUPS, ~_ALL)
    assert _equal(first, detector.score(window, _GROUPS)), "a row that is not healthy was learnt"


def _knows_no_order(make: Make, chance: np.random.Generator) -> None:
    order, windows = chance.permutation(INSTANCES), [_window(chance) for _ in range(2 * WARMUP)]
    plain, mixed = make((0.05,) * FEATURES, WARMUP), make((0.05,) * FEATURES, WARMUP)
    for detector, rows in ((plain, np.arange(INSTANCES)), (mixed, order)):
        detector.resize(INSTANCES)
        for window in windows:
            detector.learn(window[rows], _GROUPS[rows], _ALL)
    window = _window(chance)
    expected = plain.score(window, _GROUPS)[order]
    assert np.allclose(expected, mixed.score(window[order], _GROUPS[order]), equal_nan=True), (
        "the order of rows matters"
    )


def _resizes_and_forgets(make: Make, chance: np.random.Generator) -> None:
    detector, window = _learnt(make, chance), _window(chance)
    before = detector.score(window, _GROUPS)
    detector.resize(INSTANCES + 1)
    wider, groups = np.concatenate([window, window[:1]]), np.concatenate([_GROUPS, [7]])
    after = detector.score(wider, groups)
    assert np.isnan(after[-1]), "a new row knows nothing"
    assert _equal(before, after[:-1]), "room for more changed the known rows"
    detector.forget(np.asarray([1]))
    assert np.isnan(detector.score(wider, groups)[1]), "a forgotten row knows something"


def _saves_and_restores(make: Make, chance: np.random.Generator) -> None:
    detector, twin = _learnt(make, chance), make((0.05,) * FEATURES, WARMUP)
    state = detector.save()
    # What peers have in common is of no one instance.
    own = [array for name, array in state.items() if not name.startswith("shared_")]
    assert all(len(array) == INSTANCES for array in own), "the first axis of every array is the instance"
    twin.restore(state)
    for _ in range(3):
        window = _window(chance)
        assert _equal(detector.score(window, _GROUPS), twin.score(window, _GROUPS)), "restored is not what was saved"
        detector.learn(window, _GROUPS, _ALL)
        twin.learn(window, _GROUPS, _ALL)
    try:
        twin.restore({})
    except ValueError:
        return
    raise AssertionError("a state that does not fit must raise ValueError")


def _keeps_the_unknown(make: Make, chance: np.random.Generator) -> None:
    detector, window = _learnt(make, chance), _window(chance)
    window[0], window[1, 0] = np.nan, np.nan
    score = detector.score(window, _GROUPS)
    assert np.isnan(score[0]), "an instance of which nothing is known has no score"
    assert not np.isnan(score[1:]).any(), "one unknown feature hides the others"
    before = detector.score(_window(np.random.default_rng(1)), _GROUPS)
    for _ in range(200):
        detector.learn(np.full_like(window, np.nan), _GROUPS, _ALL)
    assert _equal(before, detector.score(_window(np.random.default_rng(1)), _GROUPS)), "the unknown was learnt"
