"""TorchServe: real servers found, read, hurt and stopped; and made-up ones that misbehave."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from trimtab.agent.clock import ManualClock, SystemClock
from trimtab.agent.collectors import serving
from trimtab.agent.instances import Discovery
from trimtab.agent.registry import Host, Instance, Reading
from trimtab.agent.runtimes import torchserve_settings
from trimtab.agent.runtimes.base import NoAnswer, ProcessInfo, Vitals, Worker
from trimtab.agent.runtimes.endpoint import ANSWER_BYTES_MAX, Endpoint, Refused
from trimtab.agent.runtimes.torchserve import MAIN, TorchServe

BIN = Path(sys.executable).parent
NODE = "n"
# Cannot load while the file $BROKEN is there; fails when it is asked to.
HANDLER = """
import os
import torch

class Handler:
    def initialize(self, context):
        if os.path.exists(os.environ["BROKEN"]):
            os._exit(3)
        self.initialized = True

    def handle(self, data, context):
        text = bytes(data[0].get("body") or data[0].get("data") or b"")
        if text == b"fail":
            raise ValueError("asked to")
        return [torch.ones(2).sum().item() for _ in data]
"""


@dataclass
class Server:
    """A running TorchServe."""

    pid: int
    folder: Path
    inference: int
    management: int

    @property
    def broken(self) -> Path:
        return self.folder / "broken"

    def tokens(self) -> dict[str, str]:
        keys = json.loads((self.folder / "key_file.json").read_text())
        return {role: value["key"] for role, value in keys.items()}

    def ask(self, port: int, path: str, body: bytes | None = None, method: str | None = None) -> bytes:
        headers = {"Content-Type": "application/octet-stream"}
        url = f"http://127.0.0.1:{port}{path}"
        request = urllib.request.Request(url, data=body, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def predict(self, body: bytes = b"x") -> None:
        self.ask(self.inference, "/predictions/tiny", body)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def start(folder: Path, store: Path, workers: int, *flags: str) -> Server:
    ports = free_ports(5)
    names = ("inference_address", "management_address", "metrics_address")
    addresses = "".join(f"{name}=http://127.0.0.1:{port}\n" for name, port in zip(names, ports, strict=False))
    (folder / "server.properties").write_text(
        addresses
        + f"grpc_inference_port={ports[3]}\ngrpc_management_port={ports[4]}\n"
        + f"load_models=tiny.mar\ndefault_workers_per_model={workers}\n"
        + "metrics_mode=prometheus\ndisable_system_metrics=true\nnumber_of_netty_threads=1\nnetty_client_threads=1\n"
        + "vmargs=-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1\n"
    )
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "TEMP": str(folder),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "metrics"),
        "OMP_NUM_THREADS": "1",
        "BROKEN": str(folder / "broken"),
    }
    env.pop("TMPDIR", None)
    command = [BIN / "torchserve", "--start", "--ncs", "--ts-config", "server.properties", "--model-store", store]
    with (folder / "out.log").open("w") as out:
        subprocess.run([*command, *flags], cwd=folder, env=env, stdout=out, stderr=out, check=True)
    return Server(int((folder / ".model_server.pid").read_text()), folder, ports[0], ports[1])


@contextmanager
def running(tmp: Path, workers: int, *flags: str) -> Iterator[Server]:
    if not (BIN / "torchserve").exists() or not shutil.which("java"):
        pytest.skip("needs TorchServe and Java")
    (tmp / "handler.py").write_text(HANDLER)
    archiver = [BIN / "torch-model-archiver", "--model-name", "tiny", "--version", "1.0", "--handler", "handler.py"]
    subprocess.run([*archiver, "--export-path", tmp, "-f"], cwd=tmp, check=True, capture_output=True)
    server = start(tmp, tmp, workers, *flags)
    try:
        yield server
    finally:
        parent = psutil.Process(server.pid)
        everything = [*parent.children(recursive=True), parent]
        for process in everything:
            process.kill()
        psutil.wait_procs(everything, timeout=10)


@pytest.fixture(scope="session")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers, and no token asked for."""
    with running(tmp_path_factory.mktemp("open"), 2, "--disable-token-auth", "--enable-model-api") as server:
        yield server


@pytest.fixture(scope="session")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, and tokens."""
    with running(tmp_path_factory.mktemp("guarded"), 1) as server:
        yield server


class Watch:
    """Discovery and the serving collector, read by hand."""

    def __init__(self, server: Server) -> None:
        self.clock = SystemClock()
        self._server = server
        self._discovery = Discovery(NODE)
        self._collector = serving.COLLECTOR()
        self._collector.open(Host(NODE, self.clock))
        self._before = math.nan
        self.subject = f"{NODE}/{server.inference}"
        self.events: list[str] = []

    def __enter__(self) -> Watch:
        self.until(lambda: self.value("workers_ready") == self.value("workers_total"))
        return self

    def __exit__(self, *_: object) -> None:
        self._collector.close()

    @property
    def instance(self) -> Instance | None:
        found = self._discovery.find(self.clock.monotonic())
        return next((i for i in found if i.pid == self._server.pid), None)

    def read(self) -> Reading:
        instance = self.instance
        now = self.clock.monotonic()
        self.reading = Reading([instance] if instance else [], now - self._before)
        self._before = now
        self._collector.read(self.reading)
        self.events += [name for _, _, name, _, _ in self.reading.events]
        return self.reading

    def value(self, name: str) -> float:
        return self.reading.values.get(("instance", self.subject, name), math.nan)

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read()
            if condition():
                return
            time.sleep(0.2)
        pytest.fail(f"not within {seconds} s: {self.reading.values}")


@pytest.mark.fleet
def test_it_is_found_where_it_listens(open_server: Server) -> None:
    with Watch(open_server) as watch:
        found = watch.instance
        assert found
        assert (found.id, found.runtime, found.port) == (watch.subject, "torchserve", open_server.inference)
        assert found.addresses == (f"127.0.0.1:{open_server.inference}",)
        assert found.urls["management"] == f"http://127.0.0.1:{open_server.management}"
        assert found.netns == Path("/proc/self/ns/net").stat().st_ino
        assert watch.reading.labels["instance", watch.subject] == {"model": "tiny"}


@pytest.mark.fleet
def test_predictions_and_errors_are_counted(open_server: Server) -> None:
    with Watch(open_server) as watch:
        open_server.predict()
        watch.read()
        for _ in range(20):
            open_server.predict()
        for path, body in (("tiny", b"fail"), ("absent", b"x"), ("absent", b"x")):
            with pytest.raises(urllib.error.HTTPError):
                open_server.ask(open_server.inference, f"/predictions/{path}", body)
        seconds = watch.read().seconds
        assert watch.value("predictions_per_second") * seconds == pytest.approx(21)
        assert watch.value("errors_per_second") * seconds == pytest.approx(1)
        assert watch.value("client_errors_per_second") * seconds == pytest.approx(2)
        assert 0 < watch.value("inference_latency_seconds") < 1
        assert 0 < watch.value("queue_latency_seconds") < 1
        assert watch.value("queue_depth") == 0
        assert watch.value("runtime_answers") == 1
        watch.read()
        assert watch.value("predictions_per_second") == 0
        assert math.isnan(watch.value("inference_latency_seconds"))


@pytest.mark.fleet
def test_a_killed_worker_is_a_death_and_a_restart(open_server: Server) -> None:
    with Watch(open_server) as watch:
        assert watch.value("workers_total") == 2
        psutil.Process(open_server.pid).children()[0].kill()
        restarts = 0.0

        def restarted() -> bool:
            nonlocal restarts
            restarts += watch.value("worker_restarts_per_second") * watch.reading.seconds
            return bool(restarts) and watch.value("workers_ready") == 2

        watch.until(restarted)
        assert restarts == pytest.approx(1)
        assert watch.events == ["worker_death"]


@pytest.mark.fleet
def test_a_crash_loop_shows_as_restarts_and_missing_workers(open_server: Server) -> None:
    with Watch(open_server) as watch:
        open_server.broken.touch()
        try:
            psutil.Process(open_server.pid).children()[0].kill()
            rates: list[float] = []

            def loops() -> bool:
                rates.append(watch.value("worker_restarts_per_second"))
                return sum(rate > 0 for rate in rates) >= 2

            watch.until(loops)
            assert watch.value("workers_ready") == 1
            assert watch.value("workers_total") == 2
            assert watch.events.count("worker_death") >= 2
        finally:
            open_server.broken.unlink()
        watch.until(lambda: watch.value("workers_ready") == 2)


@pytest.mark.fleet
def test_a_stopped_server_does_not_answer_and_nothing_else_is_known(open_server: Server) -> None:
    with Watch(open_server) as watch:
        os.kill(open_server.pid, signal.SIGSTOP)
        try:
            watch.read()
            assert watch.reading.values == {("instance", watch.subject, "runtime_answers"): 0}
            assert watch.instance
            assert watch.reading.labels["instance", watch.subject] == {"model": "tiny"}
        finally:
            os.kill(open_server.pid, signal.SIGCONT)
        watch.until(lambda: watch.value("runtime_answers") == 1)
        assert math.isnan(watch.value("predictions_per_second"))
        watch.until(lambda: watch.value("predictions_per_second") == 0)


@pytest.mark.fleet
def test_models_that_come_and_go_are_followed(open_server: Server) -> None:
    with Watch(open_server) as watch:
        path = "/models?url=tiny.mar&model_name=second&initial_workers=1&synchronous=true"
        open_server.ask(open_server.management, path, b"")
        try:
            watch.read()
            assert watch.reading.labels["instance", watch.subject] == {"model": "second,tiny"}
            assert watch.value("workers_total") == 3
        finally:
            open_server.ask(open_server.management, "/models/second", method="DELETE")
        watch.until(lambda: watch.value("workers_total") == 2)
        assert watch.reading.labels["instance", watch.subject] == {"model": "tiny"}
        assert watch.events == []


@pytest.mark.fleet
def test_the_token_is_used_and_not_shown(guarded_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with Watch(guarded_server) as watch:
        instance = watch.instance
        assert instance
        token = guarded_server.tokens()["management"]
        assert instance.headers == {"Authorization": f"Bearer {token}"}
        assert token not in repr(instance)
        assert watch.value("workers_ready") == 1
        runtime = TorchServe()
        forged = replace(instance, headers={"Authorization": "Bearer forged"})
        before = runtime.scrape(forged).client_errors
        assert runtime.scrape(forged).workers is None
        # It was refused once, and did not ask again: that would count among the client errors.
        assert runtime.scrape(forged).client_errors == before
        assert runtime.scrape(instance).workers
        assert "refuses" in caplog.text
        assert token not in caplog.text


def test_only_a_java_that_runs_its_main_class_is_torchserve() -> None:
    def matches(*command: str) -> bool:
        return TorchServe().matches(ProcessInfo(1, 0.0, command))

    assert matches("java", "-Xmx1g", MAIN, "-f", "c")
    assert matches("/usr/lib/jvm/bin/java", MAIN)
    assert not matches("grep", MAIN)
    assert not matches("java", f"-Dx={MAIN}")


def test_where_the_settings_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "config.properties": "inference_address=http://127.0.0.1:1\n",
        "/etc/given": "inference_address: http\\://0.0.0.0\\:2\nenable_envvars_config=true\n",
        "named": "inference_address=http://127.0.0.1:3\n",
    }
    variables: dict[str, str] = {"TS_METRICS_ADDRESS": "http://127.0.0.1:9"}

    def text(self: ProcessInfo, path: str, follow: bool = True) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    monkeypatch.setattr(ProcessInfo, "text", text)
    monkeypatch.setattr(ProcessInfo, "environment", lambda self, name: variables.get(name))
    defaults = {"management": "http://127.0.0.1:8081", "metrics": "http://127.0.0.1:8082"}

    def urls(*command: str) -> dict[str, str]:
        return torchserve_settings.urls(ProcessInfo(1, 0.0, command))

    assert urls() == {"inference": "http://127.0.0.1:1", **defaults}
    assert urls("-f", "/etc/given")["inference"] == "http://0.0.0.0:2"
    assert urls("-f", "/etc/given")["metrics"] == "http://127.0.0.1:9"
    assert urls("-f", "absent") == torchserve_settings.DEFAULTS
    variables["TS_CONFIG_FILE"] = "named"
    assert urls("-f", "/etc/given")["inference"] == "http://127.0.0.1:3"


@contextmanager
def answering(answer: bytes, pause_seconds: float = 0, pieces: int = 1) -> Iterator[str]:
    """A server that gives each connection `answer`, in pieces with pauses."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.recv(4096)
                    size = math.ceil(len(answer) / pieces) or 1
                    for at in range(0, len(answer), size):
                        try:
                            connection.sendall(answer[at : at + size])
                        except OSError:
                            break
                        if stop.wait(pause_seconds):
                            break

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


BODY = b"x" * 20
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + BODY
BAD_ANSWERS = {
    "trickles": (GOOD, 0.05, 20),
    "too much": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + bytes(ANSWER_BYTES_MAX + 2), 0, 1),
    "endless": (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(ANSWER_BYTES_MAX + 2), 0, 1),
    "cut short": (b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + BODY, 0, 1),
    "not HTTP": (b"SSH-2.0-OpenSSH\r\n", 0, 1),
    "silence": (b"", 0, 1),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200, 0, 1),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_is_no_answer(answer: tuple[bytes, float, int]) -> None:
    with answering(*answer) as url, Endpoint(url, {}) as api, pytest.raises(NoAnswer):
        api.get("/")


def test_a_good_answer_is_read_and_the_connection_kept() -> None:
    with answering(GOOD) as url, Endpoint(url, {}) as api:
        assert api.get("/") == BODY


def test_redirects_are_not_followed() -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with answering(redirect) as url, Endpoint(url, {}) as api, pytest.raises(Refused, match="302"):
        api.get("/")


def said_with(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def test_only_a_token_that_is_refused_is_not_shown_again() -> None:
    runtime = TorchServe()

    def scrape(status: bytes, started: float = 0.0) -> Vitals:
        with answering(said_with(status, b'{"models": []}')) as url:
            return runtime.scrape(Instance("n/1", "torchserve", 1, started, 1, 0, (), urls={"management": url}))

    for status in (b"503 Service Unavailable", b"429 Too Many Requests", b"404 Not Found"):
        with pytest.raises(NoAnswer, match=status[:3].decode()):
            scrape(status)
    assert scrape(b"200 OK").models == ()
    assert scrape(b"403 Forbidden").models is None
    assert scrape(b"200 OK").models is None
    assert scrape(b"200 OK", started=1.0).models == ()


@pytest.mark.parametrize("body", [b"[" * 9999, b"{}", b"[1]", b'{"models": [{"modelName": 7}]}', b"\xff\xfe"])
def test_another_protocol_is_no_answer(body: bytes) -> None:
    with answering(said_with(b"200 OK", body)) as url:
        instance = Instance("n/1", "torchserve", 1, 0.0, 1, 0, (), urls={"management": url})
        with pytest.raises(NoAnswer):
            TorchServe().scrape(instance)


class Said:
    """A runtime that says what it is told to, or hangs."""

    name = "said"

    def __init__(self) -> None:
        self.vitals: dict[str, Vitals] = {}
        self.hang = threading.Event()
        self.hang.set()

    def matches(self, process: ProcessInfo) -> bool:
        return False

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        return None

    def scrape(self, instance: Instance) -> Vitals:
        if instance.id not in self.vitals:
            self.hang.wait()
            raise NoAnswer("it hangs")
        return self.vitals[instance.id]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    runtime = Said()
    monkeypatch.setattr(serving, "known_runtimes", lambda: [runtime])
    return runtime


def instance(port: int, started: float = 0.0) -> Instance:
    return Instance(f"n/{port}", "said", 1, started, port, 0, (), urls={"api": ""})


def opened() -> serving.Serving:
    collector = serving.COLLECTOR()
    collector.open(Host(NODE, ManualClock()))
    return collector


def test_one_that_hangs_delays_no_other(said: Said) -> None:
    said.vitals["n/1"] = Vitals(queue_depth=3)
    said.hang.clear()
    collector = opened()
    try:
        for _ in range(2):  # it still hangs in the first question when it is asked the second
            reading = Reading([instance(0), instance(1)], 1.0)
            collector.read(reading)
            assert reading.values == {
                ("instance", "n/0", "runtime_answers"): 0,
                ("instance", "n/1", "runtime_answers"): 1,
                ("instance", "n/1", "queue_depth"): 3,
            }
    finally:
        said.hang.set()
        collector.close()


def test_a_total_that_falls_is_unknown_for_this_window(said: Said) -> None:
    collector = opened()

    def rates(*, started: float = 0.0, **vitals: float) -> dict[str, float]:
        said.vitals["n/1"] = Vitals(**vitals)
        reading = Reading([instance(1, started)], 2.0)
        collector.read(reading)
        return {name: value for (_, _, name), value in reading.values.items() if name != "runtime_answers"}

    assert rates(predictions=10.0, inference_seconds=1.0) == {}
    expected = {"predictions_per_second": 5, "inference_latency_seconds": 0.2}
    assert rates(predictions=20.0, inference_seconds=3.0) == pytest.approx(expected)
    assert rates(predictions=1.0, inference_seconds=0.1) == {}
    assert rates(predictions=3.0) == {"predictions_per_second": 1}
    assert rates(predictions=9.0, started=1.0) == {}  # another process
    collector.close()


def test_workers_are_followed_by_id(said: Said) -> None:
    collector = opened()

    def seen(*workers: Worker) -> tuple[float | None, list[str]]:
        said.vitals["n/1"] = Vitals(workers=workers)
        reading = Reading([instance(1)], 1.0)
        collector.read(reading)
        deaths = [detail for _, _, name, _, detail in reading.events if name == "worker_death"]
        return reading.values.get(("instance", "n/1", "worker_restarts_per_second")), deaths

    other = Worker("b", 7, True)
    assert seen(Worker("a", 1, True), other) == (None, [])
    assert seen(Worker("a", 1, False), other) == (0, ["a, pid 1"])
    assert seen(Worker("a", None, False), other) == (0, [])
    assert seen(Worker("a", 2, False), other) == (1, [])
    assert seen(Worker("a", 3, False), other) == (1, ["a, pid 2"])
    assert seen(Worker("a", 3, True), other) == (0, [])
    assert seen(Worker("a", 4, True), other) == (1, ["a, pid 3"])
    assert seen(other) == (0, [])  # fewer were wanted
    assert seen(Worker("a", 9, True), other) == (0, [])  # more were wanted
    collector.close()
