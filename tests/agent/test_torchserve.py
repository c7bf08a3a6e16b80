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
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.agent import requests_kit
from tests.agent.fakes import until
from tests.agent.http_stub import answering, said_with
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors import serving
from trimtab.agent.instances import Discovery
from trimtab.agent.registry import Host, Instance, Kind, Reading
from trimtab.agent.runtimes import torchserve_descriptions, torchserve_settings
from trimtab.agent.runtimes.base import NoAnswer, Session
from trimtab.agent.runtimes.process import ProcessInfo, host_pid, own_netns, resident_bytes
from trimtab.agent.runtimes.prometheus import parse
from trimtab.agent.runtimes.report import Report
from trimtab.agent.runtimes.torchserve import MAIN, TorchServe
from trimtab.agent.runtimes.torchserve_models import Description, JobQueue, ModelVersion
from trimtab.agent.runtimes.torchserve_words import NAMES, told
from trimtab.agent.runtimes.vocabulary import Capacity, Latency, Spent

EXPOSITIONS = Path(__file__).parent / "expositions"
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
        # Its gRPC port opens last.
        self.until(self._is_up)
        return self

    def __exit__(self, *_: object) -> None:
        self._collector.close()

    def _is_up(self) -> bool:
        instance = self.instance
        return bool(instance and instance.grpc_port) and self.value("workers_ready") == self.value("workers_total")

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
        return self.of("instance", self.subject, name)

    def of(self, kind: Kind, subject: str, name: str) -> float:
        return self.reading.values.get((kind, subject, name), math.nan)

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
        assert f"grpc_inference_port={found.grpc_port}\n" in (open_server.folder / "server.properties").read_text()
        assert found.urls["management"] == f"http://127.0.0.1:{open_server.management}"
        assert found.netns == Path("/proc/self/ns/net").stat().st_ino
        assert watch.reading.labels["instance", watch.subject] == {"model": "tiny"}


@pytest.mark.fleet
@pytest.mark.ebpf
@pytest.mark.skipif(bool(requests_kit.MISSING), reason="; ".join(requests_kit.MISSING))
def test_its_grpc_is_unknown_by_ebpf_and_says_so(open_server: Server) -> None:
    with Watch(open_server) as watch:
        found = watch.instance
        assert found
    seen = requests_kit.Watch(found)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{found.grpc_port}") as channel:
            ping = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping")
            assert b"Healthy" in ping(b"", timeout=20, wait_for_ready=True)
        until(lambda: seen.count(found, "connections_unmeasured_per_second") == 1)
        assert seen.read().labels["instance", found.id] == {"latency_unknown": "HTTP/2"}
        assert seen.count(found) == 0
    finally:
        seen.collector.close()


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
        assert 0 <= watch.value("runtime_age_seconds") < 1
        model = f"{watch.subject}/tiny"
        assert watch.of("model", model, "predictions_per_second") * seconds == pytest.approx(21)
        for name in ("inference_latency_seconds", "queue_latency_seconds"):
            assert watch.of("model", model, name) == watch.value(name)
        assert watch.of("model", model, "queue_max") == 100
        assert watch.of("model", model, "batch_size_max") == watch.value("batch_size_max") == 1
        assert watch.of("model", model, "workers_min") == watch.of("model", model, "workers_max") == 2
        assert math.isnan(watch.of("model", model, "errors_per_second"))  # not told for each model
        watch.read()
        assert watch.value("predictions_per_second") == 0
        assert math.isnan(watch.value("inference_latency_seconds"))


@pytest.mark.fleet
def test_a_killed_worker_is_a_death_and_a_restart(open_server: Server) -> None:
    with Watch(open_server) as watch:
        assert watch.value("workers_total") == 2
        workers = {subject for kind, subject, _ in watch.reading.values if kind == "worker"}
        assert len(workers) == 2
        resident = [watch.of("worker", subject, "worker_memory_resident_bytes") for subject in workers]
        children = psutil.Process(open_server.pid).children()
        assert sorted(resident) == pytest.approx(sorted(c.memory_info().rss for c in children), rel=0.2)
        children[0].kill()
        restarts = 0.0
        restarted_workers: set[str] = set()

        def restarted() -> bool:
            nonlocal restarts
            rate = watch.value("worker_restarts_per_second")
            restarts += (
                0.0 if math.isnan(rate) else rate * watch.reading.seconds
            )  # a busy server may not answer in time
            restarted_workers.update(w for w in workers if watch.of("worker", w, "worker_restarts_per_second") > 0)
            return bool(restarts) and watch.value("workers_ready") == 2

        watch.until(restarted)
        assert restarts == pytest.approx(1)
        assert len(restarted_workers) == 1
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
            # An answer that was under way may still come.
            watch.until(lambda: watch.reading.values == {("instance", watch.subject, "runtime_answers"): 0})
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
            watch.until(lambda: watch.value("workers_total") == 3)
            assert watch.reading.labels["instance", watch.subject] == {"model": "second,tiny"}
            assert watch.of("model", f"{watch.subject}/second", "workers_ready") == 1
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
        with closing(TorchServe().open(replace(instance, headers={"Authorization": "Bearer forged"}))) as forged:
            refused, *later = [forged.scrape().whole for _ in range(3)]
            assert refused.workers is None
            assert refused.errors.client is not None
            # It was refused once, and did not ask again: that would count among the client errors.
            assert [whole.errors.client for whole in later] == [refused.errors.client + 1] * 2
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
        process = ProcessInfo(1, 0.0, command)
        return torchserve_settings.urls(process, torchserve_settings.read(process))

    assert urls() == {"inference": "http://127.0.0.1:1", **defaults}
    assert urls("-f", "/etc/given")["inference"] == "http://0.0.0.0:2"
    assert urls("-f", "/etc/given")["metrics"] == "http://127.0.0.1:9"
    assert urls("-f", "absent") == torchserve_settings.DEFAULTS
    variables["TS_CONFIG_FILE"] = "named"
    assert urls("-f", "/etc/given")["inference"] == "http://127.0.0.1:3"


def served(**urls: str) -> Instance:
    return Instance("n/1", "torchserve", os.getpid(), 0.0, 1, own_netns(), (), urls=urls)


def failing() -> AbstractContextManager[object]:
    return pytest.raises(NoAnswer)


def asking(**urls: str) -> closing[Session]:
    return closing(TorchServe().open(served(**urls)))


def test_only_a_token_that_is_refused_is_not_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = [b"503 Service Unavailable", b"429 Too Many Requests", b"404 Not Found", b"200 OK", b"403 Forbidden"]
    answers = [said_with(status, b'{"models": []}') for status in statuses]
    with answering(*answers, each=9) as stub, asking(management=stub.url) as session:
        for status in statuses[:3]:
            with pytest.raises(NoAnswer, match=status[:3].decode()):
                session.scrape()
        assert session.scrape().models == ()
        monkeypatch.setattr(torchserve_descriptions, "LIST_SECONDS", 0.0)
        assert [session.scrape().models for _ in range(3)] == [None, None, None]
        assert stub.answered == 5


@pytest.mark.parametrize("body", [b"[" * 9999, b"{}", b"[1]", b'{"models": [{"modelName": 7}]}', b"\xff\xfe"])
def test_another_protocol_is_no_answer(body: bytes) -> None:
    with answering(said_with(b"200 OK", body)) as stub, asking(management=stub.url) as session, failing():
        session.scrape()


def version(name: str, number: str, **more: Any) -> ModelVersion:
    return ModelVersion(name, number, [], JobQueue(2, 98), **more)


def test_what_is_counted_without_a_version_is_of_no_single_one() -> None:
    counted = parse((EXPOSITIONS / "torchserve_0.12.txt").read_bytes(), NAMES)

    def latencies(*numbers: str) -> list[Latency]:
        scrape = told(counted, Description(tuple(version("bert", n) for n in numbers), 10.0), 10.1)
        assert scrape.models
        return [model.vitals.latency for model in scrape.models]

    (only,) = latencies("1.0")
    assert only.requests == 4
    assert only.inference == Spent(pytest.approx((98807.578 + 10471.582 - 637.34 - 65.357) / 1e6), 4)
    assert only.queue == Spent(pytest.approx((637.34 + 65.357) / 1e6), 4)
    assert latencies("1.0", "2.0") == [Latency(), Latency()]
    one_named = parse((EXPOSITIONS / "torchserve_0.12.txt").read_bytes().replace(b'"default"', b'"2.0"'), NAMES)
    scrape = told(one_named, Description((version("bert", "1.0"), version("bert", "2.0")), 10.0), 10.1)
    assert scrape.models
    assert [model.vitals.latency.requests for model in scrape.models] == [1, 3]


def test_what_a_handler_counts_by_score_is_of_its_model() -> None:
    recorded = (EXPOSITIONS / "torchserve_0.12_scores.txt").read_bytes()

    def predictions(text: bytes, *numbers: str) -> list[tuple[float, ...] | None]:
        scrape = told(parse(text, NAMES), Description(tuple(version("tiny", n) for n in numbers), 10.0), 10.1)
        assert scrape.models
        return [model.vitals.predictions for model in scrape.models]

    assert predictions(recorded, "1.0") == [(2, 1, 0, 0, 0, 0, 0, 3)]
    assert predictions(recorded, "1.0", "2.0") == [(2, 1, 0, 0, 0, 0, 0, 3), None]
    assert predictions(recorded.replace(b'ModelVersion="1.0",', b""), "1.0") == [(2, 1, 0, 0, 0, 0, 0, 3)]
    assert predictions(recorded.replace(b'Bin="0"', b'Bin="8"'), "1.0") == [(0, 1, 0, 0, 0, 0, 0, 3)]
    assert predictions((EXPOSITIONS / "torchserve_0.12.txt").read_bytes(), "1.0") == [None]


def test_predictions_by_score_are_rates_of_the_model() -> None:
    recorded = (EXPOSITIONS / "torchserve_0.12_scores.txt").read_bytes()
    described, report = Description((version("tiny", "1.0"),), 10.0), Report()
    for text in (recorded, recorded.replace(b"} 3.0", b"} 7.0")):
        reading = Reading([served()], 2.0)
        report.report(reading, served(), told(parse(text, NAMES), described, 10.1))
    subjects = {subject for _, subject, name in reading.values if name.startswith("predictions_bin_")}
    assert len(subjects) == 1
    (subject,) = subjects
    rates = [reading.values["model", subject, f"predictions_bin_{k}_per_second"] for k in range(8)]
    assert rates == [0, 0, 0, 0, 0, 0, 0, 2]


def test_what_there_is_room_for() -> None:
    described = version("bert", "1.0", min_workers=1, max_workers=4, batch_size=8, max_batch_delay=50)
    scrape = told(parse(b"", ()), Description((described,), 10.0), 10.1)
    assert scrape.models
    (model,) = scrape.models
    assert model.vitals.capacity == Capacity(1, 4, queue_max=100, batch_size_max=8, batch_delay_seconds_max=0.05)
    assert scrape.whole.queue_depth == model.vitals.queue_depth == 2
    small, unsaid = version("small", "1.0", batch_size=1), version("old", "1.0", batch_size=None)
    for described_all, most in (((small, described), 8), ((small, unsaid), None), ((), None)):
        assert told(parse(b"", ()), Description(described_all, 10.0), 10.1).whole.capacity.batch_size_max == most
    assert scrape.whole.age_seconds == pytest.approx(0.1)
    assert told(parse(b"", ()), Description((described,), 10.0), 15.0).whole.queue_depth is None  # that was then


GPU_MODEL = b"""[{"modelName": "m", "modelVersion": "1.0", "workers": [{"id": "9000", "status": "READY", "pid": %d, "gpu": true,
"gpuUsage": "gpuId::3 utilization.gpu [%%]::0 %%", "memoryUsage": 0}], "jobQueueStatus": {"pendingRequests": 0}}]"""
MODEL_LIST = said_with(b"200 OK", b'{"models": [{"modelName": "m"}]}')


def test_gpu_workers_are_described_again_only_when_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchserve_descriptions, "CHANGED_SECONDS", 0.0)
    with subprocess.Popen(["sleep", "60"]) as worker:
        described = said_with(b"200 OK", GPU_MODEL % worker.pid)
        with answering(MODEL_LIST, described, each=99) as stub, asking(management=stub.url) as session:
            for _ in range(3):
                (seen,) = session.scrape().whole.workers or ()
                assert (seen.ready, seen.device) == (True, "gpu 3")
                assert seen.memory_bytes
            assert stub.answered == 2  # TorchServe would have run nvidia-smi each time
            worker.kill()
            worker.wait()
            (seen,) = session.scrape().whole.workers or ()
            assert not seen.ready
            assert stub.answered == 3


def test_a_slow_description_does_not_hold_up_what_is_counted() -> None:
    counted, described = said_with(b"200 OK", b"# TYPE Requests5XX counter\n"), said_with(b"200 OK", b'{"models": []}')
    with ExitStack() as stack:
        metrics = stack.enter_context(answering(counted)).url
        management = stack.enter_context(answering(described, pause_seconds=0.04, pieces=20)).url
        with asking(metrics=metrics, management=management) as session:
            first = session.scrape()
            assert (first.whole.errors.server, first.models) == (0, None)
            deadline = time.monotonic() + 10
            while (scrape := session.scrape()).models is None:
                assert time.monotonic() < deadline
            assert scrape.models == ()


def test_a_worker_in_a_container_is_found_by_the_pid_it_has_there() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert host_pid(os.getpid(), os.getpid()) == os.getpid()
    with subprocess.Popen(["unshare", "--pid", "--fork", "sleep", "60"]) as outside:
        try:
            deadline = time.monotonic() + 10
            while not (children := psutil.Process(outside.pid).children()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            (inside,) = children
            assert host_pid(outside.pid, 1) == inside.pid
            assert host_pid(outside.pid, inside.pid) is None  # it does not know that name of its own
            until(lambda: bool(resident_bytes(inside.pid)))  # it may not have a program yet
        finally:
            for process in (*children, outside):
                process.kill()
