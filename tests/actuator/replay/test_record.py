"""What is asked of the store, and what is made of the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trimtab import TrimtabError
from trimtab.actuator.replay import cli, record
from trimtab.actuator.replay.record import INSTANCES_MAX, read
from trimtab.actuator.replay.verdict import SEEDS_MAX, interval
from trimtab.actuator.replay.weights import recorded_weights

ORIGIN_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


def decided(*rows: tuple[float, dict[str, float]]) -> Any:
    """Decisions so many seconds after the origin."""
    found = [
        [ORIGIN_US + round(at * SECOND_US), "proportional", list(weights), list(weights.values())]
        for at, weights in rows
    ]
    return lambda sql: found


def test_weights_are_in_force_from_the_second_after_the_decision() -> None:
    ask = decided((-3.5, {"a": 0.5, "b": 1.0}), (2.4, {"a": 0.1, "b": 1.0, "c": 0.3}), (6.0, {"a": 1.0, "b": 1.0}))
    weights, policy = recorded_weights(ask, ["a", "b"], ORIGIN_US, 8)
    assert policy == "proportional"
    assert weights[:, 0].tolist() == [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 1, 1]
    assert (weights[:, 1] == 1).all()


def test_an_actuator_that_falls_silent_leaves_neutral_weights() -> None:
    weights, _ = recorded_weights(decided((0.0, {"a": 0.2}), (60.0, {"a": 0.3})), ["a"], ORIGIN_US, 70)
    assert weights[:20, 0].tolist() == [0.2] * 20
    assert weights[20:60, 0].tolist() == [1.0] * 40
    assert weights[60:, 0].tolist() == [0.3] * 10


def test_without_decisions_weights_are_neutral_and_nobody_decided() -> None:
    weights, policy = recorded_weights(lambda sql: [], ["a"], ORIGIN_US, 5)
    assert (weights == 1).all()
    assert policy == ""


def store(incident: list[Any], instances: list[list[Any]]) -> Any:
    """Answers what is asked first: the incident, then the instances."""

    def ask(sql: str) -> list[list[Any]]:
        if "FROM incidents" in sql:
            return [incident]
        if "labels['rack'] = 'r7'" in sql:
            return [["o"], ["p"]]
        return instances if "FROM instances" in sql else []

    return ask


def incident_of(subject: str, node: str = "n", model: str = "m", after_seconds: float = 60) -> list[Any]:
    newest = ORIGIN_US + round(after_seconds * SECOND_US)
    return ["i-1", subject, node, model, None, ORIGIN_US, ORIGIN_US + 5 * SECOND_US, None, newest]


@pytest.mark.parametrize(
    ("incident", "instances", "message"),
    [
        (incident_of("n/9"), [["n/1", "n", "x"]], "the store knows no instance of n/9; `trimtab instances` lists them"),
        (incident_of("n", model=""), [["n/1", "n", "x"], ["n/2", "n", "y"]], r"about several models: choose one with --model \(x, y\)"),
        (incident_of("n/1", after_seconds=-1), [["n/1", "n", "x"]], "no window is stored since its onset; ask again"),
        (incident_of("n/1"), [["n/1", "n", "x"]], "no request latencies are stored: the agents' request probes must run"),
        (
            incident_of("n/0"),
            [[f"n/{k}", "n", "x"] for k in range(INSTANCES_MAX + 1)],
            f"{INSTANCES_MAX + 1} instances serve x: at most {INSTANCES_MAX} can be replayed",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(incident: list[Any], instances: list[list[Any]], message: str) -> None:
    with pytest.raises(TrimtabError, match=message) as error:
        read(store(incident, instances), "i-1")
    assert (error.value.exit_code, "\n" in str(error.value)) == (1, False)


@pytest.mark.parametrize(
    ("subject", "node", "model", "wanted", "about"),
    [
        ("n/1", "n", "m", "", {"n/1": True, "n/2": False, "o/1": False}),
        ("n", "n", "", "m", {"n/1": True, "n/2": True, "o/1": False}),
        ("model m", "", "m", "", {"n/1": True, "n/2": True, "o/1": True}),
        ("o/9", "o", "", "", {"o/9": True}),
        ("rack r7", "", "", "m", {"n/1": False, "n/2": False, "o/1": True}),
    ],
)
def test_peers_serve_the_same_model(subject: str, node: str, model: str, wanted: str, about: dict[str, bool]) -> None:
    rows = [
        ["n/1", "n", "m"],
        ["n/2", "n", "m"],
        ["n/3", "n", "other"],
        ["o/1", "o", "m"],
        ["o/9", "o", ""],
        ["p/9", "p", ""],
    ]
    ask = store(incident_of(subject, node, model), rows)
    incident, _ = record._incident(ask, "i-1")
    assert record._peers(ask, incident, wanted) == about


def test_a_name_cannot_leave_its_quotes() -> None:
    asked: list[str] = []

    def ask(sql: str) -> list[list[Any]]:
        asked.append(sql)
        return []

    with pytest.raises(TrimtabError, match="no incident"):
        read(ask, "' OR 1=1 --")
    assert "id = ''' OR 1=1 --'" in asked[0]


def test_the_command_offers_as_many_seeds_as_there_are_intervals() -> None:
    assert cli.SEEDS_MAX == SEEDS_MAX


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for seeds in (2, 5, SEEDS_MAX):
        drawn = [interval(rng.normal(7, 3, seeds).tolist()) for _ in range(4000)]
        held = np.mean([abs(i.mean - 7) <= i.half for i in drawn])
        assert held == pytest.approx(0.95, abs=0.015)
