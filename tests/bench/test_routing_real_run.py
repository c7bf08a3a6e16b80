"""One run of the routing benchmark from end to end, with a real balancer and real load, over stand-ins for TorchServe."""

from __future__ import annotations

import csv
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.routing_real.contestants import CLASSICAL, Contestant
from tests.bench.routing_real.record import Plan, Record
from tests.bench.routing_real.run import Run, drain
from tests.bench.routing_real.scenarios import INSTANCES, SCENARIOS, Scenario
from tests.e2e.archive import SIM, SIM_MEAN_SECONDS
from tests.e2e.fleet import Instance
from tests.e2e.processes import stop_group
from trimtab import TrimtabError

PLAN = Plan(well_seconds=0.5, notice_seconds=0.5, settled_seconds=2.0)


@contextmanager
def instance(directory: Path, number: int) -> Iterator[Instance]:
    """What a simulated model does, and a process that lives."""
    directory.mkdir()
    one_at_a_time = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told = json.loads((directory / "behaviour").read_text())
            fails = body["luck"] < told["error_ratio"]
            if not fails:
                with one_at_a_time:
                    time.sleep(SIM_MEAN_SECONDS * told["slowdown"] * body["work"])
            self.send_response(500 if fails else 200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (directory / "log").write_text("it was killed\n")
        try:
            yield Instance(f"s{number}", server.server_port, directory, process, SIM)
        finally:
            stop_group(process)
            server.shutdown()


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[list[Instance]]:
    with ExitStack() as stack:
        yield [stack.enter_context(instance(tmp_path / f"s{k}", k)) for k in range(INSTANCES)]


def run(
    directory: Path,
    instances: Sequence[Instance],
    scenario: Scenario,
    who: str,
    pair: int = 0,
    contestant: Contestant | None = None,
) -> Record:
    own = directory / f"{who}-{pair}"
    own.mkdir()
    return Run(own, instances, scenario, contestant or CLASSICAL[who], PLAN).make("slow", who, pair, 3)


def test_contestants_of_a_pair_get_the_same_requests(instances: list[Instance], tmp_path: Path) -> None:
    one, two = (run(tmp_path, instances, SCENARIOS["slow"], who) for who in ("roundrobin", "central-queue"))
    # But for those at the edges.
    assert one.whole.requests == pytest.approx(two.whole.requests, abs=15)
    assert one.whole.requests > one.settled.requests > 100
    assert one.weights == dict.fromkeys(("s0", "s1", "s2", "s3"), 100)
    assert all((i.directory / "behaviour").read_text() == '{"slowdown": 1.0, "error_ratio": 0.0}' for i in instances)


def test_a_fault_comes_when_all_was_well_and_goes_with_the_run(instances: list[Instance], tmp_path: Path) -> None:
    record = run(tmp_path, instances, SCENARIOS["errors"], "roundrobin", pair=2)
    assert record.whole.error_ratio == pytest.approx(1 / INSTANCES, abs=0.01)
    rows = [line.split(",") for line in (tmp_path / "roundrobin-2" / "requests.csv").read_text().splitlines()]
    assert {row[4] for row in rows if row[3] == "500"} == {"s2"}
    assert all(row[3] == "200" for row in rows[:20])
    assert '"error_ratio": 0.0' in (instances[2].directory / "behaviour").read_text()


def test_what_ails_the_fleet_is_still_there_when_trimtab_knows_it(
    instances: list[Instance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "_get_to_know", lambda *_: drain(instances))
    monkeypatch.setattr(Run, "_start", lambda *_: None)
    tens = replace(SCENARIOS["slow"], requests_per_second=20.0, slowdowns=(1.0, 1.0, 1.0, 10.0))
    steered = replace(CLASSICAL["roundrobin"], policy="proportional")
    run(tmp_path, instances, tens, "roundrobin", contestant=steered)
    slowest = max(instances, key=lambda i: mean_seconds(tmp_path / "roundrobin-0" / "requests.csv", i.name))
    assert slowest.name == "s3"


def mean_seconds(results: Path, server: str) -> float:
    found = [float(row[1]) for row in csv.reader(results.read_text().splitlines()) if row[4] == server]
    return sum(found) / len(found)


def test_a_death_ends_the_run(instances: list[Instance], tmp_path: Path) -> None:
    instances[1].process.kill()
    instances[1].process.wait()
    with pytest.raises(TrimtabError, match="s1 died: it was killed"):
        run(tmp_path, instances, replace(SCENARIOS["slow"], requests_per_second=20.0), "leastconn")
