"""A real HAProxy before small HTTP backends, and a collector that says what the test wants."""

from __future__ import annotations

import http.client
import itertools
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from trimtab import TrimtabError
from trimtab.actuator.targets import runtime
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.query_pb2_grpc import QueryServicer, add_QueryServicer_to_server

NODE = "here"
NAN = float("nan")


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def instance(name: str, **known: Any) -> pb.InstanceState:
    """A healthy, fresh instance but for what is given."""
    values = {"age_seconds": 0.5, "requests_per_second": 50.0, "latency_mean_seconds": 0.02, "error_ratio": 0.0}
    values |= {"confidence": NAN, "score": 0.0, "model": "m", "node": name.partition("/")[0]} | known
    return pb.InstanceState(id=name, **values)


class _Server(ThreadingHTTPServer):
    healthy = True
    hold = threading.Event()
    """What is asked of /held is answered once it is set."""
    held = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A balancer that is killed resets its connections."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: none waits for a delayed acknowledgement
    server: _Server

    def do_GET(self) -> None:
        name = str(self.server.server_port).encode()
        if self.path == "/held":
            self.server.held += 1
            self.server.hold.wait(20)
        self.send_response(200 if self.path != "/ping" or self.server.healthy else 500)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name)

    def log_message(self, *args: object) -> None:
        pass


class Backends:
    """Small HTTP servers that answer with their ports; each /ping says whether it is healthy."""

    def __init__(self, count: int) -> None:
        self.servers = sorted((_Server(("127.0.0.1", 0), _Answer) for _ in range(count)), key=lambda s: s.server_port)
        self.ports = [s.server_port for s in self.servers]
        for server in self.servers:
            server.hold = threading.Event()
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.hold.set()
            server.shutdown()
            server.server_close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def requests(port: int, count: int, threads: int = 4, path: str = "/") -> Counter[str]:
    """Send that many; how many were answered with what."""

    def send(_: int) -> list[str]:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=9)
        out = []
        for _ in range(count // threads):
            line.request("GET", path)
            answer = line.getresponse()
            body = answer.read().decode()
            out.append(body if answer.status == 200 else str(answer.status))
        line.close()
        return out

    with ThreadPoolExecutor(threads) as pool:
        return Counter(itertools.chain.from_iterable(pool.map(send, range(threads))))


class Balancer:
    """HAProxy with backend `be` over three servers, and `other` over one that is nobody's instance."""

    def __init__(
        self, directory: Path, balance: str, initial: tuple[int, ...], level: str = "admin", extra: str = ""
    ) -> None:
        """`extra`: more words of each server line, in which "{port}" is the server's."""
        self.socket = str(directory / "admin.sock")
        self._backends = Backends(len(initial) + 1)
        *self.ports, other = self._backends.ports
        self.port = free_port()
        lines = [
            f"  server s{k} 127.0.0.1:{p} weight {w} {extra.format(port=p)}"
            for k, (p, w) in enumerate(zip(self.ports, initial, strict=True))
        ]
        self._file = directory / "haproxy.cfg"
        self._file.write_text(
            f"global\n  stats socket {self.socket} mode 600 level {level}\n"
            "defaults\n  mode http\n  timeout connect 2s\n  timeout client 9s\n  timeout server 9s\n"
            f"frontend f\n  bind 127.0.0.1:{self.port}\n  default_backend be\n"
            f"backend be\n  balance {balance}\n" + "\n".join(lines) + "\n"
            f"backend other\n  server s0 127.0.0.1:{other} weight 7\n"
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", str(self._file)], stderr=subprocess.DEVNULL)
        until(self.weights, 5, "HAProxy answers")

    def stop(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.stop()
        self._backends.close()

    def weights(self, backend: str = "be") -> list[int]:
        """As HAProxy reports them; [] when it does not answer."""
        try:
            return [s.weight for s in runtime.servers(self.socket)[0] if s.backend == backend]
        except TrimtabError:
            return []

    def maxconns(self) -> list[int]:
        """As HAProxy reports them."""
        return [s.maxconn for s in runtime.servers(self.socket)[0] if s.backend == "be"]

    def queued(self) -> int:
        """Requests that wait in it."""
        rows = runtime.ask(self.socket, "show stat").splitlines()
        place = rows[0].split(",").index("qcur")
        return sum(int(r.split(",")[place] or 0) for r in rows if r.startswith("be,"))

    def held(self) -> list[int]:
        """Requests to /held that each server has got."""
        return [s.held for s in self._backends.servers if s.server_port in self.ports]

    def release(self) -> None:
        """Answer them."""
        for server in self._backends.servers:
            server.hold.set()

    def set(self, server: str, weight: str) -> None:
        runtime.ask(self.socket, f"set weight {server} {weight}")

    def requests(self, count: int, threads: int = 4) -> list[float]:
        """Send that many; the share of each server."""
        answers = requests(self.port, count, threads)
        return [answers[str(port)] / answers.total() for port in self.ports]


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Callable[..., Balancer]]:
    """Makes a balancer: `balancer("roundrobin", (1, 1, 1))`."""
    if not shutil.which("haproxy", path="/usr/sbin:/usr/bin"):
        pytest.skip("haproxy is not installed")
    made: list[Balancer] = []

    def make(balance: str, initial: tuple[int, ...] = (1, 1, 1), level: str = "admin", extra: str = "") -> Balancer:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Balancer(directory, balance, initial, level, extra))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Collector(QueryServicer):
    """Says `instances` five times a second ; keeps the decisions."""

    def __init__(self) -> None:
        self.instances: list[pb.InstanceState] = []
        self.unix_ns = 0
        """Not 0: it hangs, and repeats this word."""
        self.overrides: list[pb.Override] = []
        self.decisions: list[pb.Decision] = []
        self.now_unix_ns = 0
        self.hang_seconds = 0.0
        """How long questions wait for their answer."""
        self.refuses = False
        """Whether decisions are refused."""
        self._server = grpc.server(ThreadPoolExecutor(8))
        add_QueryServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def WatchFleet(  # noqa: N802 - gRPC's name
        self, request: pb.WatchFleetRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.FleetState]:
        while context.is_active():
            now = self.unix_ns or time.time_ns()
            yield pb.FleetState(unix_ns=now, instances=self.instances, overrides=self.overrides)
            time.sleep(0.2)

    def RecordDecision(  # noqa: N802
        self, request: pb.Decision, context: grpc.ServicerContext
    ) -> pb.RecordDecisionReply:
        if self.refuses:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
        self.decisions.append(request)
        return pb.RecordDecisionReply()

    def Decisions(self, request: pb.DecisionsRequest, context: grpc.ServicerContext) -> pb.DecisionsReply:  # noqa: N802
        time.sleep(self.hang_seconds)
        newest = self.decisions[::-1][: request.limit]
        return pb.DecisionsReply(decisions=newest, now_unix_ns=self.now_unix_ns, overrides=self.overrides)

    def Nodes(self, request: pb.NodesRequest, context: grpc.ServicerContext) -> pb.NodesReply:  # noqa: N802
        time.sleep(self.hang_seconds)
        return pb.NodesReply()

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()
