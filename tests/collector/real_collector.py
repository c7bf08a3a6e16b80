"""A collector as a process of its own, and a good agent whose windows tell whether somebody else disturbs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from tests.collector.sender import Sending, channel, hello, schema, window
from tests.e2e.processes import free_ports
from tests.e2e.services import Installation
from trimtab.agent.wire.query_pb2_grpc import QueryStub
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub

SECONDS_MAX = 60.0
_CONFIG = """\
[collector]
listen = "127.0.0.1:{port}"
metrics_listen = ""
memory_bytes_max = 134217728
agents_max = {agents_max}
"""


def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS_MAX) -> None:
    """Wait for a condition; fails, saying `what`, when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Served:
    """A running collector."""

    port: int
    process: psutil.Process
    log_file: Path
    database: Path
    installed: Installation

    @property
    def rss_bytes(self) -> int:
        """What it has in memory, without its analysis, which is a process of its own."""
        return int(self.process.memory_info().rss)

    @property
    def log(self) -> list[str]:
        return self.log_file.read_text(errors="replace").splitlines()

    @contextmanager
    def telemetry(self) -> Iterator[TelemetryStub]:
        with channel(self.port) as link:
            yield TelemetryStub(link)  # type: ignore[no-untyped-call] # generated

    @contextmanager
    def query(self) -> Iterator[QueryStub]:
        with channel(self.port) as link:
            yield QueryStub(link)  # type: ignore[no-untyped-call] # generated


@contextmanager
def serving(directory: Path, agents_max: int = 64, state: Path | None = None, more: str = "") -> Iterator[Served]:
    """A collector that is ready; ended politely. Its state is below `directory`, or in `state`; `more` settings."""
    port = free_ports(1)
    config = directory / "trimtab.toml"
    config.write_text(_CONFIG.format(port=port, agents_max=agents_max) + more)
    state = state or directory / "state"
    state.mkdir(exist_ok=True)
    installed = Installation(config, state, f"127.0.0.1:{port}")
    with installed.run("collector", ready_seconds=SECONDS_MAX) as process:
        database = state / "collector" / "trimtab.duckdb"
        yield Served(port, psutil.Process(process.pid), state / "collector.log", database, installed)


class GoodAgent:
    """Sends one window after the other, each once the last is acknowledged, until it is stopped. `fault` says what disturbed it."""

    def __init__(self, served: Served, node: str = "good", spool: str = "spool") -> None:
        self.acknowledged = 0
        self.fault = ""
        self._served, self._node, self._spool = served, node, spool
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> GoodAgent:
        self._thread.start()
        self.goes_on(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(SECONDS_MAX)

    def goes_on(self, windows: int = 10) -> None:
        """Wait until that many more are stored."""
        wanted = self.acknowledged + windows
        until(lambda: bool(self.fault) or self.acknowledged >= wanted, f"{self._node} is held up by others")
        assert not self.fault

    def _run(self) -> None:
        of = schema({"node": (["cpu_busy_cores"], [self._node])})
        try:
            with self._served.telemetry() as stub:
                stream = Sending(stub, hello(self._node, spool_id=self._spool), of, timeout=600)
                stream.next()
                while not self._stop.is_set():
                    stream.send(window(self.acknowledged + 1, of))
                    answer = stream.next()
                    if answer.ack.seq != self.acknowledged + 1:
                        self.fault = f"answered {answer}"
                        return
                    self.acknowledged += 1
                with suppress(grpc.RpcError):
                    stream.finish()
        except grpc.RpcError as error:
            self.fault = f"{error.code()}: {error.details()}"
