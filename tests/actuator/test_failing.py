"""Who fails is accused at once, stays so while nothing is heard of it, and nobody is accused for bad luck."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from trimtab.actuator.policy.failing import Failing
from trimtab.actuator.state import State, by_model


def told(*errors: float, rate: float = 30.0) -> State:
    rates = [0.0 if np.isnan(e) else rate for e in errors]
    group = zip(errors, rates, strict=True)
    return by_model([instance(f"n/{k}", error_ratio=e, requests_per_second=r) for k, (e, r) in enumerate(group)])[0]


def test_bad_news_replaces_what_was_known() -> None:
    failing = Failing(0.9)
    for _ in range(120):
        failing.observe(told(0, 0, 0))
    found = [failing.observe(told(0, 0, 0.3 * second / 5))[2] for second in range(1, 6)]
    assert found[1] > 0.02, "two seconds of five"
    assert found[4] > 0.25, "nothing of the good time is left"


def test_who_is_drained_stays_accused_of_what_it_did() -> None:
    failing = Failing(0.9)
    for _ in range(20):
        before = failing.observe(told(0, 0, 0.3))[2]
    for _ in range(300):
        assert failing.observe(told(0, 0, NAN))[2] == before


def test_who_is_well_again_is_believed_as_requests_show_it() -> None:
    failing = Failing(0.9)
    for _ in range(20):
        failing.observe(told(0, 1.0))
    course = [failing.observe(told(0, 0))[1] for _ in range(60)]
    assert course[-1] == 0
    assert (np.diff(course) <= 1e-12).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.sampled_from([0.2, 3.0, 500.0]))
def test_nobody_is_accused_of_more_than_it_did_beyond_the_best(errors: list[float], rate: float) -> None:
    failing = Failing(0.9)
    for _ in range(5):
        found = failing.observe(told(*errors, rate=rate))
    assert (found >= 0).all()
    assert (found <= np.asarray(errors) - min(errors) + 1e-9).all()


def test_a_few_unlucky_requests_are_no_fault() -> None:
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        course = rng.binomial(30, 0.01, (60, 4))
        failing = Failing(0.9)
        for second in range(5, 60):
            wrong += bool((failing.observe(told(*course[second - 5 : second].sum(axis=0) / 150)) > 0.05).any())
    assert wrong <= 5
