"""Talkers are stored exactly once with their window, merged when they are asked for, and shown with their bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.collector.sender import CLOCK, ask, collecting, publish, schema, window
from tests.collector.test_cli import invoke
from trimtab import Exit, TrimtabError
from trimtab.agent.sketch.talkers import MERGED_LOG2, Tally
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.talkers import REMOTES_MAX, TALKERS_MAX
from trimtab.collector.talkers_cli import talkers

A, B, C = "n1/8080", "n1/8081", "n1/8082"
S = schema({"instance": ([], [A, B, C])})
JOINED = "talkers t JOIN subjects s USING (subject) JOIN windows w ON w.node = s.node AND w.start = t.start"


def models() -> pb.Schema:
    """C serves another model than A and B, and theirs too."""
    from trimtab.agent.wire.columns import schema_hash

    changed = pb.Schema.FromString(S.SerializeToString())
    changed.tables[0].subjects[2].labels["model"] = "m,other"
    changed.tables[0].subjects[1].labels["model"] = "else"
    changed.hash = schema_hash(changed)
    return changed


def talk(of: dict[str, int], subject: str = A, name: str = "requests", **changes: Any) -> pb.Talkers:
    tally = Tally()
    for remote, weight in of.items():
        tally.add(remote, weight)
    packed = tally.pack(10.0)
    fields = {"frequent_items": packed.frequent_items, "hll": packed.hll, "seconds": packed.seconds}
    kind = pb.SUBJECT_KIND_INSTANCE
    return pb.Talkers(**{"subject_kind": kind, "subject": subject, "name": name, **fields, **changes})


def asked(query: Any, **request: Any) -> q.TalkersReply:
    reply: q.TalkersReply = query.Talkers(q.TalkersRequest(**{"since_seconds": 600, **request}), timeout=30)
    return reply


def shares(reply: q.TalkersReply) -> dict[str, float]:
    return {talker.remote: talker.requests.value for talker in reply.talkers}


def test_they_are_stored_once_with_their_window_as_they_came(tmp_path: Path) -> None:
    first, second = talk({"10.0.0.1": 5}), talk({"2001:db8::1": 2}, B)
    with collecting(tmp_path) as (_, telemetry, query):
        for _ in range(2):
            publish(telemetry, S, window(1, S, talkers=[first, second]), window(2, S), window(3, S, talkers=[first]))
        columns = "s.kind, s.node, s.id, name, w.seq, seconds, hex(frequent_items), hex(hll)"
        rows = ask(query, f"SELECT {columns} FROM {JOINED} ORDER BY w.seq, s.id")
        assert [row[:6] for row in rows] == [
            ["instance", "n1", A, "requests", 1, 10.0],
            ["instance", "n1", B, "requests", 1, 10.0],
            ["instance", "n1", A, "requests", 3, 10.0],
        ]
        for row, sent in zip(rows, (first, second, first), strict=True):
            assert row[6:] == [sent.frequent_items.hex().upper(), sent.hll.hex().upper()]
        assert ask(query, "SELECT count(*) FROM talkers t JOIN windows w USING (start)") == [[3]]


def test_a_malformed_one_refuses_its_window_and_nothing_else(tmp_path: Path) -> None:
    good = talk({"10.0.0.1": 5})
    bad = [
        ([talk({"10.0.0.1": 5}, frequent_items=b"\x04\x01\x0a\x1f" + bytes(60))], "frequent_items"),
        ([talk({"10.0.0.1": 5}, hll=b"\xff" * 100)], "hll"),
        ([talk({"10.0.0.1": 5}, "n2/8080")], "subject"),
        ([talk({"10.0.0.1": 5}, subject_kind=pb.SUBJECT_KIND_UNSPECIFIED)], "subject_kind"),
        ([good, good], "twice"),
        ([talk({"10.0.0.1": 1}, name=f"n{n}") for n in range(TALKERS_MAX + 1)], "at most"),
    ]
    windows = [window(seq, S, talkers=each) for seq, (each, _) in enumerate(bad, start=1)]
    with collecting(tmp_path) as (_, telemetry, query):
        answers = publish(telemetry, S, *windows, window(90, S, talkers=[good]))[1:]
        for answer, (_, field) in zip(answers[:-1], bad, strict=True):
            assert "window.talkers" in answer.refusal.reason
            assert field in answer.refusal.reason
        assert answers[-1].ack.seq == 90
        assert ask(query, f"SELECT w.seq FROM {JOINED}") == [[90]]


def test_they_are_merged_over_time_instances_and_models(tmp_path: Path) -> None:
    named = models()
    old = CLOCK.unix_ns() - 3600 * 10**9, CLOCK.boottime_ns() - 3600 * 10**9
    sent = [
        window(1, named, talkers=[talk({"10.0.0.9": 100})], start_unix_ns=old[0], start_boottime_ns=max(old[1], 0)),
        window(2, named, talkers=[talk({"10.0.0.1": 5, "10.0.0.2": 1}), talk({"10.0.0.1": 2}, name="errors")]),
        window(3, named, talkers=[talk({"10.0.0.1": 7}, A), talk({"10.0.0.2": 4}, B), talk({"10.0.0.3": 3}, C)]),
        window(4, named, talkers=[talk({"10.0.0.8": 4}, A, "strangers"), talk({"10.0.0.8": 4}, "n1")]),
    ]
    sent[3].window.talkers[1].subject_kind = pb.SUBJECT_KIND_NODE
    with collecting(tmp_path) as (_, telemetry, query):
        publish(telemetry, named, *sent)
        whole = asked(query)
        assert shares(whole) == {"10.0.0.1": 12, "10.0.0.2": 5, "10.0.0.3": 3}
        assert (whole.requests, whole.errors, list(whole.instances)) == (20, 2, [A, B, C])
        assert whole.remotes.value == pytest.approx(3, rel=1e-3)
        assert [talker.errors.value for talker in whole.talkers] == [2, 0, 0]
        assert shares(asked(query, instance=A)) == {"10.0.0.1": 12, "10.0.0.2": 1}
        assert shares(asked(query, instance=A, since_seconds=7200))["10.0.0.9"] == 100
        assert shares(asked(query, model="m")) == {"10.0.0.1": 12, "10.0.0.3": 3, "10.0.0.2": 1}
        assert shares(asked(query, model="other")) == {"10.0.0.3": 3}
        assert shares(asked(query, limit=1)) == {"10.0.0.1": 12}
        assert not asked(query, instance="n1/1' OR 1=1 --").talkers


def test_more_remotes_than_a_sketch_holds_are_shown_within_bounds(tmp_path: Path) -> None:
    exact = {f"10.1.{n >> 8}.{n & 255}": 1 + 20_000 // (n + 1) for n in range(2000)}
    failed = {remote: weight // 10 + 1 for remote, weight in exact.items()}
    with collecting(tmp_path) as (_, telemetry, query):
        messages = [window(n, S, talkers=[talk(exact), talk(failed, name="errors")]) for n in range(1, 6)]
        publish(telemetry, S, *messages)
        reply = asked(query)
    assert reply.requests == 5 * sum(exact.values())
    assert reply.remotes.low <= 2000 <= reply.remotes.high
    for talker in reply.talkers:
        assert talker.requests.low <= 5 * exact[talker.remote] <= talker.requests.high
        assert talker.errors.low <= 5 * failed[talker.remote] <= talker.errors.high <= talker.requests.high
    assert reply.talkers[0].remote == "10.1.0.0"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"instance": A, "model": "m"}, "not both"),
        ({"since_seconds": 0}, "since"),
        ({"since_seconds": float("nan")}, "since"),
        ({"since_seconds": 1e12}, "since"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, request_: dict[str, Any], field: str) -> None:
    with collecting(tmp_path) as (_, _telemetry, query), pytest.raises(grpc.RpcError, match=field) as caught:
        asked(query, **request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_question_ends_in_time(tmp_path: Path) -> None:
    with collecting(tmp_path, query_seconds_max=1e-9) as (_, telemetry, query):
        publish(telemetry, S, window(1, S, talkers=[talk({"10.0.0.1": 5})]))

        def ask_until_it_is_cut_short() -> None:
            # On a busy machine an answer can be there before whoever looks at the time gets a processor.
            for _ in range(1000):
                asked(query)

        with pytest.raises(grpc.RpcError, match="query_seconds_max"):
            ask_until_it_is_cut_short()


def test_a_damaged_row_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with collecting(tmp_path) as (collector, telemetry, query):
        publish(telemetry, S, window(1, S, talkers=[talk({"10.0.0.1": 5}), talk({"10.0.0.2": 6}, B)]))
        collector._store.cursor().execute(
            "UPDATE talkers SET hll = 'x'::BLOB WHERE subject = (SELECT subject FROM subjects WHERE id = ?)", [A]
        )
        assert shares(asked(query)) == {"10.0.0.2": 6}
    assert "left out" in caplog.text


def test_the_command(tmp_path: Path) -> None:
    crowd = {f"10.1.{n >> 8}.{n & 255}": 1 for n in range(2000)}
    with collecting(tmp_path) as (collector, telemetry, _):
        nothing = invoke(talkers, A, port=collector.port).exception
        assert isinstance(nothing, TrimtabError)
        assert (nothing.exit_code, A in str(nothing)) == (Exit.NO, True)
        both = [talk({"10.0.0.1": 3000, "10.0.0.2": 1000}), talk({"10.0.0.1": 7}, name="errors")]
        publish(telemetry, S, window(1, S, talkers=both))
        shown = invoke(talkers, A, port=collector.port).output
        assert "4,000 requests to n1/8080, 7 errors, from 2 remotes" in shown
        assert [line.split() for line in shown.splitlines()[1:]] == [
            ["remote", "requests", "share", "errors"],
            ["10.0.0.1", "3,000", "75.0%", "7"],
            ["10.0.0.2", "1,000", "25.0%", "0"],
        ]
        publish(telemetry, S, window(2, S, talkers=[talk({**crowd, "10.0.0.1": 90_000}, B)]))
        wide = invoke(talkers, "--model", "m", "--since", "1h", "--limit", "1", port=collector.port).output
        assert "2 instances" in wide
        assert "(" in wide.splitlines()[-1]
        found = json.loads(invoke(talkers, "--json", port=collector.port).output)
        assert found["instances"] == [A, B]
        assert found["requests"] == 96_000
        top = found["talkers"][0]
        assert top["remote"] == "10.0.0.1"
        assert top["requests"]["low"] <= 93_000 <= top["requests"]["high"]
        assert top["errors"] == {"value": 7, "low": 7, "high": 7}


def test_requests_of_strangers_alone_are_still_counted(tmp_path: Path) -> None:
    """One more than a merge has room for, all alike: it lets go of every one."""
    strangers = [f"10.1.{n >> 8}.{n & 255}" for n in range(3 * 2**MERGED_LOG2 // 4 + 1)]
    parts = [talk(dict.fromkeys(strangers[n : n + REMOTES_MAX], 1)) for n in range(0, len(strangers), REMOTES_MAX)]
    with collecting(tmp_path) as (collector, telemetry, _):
        publish(telemetry, S, *(window(seq, S, talkers=[part]) for seq, part in enumerate(parts, start=1)))
        result = invoke(talkers, A, port=collector.port)
    assert result.exit_code == 0
    assert f"{len(strangers):,} requests to {A}" in result.output


@pytest.mark.parametrize("since", ["", "10", "x", "-1m", "0s", "1e9h", "5 weeks", "m"])
def test_a_wrong_duration_is_named(since: str) -> None:
    result = invoke(talkers, "--since", since)
    assert result.exit_code == Exit.USAGE
    assert "no duration such as 90s" in result.output


def test_an_instance_and_a_model_are_too_much() -> None:
    assert "not both" in invoke(talkers, A, "--model", "m").output
