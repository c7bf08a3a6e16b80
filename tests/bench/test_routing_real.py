"""The parts of the routing benchmark that need no fleet: who runs when, what is resumed, what is made of the runs."""

from __future__ import annotations

import http.client
import http.server
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.routing_real import order, report
from tests.bench.routing_real.__main__ import main
from tests.bench.routing_real.contestants import CLASSICAL, contestants
from tests.bench.routing_real.envoy import binary, envoy
from tests.bench.routing_real.record import Plan, Record, Seen, seen
from tests.bench.routing_real.scenarios import INSTANCES, SCENARIOS, capacity
from tests.bench.routing_real.score import Pairs, figures
from tests.e2e import lines
from tests.e2e.load import TIMED_OUT, Request
from trimtab import Exit, TrimtabError

ALL = contestants(["proportional", "neutral"])
TRIMTAB = "proportional/random"
PLAN = Plan()


def of(
    scenario: str, pair: int, who: str, p99: float = 0.1, errors: float = 0.0, whole_p99: float | None = None
) -> Record:
    def clients(latency: float) -> Seen:
        return Seen(1000, latency / 2, latency / 3, latency, errors, 50.0, 0.001)

    return Record(scenario, pair, who, 0, PLAN, 1, clients(whole_p99 or p99), clients(p99))


def all_runs(pairs: int = 2) -> list[Record]:
    visits = order.visits(list(SCENARIOS), ALL, pairs, [], 0)
    return [of(name, visit.pair, who) for visit in visits for name, who in visit.runs]


# The order


def test_every_run_is_made_once_and_on_its_model() -> None:
    visits = order.visits(list(SCENARIOS), ALL, 4, [], 0)
    runs = Counter((visit.pair, name, who) for visit in visits for name, who in visit.runs)
    expected = {
        (pair, name, who)
        for pair in range(4)
        for name, scenario in SCENARIOS.items()
        for who, one in ALL.items()
        if scenario.errors or not one.for_errors
    }
    assert runs == Counter(expected)
    assert all(SCENARIOS[name].model == visit.model for visit in visits for name, _ in visit.runs)
    assert max(Counter((visit.pair, visit.model) for visit in visits).values()) == 1


@given(st.integers(0, 50))
def test_of_any_two_each_goes_first_as_often(seed: int) -> None:
    first: Counter[tuple[str, str]] = Counter()
    for visit in order.visits(["slow"], ALL, 6, [], seed):
        who = [who for _, who in visit.runs]
        first.update((a, b) for k, a in enumerate(who) for b in who[k + 1 :])
    assert set(first.values()) == {3}


def test_contestants_of_a_scenario_follow_each_other() -> None:
    for visit in order.visits(list(SCENARIOS), ALL, 3, [], 1):
        names = [name for name, _ in visit.runs]
        changes = sum(a != b for a, b in pairwise(names))
        assert changes == len(set(names)) - 1


@given(st.sets(st.integers(0, 10_000)), st.integers(0, 5))
def test_what_was_made_is_not_made_again(chosen: set[int], seed: int) -> None:
    every = order.visits(list(SCENARIOS), ALL, 2, [], seed)
    flat = [(v.pair, *run) for v in every for run in v.runs]
    made = [of(name, pair, who) for k, (pair, name, who) in enumerate(flat) if k in chosen]
    rest = [(v.pair, *run) for v in order.visits(list(SCENARIOS), ALL, 2, made, seed) for run in v.runs]
    assert rest == [run for k, run in enumerate(flat) if k not in chosen]


def test_runs_of_another_plan_are_refused() -> None:
    order.check([of("slow", 0, "leastconn")], PLAN, 0)
    for plan, seed in ((Plan(notice_seconds=30.0), 0), (PLAN, 1)):
        with pytest.raises(TrimtabError, match=r"another plan.*same options") as caught:
            order.check([of("slow", 0, "leastconn")], plan, seed)
        assert caught.value.exit_code == Exit.STATE


# The scenarios


def test_whom_it_ails_changes_from_pair_to_pair() -> None:
    for scenario in SCENARIOS.values():
        standing = [[one.slowdown for one in scenario.standing(pair)] for pair in range(INSTANCES)]
        assert all(sorted(row) == sorted(scenario.slowdowns) for row in standing)
        assert all(sorted(column) == sorted(scenario.slowdowns) for column in zip(*standing, strict=True))
        assert {scenario.ailing(["a", "b", "c", "d"], pair) for pair in range(INSTANCES)} == set("abcd")  # type: ignore[arg-type,comparison-overlap]


def test_the_fleet_can_bear_what_is_asked_when_the_ailing_one_answers_nothing() -> None:
    for name, scenario in SCENARIOS.items():
        slowest = max(scenario.slowdowns)
        rest = list(scenario.slowdowns)
        rest.remove(slowest)
        assert scenario.requests_per_second < capacity(rest, scenario.batch), name


def test_capacity_is_that_of_the_instances_together() -> None:
    assert capacity([1, 1, 3]) == pytest.approx(2 * capacity([1]) + capacity([3]))
    assert capacity([1], batch=8) > capacity([1])


# What clients saw


def test_goodput_is_what_was_good_and_in_time() -> None:
    requests = [
        Request(0.5, 0.01, 0, 200, "s0"),
        Request(1.0, 0.05, 0, 200, "s0"),
        Request(1.5, 0.2, 0, 200, "s0"),
        Request(2.0, 0.01, 0, 500, "s0"),
        Request(2.5, 10.0, 0, TIMED_OUT, ""),
        Request(3.0, 0.01, 0, 200, "s0"),
    ]
    one = seen(requests, 1.0, 3.0, slo_seconds=0.1)
    assert (one.requests, one.goodput, one.error_ratio) == (4, 0.5, 0.5)
    assert one.mean_seconds == pytest.approx((0.05 + 0.2 + 10) / 3)


def test_nothing_seen_is_unknown_and_not_zero() -> None:
    one = seen([], 1.0, 3.0, slo_seconds=0.1)
    assert (one.requests, one.mean_seconds, one.p99_seconds, one.error_ratio) == (0, None, None, None)


# The score

ratios = st.lists(st.floats(0.01, 100), min_size=1, max_size=8)


@given(ratios, st.floats(0.01, 10))
def test_a_ratio_is_within_pairs(values: list[float], pace: float) -> None:
    """However the machine's pace changes from pair to pair, the ratio stays."""
    rng = np.random.default_rng(len(values))
    base = rng.uniform(0.01, 1, len(values))
    runs = [of("slow", k, "leastconn", b) for k, b in enumerate(base)]
    runs += [of("slow", k, TRIMTAB, float(b * pace)) for k, b in enumerate(base)]
    estimate = Pairs("slow", runs).ratio(TRIMTAB, "leastconn", "p99_seconds", "settled")
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([pace] * 3)


@given(ratios)
def test_turning_a_comparison_round_inverts_it(values: list[float]) -> None:
    runs = [of("slow", k, "leastconn", 0.1) for k in range(len(values))]
    runs += [of("slow", k, TRIMTAB, 0.1 * v) for k, v in enumerate(values)]
    pairs = Pairs("slow", runs)
    there, back = (
        pairs.ratio(a, b, "p99_seconds", "settled") for a, b in ((TRIMTAB, "leastconn"), ("leastconn", TRIMTAB))
    )
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)
    assert there.low <= there.value * 1.000001
    assert there.value <= there.high * 1.000001


def test_only_pairs_that_both_have_run_count() -> None:
    runs = [
        of("slow", 0, "leastconn", 0.1),
        of("slow", 1, "leastconn", 0.1),
        of("slow", 1, TRIMTAB, 0.05),
        of("slow", 2, TRIMTAB, 9),
    ]
    assert Pairs("slow", runs).ratios(TRIMTAB, "leastconn", "p99_seconds", "settled") == [0.5]
    assert math.isnan(Pairs("slow", runs).ratio(TRIMTAB, "roundrobin", "p99_seconds", "settled").value)


def test_the_best_without_trimtab_is_by_what_there_is_to_win() -> None:
    runs = [of("slow", 0, "leastconn", 0.1), of("slow", 0, "random", 0.2), of("slow", 0, TRIMTAB, 0.01)]
    runs += [of("errors", 0, "leastconn", 0.1, errors=0.4), of("errors", 0, "mark-down", 0.3, errors=0.03)]
    assert Pairs("slow", runs).best_classical("settled") == "leastconn"
    assert Pairs("errors", runs).best_classical("settled") == "mark-down"
    assert Pairs("healthy", runs).best_classical("settled") is None


def test_who_ran_less_often_is_not_the_best() -> None:
    runs = [of("slow", k, "leastconn", 0.1) for k in range(3)] + [of("slow", 0, "random", 0.01)]
    assert Pairs("slow", runs).best_classical("settled") == "leastconn"


def test_the_figures_are_what_they_say() -> None:
    runs = []
    for k in range(5):
        runs += [of("slow", k, "leastconn", 0.2, whole_p99=0.4), of("slow", k, TRIMTAB, 0.1, whole_p99=0.4)]
        runs += [of("quota", k, "leastconn", 0.2), of("quota", k, "random", 0.1), of("quota", k, TRIMTAB, 0.05)]
        runs += [of("healthy", k, "leastconn", 0.1), of("healthy", k, TRIMTAB, 0.11)]
        runs += [
            of("errors", k, "random", errors=0.25),
            of("errors", k, "leastconn", errors=0.4),
            of("errors", k, TRIMTAB, errors=0.05),
        ]
    settled, whole = (figures(report.by_scenario(runs), TRIMTAB, "random", part) for part in ("settled", "whole"))
    assert settled["p99_vs_best_classical"].value == pytest.approx(0.5)
    assert settled["p99_vs_leastconn"].value == pytest.approx(math.sqrt(0.5 * 0.25))
    assert whole["p99_vs_best_classical"].value == pytest.approx(math.sqrt(1 * 0.5))
    assert settled["quota_p99_vs_leastconn"].value == pytest.approx(0.25)
    assert settled["healthy_p99_vs_leastconn"].value == pytest.approx(1.1)
    assert settled["avoidable_errors_avoided"].value == pytest.approx(0.8)
    assert math.isnan(settled["batch_p99_vs_leastconn"].value)


def test_more_errors_than_the_balancer_alone_are_no_avoided_ones() -> None:
    runs = [of("errors", 0, "random", errors=0.1), of("errors", 0, TRIMTAB, errors=0.2)]
    assert figures(report.by_scenario(runs), TRIMTAB, "random", "settled")["avoidable_errors_avoided"].value == -1


# The command


def test_a_whole_file_is_told_without_a_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.routing_real.__main__.make", None)
    file = tmp_path / "r.jsonl"
    for record in all_runs():
        lines.append(file, record)
    before = file.read_bytes()
    arguments = ["--pairs", "2", "--policies", "proportional,neutral", "--resume", str(file), "--markdown"]
    if binary() is None:
        arguments += ["--contestants", ",".join(name for name, one in ALL.items() if not one.envoy)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert file.read_bytes() == before
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["contestant"] == "proportional/central-queue"
    assert last["p99_vs_best_classical"] == last["healthy_p99_vs_leastconn"] == last["batch_p99_vs_leastconn"] == 1
    assert last["quota_p99_vs_leastconn"] == 1
    assert last["avoidable_errors_avoided"] is None
    assert last["figures"].keys() == {name for name, one in ALL.items() if one.policy}
    assert done.stdout.count("| leastconn | 2 |") == len(SCENARIOS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenarios", "slow,gremlins"], "'gremlins' is no scenario"),
        (["--policies", "wishful"], "'wishful' is no policy"),
        (["--contestants", "nobody"], "'nobody' is no contestant"),
        (["--pairs", "0"], "0"),
        (["--notice-seconds", "nan"], "nan"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever is let through here must not start a fleet.
    monkeypatch.setattr("tests.bench.routing_real.__main__.lines.read", None)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == Exit.USAGE
    assert said in done.output


# The simulated model


def test_a_simulated_model_takes_its_largest_work_and_fails_by_luck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("tests.e2e.sim_handler")
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    monkeypatch.setenv("FLEET_BEHAVIOUR", str(tmp_path / "behaviour"))
    handler = module.SimHandler()
    handler.initialize(SimpleNamespace(model_yaml_config={"handler": {"mean_seconds": 0.02}}, manifest={}))
    statuses: list[int] = []
    context = SimpleNamespace(set_response_status=lambda code, idx, phrase: statuses.append(idx))
    batch: list[dict[str, Any]] = [{"body": {"work": w, "luck": k / 4}} for k, w in enumerate((3.0, 1.0, 2.0, 0.5))]
    handler.handle(batch, context)
    (tmp_path / "behaviour").write_text('{"slowdown": 5.0, "error_ratio": 0.3}')
    answers = handler.handle(batch, context)
    assert slept == pytest.approx([0.02 * 3, 0.02 * 5 * 2])
    assert statuses == [0, 1]
    assert [answer["failed"] for answer in answers] == [True, True, False, False]
    (tmp_path / "behaviour").write_text('{"error_ratio": 1.0}')
    handler.handle(batch, context)
    assert len(slept) == 2
    assert len(statuses) == 6


# Envoy


@contextmanager
def server(status: int) -> Iterator[Any]:
    """Something that answers, in the place of an instance."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        try:
            yield SimpleNamespace(port=serving.server_port, model="sim")
        finally:
            serving.shutdown()


@pytest.mark.skipif(binary() is None, reason="envoy is not installed")
@pytest.mark.parametrize(("policy", "outliers"), [("ROUND_ROBIN", False), ("LEAST_REQUEST", True)])
def test_envoy_spreads_and_leaves_out_who_fails(policy: str, outliers: bool, tmp_path: Path) -> None:
    def ask(address: str) -> int:
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("POST", "/predictions/sim", b"{}")
        answer = connection.getresponse()
        connection.close()
        assert answer.headers["x-server"]
        return answer.status

    with server(200) as good, server(500) as bad, envoy(tmp_path, [good, bad], policy, outliers) as running:
        if not outliers:
            assert Counter(ask(running.address) for _ in range(40)) == {200: 20, 500: 20}
        else:
            streak = 0
            for _ in range(5000):
                streak = streak + 1 if ask(running.address) == 200 else 0
                if streak == 40:
                    break
            assert streak == 40


def test_classical_contestants_have_no_trimtab() -> None:
    assert all(not one.policy for one in CLASSICAL.values())
    assert {name for name, one in ALL.items() if one.policy} == {
        f"{p}/{b}"
        for p in ("proportional", "neutral")
        for b in ("central-queue", "random", "leastconn", "envoy-leastrequest", "limited")
    }
