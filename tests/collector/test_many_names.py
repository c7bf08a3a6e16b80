"""A million names: what is kept of them is bounded, what is beyond is refused, and a good agent goes on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.collector.real_collector import GoodAgent, Served, serving
from tests.collector.sender import KINDS, Sending, hello, publish, schema, window
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import SUBJECTS_MAX, schema_hash
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub

NAMES = 1_000_000
NODES = 1000
RSS_BYTES_MAX = 400 << 20
"""More than what it had before. A collector at rest has 250 to 300 MiB, most of it programs."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def refusals(answers: list[pb.CollectorMessage]) -> set[str]:
    return {answer.refusal.reason for answer in answers if answer.HasField("refusal")}


def named(subjects: list[str], labels: dict[str, str]) -> pb.Schema:
    """A schema of instances with these labels, and one series."""
    made = schema({"instance": (["queue_depth"], subjects)})
    for subject in made.tables[0].subjects:
        subject.labels.update(labels)
    made.hash = schema_hash(made)
    return made


def in_turn(stub: TelemetryStub, node: str, schemas: Iterator[pb.Schema]) -> list[pb.CollectorMessage]:
    """One window of each schema, each sent once the one before is answered."""
    stream = Sending(stub, hello(node), timeout=600)
    answers = [stream.next()]
    for seq, of in enumerate(schemas, start=1):
        stream.send(of, window(seq, of))
        answers.append(stream.next())
    return [*answers, *stream.finish()]


def test_subjects_of_one_node(served: Served) -> None:
    before = served.rss_bytes
    schemas = (
        schema({"instance": (["queue_depth"], [f"one/{i}" for i in range(first, first + SUBJECTS_MAX)])})
        for first in range(0, NAMES, SUBJECTS_MAX)
    )
    with GoodAgent(served) as good, served.telemetry() as stub:
        answers = in_turn(stub, "one", schemas)
        good.goes_on()
        assert served.rss_bytes - before < RSS_BYTES_MAX
    [reason] = refusals(answers)
    assert "subjects" in reason
    assert 0 < sum(answer.HasField("ack") for answer in answers) < 10


def test_labels_of_one_node(served: Served) -> None:
    """The same few subjects, and other labels each time: only the newest are kept."""
    before = served.rss_bytes
    subjects = [f"one/{i}" for i in range(1000)]
    schemas = (named(subjects, {f"label{j}": f"{i}.{j}" for j in range(50)}) for i in range(NAMES // 50_000))
    with GoodAgent(served) as good, served.telemetry() as stub:
        answers = in_turn(stub, "one", schemas)
        good.goes_on()
        assert served.rss_bytes - before < RSS_BYTES_MAX
    assert not refusals(answers)


def test_series(served: Served) -> None:
    before = served.rss_bytes
    with GoodAgent(served) as good, served.telemetry() as stub:
        schemas = (
            schema({"instance": ([f"s{i}" for i in range(first, first + 500)], ["one/8080"])})
            for first in range(0, NAMES // 50, 500)
        )
        answers = in_turn(stub, "one", schemas)
        good.goes_on()
        assert served.rss_bytes - before < RSS_BYTES_MAX
        # What was known before is stored as before; so is a series of another kind.
        gpu = schema({"gpu": (["utilisation_ratio", "fresh"], ["two/gpu/0"]), "instance": (["s0"], ["two/8080"])})
        assert publish(stub, gpu, window(1, gpu), node="two")[1].ack.seq == 1
    [reason] = {text.partition(": ")[2] for text in refusals(answers)}
    assert reason == "there are already 512 columns"


def test_nodes(served: Served) -> None:
    """Each with one subject: as many as there can be of one certificate, one after the other."""
    before, refused = served.rss_bytes, ""
    bare = schema({"node": ([], [])})
    with GoodAgent(served) as good, served.telemetry() as stub:
        with ThreadPoolExecutor(32) as pool:
            sent = [pool.submit(publish, stub, bare, window(1, bare), node=f"m{number}") for number in range(NODES)]
            assert all(future.result()[1].ack.seq == 1 for future in sent)
        good.goes_on()
        assert served.rss_bytes - before < RSS_BYTES_MAX
        held = [Sending(stub, hello(f"held{number}"), timeout=600) for number in range(64)]
        for stream in held:
            try:
                stream.next()
            except grpc.RpcError as error:
                refused = error.details() or ""
        assert "collector.agents_max" in refused
        good.goes_on()
        for stream in held:
            stream.answers.cancel()


def test_events_name_no_more_subjects_than_schemas_may(served: Served) -> None:
    """An event may tell of a subject that no schema names."""
    before = served.rss_bytes
    of = schema({"node": (["cpu_busy_cores"], ["one"])})

    def told(seq: int) -> pb.AgentMessage:
        events = [
            pb.Event(subject_kind=KINDS["instance"], subject=f"one/{seq}.{i}", name="made", unix_ns=1)
            for i in range(1000)
        ]
        return window(seq, of, events=events)

    with GoodAgent(served) as good, served.telemetry() as stub:
        answers = publish(stub, of, *map(told, range(1, 101)), node="one")
        good.goes_on()
        assert served.rss_bytes - before < RSS_BYTES_MAX
    assert [answer.ack.seq for answer in answers[1:]] == list(range(1, 101))
