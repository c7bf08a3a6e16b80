"""What the collector's tests send with: schemas, windows, a stream, and a collector on a port of its own."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from trimtab.agent.clock import SystemClock
from trimtab.agent.settings import Tls
from trimtab.agent.sketch import loglinear
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import pack_sketches, pack_values, schema_hash
from trimtab.agent.wire.query_pb2_grpc import QueryStub
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub
from trimtab.collector.server import Collector
from trimtab.collector.settings import CollectorSettings

SETTINGS = CollectorSettings(listen="127.0.0.1:0", memory_bytes_max=128 << 20, agents_max=8, metrics_listen="")
CLOCK = SystemClock()
BOOT_SECOND_NS = 1_000_000_000
KINDS = {"node": pb.SUBJECT_KIND_NODE, "gpu": pb.SUBJECT_KIND_GPU, "instance": pb.SUBJECT_KIND_INSTANCE}


class Recording:
    """An Analysis that keeps what it was told."""

    def __init__(self) -> None:
        self.windows: list[Any] = []
        self.journal: Any = None
        self.changed: Any = None
        self.ticks = 0
        self.accepted: list[str] = []

    def start(self, journal: Any, changed: Any) -> None:
        self.journal, self.changed = journal, changed

    def observe(self, windows: Sequence[Any]) -> None:
        self.windows += windows

    def accept(self, incident: str) -> None:
        self.accepted.append(incident)

    def tick(self, now_unix_ns: int) -> q.FleetState:
        self.ticks += 1
        return q.FleetState(
            unix_ns=now_unix_ns, instances=[q.InstanceState(id="n1/8080", node="n1", score=float("nan"))]
        )


@contextmanager
def collecting(state: Path, **changes: Any) -> Iterator[tuple[Collector, TelemetryStub, QueryStub]]:
    """A running collector, and stubs of both its services."""
    analysis = changes.pop("analysis", None) or Recording()
    clock, views = changes.pop("clock", CLOCK), changes.pop("views", lambda *_: {})
    fields = {name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__}
    collector = Collector(CollectorSettings(**{**fields, **changes}), Tls(), state, clock, analysis, views)
    collector.start()
    try:
        with channel(collector.port) as publishing, channel(collector.port) as asking:
            yield collector, TelemetryStub(publishing), QueryStub(asking)
    finally:
        collector.stop()


def channel(port: int) -> grpc.Channel:
    return grpc.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    )


def hello(node: str = "n1", **changes: Any) -> pb.AgentMessage:
    fields = {
        "protocol": 1,
        "node": node,
        "machine_id": f"machine-{node}",
        "boot_id": "boot",
        "spool_id": "spool",
        "agent_version": "0",
        "unix_ns": CLOCK.unix_ns(),
        "boottime_ns": CLOCK.boottime_ns(),
        "first_seq": 1,
    }
    return pb.AgentMessage(hello=pb.Hello(**{**fields, **changes}))


def schema(
    tables: dict[str, tuple[Sequence[str], Sequence[str]]] | None = None, unit: str = "1", rate: bool = False
) -> pb.Schema:
    """Kind to (series, subjects)."""
    kind = pb.SERIES_KIND_RATE if rate else pb.SERIES_KIND_GAUGE
    built = pb.Schema(
        tables=[
            pb.Table(
                kind=KINDS[name],
                series=[pb.Series(name=series, unit=unit, kind=kind) for series in names],
                subjects=[pb.Subject(id=subject, labels={"model": "m"}) for subject in subjects],
            )
            for name, (names, subjects) in (tables or {"instance": (["queue_depth"], ["n1/8080"])}).items()
        ]
    )
    built.hash = schema_hash(built)
    return built


def window(seq: int, of: pb.Schema, values: Sequence[Any] | None = None, **changes: Any) -> pb.AgentMessage:
    """`values`: one array [series, subjects] a table; ones when left out."""
    if values is None:
        values = [np.ones((len(t.series), len(t.subjects))) for t in of.tables]
    fields = {
        "seq": seq,
        "schema_hash": of.hash,
        "start_unix_ns": CLOCK.unix_ns() - BOOT_SECOND_NS,
        "start_boottime_ns": CLOCK.boottime_ns() - BOOT_SECOND_NS,
        "duration_ns": BOOT_SECOND_NS,
        "values": [pack_values(np.asarray(block, dtype=np.float64)) for block in values],
    }
    return pb.AgentMessage(window=pb.Window(**{**fields, **changes}))


def latency(
    seconds: Sequence[float], subject: int = 0, name: str = "request_latency", unit: str = "s", **more: Any
) -> Any:
    sketch = loglinear.of_seconds(np.asarray(seconds, dtype=np.float64), **more)
    return pack_sketches(0, name, unit, [subject], [sketch])


class Sending:
    """One open stream."""

    def __init__(self, stub: TelemetryStub, *messages: pb.AgentMessage | pb.Schema, timeout: float = 60) -> None:
        self._queue: queue.SimpleQueue[pb.AgentMessage | None] = queue.SimpleQueue()
        self.send(*messages)
        self.answers = stub.Publish(iter(self._queue.get, None), timeout=timeout)

    def send(self, *messages: pb.AgentMessage | pb.Schema) -> None:
        for message in messages:
            self._queue.put(pb.AgentMessage(schema=message) if isinstance(message, pb.Schema) else message)

    def next(self) -> pb.CollectorMessage:
        return next(self.answers)

    def finish(self) -> list[pb.CollectorMessage]:
        """Say that this is all, and wait for the remaining answers."""
        self._queue.put(None)
        return list(self.answers)

    def fails(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ends, when it ends badly."""
        try:
            list(self.answers)
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError("the stream ended well")


def publish(stub: TelemetryStub, *messages: pb.AgentMessage | pb.Schema, node: str = "n1") -> list[pb.CollectorMessage]:
    """Hello, these messages, and the answers."""
    return Sending(stub, hello(node), *messages).finish()


def ask(stub: QueryStub, sql: str) -> list[list[Any]]:
    import json

    return [json.loads(row) for chunk in stub.Sql(q.SqlRequest(sql=sql), timeout=30) for row in chunk.rows]
