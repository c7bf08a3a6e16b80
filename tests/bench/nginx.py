"""The server that is measured: nginx with one worker, and wrk that loads it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.packages import program
from tests.e2e.processes import free_ports, stop_group
from trimtab import TrimtabError
from trimtab.agent import procfs
from trimtab.agent.registry import Instance

MODEL = "bert"
_READY_SECONDS = 10.0
_CONFIG = """\
user root;
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        return 200 "ok";
    }}
    server {{
        listen 127.0.0.1:{api};
        location = /status {{ stub_status; }}
        location / {{ root {directory}/api; try_files $uri $uri.json =404; }}
    }}
}}
"""
_METRICS = Path(__file__).with_name("torchserve-metrics.txt")
_THINK = """
function delay() return {milliseconds} end
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running one. `port` answers 200; the second port says how many requests there were, and has TorchServe's two APIs."""

    process: subprocess.Popen[bytes]
    port: int
    api: int
    directory: Path

    def requests(self) -> int:
        """How many were answered so far, on both ports, without this one."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.api}/status", timeout=10) as answer:
            return int(answer.read().split(b"\n")[2].split()[2]) - 1

    def instance(self, node: str = "bench") -> Instance:
        """How the agent would name it."""
        pid = self.process.pid
        started = procfs.process_stat(procfs.read(f"/proc/{pid}/stat")).started
        netns = Path(f"/proc/{pid}/ns/net").stat().st_ino
        return Instance(f"{node}/{self.port}", "nginx", pid, started, self.port, netns, (f"127.0.0.1:{self.port}",))


@contextmanager
def nginx(directory: Path, cpu: int | None = None, port: int | None = None) -> Iterator[Nginx]:
    """Answers at `port` and the one after it when this returns; bound to one CPU if told. Raises TrimtabError."""
    port = port or free_ports(2)
    api = directory / "api"
    api.mkdir(parents=True)
    config = directory / "nginx.conf"
    config.write_text(_CONFIG.format(directory=directory, port=port, api=port + 1))
    command = [program("nginx"), "-c", str(config), "-p", str(directory)]
    process = subprocess.Popen(
        _on(cpu, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(process, port, directory)
        _publish_api(api, process.pid)
        yield Nginx(process, port, port + 1, directory)
    finally:
        stop_group(process)


@contextmanager
def wrk(
    target: Nginx, connections: int, think_seconds: float = 0.0, cpu: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Load over kept connections, each with at most one request at a time; it waits `think_seconds` before it asks again."""
    script = target.directory / "think.lua"
    script.write_text(_THINK.format(milliseconds=round(think_seconds * 1000)))
    options = ["-s", str(script)] if think_seconds else []
    address = f"http://127.0.0.1:{target.port}/"
    command = [program("wrk"), "-t1", f"-c{connections}", "-d1000000s", "--timeout", "30s", *options, address]
    process = subprocess.Popen(
        _on(cpu, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _on(cpu: int | None, command: list[str]) -> list[str]:
    return command if cpu is None else ["taskset", "-c", str(cpu), *command]


def _wait(process: subprocess.Popen[bytes], port: int, directory: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    log = directory / "error.log"
    said = log.read_text().strip().splitlines()[-1:] if log.exists() else []
    raise TrimtabError(f"nginx did not start: {' '.join(said) or 'it said nothing'}")


def _publish_api(directory: Path, master: int) -> None:
    """What TorchServe says of a model with one worker: the agent scrapes it as it scrapes TorchServe."""
    worker = int(procfs.read(f"/proc/{master}/task/{master}/children").split()[0])
    version = {
        "modelName": MODEL,
        "modelVersion": "1.0",
        "workers": [{"id": "9000", "status": "READY", "pid": worker}],
        "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
    }
    (directory / "models").mkdir()
    (directory / "models.json").write_text(json.dumps({"models": [{"modelName": MODEL, "modelUrl": f"{MODEL}.mar"}]}))
    (directory / "models" / MODEL).mkdir()
    (directory / "models" / MODEL / "all").write_text(json.dumps([version]))
    (directory / "metrics").write_text(_METRICS.read_text())
