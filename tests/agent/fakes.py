"""Collectors that do as they are told, and a collector service that can be killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import schema_hash
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryServicer, add_TelemetryServicer_to_server

NODE = "n1"
INSTANCE = Instance(f"{NODE}/8080", "torchserve", 123, 1.0, 8080, 7, ("127.0.0.1:8080",), ("bert",))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition; fails when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


class Fake:
    """A collector with one signal of the node; `on_read` and `on_open` may do anything."""

    def __init__(
        self,
        name: str = "fake",
        on_read: Callable[[Reading], object] | None = None,
        on_open: Callable[[], object] | None = None,
        signals: tuple[Signal, ...] | None = None,
    ) -> None:
        self.name = name
        self.signals = signals or (Signal(f"{name}_value", "1", "help", "node"),)
        self.on_read = on_read or (lambda reading: reading.set("node", NODE, f"{name}_value", 1.0))
        self.on_open = on_open or (lambda: None)
        self.seconds: list[float] = []
        self.opened = self.closed = 0

    def open(self, host: Host) -> None:
        self.opened += 1
        self.on_open()

    def read(self, reading: Reading) -> None:
        self.seconds.append(reading.seconds)
        self.on_read(reading)

    def close(self) -> None:
        self.closed += 1


def schema_of(text: str = "a") -> pb.Schema:
    table = pb.Table(kind=pb.SUBJECT_KIND_NODE, subjects=[pb.Subject(id=text)])
    schema = pb.Schema(tables=[table])
    schema.hash = schema_hash(schema)
    return schema


def window_of(schema: pb.Schema, padding: int = 0) -> pb.Window:
    return pb.Window(schema_hash=schema.hash, values=[b"\0" * padding])


class Service(TelemetryServicer):  # type: ignore[misc] # generated
    """Keeps what it gets in `stored`, as the collector does: the mark and the rows together. `stop` is a kill."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, int], pb.Window] = {}
        self.arrived: list[int] = []
        self.hellos: list[pb.Hello] = []
        self.schemas: set[bytes] = set()
        self.refuse: set[int] = set()
        self.reject: tuple[grpc.StatusCode, str] | None = None
        self.mute = False
        self.unacked = 0
        """How many windows are stored but never acknowledged, before it acknowledges again."""
        self.outstanding_max = 0
        self.hold = threading.Event()
        self.hold.set()
        self.port = 0
        self._server: grpc.Server | None = None

    def start(self) -> int:
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        add_TelemetryServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        return self.port

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop(None).wait()

    def mark(self, spool: str) -> int:
        return max((seq for other, seq in self.stored if other == spool), default=0)

    def Publish(  # noqa: N802
        self, requests: Iterable[pb.AgentMessage], context: grpc.ServicerContext
    ) -> Iterator[pb.CollectorMessage]:
        stream = iter(requests)
        hello = next(stream).hello
        self.hellos.append(hello)
        if self.reject:
            context.abort(*self.reject)
        while self.mute and context.is_active():
            time.sleep(0.01)
        yield pb.CollectorMessage(welcome=pb.Welcome(high_water_mark=self.mark(hello.spool_id)))
        schemas: set[bytes] = set()
        for message in stream:
            if message.HasField("schema"):
                schemas.add(message.schema.hash)
                continue
            window = message.window
            self.arrived.append(window.seq)
            self.hold.wait(20)
            assert window.schema_hash in schemas
            if window.seq in self.refuse:
                yield pb.CollectorMessage(refusal=pb.Refusal(seq=window.seq, reason="because"))
                continue
            self.stored[hello.spool_id, window.seq] = window
            if self.unacked:
                self.unacked -= 1
            else:
                yield pb.CollectorMessage(ack=pb.Ack(seq=window.seq))
