"""`trimtab weights`, as its user sees it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.actuator.conftest import NAN, Collector
from trimtab import Exit, TrimtabError
from trimtab.actuator.cli import weights
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


def test_no_collector_is_one_clear_line() -> None:
    with pytest.raises(TrimtabError, match="no collector answers") as error:
        CliRunner().invoke(weights, ["--collector", "127.0.0.1:1"], obj=Settings(), catch_exceptions=False)
    assert error.value.exit_code is Exit.UNREACHABLE
