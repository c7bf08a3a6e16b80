"""`trimtab incidents`, asked as a user asks, of a collector that knows three incidents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.json_format import MessageToDict

from tests.detector.fleet import START_NS
from trimtab import Exit, TrimtabError
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire import query_pb2_grpc as rpc
from trimtab.detector import impact, show
from trimtab.detector.cli import incidents
from trimtab.detector.quantity import quantity
from trimtab.settings import Settings

SECOND = 1_000_000_000
NAN = math.nan
EVIDENCE = [
    pb.Evidence(
        subject="n0/8080", signal="cpu_limit_cores", unit="cores", before=4, after=0.2, peers=4, deviation=-40,
        changed_unix_ns=START_NS + SECOND, course=[4.0] * 20 + [NAN] + [0.2] * 20,
    ),
    pb.Evidence(subject="n0", signal="oom_kill", before=NAN, after=1, peers=NAN, deviation=NAN, changed_unix_ns=START_NS, event="oom_kill"),
]  # fmt: skip


def made(number: int, *, is_open: bool) -> pb.Incident:
    cause = pb.Cause(
        subject="n0/8080", mechanism="cgroup CPU quota", confidence=0.94, summary="it is throttled", remedy="raise it"
    )
    cause.evidence.extend(EVIDENCE)
    other = pb.Cause(subject="n0/8080", mechanism="CPU contention", confidence=0.85, summary="threads wait")
    return pb.Incident(
        id=f"i-{number}", status=1 if is_open else 2, subject="n0/8080", node="n0", model="m", since_unix_ns=START_NS,
        opened_unix_ns=START_NS + 7 * SECOND, resolved_unix_ns=0 if is_open else START_NS + 300 * SECOND,
        symptom="p95 latency 41 ms → 310 ms (peers 43 ms)", score=0.97, causes=[cause, other],
    )  # fmt: skip


IMPACT = pb.Impact(
    instances=1, requests=1200, slow=900, errors=NAN,
    p50_before_seconds=0.012, p50_after_seconds=0.2, p95_before_seconds=0.041, p95_after_seconds=NAN,
)  # fmt: skip
ACTION = pb.Action(
    unix_ns=START_NS + 9 * SECOND,
    mode="active",
    weight=pb.Weight(instance="n0/8080", model="m", wished=0, weight=0.05, reason="drained"),
)


def remarked(incident: pb.Incident) -> pb.Incident:
    incident.acknowledgements.add(who="eve\x1b[2J", unix_ns=START_NS + SECOND, note="looking")
    silence = pb.Silence(target="n0", who="bob", since_unix_ns=START_NS, until_unix_ns=START_NS + 9, reason="rack move")
    incident.silence.CopyFrom(silence)
    return incident


class Collector(rpc.QueryServicer):
    remarks: ClassVar[list[pb.RemarkRequest]] = []
    known = (
        remarked(made(3, is_open=True)),
        made(2, is_open=False),
        pb.Incident(id="i-1", status=1, subject="n0\x1b[2J", since_unix_ns=START_NS),
    )

    def Incidents(self, request: pb.IncidentsRequest, context: grpc.ServicerContext) -> pb.IncidentsReply:  # noqa: N802
        found = [i for i in self.known if request.id in {"", i.id} and (not request.open_only or i.status == 1)]
        return pb.IncidentsReply(incidents=found[: request.limit or None])

    def IncidentReport(  # noqa: N802
        self, request: pb.IncidentReportRequest, context: grpc.ServicerContext
    ) -> pb.IncidentReportReply:
        found = [incident for incident in self.known if incident.id == request.id]
        if not found:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no incident {request.id!r}; `trimtab incidents` lists them")
        told = {"impact": IMPACT, "actions": [ACTION]} if request.id == "i-3" else {}
        return pb.IncidentReportReply(incident=found[0], **told)

    def Remark(self, request: pb.RemarkRequest, context: grpc.ServicerContext) -> pb.RemarkReply:  # noqa: N802
        self.remarks.append(request)
        silence = pb.Silence(until_unix_ns=START_NS) if request.WhichOneof("content") == "silence" else None
        return pb.RemarkReply(incidents=self.known[:1], silence=silence)

    def WatchIncidents(self, request: pb.WatchIncidentsRequest, context: grpc.ServicerContext) -> Iterator[pb.Incident]:  # noqa: N802
        yield from self.known


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_QueryServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def ask(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(incidents, arguments, obj=Settings(), env={"COLUMNS": "220", **environment})


@pytest.mark.parametrize("before", [True, False])
def test_list(address: str, before: bool) -> None:
    result = ask("--collector", address) if before else ask("list", "--collector", address)
    assert result.exit_code == 0, result.output
    for part in (
        "i-3",
        "i-2",
        "open, acknowledged by eve",
        "silenced until",
        "resolved",
        "n0/8080",
        "310 ms",
        "cgroup CPU quota",
        "94%",
    ):
        assert part in result.output
    assert "\x1b[2J" not in result.output


def test_list_as_json(address: str) -> None:
    for result in (ask("--collector", address, "--json"), ask("--collector", address, "--json", "list")):
        found = json.loads(result.output)
        assert [(i["id"], i["status"], i["resolved_unix_ns"]) for i in found[:2]] == [
            ("i-3", "open", None), ("i-2", "resolved", START_NS + 300 * SECOND),
        ]  # fmt: skip
        assert found[0]["causes"][0]["evidence"][1]["before"] is None
        assert None in found[0]["causes"][0]["evidence"][0]["course"]


def test_limits(address: str) -> None:
    assert len(json.loads(ask("--collector", address, "--json", "--open").output)) == 2
    assert len(json.loads(ask("list", "--collector", address, "--json", "--limit", "1").output)) == 1


def test_show_has_all_one_needs(address: str) -> None:
    result = ask("show", "i-3", "--collector", address)
    assert result.exit_code == 0, result.output
    for part in (
        "incident i-3", "310 ms", "noticed 7 s later", "0.97", "cgroup CPU quota", "94%", "it is throttled", "cpu_limit_cores", "4 cores",
        "0.2 cores", "-40 σ", "+1 s", "┊", "█", "▁", "oom_kill", "remedy", "raise it", "CPU contention", "85%",
        "900 of 1,200 requests", "median 12 ms → 200 ms (+188 ms)", "p95 41 ms → –", "looking", "until",
        "bob: rack move (n0 is)", "drained", "0.050",
    ):  # fmt: skip
        assert part in result.output, part
    assert "\x1b[2J" not in result.output
    found = json.loads(ask("show", "i-3", "--collector", address, "--json").output)
    assert (found["id"], found["impact"]["slow"], found["impact"]["errors"]) == ("i-3", 900, None)
    assert [(one["unix_ns"], one["weight"]) for one in found["actions"]] == [(START_NS + 9 * SECOND, 0.05)]
    assert (found["acknowledgements"][0]["unix_ns"], found["silence"]["until_unix_ns"]) == (
        START_NS + SECOND,
        START_NS + 9,
    )


def test_an_incident_without_a_cause_is_shown(address: str) -> None:
    result = ask("show", "i-1", "--collector", address)
    for part in ("no cause was found yet", "nothing is stored of its requests", "no weight was changed"):
        assert part in result.output
    assert "\x1b[2J" not in result.output


def test_what_is_not_known_of_users_is_said() -> None:
    unknown = pb.Impact(requests=NAN, slow=NAN, errors=NAN, p50_before_seconds=0.01, p50_after_seconds=NAN)
    for told, said in (
        (unknown, "unknown: nothing is known of its requests since the onset"),
        (
            pb.Impact(requests=10, slow=NAN, errors=NAN),
            "unknown of 10 requests: ? slower than usual, ? more errors than usual",
        ),
        (
            pb.Impact(requests=1000, slow=300, errors=20),
            "300–320 of 1,000 requests: 300 slower than usual, 20 more errors than usual",
        ),
        (
            pb.Impact(requests=1000, slow=0, errors=20),
            "20 of 1,000 requests: 0 slower than usual, 20 more errors than usual",
        ),
    ):
        name, value = impact.rows(pb.IncidentReportReply(impact=told))[0]
        assert (name, str(value)) == ("users hit", said)


def test_an_unknown_incident_is_a_no(address: str) -> None:
    error = ask("show", "i-99", "--collector", address).exception
    assert isinstance(error, TrimtabError)
    assert (error.exit_code, str(error)) == (Exit.NO, "no incident 'i-99'; `trimtab incidents` lists them")


def test_watch(address: str) -> None:
    lines = ask("watch", "--collector", address, "--json").output.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["i-3", "i-2", "i-1"]
    assert "i-2  resolved  n0/8080" in ask("watch", "--collector", address).output


@pytest.mark.parametrize(
    ("arguments", "content", "told"),
    [
        (
            ("acknowledge", "i-3", "--note", "mine"),
            {"acknowledge": {"id": "i-3", "note": "mine"}},
            "i-3 is acknowledged",
        ),
        (
            ("silence", "model a b", "--for", "2h", "--reason", "move"),
            {"silence": {"target": "model a b", "seconds": 7200.0, "reason": "move"}},
            "about: i-3",
        ),
        (("unsilence", "n0"), {"unsilence": {"target": "n0"}}, "n0 is no longer silenced"),
    ],
)
def test_remarks(address: str, arguments: tuple[str, ...], content: dict[str, object], told: str) -> None:
    result = ask(*arguments, "--collector", address, USER="eve")
    assert result.exit_code == 0, result.output
    assert told in result.output
    assert MessageToDict(Collector.remarks[-1]) == {"who": "eve", **content}


def test_only_a_drift_is_accepted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ask("accept", "i-3", "--collector", address).exception
    assert isinstance(error, TrimtabError)
    assert (error.exit_code, str(error)) == (Exit.USAGE, "i-3 is no model drift: it ends when its cause is gone")
    monkeypatch.setattr(Collector, "known", (pb.Incident(id="i-9", status=1, subject="predictions of model m"),))
    result = ask("accept", "i-9", "--collector", address, USER="eve")
    assert "i-9 is accepted: what is usual is learnt anew" in result.output, result.output
    said = {"accept": {"id": "i-9", "note": "meant to be so"}}
    assert MessageToDict(Collector.remarks[-1]) == {"who": "eve", **said}


@pytest.mark.parametrize(
    "arguments", [("acknowledge", "i-3"), ("accept", "i-3"), ("silence", "n0", "--for", "1h"), ("unsilence", "n0")]
)
def test_without_a_collector_one_line_says_that_it_must_run(arguments: tuple[str, ...]) -> None:
    error = ask(*arguments, "--collector", "127.0.0.1:1").exception
    assert isinstance(error, TrimtabError)
    assert error.exit_code == Exit.UNREACHABLE
    assert str(error).startswith("no collector answers at 127.0.0.1:1: start `trimtab collector`")
    assert "\n" not in str(error)


@pytest.mark.parametrize("duration", ["", "0s", "-1h", "2 weeks", "nan"])
def test_a_silence_says_how_long(duration: str) -> None:
    assert ask("silence", "n0", "--for", duration).exit_code == Exit.USAGE


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (0.31, "s", "310 ms"),
        (2.5, "s", "2.5 s"),
        (1.41e9, "Hz", "1.41 GHz"),
        (12, "1/s", "12 a second"),
        (0.5, "1", "0.5"),
        (NAN, "s", "–"),
    ],
)
def test_quantities(value: float, unit: str, told: str) -> None:
    assert quantity(value, unit) == told


def test_sparkline_marks_the_onset_and_leaves_gaps() -> None:
    assert show.sparkline([0, 0, NAN, 1, 1, 1]) == "▁▁ ┊███"
    assert show.sparkline([]) == "┊"
    assert len(show.sparkline([1.0] * 64)) == 17
