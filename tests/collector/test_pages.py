"""What the collector shows to existing monitoring: its metrics, the fleet's fingerprints, incidents, health."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.collector.sender import (
    CLOCK,
    Recording,
    Sending,
    channel,
    collecting,
    hello,
    latency,
    publish,
    schema,
    window,
)
from trimtab.agent.wire.exposition import Wrong
from trimtab.agent.wire.query_pb2 import Cause, Incident
from trimtab.collector.federate import Federation
from trimtab.collector.feed import IncidentFeed
from trimtab.collector.figures import PREFIX
from trimtab.collector.latest import Latest
from trimtab.collector.server import SERVICES, Collector
from trimtab.collector.standing import Standing
from trimtab.collector.store import StoreError
from trimtab.collector.vitals import Vitals
from trimtab.collector.webhook import Webhook
from trimtab.collector.wellness import HUNG_SECONDS, Wellness
from trimtab.collector.window import Window

ROOT = Path(__file__).resolve().parents[2]
S = schema({"node": (["cpu_busy_cores"], ["n1"]), "instance": (["queue_depth", "threads"], ["n1/1", 'n1/a"b\\'])})


def get(collector: Collector, path: str) -> str:
    assert collector._exposition
    with urllib.request.urlopen(f"http://127.0.0.1:{collector._exposition.port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_its_metrics_count_what_happened(tmp_path: Path) -> None:
    with collecting(tmp_path, metrics_listen="127.0.0.1:0") as (collector, telemetry, _query):
        bad = window(4, S, duration_ns=0)
        publish(telemetry, S, window(1, S), window(3, S), bad)
        publish(telemetry, S, window(3, S))
        text = get(collector, "/metrics")
        found = {name: value for (name, labels), value in values(text).items() if not labels}
        by_field = {labels: value for (name, labels), value in values(text).items() if name.endswith("refused_total")}
    expected = {"windows_stored": 2, "windows_repeated": 1, "windows_lost": 1, "values_stored": 10}
    assert {name: found[f"{PREFIX}{name}_total"] for name in expected} == expected
    assert by_field == {(("field", "window.duration_ns"),): 1}
    assert found[f"{PREFIX}transactions_total"] >= 2
    assert found[f"{PREFIX}received_bytes_total"] > 500
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_metric_is_documented(tmp_path: Path) -> None:
    with collecting(tmp_path, metrics_listen="127.0.0.1:0") as (collector, *_):
        told = set(re.findall(rf"^# TYPE ({PREFIX}\w+)", get(collector, "/metrics"), re.MULTILINE))
    documented = set(re.findall(rf"^\| `({PREFIX}\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    assert told == documented


def test_the_newest_fingerprints_are_federated(tmp_path: Path) -> None:
    with collecting(tmp_path, metrics_listen="127.0.0.1:0") as (collector, telemetry, _query):
        assert get(collector, "/federate?kind=node").strip() == ""
        block = [[1.0, 2.0], [math.nan, 4.0]]
        column = latency([0.01, 0.02, 0.03])
        column.table = 1
        publish(telemetry, S, window(1, S), window(2, S, [[[7.0]], block], sketches=[column]))
        # It is told of a window just after the agent is.
        deadline = CLOCK.monotonic() + 10
        while "trimtab_node_cpu_busy_cores" not in get(collector, "/federate?kind=node"):
            assert CLOCK.monotonic() < deadline
        found = values(get(collector, "/federate"))
        only = values(get(collector, "/federate?kind=instance&signal=threads"))
        assert values(get(collector, "/federate?node=n2")) == {}
        with pytest.raises(urllib.error.HTTPError, match="400"):
            get(collector, "/federate?match=x")
    one = (("model", "m"), ("node", "n1"), ("subject", "n1/1"))
    odd = (("model", "m"), ("node", "n1"), ("subject", 'n1/a"b\\'))
    assert found["trimtab_node_cpu_busy_cores", (("model", "m"), ("node", "n1"), ("subject", "n1"))] == 7
    assert found["trimtab_instance_queue_depth", odd] == 2
    assert found["trimtab_instance_request_latency_count", one] == 3
    assert found["trimtab_instance_request_latency", tuple(sorted((*one, ("quantile", "0.5"))))] == pytest.approx(
        0.02, rel=0.01
    )
    assert ("trimtab_instance_threads", one) not in found
    assert only == {("trimtab_instance_threads", odd): 4}


def test_a_silent_node_is_left_out() -> None:
    latest = Latest()
    page = Federation(latest, CLOCK)
    old = window(1, S, start_unix_ns=CLOCK.unix_ns() - 60 * 10**9).window
    latest.observe([Window("n1", "spool", 1, old.start_unix_ns, old.duration_ns, S, old)])
    assert page.page("", "")[1]().strip() == b""
    fresh = window(2, S).window
    latest.observe([Window("n1", "spool", 2, fresh.start_unix_ns, fresh.duration_ns, S, fresh)])
    latest.observe([Window("n1", "spool", 1, old.start_unix_ns, old.duration_ns, S, old)])
    assert len(page.page("", "")[1]().splitlines()) == 5
    with pytest.raises(Wrong, match="filter by"):
        page.page("", "foo=1")


class Receiver:
    """An HTTP server that keeps what it is sent; its first answers are `failures`."""

    def __init__(self, failures: list[int]) -> None:
        self.bodies: list[Any] = []
        self.changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with receiver.changed:
                    status = failures.pop(0) if failures else 200
                    self.send_response(status)
                    if status == 302:
                        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                    self.end_headers()
                    if status == 200:
                        receiver.bodies.append(body)
                        receiver.changed.notify_all()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count: int) -> list[Any]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.bodies) >= count, 30)
            return list(self.bodies)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver([503, 302])
    yield one
    one.server.shutdown()
    one.server.server_close()


def incident(**changes: Any) -> Incident:
    fields = {
        "id": "i-1", "status": Incident.STATUS_OPEN, "subject": "n1/1", "node": "n1", "model": "m", "symptom": "slow",
        "since_unix_ns": 10**18, "opened_unix_ns": 10**18,
        "causes": [Cause(mechanism="cgroup CPU quota", confidence=0.94, summary="throttled", remedy="raise it")],
    }  # fmt: skip
    return Incident(**{**fields, **changes})


@pytest.mark.parametrize("path", ["/hook", "/api/v2/alerts"])
def test_incidents_are_told_until_they_are_taken(tmp_path: Path, receiver: Receiver, path: str) -> None:
    analysis = Recording()
    url = f"http://127.0.0.1:{receiver.server.server_port}{path}"
    with collecting(tmp_path, analysis=analysis, webhook_url=url):
        analysis.changed(incident())
        receiver.wait(1)
        analysis.changed(incident(status=Incident.STATUS_RESOLVED, resolved_unix_ns=2 * 10**18))
        first, last = receiver.wait(2)
    if path == "/hook":
        assert (first["version"], first["status"], last["status"]) == ("4", "firing", "resolved")
        first, last = first["alerts"], last["alerts"]
    assert first[0]["labels"] == last[0]["labels"]
    assert first[0]["labels"]["subject"] == "n1/1"
    assert first[0]["annotations"]["description"] == "cgroup CPU quota (94%): throttled"
    assert first[0]["startsAt"] == "2001-09-09T01:46:40.000Z"
    assert last[0]["endsAt"] == "2033-05-18T03:33:20.000Z"


def test_open_incidents_are_told_again_after_a_restart(tmp_path: Path, receiver: Receiver) -> None:
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis):
        analysis.journal.save_incident(incident())
    url = f"http://127.0.0.1:{receiver.server.server_port}/hook"
    with collecting(tmp_path, webhook_url=url):
        assert receiver.wait(1)[0]["groupLabels"] == {"incident": "i-1"}


def test_an_incident_that_is_never_taken_keeps_no_other_waiting(tmp_path: Path) -> None:
    refusing = Receiver([400])
    analysis = Recording()
    url = f"http://127.0.0.1:{refusing.server.server_port}/hook"
    with collecting(tmp_path, analysis=analysis, webhook_url=url, metrics_listen="127.0.0.1:0") as (collector, *_):
        analysis.changed(incident(id="refused"))
        analysis.changed(incident(id="taken"))
        assert [body["groupLabels"]["incident"] for body in refusing.wait(1)] == ["taken"]
        deadline = CLOCK.monotonic() + 10
        while f"{PREFIX}webhook_sent_total 1" not in get(collector, "/metrics"):
            assert CLOCK.monotonic() < deadline
        assert f"{PREFIX}webhook_failed_total 1" in get(collector, "/metrics")
    refusing.server.shutdown()
    refusing.server.server_close()


def test_what_was_resolved_while_the_webhook_fell_behind_is_told() -> None:
    hook = Webhook("", IncidentFeed(Standing(CLOCK)), CLOCK, Vitals())
    hook._take_all([incident(id="a"), incident(id="b")])
    hook._pending.clear()
    hook._take_all([incident(id="b")])
    assert {each.id: each.status for each in hook._pending.values()} == {
        "a": Incident.STATUS_RESOLVED,
        "b": Incident.STATUS_OPEN,
    }
    assert hook._firing.keys() == {"b"}


def test_a_page_that_is_cut_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.collector.federate.SERIES_MAX", 3)
    latest = Latest()
    for node in "n1", "n2":
        fresh = window(1, S).window
        latest.observe([Window(node, "spool", 1, fresh.start_unix_ns, fresh.duration_ns, S, fresh)])
    federation = Federation(latest, CLOCK)
    *lines, last = federation.page("", "")[1]().decode().splitlines()
    assert len(lines) == 3
    assert last.startswith("# cut off: at most 3 series; 7 are left out")
    assert federation.cut == 7


def test_health_and_reflection(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, *_), channel(collector.port) as link:
        health = health_pb2_grpc.HealthStub(link)
        for service in ("", "trimtab.query.v1.Query", "trimtab.telemetry.v1.Telemetry"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        reflection = reflection_pb2_grpc.ServerReflectionStub(link)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        [answer] = reflection.ServerReflectionInfo(asked, timeout=10)
        named = {service.name for service in answer.list_services_response.service}
        assert {"trimtab.query.v1.Query", "trimtab.telemetry.v1.Telemetry"} <= named


def test_ready_is_said_while_windows_can_be_stored(tmp_path: Path) -> None:
    with collecting(tmp_path, metrics_listen="127.0.0.1:0") as (collector, *_):
        assert get(collector, "/-/ready") == "ready\n"
        collector._writer.lost.set()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(collector, "/-/ready")
        assert get(collector, "/-/healthy") == "healthy\n"


def test_health_follows_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        collecting(tmp_path, metrics_listen="127.0.0.1:0") as (collector, telemetry, _query),
        channel(collector.port) as link,
    ):
        health = health_pb2_grpc.HealthStub(link)

        def wait_for(status: int) -> None:
            deadline = CLOCK.monotonic() + 20
            while True:
                collector.look()
                if health.Check(health_pb2.HealthCheckRequest(service=SERVICES[0]), timeout=10).status == status:
                    return
                assert CLOCK.monotonic() < deadline

        with monkeypatch.context() as broken:

            def full(*arguments: object) -> None:
                raise StoreError("no room on the disk")

            broken.setattr(collector._writer, "_transact", full)
            sending = Sending(telemetry, hello(), S, window(1, S))
            wait_for(health_pb2.HealthCheckResponse.NOT_SERVING)
            with pytest.raises(urllib.error.HTTPError, match="503") as caught:
                get(collector, "/-/ready")
            assert b"cannot be written at the moment" in caught.value.read()
        wait_for(health_pb2.HealthCheckResponse.SERVING)
        assert get(collector, "/-/ready") == "ready\n"
        sending.finish()


def test_a_writer_that_hangs_is_in_trouble() -> None:
    clock, writer = Mock(), Mock(turns=1)
    writer.lost.is_set.return_value = False
    clock.monotonic.return_value = 0.0
    wellness = Wellness(writer, Vitals(), clock)
    assert wellness.trouble() == ""
    clock.monotonic.return_value = HUNG_SECONDS + 1
    assert wellness.trouble() == "the writer has not turned for 16 s"
    writer.turns = 2
    assert wellness.trouble() == ""
