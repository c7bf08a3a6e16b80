"""What a person orders is so, whatever policy, guard and telemetry say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.actuator.conftest import Balancer, instance, until
from tests.actuator.test_server import Actuator
from tests.collector.sender import Recording, channel, collecting
from trimtab import Exit, TrimtabError
from trimtab.actuator.cli import weights
from trimtab.actuator.link import Heard
from trimtab.actuator.pilot import Decided, Pilot
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.state import check_fleet
from trimtab.agent.clock import ManualClock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import Malformed
from trimtab.agent.wire.query_pb2_grpc import QueryStub
from trimtab.settings import Settings

MakeBalancer = Callable[..., Balancer]
SICK = {"incident": "i-1"}


def order(target: str, weight: float | None = None, **more: Any) -> pb.Override:
    kind = pb.Override.KIND_NEUTRAL if weight is None else pb.Override.KIND_WEIGHT
    return pb.Override(**{"target": target, "kind": kind, "weight": weight or 0, "who": "eve"} | more)


class Bridge:
    """A pilot over three instances of one model and one of another, the last of the three sick."""

    def __init__(self, *overrides: pb.Override, **settings: Any) -> None:
        self.clock = ManualClock()
        self.pilot = Pilot(ActuatorSettings(**settings), self.clock)
        self.overrides = list(overrides)
        self.group = [instance("a/1"), instance("a/2"), instance("a/3", **SICK), instance("b/1", model="x,y")]
        self.silent_seconds = 0.0

    def run(self, seconds: int = 20, hold: str = "") -> list[float]:
        for _ in range(seconds):
            self.clock.advance(1)
            fleet = pb.FleetState(instances=self.group, overrides=self.overrides)
            self.decided: Decided = self.pilot.decide(Heard(fleet, self.clock.monotonic() - self.silent_seconds), hold)
        return [round(a.weight, 3) for a in self.decided.snapshot.assignments]

    @property
    def reasons(self) -> list[str]:
        return [a.reason for a in self.decided.snapshot.assignments]


def test_a_weight_holds_at_once_and_above_all_bounds() -> None:
    bridge = Bridge(order("a/1", 0.0, reason="new card"), order("a/3", 1.0))
    assert bridge.run(1) == [0, 1, 1, 1], "also while it measures at neutral weights"
    assert bridge.run() == [0, 1, 1, 1]
    assert bridge.reasons[0] == "set by eve: new card"
    assert list(bridge.decided.overrides) == bridge.overrides
    bridge.overrides[1] = order("a/3", 0.001)
    assert bridge.run(1) == [0, 1, 0.001, 1]


@pytest.mark.parametrize("mode", ["active", "shadow", "neutral"])
def test_it_holds_in_every_mode(mode: str) -> None:
    bridge = Bridge(order("a/1", 0.6), mode=mode)
    assert bridge.run() == [0.6, 1, 0.005 if mode == "active" else 1, 1]
    assert bridge.decided.snapshot.mode == mode


def test_it_holds_while_the_collector_is_silent_and_not_without_a_dead_mans_switch() -> None:
    bridge = Bridge(order("a/1", 0.6))
    assert bridge.run() == [0.6, 1, 0.005, 1]
    bridge.silent_seconds = 60
    assert bridge.run() == [0.6, 1, 1, 1]
    assert bridge.run(1, hold="no dead man's switch: neutral") == [1, 1, 1, 1]
    assert not bridge.decided.overrides


def test_it_holds_for_who_tells_nothing() -> None:
    bridge = Bridge(order("a/1", 0.6), order("a/3", 0.2))
    bridge.group[0].age_seconds = 60
    assert bridge.run() == [0.6, 1, 0.2, 1]


def test_it_ends_by_itself_and_the_policy_takes_over_in_steps() -> None:
    bridge = Bridge()
    bridge.overrides = [order("a/1", 0.0, until_unix_ns=bridge.clock.unix_ns() + 30 * 10**9)]
    assert bridge.run(29)[0] == 0
    course = [bridge.run(1)[0] for _ in range(40)]
    assert course[:10] == [0.005] * 10, "it must be wished back for a while first"
    assert course[11] == pytest.approx(0.05 + course[10])
    assert course[-1] == 1


def test_the_narrower_order_holds() -> None:
    bridge = Bridge(order("", None), order("model m", 0.5, kind=pb.Override.KIND_FREEZE), order("a/2", 0.7))
    bridge.overrides[1].frozen.update({"a/1": 0.25})
    assert bridge.run() == [0.25, 0.7, 1, 1]
    assert bridge.reasons == ["frozen by eve", "set by eve", "frozen by eve", "neutral by eve"]
    bridge.overrides = [order("model y", 0.5, kind=pb.Override.KIND_FREEZE, frozen={"b/1": 0.1})]
    assert bridge.run()[3] == 0.1


def test_the_policy_steers_around_what_was_ordered() -> None:
    """Who is drained by hand is nobody's refuge: the sick one is all that is left, and keeps its weight."""
    bridge = Bridge(order("a/1", 0.0), order("a/2", 0.0))
    assert bridge.run() == [0, 0, 1, 1]
    bridge = Bridge(order("a/2", 0.0))
    bridge.group = bridge.group[:2]
    assert bridge.run() == [1, 0]


def test_nobody_is_left_without_any_weight() -> None:
    bridge = Bridge(order("a/1", 0.0), order("a/2", 0.0))
    assert bridge.run()[:2] == [0, 0]
    bridge.group = [*bridge.group[:2], bridge.group[3]]
    assert bridge.run(1) == [1, 1, 1]
    assert bridge.reasons[0] == "set by eve; but nobody else is there: neutral"


def test_what_is_said_of_a_weight_is_bounded() -> None:
    bridge = Bridge(order("", None, reason="x" * 1024))
    bridge.run(1)
    assert max(map(len, bridge.reasons)) < 600


@pytest.mark.parametrize("weight", [float("nan"), -1.0, 1.5])
def test_an_order_that_is_no_weight_is_refused(weight: float) -> None:
    for override in (order("a/1", weight), order("", kind=pb.Override.KIND_FREEZE, frozen={"a/1": weight})):
        with pytest.raises(Malformed, match="overrides"):
            check_fleet(pb.FleetState(overrides=[override]))
    with pytest.raises(Malformed, match="at most 1024"):
        check_fleet(pb.FleetState(overrides=[order(f"a/{k}") for k in range(1025)]))


class Fleet(Recording):
    """The instances behind a balancer, all well."""

    group: Sequence[pb.InstanceState] = ()

    def tick(self, now_unix_ns: int) -> pb.FleetState:
        return pb.FleetState(unix_ns=now_unix_ns, instances=self.group)


def trimtab(port: int, *arguments: str) -> str:
    line = [*arguments, "--collector", f"127.0.0.1:{port}"]
    env = {"COLUMNS": "200", "USER": "eve"}
    done = CliRunner().invoke(weights, line, obj=Settings(), env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


class Address:
    def __init__(self, port: int) -> None:
        self.port = port


def test_from_the_command_to_the_balancer_through_restarts(balancer: MakeBalancer, tmp_path: Path) -> None:
    be, fleet = balancer("roundrobin"), Fleet()
    fleet.group = [instance(f"here/{port}", addresses=[f"127.0.0.1:{port}"]) for port in be.ports]
    first = fleet.group[0].id
    with collecting(tmp_path / "c", analysis=fleet) as (collector, _telemetry, query):
        port = collector.port
        actuator = Actuator(tmp_path, Address(port), f'haproxy_sockets = ["{be.socket}"]')  # type: ignore[arg-type]
        try:
            until(
                lambda: any(d.weights for d in query.Decisions(pb.DecisionsRequest()).decisions),
                20,
                "it has heard of the fleet",
            )
            said = trimtab(port, "set", first, "0.5", "--for", "1h", "--reason", "new card")
            assert f"{first} has weight 0.5 until 20" in said
            until(lambda: be.weights() == [128, 256, 256], 5, "the balancer follows")
            until(lambda: "set by eve: new card" in trimtab(port), 5, "the decision says so")
            shown = trimtab(port)
            assert "not heeded" not in shown
            assert "new card" in shown.split("set by hand")[1]
            assert "frozen" not in shown
            assert "stay as they are until `trimtab weights auto`" in trimtab(port, "freeze", "--model", "m")
            until(lambda: "frozen by eve" in trimtab(port), 5, "frozen")
            assert be.weights() == [128, 256, 256]
        finally:
            actuator.close()
        until(lambda: be.weights() == [1, 1, 1], 9, "neutral without an actuator")
    with collecting(tmp_path / "c", analysis=fleet, listen=f"127.0.0.1:{port}"):
        actuator = Actuator(tmp_path, Address(port), f'haproxy_sockets = ["{be.socket}"]')  # type: ignore[arg-type]
        try:
            until(lambda: be.weights() == [128, 256, 256], 20, "still frozen after both were started anew")
            assert "all instances have their neutral weights" in trimtab(port, "neutral")
            until(lambda: be.weights() == [1, 1, 1], 5, "neutral")
            assert trimtab(port, "auto") == "taken back: all instances\n"
            assert "set by hand" not in trimtab(port)
            for line, code in (
                (["auto"], Exit.NO),
                (["set", "here/1", "1"], Exit.NO),
                (["auto", "--model", "z"], Exit.NO),
            ):
                with pytest.raises(TrimtabError) as caught:
                    trimtab(port, *line)
                assert caught.value.exit_code is code
                assert "\n" not in str(caught.value)
        finally:
            actuator.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["set", "n/1", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["set", "n/1", "0.5", "--for", "soon"], "'soon' is no duration such as 90s"),
        (["auto", "n/1", "--model", "m"], "give an instance or --model, not both"),
        (["--json", "auto"], "--history and --json belong to `trimtab weights` alone"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(line: list[str], said: str) -> None:
    done = CliRunner().invoke(weights, line, obj=Settings())
    assert done.exit_code == Exit.USAGE
    assert said in done.output


def test_the_command_heeds_where_the_collector_is_said_to_be(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.group = [instance("n/1"), instance("n/2")]
    with collecting(tmp_path, analysis=fleet) as (collector, _telemetry, query):
        next(query.WatchFleet(pb.WatchFleetRequest(), timeout=30))
        line = ["--collector", f"127.0.0.1:{collector.port}", "set", "n/1", "0"]
        done = CliRunner().invoke(weights, line, obj=Settings(), catch_exceptions=False)
        assert done.output == "n/1 has weight 0 until `trimtab weights auto`\n"
        assert "not heeded by any decision yet" in trimtab(collector.port)
        with channel(collector.port) as link:
            assert QueryStub(link).Decisions(pb.DecisionsRequest()).overrides[0].target == "n/1"
