"""`trimtab weights`, as its user sees it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.actuator.conftest import NAN, Collector
from trimtab import Exit, TrimtabError, doctor
from trimtab.actuator import cli
from trimtab.actuator.cli import weights
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import IDLE
from trimtab.agent.wire import query_pb2 as pb
from trimtab.settings import Settings

SECOND = 10**9
NOW = 1_700_000_000 * SECOND


def decision(age_seconds: int, weight: float) -> pb.Decision:
    return pb.Decision(
        unix_ns=NOW - age_seconds * SECOND,
        version=7,
        mode="active",
        policy="proportional",
        weights=[
            pb.Weight(instance="n/8080", model="bert", wished=1, weight=1),
            pb.Weight(instance="n/8081", model="bert", wished=0, weight=weight, reason="degraded: cgroup quota (i-3)"),
            pb.Weight(instance="n/9090", model="resnet", wished=NAN, weight=1, reason="odd [x] one"),
        ],
        targets={"haproxy /run/a.sock": "", "haproxy /run/b.sock": "is HAProxy running?"},
    )


def run(collector: Collector, *arguments: str) -> str:
    collector.now_unix_ns = NOW
    line = [*arguments, "--collector", f"127.0.0.1:{collector.port}"]
    done = CliRunner().invoke(weights, line, obj=Settings(), env={"COLUMNS": "120"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_decision_in_force(collector: Collector) -> None:
    collector.decisions = [decision(60, 1.0), decision(2, 0.005)]
    shown = run(collector)
    for text in (
        "bert",
        "resnet",
        "n/8081",
        "0.005",
        "degraded: cgroup quota (i-3)",
        "odd [x] one",
        "2 s old",
        "took it",
    ):
        assert text in shown
    assert "is HAProxy running?" in shown
    assert "silent" not in shown


def test_an_old_decision_says_that_nobody_steers(collector: Collector) -> None:
    collector.decisions = [decision(45, 0.005)]
    assert "silent for 45 s" in run(collector)


def test_no_decision_is_said_in_words(collector: Collector) -> None:
    assert "is the actuator running?" in run(collector)
    assert json.loads(run(collector, "--json")) == []


def test_history_is_newest_first(collector: Collector) -> None:
    collector.decisions = [decision(60, 0.25), decision(30, 0.5), decision(2, 0.005)]
    shown = run(collector, "--history", "2")
    assert shown.index("0.005") < shown.index("0.500")
    assert "0.250" not in shown


def test_json_has_numbers_and_null_for_the_unknown(collector: Collector) -> None:
    collector.decisions = [decision(2, 0.005)]
    [shown] = json.loads(run(collector, "--json"))
    assert shown["unix_ns"] == NOW - 2 * SECOND
    assert [w["wished"] for w in shown["weights"]] == [1, 0, None]
    assert shown["targets"]["haproxy /run/a.sock"] == ""


def test_an_idle_target_is_a_note_and_no_failure(collector: Collector) -> None:
    shown = decision(2, 1.0)
    shown.targets["haproxy /run/b.sock"] = IDLE
    collector.decisions = [shown]
    line = ["--collector", f"127.0.0.1:{collector.port}"]
    collector.now_unix_ns = NOW
    done = CliRunner().invoke(weights, line, obj=Settings(), env={"FORCE_COLOR": "1", "COLUMNS": "120"})
    assert "steers nothing here" in done.output
    assert "\x1b[31m" not in done.output, "nothing is red"
    assert IDLE not in run(collector, "--history", "1")


def test_texts_do_not_steer_the_terminal(collector: Collector) -> None:
    shown = decision(2, 0.005)
    shown.mode = shown.policy = shown.reason = "\x1b]0;owned\x07"
    shown.weights[1].instance = shown.weights[1].reason = shown.weights[0].model = "\x1b[2J"
    shown.targets["\x1b[2Jname"] = "\x1b[2Jerror"
    collector.decisions = [shown]
    for arguments in ([], ["--history", "1"], ["--json"]):
        assert "\x1b" not in run(collector, *arguments)


def test_a_collector_that_hangs_is_not_waited_for(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    collector.hang_seconds = 3
    monkeypatch.setattr(cli, "DEADLINE_SECONDS", 0.3)
    with pytest.raises(TrimtabError, match="no collector answers"):
        run(collector)
    monkeypatch.setattr(doctor, "DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(doctor.agent, "checks", list)
    monkeypatch.setattr(doctor.actuator, "checks", lambda _: [])
    settings = Settings(actuator=ActuatorSettings(collector=f"127.0.0.1:{collector.port}"))
    done = CliRunner().invoke(doctor.doctor, ["--json"], obj=settings)
    assert "no collector answers" in done.output


def test_no_collector_is_one_clear_line() -> None:
    with pytest.raises(TrimtabError, match="no collector answers") as error:
        CliRunner().invoke(weights, ["--collector", "127.0.0.1:1"], obj=Settings(), catch_exceptions=False)
    assert error.value.exit_code is Exit.UNREACHABLE
