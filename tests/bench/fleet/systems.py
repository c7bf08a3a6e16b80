"""The three that are compared, each with its load beside it: trimtab's collector, Prometheus scraping, VictoriaMetrics written to."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.packages import taken_out
from tests.bench.usage import cpu_seconds, memory, tree_cpu_seconds
from tests.e2e.processes import free_ports, stop_group
from tests.e2e.services import Installation, install
from trimtab import TrimtabError

READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a system took over the steady span."""

    cores: float
    """Of the process itself."""
    resident_mb: float
    """With its descendants."""
    beside_cores: float
    """Of its descendants: the collector's analysis."""
    load: dict[str, Any]
    """What the load said of itself."""


@dataclass(frozen=True, slots=True)
class Load:
    """A process that makes load; its first line is "ready", its last is JSON."""

    process: subprocess.Popen[str]

    def result(self, seconds: float) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=seconds)
        if self.process.returncode:
            raise TrimtabError(f"the load ended with exit code {self.process.returncode}")
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return found


@contextmanager
def load(module: str, *arguments: object) -> Iterator[Load]:
    """`python -m tests.bench.fleet.MODULE`, once it is ready."""
    command = [sys.executable, "-m", f"tests.bench.fleet.{module}", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout
        if process.stdout.readline().strip() != "ready":
            raise TrimtabError(f"{module} did not get ready")
        yield Load(process)
    finally:
        stop_group(process)


def measure(pid: int, warm_seconds: float, seconds: float) -> Cost:
    """What a process takes over a span after a warm-up; what its load said of itself is still to come."""
    time.sleep(warm_seconds)
    begun, own, whole = time.monotonic(), cpu_seconds(pid), tree_cpu_seconds(pid)
    time.sleep(seconds)
    span = time.monotonic() - begun
    own, whole = (cpu_seconds(pid) - own) / span, (tree_cpu_seconds(pid) - whole) / span
    return Cost(own, memory(pid).resident_mb, whole - own, {})


@contextmanager
def collector(directory: Path) -> Iterator[tuple[Installation, int]]:
    """A real one, with its default settings, and its process."""
    directory.mkdir(parents=True)
    installation = install(directory, directory / "no-haproxy")
    with installation.run("collector", ready_seconds=READY_SECONDS) as process:
        yield installation, process.pid


@contextmanager
def victoria(directory: Path) -> Iterator[tuple[int, int]]:
    """Its port and its process."""
    port = free_ports(1)
    command = [
        str(taken_out("victoria-metrics")),
        f"-storageDataPath={directory}",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=100y",
        "-search.latencyOffset=0s",
        "-loggerLevel=ERROR",
    ]
    with _running(command, port) as pid:
        yield port, pid


@contextmanager
def prometheus(directory: Path, exporter_port: int, agents: int) -> Iterator[tuple[int, int]]:
    """One that scrapes every node's page each second: its port and its process."""
    port = free_ports(1)
    directory.mkdir(parents=True)
    config = directory / "prometheus.yml"
    targets = ", ".join(f"node-{i:04d}" for i in range(agents))
    config.write_text(f"""\
global: {{ scrape_interval: 1s, scrape_timeout: 1s }}
scrape_configs:
- job_name: fleet
  static_configs: [{{ targets: [{targets}] }}]
  relabel_configs:
  - {{ source_labels: [__address__], target_label: node }}
  - {{ source_labels: [__address__], target_label: __metrics_path__, replacement: /metrics/$1 }}
  - {{ target_label: __address__, replacement: "127.0.0.1:{exporter_port}" }}
""")
    command = [
        str(taken_out("prometheus")),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with _running(command, port) as pid:
        yield port, pid


def ask(port: int, query: str) -> float:
    """One number of a peer's own query language. NaN: no answer."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=60) as answer:
        result = json.load(answer)["data"]["result"]
    return float(result[0]["value"][1]) if result else float("nan")


def call(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
        text: str = answer.read().decode()
        return text


def size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@contextmanager
def _running(command: list[str], port: int) -> Iterator[int]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise TrimtabError(f"{shutil.which(command[0]) or command[0]} did not start") from None
                time.sleep(0.05)
        yield process.pid
    finally:
        stop_group(process)
