"""The parts of the demo that need no fleet: the load generator, the phases, the verdict."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.e2e import preflight, report, view
from tests.e2e.archive import MODEL, ROOT, SIM
from tests.e2e.demo import main
from tests.e2e.faults import FAULTS
from tests.e2e.load import BROKEN, TIMED_OUT, Load, Request, bodies, load
from tests.e2e.services import install
from tests.e2e.stage import Course
from trimtab import Exit, TrimtabError
from trimtab.agent.wire import query_pb2 as pb

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nx-server: s7\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[int]]]:
    """A server that hands every request (its number, the way back) to `answer`; its address, and [requests, connections]."""
    counts, loop, bound = [0, 0], asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counts[1] += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
                await reader.readexactly(int(length.split()[1]))
                counts[0] += 1
                await answer(counts[0], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve() -> None:
        listening = await asyncio.start_server(client, "127.0.0.1", 0)
        ports.append(listening.sockets[0].getsockname()[1])
        bound.set()

    def work() -> None:
        loop.create_task(serve())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert bound.wait(10)
    try:
        yield f"127.0.0.1:{ports[0]}", counts
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def at_once(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


def generate(target: str, results: Path, count: int, *options: str) -> list[Request]:
    command = [
        sys.executable,
        "-m",
        "tests.e2e.load",
        "--target",
        target,
        "--count",
        str(count),
        "--results",
        str(results),
    ]
    process = subprocess.Popen([*command, *options], cwd=ROOT)
    assert process.wait(60) == 0
    return Load(process, results).requests()


def test_every_request_is_sent_and_told_of_once(tmp_path: Path) -> None:
    with server(at_once) as (target, counts):
        requests = generate(target, tmp_path / "r.csv", 300, "--rate", "300", "--seed", "5")
    assert counts[0] == len(requests) == 300
    assert {(r.status, r.server) for r in requests} == {(200, "s7")}
    assert all(r.latency >= r.lag >= 0 for r in requests)
    assert counts[1] < 100, "connections are kept"


def test_the_seed_makes_the_arrivals(tmp_path: Path) -> None:
    with server(at_once) as (target, _):
        runs = [
            generate(target, tmp_path / f"{k}.csv", 100, "--rate", "400", "--seed", str(s))
            for k, s in enumerate((1, 1, 2))
        ]
    first, again, other = (np.diff([r.arrival for r in run]) for run in runs)
    assert np.allclose(first, again, atol=5e-6)
    assert not np.allclose(first, other, atol=5e-6)
    # 99 exponential gaps: the mean is within five of its standard deviations.
    assert first.mean() == pytest.approx(1 / 400, rel=0.5)


def test_a_request_of_a_seed_is_the_same_whoever_answers_it() -> None:
    first, again, other = ([json.loads(b) for b in islice(bodies(SIM, seed), 4000)] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    work, luck = (np.asarray([body[part] for body in first]) for part in ("work", "luck"))
    # Within five standard errors: mean 1, coefficient of variation 0.5; and uniform.
    assert work.mean() == pytest.approx(1, abs=0.04)
    assert work.std() == pytest.approx(0.5, abs=0.06)
    assert luck.mean() == pytest.approx(0.5, abs=0.025)
    assert luck.min() >= 0
    assert luck.max() < 1
    assert len(set(islice(bodies(MODEL, 1), 3))) == 1


def test_the_schedule_does_not_wait_for_answers(tmp_path: Path) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def all_at_the_last(number: int, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if number == 80:
            for waiting in writers:
                waiting.write(OK)

    with server(all_at_the_last) as (target, _):
        requests = generate(target, tmp_path / "r.csv", 80, "--rate", "200", "--timeout", "50")
    assert [r.status for r in requests] == [200] * 80
    # Each is charged for all the time since it was due.
    assert all(r.latency >= requests[-1].arrival - r.arrival for r in requests)


def test_requests_without_an_answer_are_errors(tmp_path: Path) -> None:
    async def badly(number: int, writer: asyncio.StreamWriter) -> None:
        if number % 2:
            writer.close()

    with server(badly) as (target, _):
        requests = generate(target, tmp_path / "r.csv", 20, "--rate", "100", "--timeout", "0.5")
    assert sorted({r.status for r in requests}) == [BROKEN, TIMED_OUT]
    assert len(requests) == 20
    assert all(r.latency >= 0.5 for r in requests if r.status == TIMED_OUT)
    whole = report.phase("p", requests, requests[0].arrival, requests[-1].arrival + 1)
    assert whole.error_ratio == 1
    assert whole.throughput == 0
    assert report.statuses(requests).keys() == {"timed out", "connection broken"}


def test_load_ends_with_its_requests_answered(tmp_path: Path) -> None:
    with server(at_once) as (target, counts):
        with load(target, 200, 0, tmp_path / "r.csv") as running:
            while len(running.requests()) < 20:
                running.check()
            requests = running.finish()
        assert len(requests) == counts[0] >= 20
        with pytest.raises(TrimtabError, match="load generator died"):
            running.check()


def request(arrival: float, latency: float = 0.02, status: int = 200) -> Request:
    return Request(arrival, latency, 0.001, status, "s0")


def test_a_phase_is_cut_by_arrival() -> None:
    requests = [request(t / 10, latency=t / 100) for t in range(100)]
    cut = report.phase("p", requests, 2, 5)
    assert (cut.requests, cut.seconds, cut.error_ratio) == (30, 3, 0)
    assert cut.throughput == pytest.approx(10)
    assert cut.mean_seconds == pytest.approx(np.mean([t / 100 for t in range(20, 50)]))
    assert cut.p50_seconds <= cut.p95_seconds <= cut.p99_seconds <= 0.49
    parts = [report.phase("p", requests, a, a + 1) for a in range(10)]
    assert sum(p.requests for p in parts) == len(requests)


def test_a_given_up_request_is_slow_and_a_failed_one_is_not_fast() -> None:
    slow = report.phase("p", [request(0), request(0, 10, TIMED_OUT)], 0, 1)
    assert slow.mean_seconds == pytest.approx(5.01)
    failed = report.phase("p", [request(0), request(0, 0.001, 500)], 0, 1)
    assert (failed.mean_seconds, failed.error_ratio) == (pytest.approx(0.02), 0.5)


def test_an_empty_phase_knows_nothing() -> None:
    empty = report.phase("p", [], 0, 1)
    assert math.isnan(empty.error_ratio)
    assert math.isnan(empty.p99_seconds)


def course_phases(p99: dict[str, float], errors: dict[str, float]) -> dict[str, report.Phase]:
    names = (report.BASELINE, report.FAULT, report.TRIMTAB, report.SETTLED)
    return {n: report.Phase(n, 25, 100, 4, errors.get(n, 0), 1, 1, 1, p99.get(n, 0.05), 0.001) for n in names}


def incident(subject: str = "demo/1", after_seconds: float = 6, mechanism: str = "cgroup CPU quota") -> pb.Incident:
    opened = 1_000_000_000_000 + round(after_seconds * 1e9)
    causes = [pb.Cause(mechanism=mechanism)] if mechanism else []
    return pb.Incident(id="i-1", subject=subject, opened_unix_ns=opened, causes=causes)


BETTER = course_phases({report.FAULT: 0.3}, {})


@pytest.mark.parametrize(
    ("incidents", "phases", "expected"),
    [
        ([incident()], BETTER, []),
        ([], BETTER, ["no incident named demo/1"]),
        ([incident(), incident("demo/2")], BETTER, ["i-1 named demo/2, but the fault is at demo/1"]),
        ([incident(after_seconds=-3)], BETTER, ["i-1 was opened 3.0 s before the fault"]),
        ([incident(after_seconds=26)], BETTER, ["i-1 was opened 26.0 s after the fault, too late to act on"]),
        ([incident(mechanism="unknown")], BETTER, ["i-1 says 'unknown', but it is 'cgroup CPU quota'"]),
        ([incident(mechanism="")], BETTER, ["i-1 says 'no cause', but it is 'cgroup CPU quota'"]),
        (
            [incident()],
            course_phases({report.FAULT: 0.3, report.SETTLED: 0.3}, {}),
            ["trimtab did not improve p99_seconds: 0.300 without, 0.300 with it"],
        ),
    ],
)
def test_the_verdict(incidents: list[pb.Incident], phases: dict[str, report.Phase], expected: list[str]) -> None:
    assert report.failures(FAULTS["quota"], "demo/1", incidents, 1_000_000_000_000, phases) == expected


@pytest.mark.parametrize(("settled", "expected"), [(0.01, 0), (0.4, 1), (math.nan, 1)])
def test_faults_that_make_errors_are_judged_by_them(settled: float, expected: int) -> None:
    phases = course_phases({report.SETTLED: 9}, {report.FAULT: 0.3, report.SETTLED: settled})
    found = report.failures(
        FAULTS["errors"], "demo/1", [incident(mechanism="fail-fast errors")], 1_000_000_000_000, phases
    )
    assert len(found) == expected


def test_the_course_cuts_the_phases() -> None:
    course = Course(start=0, fault=10, trimtab=20, end=40)
    phases = course.phases([request(t) for t in range(50)], settle_seconds=8)
    assert [p.requests for p in phases.values()] == [10, 10, 20, 12]


def test_only_changes_of_weights_are_shown() -> None:
    history = [(1.0, {"s0": 100, "s1": 100}), (2.0, {"s0": 100, "s1": 100}), (3.0, {"s0": 100, "s1": 50})]
    assert view.weights(history, 2.0).row_count == 2


def test_what_is_unknown_is_not_shown_as_zero() -> None:
    console = Console(width=150, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115 - lives as long as the console
    console.print(view.clients([report.phase("nothing", [], 0, 1)]))
    row = next(line for line in console.export_text().splitlines() if "nothing" in line)
    assert row.count(" - ") == 6


def test_a_service_that_cannot_run_says_why(tmp_path: Path) -> None:
    installation = install(tmp_path, tmp_path / "none.sock")
    installation.config.write_text('[agent]\ncolour = "red"\n')
    with (
        pytest.raises(TrimtabError, match=r"trimtab agent ended with exit code 3: .*colour"),
        installation.run("agent"),
    ):
        pass
    assert list(installation.state.iterdir()) == [installation.state / "agent.log"]


def test_preflight_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(TrimtabError, match="as root"):
        preflight.check()
    monkeypatch.setattr("shutil.which", lambda program, path: None)
    with pytest.raises(TrimtabError, match="haproxy is not installed: apt-get install haproxy"):
        preflight.check_programs()


@pytest.mark.parametrize("arguments", [["--fault", "gremlin"], ["--instance", "3"], ["--settle-seconds", "40"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == Exit.USAGE
