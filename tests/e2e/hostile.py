"""One HTTP server, and a client that means harm: `python -m tests.e2e.hostile serve` and `… attack PORT`.

Both are processes of their own, so that neither their memory nor their waits are taken for the agent's. They do what a line on
their standard input says, and answer with one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from contextlib import suppress

HEAD_BYTES_MAX = 65536
"""Of a request; beyond it the server says 431 and hangs up."""
DELAY_SECONDS = 0.005
"""How long the server thinks."""
CONNECTIONS = 10_000
_ANSWER = "HTTP/1.1 {status} {reason}\r\nContent-Length: 2\r\nConnection: {connection}\r\n\r\nok"
_HEAD = b"GET / HTTP/1.1\r\nHost: server\r\nX-Slow: "


def raise_limit() -> int:
    """Let this process have as many descriptors as it may; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Server:
    """HTTP/1.1 with kept connections. `answered` counts what it sent, by status."""

    def __init__(self) -> None:
        self.answered: dict[int, int] = {}

    async def serve(self) -> int:
        """Listen; the port."""
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, limit=HEAD_BYTES_MAX, backlog=4096)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError:
                    await self._answer(writer, 431, "Too Large", "close")
                    break
                if not head.startswith(b"GET / HTTP/1.1\r\n"):
                    await self._answer(writer, 400, "Bad Request", "close")
                    break
                await asyncio.sleep(DELAY_SECONDS)
                await self._answer(writer, 200, "OK", "keep-alive")
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, status: int, reason: str, connection: str) -> None:
        self.answered[status] = self.answered.get(status, 0) + 1
        writer.write(_ANSWER.format(status=status, reason=reason, connection=connection).encode())
        await writer.drain()


class Attacker:
    """Holds on to what it opened until it is told to `release`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._slow: list[asyncio.Task[None]] = []

    async def idle(self, count: int) -> None:
        """Connections that never say a word, from more addresses than one client has."""
        for first in range(0, count, 500):
            await asyncio.gather(*(self._open(number) for number in range(first, min(first + 500, count))))

    async def half(self, count: int) -> None:
        """Requests that are never finished."""
        for number in range(count):
            (await self._open(number)).write(_HEAD + b"never")

    async def slow(self, count: int) -> None:
        """Requests that go on for ever, a byte at a time."""
        self._slow += [asyncio.create_task(self._drip(await self._open(number))) for number in range(count)]

    async def garbage(self, count: int) -> None:
        """Bytes that are no request at all, with an end that looks like one's."""
        for number in range(count):
            await self._shout(bytes((7 * number + 13 * at) % 256 for at in range(300)) + b"\r\n\r\n")

    async def giant(self, count: int) -> None:
        """Heads of a megabyte."""
        for _ in range(count):
            await self._shout(_HEAD + b"a" * (1 << 20) + b"\r\n\r\n")

    async def release(self, count: int) -> None:
        """Hang up everywhere, without a goodbye."""
        for task in self._slow:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._writers, self._slow = [], []

    async def _open(self, number: int) -> asyncio.StreamWriter:
        address = f"127.0.0.{2 + number % 8}"
        _, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        self._writers.append(writer)
        return writer

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            for byte in _HEAD + b"a" * HEAD_BYTES_MAX:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.2)

    async def _shout(self, message: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with suppress(OSError):
            writer.write(message)
            await writer.drain()
            await reader.read()
        writer.close()


async def _obey(commands: Server | Attacker, first: object) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print(json.dumps(first), flush=True)
    while line := (await lines.readline()).decode().split():
        if isinstance(commands, Attacker):
            await getattr(commands, line[0])(int(line[1]))
        print(json.dumps(commands.answered if isinstance(commands, Server) else "done"), flush=True)


async def _main(role: str, *arguments: str) -> None:
    raise_limit()
    if role == "serve":
        server = Server()
        await _obey(server, await server.serve())
    else:
        await _obey(Attacker(int(arguments[0])), "ready")


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
