"""What is stored, what is refused and why, and that a refusal harms nobody else."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.collector.sender import (
    CLOCK,
    KINDS,
    Recording,
    Sending,
    ask,
    channel,
    collecting,
    hello,
    latency,
    publish,
    schema,
    window,
)
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import SUBJECTS_MAX, schema_hash
from trimtab.collector.batch import ROW_BYTES_MAX, lay_out
from trimtab.collector.series import COLUMNS_MAX, Registry
from trimtab.collector.stream import Stream
from trimtab.collector.subjects import Layout, TableLayout
from trimtab.collector.timeline import Timeline

S = schema()
RESERVED = schema({"instance": (["start"], ["n1/8080"])})
HOUR_NS = 3600 * 10**9


def event(**changes: Any) -> pb.Event:
    fields = {"subject_kind": KINDS["node"], "subject": "n1", "name": "oom_kill", "unix_ns": CLOCK.unix_ns()}
    return pb.Event(**{**fields, **changes})


def begun(ahead_seconds: float, step_seconds: float = 0) -> dict[str, int]:
    """When a window began, from now, as a node says it whose clock has stepped but whose boot clock is right."""
    return {
        "start_unix_ns": CLOCK.unix_ns() + int((ahead_seconds + step_seconds) * 1e9),
        "start_boottime_ns": CLOCK.boottime_ns() + int(ahead_seconds * 1e9),
    }


def text(answer: pb.CollectorMessage) -> str:
    return f"refused {answer.refusal.seq}: {answer.refusal.reason}" if answer.HasField("refusal") else str(answer)


REFUSED: dict[str, Callable[[], pb.AgentMessage]] = {
    "window.schema_hash": lambda: window(1, S, schema_hash=b"x" * 32),
    "window.seq: 0": lambda: window(0, S),
    "window.seq: 9223372036854775808": lambda: window(1 << 63, S),
    "window.start_unix_ns": lambda: window(1, S, **begun(90)),
    "window.duration_ns: 0": lambda: window(1, S, duration_ns=0),
    "window.duration_ns: 121": lambda: window(1, S, duration_ns=121 * 10**9),
    "window.values: 0 blocks": lambda: window(1, S, values=[]),
    "7 bytes": lambda: _cut(window(1, S)),
    "queue_depth is infinite": lambda: window(1, S, values=[[[np.inf]]]),
    "window.events: 1025": lambda: window(1, S, events=[event()] * 1025),
    "window.events.name": lambda: window(1, S, events=[event(name="DROP TABLE")]),
    "subject_kind: not named": lambda: window(1, S, events=[event(subject_kind=0)]),
    "is not 'n1', nor": lambda: window(1, S, events=[event(subject="n2/8080")]),
    "value infinite": lambda: window(1, S, events=[event(value=float("inf"))]),
    "unix_ns: 1844": lambda: window(1, S, events=[event(unix_ns=(1 << 64) - 1)]),
    "window.sketches[request_latency].subjects": lambda: window(1, S, sketches=[latency([1], subject=3)]),
    "a series comes twice": lambda: window(1, S, sketches=[latency([1]), latency([1])]),
    "window.sketches: 5000": lambda: window(1, S, sketches=[pb.SketchColumn(name="a", subjects=b"0000" * 5000)]),
    "column start belongs to every series": lambda: window(1, RESERVED),
}


def _hashed(made: pb.Schema) -> pb.Schema:
    made.hash = schema_hash(made)
    return made


def _cut(message: pb.AgentMessage) -> pb.AgentMessage:
    message.window.values[0] = message.window.values[0][:-1]
    return message


@pytest.mark.parametrize("reason", REFUSED)
def test_refusal_names_the_field_and_the_stream_goes_on(tmp_path: Path, reason: str) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        answers = publish(telemetry, S, RESERVED, REFUSED[reason](), window(2, S))
        assert reason in text(answers[1])
        assert answers[2].ack.seq == 2
        assert ask(query, "SELECT seq FROM windows") == [[2]]
        [node] = query.Nodes(q.NodesRequest()).nodes
        assert (node.windows, node.refused) == (1, 1)
        assert reason in node.last_refusal


def test_a_number_that_does_not_rise(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        answers = publish(telemetry, S, window(5, S), window(5, S), window(4, S), window(6, S))
        assert [a.ack.seq for a in answers if a.HasField("ack")] == [5, 6]
        assert ["came after 5" in text(a) for a in answers[2:4]] == [True, True]
        assert ask(query, "SELECT seq, lost, refused FROM windows JOIN streams USING (node, spool)") == [
            [5, 4, 2],
            [6, 4, 2],
        ]


def test_duplicates_are_acknowledged_counted_and_not_stored(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        publish(telemetry, S, window(1, S), window(2, S))
        answers = publish(telemetry, S, window(1, S), window(2, S), window(3, S))
        assert answers[0].welcome.high_water_mark == 2
        assert [a.ack.seq for a in answers[1:]] == [1, 2, 3]
        assert ask(query, "SELECT seq FROM windows ORDER BY seq") == [[1], [2], [3]]
        assert ask(query, "SELECT windows, duplicates, lost FROM streams") == [[3, 2, 0]]


def test_each_spool_counts_for_itself(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        publish(telemetry, S, window(7, S))
        answers = Sending(telemetry, hello(spool_id="fresh"), S, window(1, S)).finish()
        assert (answers[0].welcome.high_water_mark, answers[1].ack.seq) == (0, 1)
        assert ask(query, "SELECT spool, seq FROM windows ORDER BY seq") == [["fresh", 1], ["spool", 7]]


def test_windows_that_a_new_collector_never_could_have_are_not_lost(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        answers = Sending(telemetry, hello(first_seq=1_000_000), S, window(1_000_000, S), window(1_000_003, S)).finish()
        assert answers[0].welcome.high_water_mark == 999_999
        assert ask(query, "SELECT windows, lost FROM streams") == [[2, 2]]
        # Windows that a known spool no longer holds are lost.
        Sending(telemetry, hello(first_seq=1_000_010), S, window(1_000_010, S)).finish()
        assert ask(query, "SELECT windows, lost FROM streams") == [[3, 8]]


def test_the_largest_numbers_leave_nodes_answerable(tmp_path: Path) -> None:
    last = window((1 << 63) - 1, S)
    with collecting(tmp_path) as (_, telemetry, query):
        for spool in ("one", "two"):
            assert Sending(telemetry, hello(spool_id=spool), S, last).finish()[1].ack.seq == (1 << 63) - 1
        [node] = query.Nodes(q.NodesRequest()).nodes
        assert (node.windows, node.lost) == (2, (1 << 63) - 1)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: schema(unit="s"), "is stored as gauge in '1', and came as gauge in 's'"),
        (lambda: schema(rate=True), "came as rate"),
        (
            lambda: schema({"instance": (["queue_depth", "subject"], ["n1/8080"])}),
            "column subject belongs to every series",
        ),
        (lambda: schema({"instance": (["a"], ["n2/8080"])}), "'n2/8080' is not 'n1'"),
        (lambda: schema({"instance": (["a"], ["n1/\x1b[2J"])}), "printable"),
        (lambda: schema({"instance": ([f"s{i}" for i in range(512)], ["n1/8080"])}), "there are already 512 columns"),
        (lambda: pb.Schema(hash=b"x" * 32), "schema.hash: does not match"),
        (lambda: _hashed(pb.Schema(tables=[pb.Table(kind=99)])), "schema.tables: each subject kind"),
    ],
)
def test_windows_of_a_wrong_schema_are_refused(tmp_path: Path, made: Callable[[], pb.Schema], reason: str) -> None:
    with collecting(tmp_path) as (_, telemetry, _query):
        wrong = made()
        answers = publish(telemetry, S, window(1, S), wrong, window(2, wrong), window(3, S))
        assert reason in text(answers[2])
        assert answers[3].ack.seq == 3


def test_a_sketch_keeps_its_unit_and_its_columns(tmp_path: Path) -> None:
    taken = schema({"instance": (["request_latency_p50"], ["n1/8080"])})
    with collecting(tmp_path) as (_, telemetry, _query):
        answers = publish(
            telemetry,
            S,
            window(1, S, sketches=[latency([1])]),
            window(2, S, sketches=[latency([1], unit="ms")]),
            taken,
            window(3, taken),
        )
        assert "came as sketch in 'ms'" in text(answers[2])
        assert "column request_latency_p50 belongs to request_latency" in text(answers[3])


def test_a_series_keeps_its_unit_after_a_restart(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, _query):
        publish(telemetry, S, window(1, S))
    other = schema(unit="s")
    with collecting(tmp_path) as (_, telemetry, _query):
        answers = publish(telemetry, other, window(2, other))
        assert "is stored as gauge in '1'" in text(answers[1])


def test_the_seventeenth_schema_drops_the_one_used_longest_ago(tmp_path: Path) -> None:
    many = [schema({"instance": ([f"s{i}"], ["n1/8080"])}) for i in range(17)]
    with collecting(tmp_path) as (_, telemetry, _query):
        answers = publish(telemetry, *many, window(1, many[0]), window(2, many[1]))
        assert "is none of the last 16" in text(answers[1])
        assert answers[2].ack.seq == 2


def test_unknown_is_null(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        publish(telemetry, S, window(1, S, [[[np.nan]]]), window(2, S, [[[0.0]]]))
        assert ask(query, "SELECT queue_depth FROM fingerprint_instance ORDER BY start") == [[None], [0.0]]
        assert ask(query, "SELECT count(*) FROM fingerprint_instance WHERE isnan(queue_depth)") == [[0]]


@pytest.mark.parametrize(
    ("message", "code", "detail"),
    [
        (pb.AgentMessage(window=pb.Window(seq=1)), "INVALID_ARGUMENT", "first message must be a Hello"),
        (pb.AgentMessage(), "INVALID_ARGUMENT", "first message must be a Hello"),
        (hello(protocol=2), "FAILED_PRECONDITION", "hello.protocol: 2"),
        (hello(node=""), "INVALID_ARGUMENT", "hello.node"),
        (hello(node="a" * 129), "INVALID_ARGUMENT", "hello.node"),
        (hello(node="a/b"), "INVALID_ARGUMENT", "hello.node"),
        (hello(node="n1\n"), "INVALID_ARGUMENT", "hello.node"),
        (hello(spool_id=""), "INVALID_ARGUMENT", "hello.spool_id"),
        (hello(first_seq=0), "INVALID_ARGUMENT", "hello.first_seq"),
        (hello(first_seq=1 << 63), "INVALID_ARGUMENT", "hello.first_seq"),
        (hello(machine_id="'; --"), "INVALID_ARGUMENT", "hello.machine_id"),
        (hello(labels={str(i): "" for i in range(65)}), "INVALID_ARGUMENT", "hello.labels"),
        (hello(labels={"rack": "x" * 257}), "INVALID_ARGUMENT", "hello.labels"),
        (hello(labels={str(i): "x" * 250 for i in range(17)}), "INVALID_ARGUMENT", "hello.labels"),
    ],
)
def test_a_wrong_beginning_ends_the_stream(tmp_path: Path, message: pb.AgentMessage, code: str, detail: str) -> None:
    with collecting(tmp_path) as (_, telemetry, _query):
        found, said = Sending(telemetry, message).fails()
        assert (found.name, detail in said, "\n" in said) == (code, True, False)
        assert publish(telemetry, S, window(1, S))[1].ack.seq == 1


def test_a_second_hello_ends_the_stream(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, _query):
        assert Sending(telemetry, hello(), hello()).fails() == (grpc.StatusCode.INVALID_ARGUMENT, "hello: came twice")


def test_another_host_of_the_same_name_is_kept_out_and_the_same_host_replaces_itself(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, _query):
        first = Sending(telemetry, hello())
        first.next()
        code, detail = Sending(telemetry, hello(machine_id="other")).fails()
        assert (code, "set agent.node" in detail) == (grpc.StatusCode.ALREADY_EXISTS, True)
        again = Sending(telemetry, hello(), S, window(1, S))
        again.next()
        assert first.fails()[0] == grpc.StatusCode.ABORTED
        assert again.next().ack.seq == 1


def test_hosts_without_a_machine_id(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        first = Sending(telemetry, hello(machine_id=""))
        first.next()
        again = Sending(telemetry, hello(machine_id=""), S, window(1, S))
        assert first.fails()[0] == grpc.StatusCode.ABORTED
        assert [answer.ack.seq for answer in again.finish()] == [0, 1]
        assert ask(query, "SELECT machine_id FROM nodes") == [[""]]


def test_no_more_agents_than_the_settings_allow(tmp_path: Path) -> None:
    with collecting(tmp_path, agents_max=1) as (_, telemetry, _query):
        first = Sending(telemetry, hello("n1"))
        first.next()
        assert Sending(telemetry, hello("n2")).fails()[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        first.finish()
        assert publish(telemetry, S, window(1, S))[1].ack.seq == 1


def test_a_node_whose_clock_is_an_hour_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now, boottime = CLOCK.unix_ns(), CLOCK.boottime_ns()
    seen = event(unix_ns=now + HOUR_NS - 4 * 10**9)
    late = window(1, S, start_unix_ns=now + HOUR_NS - 5 * 10**9, start_boottime_ns=boottime - 5 * 10**9, events=[seen])
    with collecting(tmp_path) as (_, telemetry, query):
        answers = Sending(telemetry, hello(unix_ns=now + HOUR_NS, boottime_ns=boottime), S, late).finish()
        assert answers[0].welcome.clock_error_seconds == pytest.approx(3600, abs=60)
        assert answers[1].ack.seq == 1
        [[start, happened]] = ask(query, "SELECT epoch_us(start), epoch_us(occurred) FROM windows, events")
        assert start == pytest.approx(now / 1000 - 5e6, abs=60e6)
        assert happened - start == pytest.approx(1e6, abs=2)
        [node] = query.Nodes(q.NodesRequest()).nodes
        assert node.clock_error_seconds == pytest.approx(3600, abs=60)
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "clock" in r.getMessage()]
    assert "n1" in warning
    assert "timedatectl" in warning


def test_windows_of_an_earlier_boot_keep_their_own_stamps(tmp_path: Path) -> None:
    now, boottime = CLOCK.unix_ns(), CLOCK.boottime_ns()
    old = window(1, S, start_unix_ns=now - HOUR_NS, start_boottime_ns=boottime + 1000 * HOUR_NS)
    with collecting(tmp_path) as (_, telemetry, query):
        Sending(telemetry, hello(unix_ns=now - 10 * HOUR_NS, boottime_ns=boottime), S, old).finish()
        assert ask(query, "SELECT epoch_us(start) FROM windows") == [[(now - HOUR_NS) // 1000]]


@pytest.mark.parametrize("step", [300, -3600, -1.0], ids=["ahead", "back", "within what is left alone"])
def test_a_clock_that_steps_after_hello(tmp_path: Path, step: float) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        # The node has been up for longer than the step: what it says from before its boot is of another boot.
        uptime = HOUR_NS * 1000
        greeting = hello(boottime_ns=CLOCK.boottime_ns() + uptime)
        sent = []
        for seq, age in ((1, 60), (2, 5)):
            times = begun(-age, step)
            sent.append(window(seq, S, **{**times, "start_boottime_ns": times["start_boottime_ns"] + uptime}))
        answers = Sending(telemetry, greeting, S, *sent).finish()
        assert [answer.ack.seq for answer in answers[1:]] == [1, 2]
        ages = ask(query, "SELECT epoch(received - start) FROM windows ORDER BY seq")
        assert [age for [age] in ages] == pytest.approx([60, 5] if abs(step) > 2 else [60 - step, 5 - step], abs=0.9)


def test_a_clock_that_steps_back_beyond_the_boot(tmp_path: Path) -> None:
    uptime = 60 * 10**9
    live = window(1, S, start_unix_ns=CLOCK.unix_ns() - HOUR_NS, start_boottime_ns=uptime)
    with collecting(tmp_path) as (_, telemetry, query):
        Sending(telemetry, hello(boottime_ns=uptime), S, live).finish()
        [[age]] = ask(query, "SELECT epoch(received - start) FROM windows")
        assert age == pytest.approx(0, abs=30)


def test_the_last_windows_before_a_reboot_keep_their_own_stamps(tmp_path: Path) -> None:
    now = CLOCK.unix_ns()
    # Up for a minute; the window before it was stamped at half a minute of the earlier boot.
    old = window(1, S, start_unix_ns=now - 100 * 10**9, start_boottime_ns=30 * 10**9)
    with collecting(tmp_path) as (_, telemetry, query):
        Sending(telemetry, hello(unix_ns=now, boottime_ns=60 * 10**9), S, old).finish()
        assert ask(query, "SELECT epoch_us(start) FROM windows") == [[(now - 100 * 10**9) // 1000]]


def test_garbage_and_a_message_of_100_mb_harm_nobody(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, telemetry, _query):
        healthy = Sending(telemetry, hello("n2"))
        healthy.next()
        with socket.create_connection(("127.0.0.1", collector.port)) as raw:
            raw.sendall(bytes(range(256)) * 4096)
        with channel(collector.port) as link:
            from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub

            huge = pb.AgentMessage(window=pb.Window(seq=1, values=[b"x" * 100_000_000]))
            assert Sending(TelemetryStub(link), hello(), huge).fails()[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        own = schema({"instance": (["queue_depth"], ["n2/8080"])})
        healthy.send(own, window(1, own))
        assert healthy.next().ack.seq == 1


def test_the_queue_counts_at_least_what_a_transaction_takes() -> None:
    wide = schema({"instance": ([f"s{i}" for i in range(COLUMNS_MAX)], ["n1/8080"])})
    bare = schema({"instance": ([], [f"n1/{i}" for i in range(SUBJECTS_MAX)])})
    registry = Registry([])
    stream = Stream(hello().hello, Timeline(CLOCK.unix_ns(), CLOCK.unix_ns(), CLOCK.boottime_ns()), registry, Nowhere())
    stream.learn(wide)
    stream.learn(bare)
    several = [stream.check(window(i, of).window, CLOCK.unix_ns()) for i, of in enumerate((wide, bare), start=1)]
    layouts = [
        Layout(of.hash, tuple(TableLayout("instance", tuple(s.name for s in t.series), np.arange(len(t.subjects))) for t in of.tables))
        for of in (wide, bare)
    ]  # fmt: skip
    [block] = lay_out(several, layouts, registry).blocks
    taken = sum(column.nbytes for column in block.columns.values())
    assert len(block.columns) == 2 + COLUMNS_MAX
    assert sum(stream.subjects(w.message) * ROW_BYTES_MAX for w in several) >= taken


class Nowhere:
    """A source that nobody listens to."""

    def answer(self, answers: Any) -> None:
        raise AssertionError

    def room(self) -> None:
        raise AssertionError


def test_a_failing_analysis_does_not_stop_the_windows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recording):
        def observe(self, windows: Any) -> None:
            raise KeyError("oops")

    with collecting(tmp_path, analysis=Broken()) as (_, telemetry, query):
        assert [a.ack.seq for a in publish(telemetry, S, window(1, S))[1:]] == [1]
        assert publish(telemetry, S, window(2, S))[1].ack.seq == 2
        assert ask(query, "SELECT count(*) FROM windows") == [[2]]
    assert "the analysis failed 1 times" in caplog.text


def test_the_analysis_sees_each_stored_window_once_and_in_order(tmp_path: Path) -> None:
    seen = Recording()
    with collecting(tmp_path, analysis=seen) as (_, telemetry, _query):
        publish(telemetry, S, *(window(i, S) for i in range(1, 50)))
        publish(telemetry, S, *(window(i, S) for i in range(40, 60)))
    assert [w.seq for w in seen.windows] == list(range(1, 60))
