"""The targets that Prometheus scrapes: `python -m tests.bench.fleet.exporter PORT AGENTS scalars|all`. /metrics/NODE is one node's page."""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np

from tests.bench.fleet.histograms import samples
from tests.bench.fleet.recording import read


async def main(port: int, agents: int, what: str) -> None:
    of = samples(read())
    of = of.scalars if what == "scalars" else of
    heads = [
        f"{name}{{{','.join(f'{key}={chr(34)}{value}{chr(34)}' for key, value in labels.items())}}} "
        for name, labels in zip(of.names, of.labels, strict=True)
    ]
    begun = time.monotonic()

    def page(number: int) -> bytes:
        values = of.at(number * 7 + int(time.monotonic() - begun))
        known = np.flatnonzero(~np.isnan(values)).tolist()
        listed = values.tolist()
        return "".join([f"{heads[i]}{listed[i]!r}\n" for i in known]).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                body = page(int(request.split(b" ", 2)[1].rpartition(b"-")[2]))
                head = (
                    f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
