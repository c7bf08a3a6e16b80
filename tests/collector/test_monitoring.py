"""Existing monitoring takes what the collector shows: a real Prometheus, a real Alertmanager (Debian's), on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.collector.sender import CLOCK, Recording, Sending, collecting, hello, latency, schema, window
from tests.collector.test_pages import incident
from trimtab.agent.wire.query_pb2 import Incident

ROOT = Path(__file__).resolve().parents[2]
NEVER = threading.Event()
S = schema({"node": (["cpu_busy_cores"], ["n1"]), "instance": (["queue_depth"], ["n1/1"])})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def laid_over(program: str) -> list[str]:
    """It, of a package that is unpacked beside the interpreter: it finds its other files where they belong, and nobody else sees them."""
    unpacked = Path(sys.prefix) / program.removeprefix("prometheus-") / "usr"
    if os.getuid() or not unpacked.exists():
        return []
    mount = f"mount -t overlay overlay -o lowerdir={unpacked}/share:/usr/share /usr/share"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    # In a container root may not mount.
    possible = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return [*command, str(unpacked / "bin" / program)] if possible else []


@contextmanager
def running(program: str, log: Path, *arguments: str) -> Iterator[None]:
    command = [program] if shutil.which(program) else laid_over(program)
    if not command:
        pytest.skip(f"no {program} here: it is in Debian's package of that name, which `make test` brings, for root")
    with log.open("w") as out:
        process = subprocess.Popen([*command, *arguments], stdout=out, stderr=out, cwd=log.parent)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def asked(url: str) -> Any:
    """Its answer, or None while there is nobody."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def wait_for(look: Callable[[], Any], log: Path) -> Any:
    deadline = CLOCK.monotonic() + 30
    while not (found := look()):
        if "failed to parse templates" in log.read_text():
            pytest.skip("Alertmanager is here without its templates: install its package")
        assert CLOCK.monotonic() < deadline, log.read_text()
        CLOCK.wait(NEVER, 0.2)
    return found


def documented_scrapes(metrics_port: int) -> str:
    """The configuration in docs/metrics.md, which asks often enough for a test."""
    block = (
        (ROOT / "docs/metrics.md")
        .read_text()
        .partition("## The fleet")[2]
        .partition("```yaml\n")[2]
        .partition("```")[0]
    )
    assert block.count("127.0.0.1:7473") == 2
    assert "scrape_interval: 15s" in block
    faster = block.replace("127.0.0.1:7473", f"127.0.0.1:{metrics_port}").replace("15s", "1s")
    return f"global: {{ scrape_interval: 1s }}\n{faster}"


def test_prometheus_sees_the_fleet_and_the_collector(tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    with collecting(tmp_path / "state", metrics_listen="127.0.0.1:0") as (collector, telemetry, _query):
        assert collector._exposition
        (tmp_path / "prometheus.yml").write_text(documented_scrapes(collector._exposition.port))
        sending = Sending(telemetry, hello(), S)
        seq = 0

        def query(expression: str) -> list[Any]:
            nonlocal seq
            seq += 1
            column = latency([0.01, 0.02, 0.03])
            column.table = 1
            sending.send(window(seq, S, [[[7.0]], [[3.0]]], sketches=[column]))
            answer = asked(f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}")
            found: list[Any] = answer["data"]["result"] if answer else []
            return found

        listen = f"--web.listen-address=127.0.0.1:{port}"
        with running(
            "prometheus",
            log,
            listen,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/tsdb",
        ):
            [depth] = wait_for(lambda: query("trimtab_instance_queue_depth"), log)
            [p99] = wait_for(lambda: query('trimtab_instance_request_latency{quantile="0.99"}'), log)
            [stored] = wait_for(lambda: query("trimtab_collector_windows_stored_total > 0"), log)
        sending.finish()
    assert (depth["metric"]["node"], depth["metric"]["subject"], depth["value"][1]) == ("n1", "n1/1", "3")
    assert float(p99["value"][1]) == pytest.approx(0.03, rel=0.02)
    assert stored["metric"]["job"] == "trimtab-collector"


def test_alertmanager_takes_incidents(tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    (tmp_path / "alertmanager.yml").write_text("route: { receiver: none }\nreceivers: [{ name: none }]\n")
    analysis = Recording()
    base = f"http://127.0.0.1:{port}/api/v2/alerts"
    listen = (f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=")
    files = (f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/data")
    with (
        running("prometheus-alertmanager", log, *listen, *files),
        collecting(tmp_path / "state", analysis=analysis, webhook_url=base),
    ):
        analysis.changed(incident(since_unix_ns=CLOCK.unix_ns()))
        [alert] = wait_for(lambda: asked(base), log)
        analysis.changed(
            incident(
                status=Incident.STATUS_RESOLVED,
                since_unix_ns=CLOCK.unix_ns() - 10**9,
                resolved_unix_ns=CLOCK.unix_ns(),
            )
        )
        wait_for(lambda: asked(base) == [], log)
    assert alert["status"]["state"] in {"active", "unprocessed"}
    assert alert["labels"] == {
        "alertname": "trimtab_incident", "incident": "i-1", "subject": "n1/1", "node": "n1", "model": "m"
    }  # fmt: skip
    assert alert["annotations"]["remedy"] == "raise it"
