"""`trimtab latency`: windows are merged as if they had been one, and what sampling leaves open is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.collector.sender import CLOCK, Sending, ask, collecting, hello, latency, publish, schema, window
from tests.collector.test_cli import invoke
from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.sketch.loglinear import RELATIVE_ERROR_MAX, merge, of_seconds
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector.latency_cli import latency as command

A, B = "n1/8080", "n1/8081"
S = schema({"instance": ([], [A, B])})


def asked(query: Any, **request: Any) -> dict[str, q.InstanceLatency]:
    reply = query.Latency(q.LatencyRequest(**{"since_seconds": 600, **request}), timeout=30)
    assert reply.confidence == 0.95
    return {one.instance: one for one in reply.instances}


def parts_of(estimate: q.Estimate) -> tuple[float, float, float]:
    return estimate.low, estimate.value, estimate.high


def test_windows_are_merged_as_if_they_had_been_one(tmp_path: Path) -> None:
    seconds = np.random.default_rng(3).lognormal(-4, 1, 3000)
    with collecting(tmp_path) as (_, telemetry, query):
        sent = [window(n + 1, S, sketches=[latency(seconds[n::10].tolist())]) for n in range(10)]
        publish(telemetry, S, *sent, window(11, S, sketches=[latency([0.5], 1)]))
        found = asked(query)
        assert list(found) == [A, B]
        assert parts_of(found[A].count) == (3000, 3000, 3000)
        assert found[A].mean_seconds == pytest.approx(seconds.mean(), rel=1e-6)
        for q_, estimate in ((50, found[A].p50_seconds), (95, found[A].p95_seconds), (99, found[A].p99_seconds)):
            exact = sorted(seconds)[int(np.ceil(q_ / 100 * 3000)) - 1]
            assert estimate.value == pytest.approx(exact, rel=RELATIVE_ERROR_MAX)
            assert estimate.low <= exact <= estimate.high <= exact * 1.02
        assert list(asked(query, instance=B)) == [B]
        assert list(asked(query, model="m")) == [A, B]
        assert not asked(query, model="other")
        assert not asked(query, signal="request_queue")


def test_sampled_windows_of_unlike_probability_are_weighted_and_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    parts = [(rng.lognormal(-4, 1, n), p) for n, p in ((400, 1.0), (200, 0.1), (100, 0.1), (50, 0.01))]
    whole = merge([of_seconds(seconds, p) for seconds, p in parts])
    with collecting(tmp_path) as (collector, telemetry, query):
        sent = [window(n, S, sketches=[latency(part.tolist(), probability=p)]) for n, (part, p) in enumerate(parts, 1)]
        publish(telemetry, S, *sent)
        one = asked(query)[A]
        assert one.count.value == pytest.approx(400 + 3000 + 5000)
        assert one.count.high - one.count.value == pytest.approx(1.96 * whole.count_error, rel=0.01)
        assert (one.p95_seconds.low, one.p95_seconds.high) == pytest.approx(whole.quantile_bounds_seconds(0.95))
        assert one.p50_seconds.low < one.p50_seconds.value < one.p50_seconds.high
        shown = invoke(command, port=collector.port).output
        assert "8,400 ± " in shown


def test_what_too_few_were_sampled_for_is_unknown(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, telemetry, _):
        publish(telemetry, S, window(1, S, sketches=[latency([0.001, 0.002, 2.5], probability=0.01)]))
        [one] = json.loads(invoke(command, A, "--json", port=collector.port).output)
        assert one["p99_seconds"]["value"] == pytest.approx(2.5, rel=RELATIVE_ERROR_MAX)
        assert (one["p99_seconds"]["high"], one["p50_seconds"]["low"]) == (None, None)
        shown = invoke(command, A, port=collector.port).output
        assert "–?" in shown
        assert "2.5 s" in shown


def test_it_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, telemetry, _):
        slow = latency([0.0123, 0.9, 1.5, 12.0] * 1000, 1, probability=0.25)
        publish(
            telemetry,
            S,
            window(1, S, sketches=[latency([0.0128] * 900 + [0.1986] * 100)]),
            window(2, S, sketches=[slow]),
        )
        settings = SimpleNamespace(actuator=SimpleNamespace(collector=f"127.0.0.1:{collector.port}"), tls=Tls())
        lines = CliRunner().invoke(command, obj=settings, env={"COLUMNS": "80"}).output.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["instance", "requests", "mean", "p50", "p95", "p99"],
        [A, "1,000", "31.4", "ms", "12.8", "ms", "198", "ms", "198", "ms"],
        ["12.7–12.9", "ms", "197–200", "ms", "197–200", "ms"],
    ]
    assert lines[3].split()[:4] == [B, "16,000", "±", "429"]
    assert len(lines) == 6
    assert "95% confidence" in lines[5]


def test_nothing_known_and_wrong_questions_are_named(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, *_):
        nothing = invoke(command, A, port=collector.port).exception
        assert isinstance(nothing, TrimtabError)
        assert nothing.exit_code == Exit.NO
        both = invoke(command, A, "--model", "m", port=collector.port)
        assert "not both" in both.output
        far = invoke(command, "--since", "1000d", port=collector.port).exception
        assert isinstance(far, TrimtabError)
        assert "since" in str(far)


def test_hours_and_minutes_that_are_rolled_up_tell_the_same(tmp_path: Path) -> None:
    chance = np.random.default_rng(6)
    ages = [3 * 3600 + 90, 3 * 3600 - 7, 2 * 3600, 5000, 1234, 61, 3]
    booted = CLOCK.unix_ns() - CLOCK.boottime_ns()
    with collecting(tmp_path) as (_, telemetry, query):
        for seq, age in enumerate(ages, start=1):
            start = CLOCK.unix_ns() - age * 10**9
            stamps = {"start_unix_ns": start, "start_boottime_ns": start - booted + UPTIME_NS}
            column = latency(chance.lognormal(-4, 1, 50).tolist(), subject=seq % 2)
            sent = window(seq, S, sketches=[column], **stamps)
            greeting = hello(boottime_ns=CLOCK.boottime_ns() + UPTIME_NS)
            assert Sending(telemetry, greeting, S, sent).finish()[-1].ack.seq == seq
        before = [asked(query, since_seconds=span) for span in SPANS]
        deadline = CLOCK.monotonic() + 60
        rolled = "SELECT count(*) FROM samples_instance_1h WHERE request_latency_count > 0"
        while ask(query, rolled)[0][0] < 3:
            assert CLOCK.monotonic() < deadline
        after = [asked(query, since_seconds=span) for span in SPANS]
    for one, other in zip(before, after, strict=True):
        assert {name: found.count.value for name, found in one.items()} == {
            name: found.count.value for name, found in other.items()
        }
        for name, found in one.items():
            assert found.p99_seconds == other[name].p99_seconds
            assert found.mean_seconds == pytest.approx(other[name].mean_seconds, rel=1e-5)


SPANS = (30.0, 600.0, 3700.0, 8000.0, 4 * 3600.0)
UPTIME_NS = 1000 * 3600 * 10**9
