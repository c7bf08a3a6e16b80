"""Weights that people set: stored, told with every state of the fleet, in force through restarts until they end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.collector.sender import Recording, ask, collecting
from tests.collector.test_query import until
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector import by_hand, overrides
from trimtab.collector.overrides import Overrides
from trimtab.collector.store import StoreError

SECOND = 1_000_000_000
WEIGHT, FREEZE, NEUTRAL = q.Override.KIND_WEIGHT, q.Override.KIND_FREEZE, q.Override.KIND_NEUTRAL
FLEET = {"n1/8080": "m", "n1/8081": "m", "n2/8080": "m", "n2/9000": "a,b", "n2/9001": ""}


class Fleet(Recording):
    """Instances of several models."""

    def tick(self, now_unix_ns: int) -> q.FleetState:
        self.ticks += 1
        group = [q.InstanceState(id=name, node=name[:2], model=model) for name, model in FLEET.items()]
        return q.FleetState(unix_ns=now_unix_ns, instances=group)


def override(target: str = "", kind: Any = NEUTRAL, who: str = "eve", **more: Any) -> q.SteerRequest:
    return q.SteerRequest(who=who, override=q.OverrideRequest(target=target, kind=kind, **more))


def weight(target: str, value: float, **more: Any) -> q.SteerRequest:
    return override(target, WEIGHT, weight=value, **more)


def auto(target: str = "") -> q.SteerRequest:
    return q.SteerRequest(who="eve", auto=q.AutoRequest(target=target))


def told(query: Any, wanted: Sequence[str]) -> list[q.Override]:
    """What the actuator is told, once these targets are."""
    watch = query.WatchFleet(q.WatchFleetRequest(), timeout=30)
    for state in watch:
        if [one.target for one in state.overrides] == list(wanted):
            watch.cancel()
            return list(state.overrides)
    raise AssertionError("the stream ended")


def ready(query: Any) -> Any:
    """Once it knows the fleet."""
    next(query.WatchFleet(q.WatchFleetRequest(), timeout=30)).instances[0]
    return query


def test_they_outlast_a_restart_and_end_by_themselves(tmp_path: Path) -> None:
    with collecting(tmp_path, analysis=Fleet()) as (_, _telemetry, query):
        ready(query)
        query.Steer(override("model m", seconds=0.2))
        [made] = query.Steer(weight("n1/8080", 0.25, seconds=3600, reason="new card")).overrides
        assert made.until_unix_ns - made.since_unix_ns == 3600 * SECOND
        query.Steer(weight("n2/9001", 0.5))
        first, second = told(query, ["n1/8080", "n2/9001"])
        assert (first, second.until_unix_ns) == (made, 0)
        # The one that ended is deleted by retention, and until then nobody is told of it.
        assert ask(query, "SELECT target FROM overrides ORDER BY since") == [["model m"], ["n1/8080"], ["n2/9001"]]
    with collecting(tmp_path, analysis=Fleet()) as (_, _telemetry, query):
        assert told(query, ["n1/8080", "n2/9001"]) == [first, second]
        assert list(query.Decisions(q.DecisionsRequest()).overrides) == [first, second]
        rows = ask(
            query,
            "SELECT target, kind, weight, who, reason, until IS NULL FROM overrides WHERE weight > 0 ORDER BY since",
        )
        assert rows == [
            ["n1/8080", "weight", 0.25, "eve", "new card", False],
            ["n2/9001", "weight", 0.5, "eve", "", True],
        ]
        assert [one.target for one in query.Steer(auto("n1/8080")).overrides] == ["n1/8080"]
        told(query, ["n2/9001"])
    with collecting(tmp_path, analysis=Fleet()) as (_, _telemetry, query):
        told(query, ["n2/9001"])


def test_a_wider_order_covers_the_narrower_ones_that_came_before_it(shared: Any) -> None:
    def targets() -> list[str]:
        return [one.target for one in shared.Decisions(q.DecisionsRequest()).overrides]

    for request in (weight("n1/8080", 0), weight("n2/9000", 0.5), override("model b"), override("model m")):
        shared.Steer(request)
    assert targets() == ["model b", "model m"]
    shared.Steer(weight("n1/8081", 0.1))
    shared.Steer(override("model m"))
    assert targets() == ["model b", "model m"]
    shared.Steer(weight("n1/8081", 0.1))
    assert targets() == ["model b", "model m", "n1/8081"]
    assert [one.target for one in shared.Steer(auto("model m")).overrides] == ["model m", "n1/8081"]
    shared.Steer(override(""))
    assert targets() == [""]
    shared.Steer(weight("n1/8081", 0.1))
    assert targets() == ["", "n1/8081"]
    shared.Steer(auto())
    assert targets() == []


def test_frozen_are_the_weights_that_were_in_force(shared: Any) -> None:
    weights = [
        q.Weight(instance=name, weight=share) for name, share in (("n1/8080", 0.005), ("n1/8081", 1), ("n2/9000", 0.3))
    ]
    shared.RecordDecision(q.Decision(unix_ns=time.time_ns(), version=1, mode="active", weights=weights))
    shared.Steer(override("model m", FREEZE))
    [frozen] = told(shared, ["model m"])
    assert dict(frozen.frozen) == {"n1/8080": 0.005}
    shared.Steer(override("", FREEZE))
    [frozen] = told(shared, [""])
    assert dict(frozen.frozen) == {"n1/8080": 0.005, "n2/9000": 0.3}
    [shown] = shared.Decisions(q.DecisionsRequest()).overrides
    assert not shown.frozen
    shared.Steer(auto())


def test_weights_of_an_actuator_that_is_gone_are_neutral(tmp_path: Path) -> None:
    with collecting(tmp_path, analysis=Fleet()) as (_, _telemetry, query):
        ready(query)
        old = q.Decision(
            unix_ns=time.time_ns() - 60 * SECOND,
            version=1,
            mode="active",
            weights=[q.Weight(instance="n1/8080", weight=0)],
        )
        query.RecordDecision(old)
        query.Steer(override("", FREEZE))
        assert not told(query, [""])[0].frozen


INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (weight("n9/1", 0.5), MISSING, "no instance is called 'n9/1'; `trimtab instances` lists them"),
        (override("model x"), MISSING, "no instance serves 'model x'"),
        (weight("n1/8080", 1.5), INVALID, "override.weight: 1.5 is not in [0, 1]"),
        (weight("n1/8080", -0.1), INVALID, "override.weight: -0.1"),
        (weight("n1/8080", float("nan")), INVALID, "override.weight: nan"),
        (weight("model m", 0.5), INVALID, "override.target: a weight is set for one instance"),
        (weight("", 0.5), INVALID, "override.target: a weight is set for one instance"),
        (weight("n2/9000", 0), INVALID, "override.weight: 0 would leave no instance of a,b with any weight"),
        (weight("n2/9001", 0), INVALID, "0 would leave no instance of its model"),
        (weight("n1/8080", 0.5, seconds=-1), INVALID, "override.seconds: "),
        (weight("n1/8080", 0.5, seconds=float("nan")), INVALID, "override.seconds: "),
        (weight("n1/8080", 0.5, seconds=1e12), INVALID, "override.seconds: "),
        (weight("n1/8080", 0.5, reason="a\nb"), INVALID, "override.reason: "),
        (weight("n1/8080", 0.5, who=""), INVALID, "who: not one line of 1 to 256"),
        (weight("x" * 257, 0.5), INVALID, "override.target: "),
        (override("n1/8080", q.Override.KIND_UNSPECIFIED), INVALID, "override.kind: "),
        (override("n1/8080", 9), INVALID, "override.kind: "),
        (auto(), MISSING, "nothing is set by hand; set now: nothing"),
        (auto("n1/8080"), MISSING, "'n1/8080' is not set by hand; set now: nothing"),
        (auto("\x1b[2J"), INVALID, "auto.target: "),
        (q.SteerRequest(who="eve"), INVALID, "content: neither override nor auto"),
    ],
)
def test_what_nobody_can_mean_is_refused(shared: Any, request_: q.SteerRequest, code: Any, said: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shared.Steer(request_)
    assert caught.value.code() == code
    assert said in caught.value.details()
    assert ask(shared, "SELECT count(*) FROM overrides") == [[0]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with collecting(tmp_path_factory.mktemp("shared"), analysis=Fleet()) as (_, _telemetry, query):
        yield ready(query)


def test_the_last_with_any_weight_keeps_it_and_there_are_not_more_than_anybody_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overrides, "OVERRIDES_MAX", 3)
    with collecting(tmp_path, analysis=Fleet()) as (_, _telemetry, query):
        ready(query)
        query.Steer(weight("n1/8080", 0))
        query.Steer(weight("n1/8081", 0))
        with pytest.raises(grpc.RpcError) as caught:
            query.Steer(weight("n2/8080", 0))
        assert "no instance of m" in caught.value.details()
        query.Steer(weight("n2/8080", 0.01))
        with pytest.raises(grpc.RpcError) as caught:
            query.Steer(weight("n2/9000", 0.5))
        assert "3 overrides are in force; `trimtab weights auto` ends some" in caught.value.details()
        query.Steer(weight("n1/8080", 0.5))
        query.Steer(override(""))


def test_what_cannot_be_stored_is_said_and_takes_effect_when_it_can_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "STORE_SECONDS_MAX", 0.2)
    with collecting(tmp_path, analysis=Fleet()) as (collector, _telemetry, query):
        ready(query)

        def full(*arguments: object) -> None:
            raise StoreError("no room on the disk")

        with monkeypatch.context() as broken:
            broken.setattr(collector._writer, "_transact", full)
            for request in (weight("n1/8080", 0.5), weight("n1/8081", 0.5)):
                with pytest.raises(grpc.RpcError) as caught:
                    query.Steer(request)
                assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert not query.Decisions(q.DecisionsRequest()).overrides
        told(query, ["n1/8080", "n1/8081"])
        until(lambda: ask(query, "SELECT target FROM overrides ORDER BY since") == [["n1/8080"], ["n1/8081"]])


def test_a_state_is_the_same_where_nothing_was_ordered(tmp_path: Path) -> None:
    with collecting(tmp_path, analysis=Fleet()) as (collector, _telemetry, query):
        ready(query)
        known: Overrides = collector._query._overrides
        state = q.FleetState(unix_ns=7)
        assert known.told(state) is state
        query.Steer(override(""))
        assert [one.target for one in known.told(state).overrides] == [""]
        assert not state.overrides
