"""Makes windows.xz: what a real agent sends of a host with eight instances under light load.

`python -m tests.bench.fleet.record SECONDS`, as root. The instances are nginx, each with a client that asks it at some rate of its own. Of
what the agent sends some 100 values a window are kept, and four distributions an instance.
"""

from __future__ import annotations

import lzma
import random
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np

from tests.bench.nginx import nginx
from tests.bench.services import agent
from tests.e2e.processes import free_ports
from tests.e2e.services import install
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import pack_values, schema_hash, unpack_values
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryServicer, add_TelemetryServicer_to_server

FILE = Path(__file__).with_name("windows.xz")
INSTANCES = 8
KEPT = 60
NODE_SERIES, INSTANCE_SERIES = 28, 9
SKETCHES = ("request_latency", "request_duration", "run_queue_latency", "off_cpu_time")
WANTED = (
    "requests_per_second", "requests_in_flight", "request_errors_per_second", "cpu_used_cores", "memory_resident_bytes",
    "cpu_run_queue_ratio", "connections_per_second", "threads", "tcp_retransmits_per_second",
)  # fmt: skip


class Keeping(TelemetryServicer):
    """A collector that only keeps."""

    def __init__(self) -> None:
        self.schemas: dict[bytes, pb.Schema] = {}
        self.windows: list[pb.Window] = []

    def Publish(  # noqa: N802 - gRPC's name
        self, requests: Iterator[pb.AgentMessage], context: grpc.ServicerContext
    ) -> Iterator[pb.CollectorMessage]:
        for message in requests:
            if message.HasField("hello"):
                yield pb.CollectorMessage(welcome=pb.Welcome())
            elif message.HasField("schema"):
                self.schemas[message.schema.hash] = message.schema
            else:
                self.windows.append(message.window)
                yield pb.CollectorMessage(ack=pb.Ack(seq=message.window.seq))


def main(seconds: float) -> None:
    keeping = Keeping()
    server = grpc.server(ThreadPoolExecutor(4))
    add_TelemetryServicer_to_server(keeping, server)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        directory = Path(scratch)
        installation = install(directory, directory / "no-haproxy")
        # Every probe on, and every request in the sketches: what a host with cores to spare would send.
        config = installation.config.read_text().replace("[agent]", "[agent]\nbudget_cores = 4.0")
        installation.config.write_text(config)
        server.add_insecure_port(installation.collector)
        server.start()
        servers = [stack.enter_context(nginx(directory / f"nginx{i}", port=free_ports(2))) for i in range(INSTANCES)]
        stack.enter_context(agent(installation, *(one.port for one in servers)))
        stop = threading.Event()
        clients = [
            threading.Thread(target=ask, args=(one.port, 20 + 5 * i, stop), daemon=True)
            for i, one in enumerate(servers)
        ]
        for client in clients:
            client.start()
        time.sleep(seconds)
        stop.set()
        for client in clients:
            client.join()
    server.stop(1).wait()
    schema, windows = cut(keeping)
    batch = [pb.AgentMessage(schema=schema), *(pb.AgentMessage(window=window) for window in windows)]
    raw = b"".join(len(data).to_bytes(4, "little") + data for data in (m.SerializeToString() for m in batch))
    FILE.write_bytes(lzma.compress(raw, preset=9))
    values = sum(len(t.series) * len(t.subjects) for t in schema.tables)
    sketches = np.mean([sum(len(c.subjects) // 4 for c in w.sketches) for w in windows])
    cells = np.mean([sum(len(c.buckets) // 2 for c in w.sketches) for w in windows])
    print(
        f"{len(windows)} windows of {values} values, {sketches:.1f} sketches and {cells:.0f} cells; {FILE.stat().st_size} bytes"
    )


def ask(port: int, per_second: float, stop: threading.Event) -> None:
    """Requests at random moments."""
    chance = random.Random(port)
    while not stop.wait(chance.expovariate(per_second)):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()


def cut(kept: Keeping) -> tuple[pb.Schema, list[pb.Window]]:
    """The windows of the last schema, cut down."""
    whole = kept.schemas[kept.windows[-1].schema_hash]
    # At first not every instance is found, and not every probe is on.
    windows = [window for window in kept.windows if window.schema_hash == whole.hash][-KEPT:]
    tables = {table.kind: i for i, table in enumerate(whole.tables)}
    node, instance = tables[pb.SUBJECT_KIND_NODE], tables[pb.SUBJECT_KIND_INSTANCE]
    node_rows = list(range(min(NODE_SERIES, len(whole.tables[node].series))))
    names = [series.name for series in whole.tables[instance].series]
    rows = [names.index(name) for name in WANTED if name in names]
    rows += [i for i in range(len(names)) if i not in rows][: INSTANCE_SERIES - len(rows)]
    schema = pb.Schema()
    for table, chosen in ((node, node_rows), (instance, rows)):
        of = whole.tables[table]
        schema.tables.append(pb.Table(kind=of.kind, series=[of.series[i] for i in chosen], subjects=of.subjects))
    schema.hash = schema_hash(schema)
    return schema, [_cut(window, whole, schema, (node, node_rows), (instance, rows)) for window in windows]


def _cut(window: pb.Window, whole: pb.Schema, schema: pb.Schema, *chosen: tuple[int, list[int]]) -> pb.Window:
    values = unpack_values(window, whole)
    out = pb.Window()
    out.CopyFrom(window)
    out.schema_hash = schema.hash
    del out.values[:], out.sketches[:], out.events[:], out.talkers[:]
    out.values.extend(pack_values(values[table][rows]) for table, rows in chosen)
    for column in window.sketches:
        if column.table == chosen[1][0] and column.name in SKETCHES:
            out.sketches.add().CopyFrom(column)
            out.sketches[-1].table = 1
    return out


if __name__ == "__main__":
    main(float(sys.argv[1]))
