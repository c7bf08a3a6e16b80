"""Exactly once, through kill -9 of the collector at any moment."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import duckdb
import grpc

from tests.collector.sender import Sending, channel, hello, latency, schema, window
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub
from trimtab.collector.store import FILE

ROOT = Path(__file__).resolve().parents[2]
SERVE = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.collector.sender import SETTINGS, collecting
with collecting(Path(sys.argv[1])) as (collector, *_):
    print(collector.port, flush=True)
    threading.Event().wait()
"""
WINDOWS = 2000
KILLS = 4


def start(state: Path) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(state), str(ROOT)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, int(process.stdout.readline())


def send_from_the_mark(port: int, enough: int, kill: Callable[[], None]) -> int:
    """Send until `enough` of this stream are acknowledged, then kill, and read what still comes; the first number sent."""
    of, first = schema(), 0
    with channel(port) as link, suppress(grpc.RpcError):
        stream = Sending(TelemetryStub(link), hello())
        # One window that is already stored is sent again each time.
        first = max(stream.next().welcome.high_water_mark, 1)
        stream.send(of, *(window(seq, of, sketches=[latency([0.01])]) for seq in range(first, WINDOWS + 1)))
        for seq in range(first, min(first + enough, WINDOWS + 1)):
            assert stream.next().ack.seq == seq
        kill()
        list(stream.answers)
    return first


def test_no_window_is_lost_or_stored_twice_when_the_collector_is_killed(tmp_path: Path) -> None:
    chance = random.Random(7)
    begun = set()
    for round_ in range(KILLS + 1):
        process, port = start(tmp_path)

        def kill(process: subprocess.Popen[str] = process) -> None:
            time.sleep(chance.uniform(0, 0.1))  # so that it falls into any part of a transaction
            process.kill()

        try:
            begun.add(send_from_the_mark(port, WINDOWS if round_ == KILLS else chance.randint(0, 40), kill))
        finally:
            process.kill()
            process.wait()
    assert len(begun) > KILLS // 2, "the kills came when all was stored already"
    # What was acknowledged last may wait in the redo log only: the next collector takes it up.
    process, _ = start(tmp_path)
    process.terminate()
    process.wait()
    with duckdb.connect(tmp_path / FILE, read_only=True) as database:
        every = [(seq,) for seq in range(1, WINDOWS + 1)]
        assert database.execute("SELECT seq FROM windows ORDER BY seq").fetchall() == every
        found = database.execute(
            "SELECT count(*), count(DISTINCT start), count(request_latency_sketch) FROM samples_instance"
        )
        assert found.fetchall() == [(WINDOWS, WINDOWS, WINDOWS)]
        [(mark, windows, lost)] = database.execute("SELECT high_water_mark, windows, lost FROM streams").fetchall()
        assert (mark, windows, lost) == (WINDOWS, WINDOWS, 0)
