"""Real TorchServe instances, each with one worker, its own ports and its own directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.archive import HERE, MODEL, model_store
from tests.e2e.processes import free_ports, holder, is_free, members, signal_group, stop_group
from trimtab import Exit, TrimtabError

PORTS_EACH = 10
_STOP_SECONDS = 8.0
_CONFIG = """\
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_port={grpc}
grpc_management_port={grpc_management}
initial_worker_port={worker}
model_store={store}
load_models={model}.mar
enable_model_api=true
disable_token_authorization=true
number_of_netty_threads=1
netty_client_threads=1
metrics_mode=prometheus
disable_system_metrics=true
model_metrics_auto_detect=true
vmargs=-Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData
"""


@dataclass(frozen=True, slots=True)
class Instance:
    """One running TorchServe. `process` leads the session and process group that all its processes are in."""

    name: str
    port: int
    directory: Path
    process: subprocess.Popen[bytes]
    model: str = MODEL

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def fail(self) -> Path:
        """While this file exists, the handler answers 500."""
        return self.directory / "fail"

    @property
    def delay(self) -> Path:
        """While this file exists, the handler first waits as many seconds as it says."""
        return self.directory / "delay"

    @property
    def features(self) -> Path:
        """While this file exists, the handler reads some pages of it from the disk for each request."""
        return self.directory / "features"

    @property
    def embeddings(self) -> Path:
        """While this file exists, the handler reads from a table of as many bytes in memory for each request."""
        return self.directory / "embeddings"

    @property
    def behaviour(self) -> Path:
        """What a simulated model does (`tests.e2e.behaviour`)."""
        return self.directory / "behaviour"

    @property
    def management(self) -> str:
        """Where its management API is."""
        return f"127.0.0.1:{self.port + 1}"

    def tree(self) -> list[psutil.Process]:
        """Its processes that live now: launcher, server, worker."""
        return members(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """The processes that hold the model."""
        found = []
        for process in self.tree():
            with suppress(psutil.Error):
                if any("model_service_worker" in part for part in process.cmdline()):
                    found.append(process)
        return found

    def ready(self) -> bool:
        """Whether its management API says that the worker takes requests."""
        try:
            with urllib.request.urlopen(f"http://{self.management}/models/{self.model}", timeout=2) as answer:
                workers = json.load(answer)[0]["workers"]
        except (OSError, ValueError):
            return False
        return bool(workers) and all(w["status"] == "READY" for w in workers)

    def log_tail(self) -> str:
        """The last line that says what went wrong."""
        lines = [line.strip() for line in (self.directory / "log").read_text(errors="replace").splitlines()]
        telling = [line for line in lines if "Exception" in line or "ERROR" in line] or [line for line in lines if line]
        return telling[-1][:300] if telling else "its log is empty"


@contextmanager
def fleet(
    directory: Path,
    instances: int = 3,
    port: int | None = None,
    seconds: float = 90,
    started_as: Callable[[int], None] = lambda _: None,
    model: str = MODEL,
) -> Iterator[list[Instance]]:
    """Instances that all answer, at `port`, `port + 10`, …; stopped on the way out, whatever happens.

    `started_as` is told the pid of each as soon as it is there, before it has taken memory.
    Raises TrimtabError with one line when a port is taken or an instance dies or is not ready within `seconds`.
    """
    port = port or free_ports(instances * PORTS_EACH)
    for i in range(instances):
        for taken in (p for p in range(port + i * PORTS_EACH, port + i * PORTS_EACH + 5) if not is_free(p)):
            raise TrimtabError(f"port {taken} is taken by {holder(taken)}: choose other ports", Exit.LISTEN)
    store = model_store()
    started: list[Instance] = []
    try:
        for i in range(instances):
            started += [_start(f"s{i}", port + i * PORTS_EACH, directory / f"s{i}", store, model)]
            started_as(started[-1].process.pid)
        wait_ready(started, seconds)
        yield started
    finally:
        _stop(started)


def wait_ready(instances: list[Instance], seconds: float) -> None:
    """Return when all are ready. Raises TrimtabError when one has died, or at the deadline."""
    deadline = time.monotonic() + seconds
    for instance in instances:
        while not instance.ready():
            check_alive(instance)
            if time.monotonic() > deadline:
                message = f"TorchServe {instance.name} is not ready after {seconds:.0f} s: {instance.log_tail()}"
                raise TrimtabError(message, Exit.UNREACHABLE)
            time.sleep(0.1)


def check_alive(instance: Instance) -> None:
    """Raises TrimtabError when the instance has ended."""
    if instance.process.poll() is not None:
        raise TrimtabError(f"TorchServe {instance.name} died: {instance.log_tail()}", Exit.UNREACHABLE)


def predict(address: str, ids: list[int], seconds: float = 10) -> list[float]:
    """The logits for these token ids. Raises OSError; its subclass HTTPError carries the status."""
    return [float(x) for x in post(address, MODEL, {"ids": ids}, seconds)["logits"]]


def post(address: str, model: str, body: dict[str, Any], seconds: float = 10) -> Any:
    """What `model` answers. Raises OSError; its subclass HTTPError carries the status."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}/predictions/{model}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.load(answer)


def _start(name: str, port: int, directory: Path, store: Path, model: str) -> Instance:
    (directory / "tmp").mkdir(parents=True)
    config = directory / "config.properties"
    names = ("port", "management", "metrics", "grpc", "grpc_management", "worker")
    config.write_text(_CONFIG.format(store=store, model=model, **{n: port + k for k, n in enumerate(names)}))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TEMP": str(directory / "tmp"),
        "LOG_LOCATION": str(directory),
        "METRICS_LOCATION": str(directory),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **{
            f"FLEET_{name.upper()}": str(directory / name)
            for name in ("fail", "delay", "features", "embeddings", "behaviour")
        },
    }
    # Python prefers it to TEMP, and all instances would share one pid file.
    environment.pop("TMPDIR", None)
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs", "--disable-token-auth"]
    command += ["--enable-model-api", "--ts-config", str(config), "--log-config", str(HERE / "torchserve-log.xml")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Instance(name, port, directory, process, model)


def _stop(instances: list[Instance]) -> None:
    for instance in instances:
        for number in (signal.SIGCONT, signal.SIGTERM):
            signal_group(instance.process.pid, number)
    for instance in instances:
        stop_group(instance.process)
