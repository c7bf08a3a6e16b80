"""Open-loop Poisson load, from a process of its own: `python -m tests.e2e.load`.

A request is due at its time whether or not those before it were answered, and its latency counts from that time: a
server that stalls is charged for every request it would have got (no coordinated omission). What became of each
request goes to a CSV file as it happens; phases are cut from it afterwards.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import click

from tests.e2e.archive import MODEL, ROOT
from trimtab import Exit, TrimtabError

TIMED_OUT, BROKEN = 0, -1
"""Statuses of requests that got no answer."""
_IN_FLIGHT_MAX = 2000
_WORK_SIGMA = math.sqrt(math.log(1 + 0.5**2))
"""Of the logarithm of the work of a request: lognormal with mean 1 and coefficient of variation 0.5."""


class Request(NamedTuple):
    """One request. Times in seconds; `arrival`, the scheduled one, on the monotonic clock of this host."""

    arrival: float
    latency: float
    lag: float
    """How late the generator itself was with it. Part of `latency`; large means that the generator was starved."""
    status: int
    server: str


class Load:
    """The running generator, as the process that started it sees it."""

    def __init__(self, process: subprocess.Popen[bytes], results: Path) -> None:
        self._process, self._results = process, results

    def check(self) -> None:
        """Raises TrimtabError when it has ended."""
        if self._process.poll() is not None:
            log = self._results.with_suffix(".log").read_text().strip().splitlines() or ["no message"]
            raise TrimtabError(f"the load generator died: {log[-1]}", Exit.INTERNAL)

    def requests(self) -> list[Request]:
        """All requests that are over, by arrival."""
        if not self._results.exists():
            return []
        text = self._results.read_text()
        rows = csv.reader(text[: text.rfind("\n") + 1].splitlines())
        return sorted(Request(float(a), float(b), float(c), int(d), e) for a, b, c, d, e in rows)

    def finish(self, seconds: float = 30) -> list[Request]:
        """No new requests; waits for those under way. All requests."""
        self._process.terminate()
        self._process.wait(seconds)
        return self.requests()


@contextmanager
def load(
    target: str,
    rate: float,
    seed: int,
    results: Path,
    timeout_seconds: float = 10,
    padding_bytes: int = 0,
    model: str = MODEL,
) -> Iterator[Load]:
    """Load on `target` (host:port) at `rate` requests a second, each larger by `padding_bytes`, until the way out."""
    command = [sys.executable, "-m", "tests.e2e.load", "--target", target, "--rate", str(rate), "--seed", str(seed)]
    command += ["--results", str(results), "--timeout", str(timeout_seconds)]
    command += ["--padding", str(padding_bytes), "--model", model]
    with results.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield Load(process, results)
    finally:
        process.kill()
        process.wait()


class _Connections:
    """Keep-alive connections to one address: as many as there are requests at once."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, message: bytes) -> tuple[int, str]:
        """Status and server of the answer. Raises OSError or EOFError when the connection breaks."""
        reader, writer = await self._take()
        keep = False
        try:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
            await reader.readexactly(int(fields.get("content-length", 0)))
            keep = fields.get("connection", "").lower() != "close"
            return int(head[0].split(" ")[1]), fields.get("x-server", "")
        finally:
            if keep:
                self._free.append((reader, writer))
            else:
                writer.close()

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
        return await asyncio.open_connection(self._host, self._port)


def bodies(model: str, seed: int, padding_bytes: int = 0) -> Iterator[bytes]:
    """What is sent, without end. To a simulated model each request brings its own work and luck, always the same of the same seed."""
    draw = random.Random(f"{seed} bodies")
    padding = {"padding": "x" * padding_bytes} if padding_bytes else {}
    if model == MODEL:
        ids = [draw.randrange(1000, 20_000) for _ in range(64)]
        yield from itertools.repeat(json.dumps({"ids": ids, **padding}).encode())
    while True:
        work = draw.lognormvariate(-(_WORK_SIGMA**2) / 2, _WORK_SIGMA)
        yield json.dumps({"work": work, "luck": draw.random(), **padding}).encode()


async def generate(
    target: str,
    rate: float,
    seed: int,
    results: Path,
    timeout_seconds: float,
    padding_bytes: int = 0,
    count: int | None = None,
    model: str = MODEL,
) -> None:
    """Send `count` requests, or until SIGTERM; then wait for what is under way."""
    connections, draw, stop = _Connections(target), random.Random(seed), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    head = f"POST /predictions/{model} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/json\r\nContent-Length:"
    messages = (f"{head} {len(body)}\r\n\r\n".encode() + body for body in bodies(model, seed, padding_bytes))
    under_way: set[asyncio.Task[None]] = set()
    with results.open("w", buffering=1, newline="") as file:
        out = csv.writer(file, lineterminator="\n")

        async def one(arrival: float, message: bytes) -> None:
            lag, status, server = time.monotonic() - arrival, BROKEN, ""
            with suppress(OSError, EOFError):
                try:
                    async with asyncio.timeout(timeout_seconds):
                        status, server = await connections.post(message)
                except TimeoutError:
                    status = TIMED_OUT
            out.writerow((f"{arrival:.6f}", f"{time.monotonic() - arrival:.6f}", f"{lag:.6f}", status, server))

        arrival = time.monotonic()
        sent = 0
        while not stop.is_set() and sent != count:
            arrival += draw.expovariate(rate)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, arrival - time.monotonic()))
            if stop.is_set():
                break
            sent, message = sent + 1, next(messages)
            if len(under_way) >= _IN_FLIGHT_MAX:
                out.writerow((f"{arrival:.6f}", "0", f"{time.monotonic() - arrival:.6f}", BROKEN, ""))
                continue
            task = asyncio.create_task(one(arrival, message))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way)


@click.command()
@click.option("--target", required=True, help="host:port")
@click.option("--rate", type=click.FloatRange(0, min_open=True), required=True, help="Requests a second.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds until a request is given up.")
@click.option("--padding", type=click.IntRange(0), default=0, show_default=True, help="Bytes by which each is larger.")
@click.option("--model", default=MODEL, show_default=True, help="Which model is asked.")
@click.option("--count", type=int, help="Requests to send.  [default: until SIGTERM]")
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False), required=True, help="CSV file to write.")
def main(
    target: str, rate: float, seed: int, timeout: float, padding: int, model: str, count: int | None, results: Path
) -> None:
    """Send requests to TARGET as a Poisson process."""
    with suppress(PermissionError):
        # A generator that waits for a CPU measures itself.
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    asyncio.run(generate(target, rate, seed, results, timeout, padding, count, model))


if __name__ == "__main__":
    main()
