"""Simulated agents: `python -m tests.bench.fleet.load HOST:PORT FIRST AGENTS SECONDS [HISTORY [WARM]]`.

Each has a gRPC client and a connection of its own, and sends a window a second, open loop, its phase spread over the second. With
HISTORY each sends so many seconds of the past instead, as fast as they are acknowledged. What is acknowledged of the first WARM seconds
is not in the latencies. Prints "ready" when all have been welcomed, and one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from dataclasses import dataclass, field

import grpc
import numpy as np

from tests.bench.fleet.recording import SECOND_NS, Recording, read
from trimtab.agent.wire import telemetry_pb2 as pb

METHOD = "/trimtab.telemetry.v1.Telemetry/Publish"
IN_FLIGHT_MAX = 64
CONNECTING_AT_ONCE = 50


@dataclass
class Outcome:
    """What all agents saw."""

    latencies: list[float] = field(default_factory=list)
    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    late: int = 0
    """Windows that could not be sent within a second of their time."""
    failed: list[str] = field(default_factory=list)


class Agent:
    """One node."""

    def __init__(self, target: str, node: str, number: int, recording: Recording, outcome: Outcome) -> None:
        # As the real agent has it.
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.http2.bdp_probe", 0),
        ]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._call = self._channel.stream_stream(METHOD)()
        self._node, self._number, self._recording, self._outcome = node, number, recording, outcome
        self._schema = recording.of(node)
        self._sent: dict[int, float] = {}
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._seq = self._measured = 0

    async def open(self) -> None:
        hello = pb.Hello(
            protocol=1,
            node=self._node,
            machine_id=f"machine-{self._node}",
            boot_id="boot",
            spool_id="spool",
            agent_version="bench",
            unix_ns=time.time_ns(),
            boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            first_seq=1,
        )
        await self._call.write(pb.AgentMessage(hello=hello).SerializeToString())
        welcome = pb.CollectorMessage.FromString(await self._call.read())
        self._seq = welcome.welcome.high_water_mark
        await self._call.write(pb.AgentMessage(schema=self._schema).SerializeToString())

    async def live(self, seconds: int, warm: int, phase: float, begin: float) -> None:
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._read())
        for turn in range(seconds):
            due = begin + turn + phase
            if turn == warm:
                self._measured = self._seq
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._outcome.late += loop.time() > due + 1
            await self._send(time.time_ns() - SECOND_NS, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - SECOND_NS)
        await self._finish(reading)

    async def history(self, seconds: int, until_ns: int, until_boot_ns: int) -> None:
        reading = asyncio.get_running_loop().create_task(self._read())
        for age in range(seconds, 0, -1):
            await self._send(until_ns - age * SECOND_NS, until_boot_ns - age * SECOND_NS)
        await self._finish(reading)

    async def _send(self, start_ns: int, boot_ns: int) -> None:
        await self._room.acquire()
        self._seq += 1
        message = self._recording.window(self._number * 7 + self._seq, self._schema.hash, self._seq, start_ns, boot_ns)
        self._sent[self._seq] = asyncio.get_running_loop().time()
        self._outcome.sent += 1
        await self._call.write(message)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while (data := await self._call.read()) is not grpc.aio.EOF:
            answer = pb.CollectorMessage.FromString(data)
            self._room.release()
            if answer.HasField("ack"):
                self._outcome.acknowledged += 1
                sent = self._sent.pop(answer.ack.seq)
                if answer.ack.seq > self._measured:
                    self._outcome.latencies.append(loop.time() - sent)
            else:
                self._outcome.refused += 1
                self._outcome.failed.append(answer.refusal.reason)

    async def _finish(self, reading: asyncio.Task[None]) -> None:
        await self._call.done_writing()
        try:
            await asyncio.wait_for(reading, 30)
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            self._outcome.failed.append(repr(error)[:200])
        await self._channel.close()


async def main(target: str, first: int, agents: int, seconds: int, history: int = 0, warm: int = 0) -> None:
    recording, outcome = read(), Outcome()
    fleet = [Agent(target, f"node-{first + i:04d}", first + i, recording, outcome) for i in range(agents)]
    for at in range(0, agents, CONNECTING_AT_ONCE):
        await asyncio.gather(*(agent.open() for agent in fleet[at : at + CONNECTING_AT_ONCE]))
    print("ready", flush=True)
    begun = time.monotonic()
    if history:
        until, boot = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        await asyncio.gather(*(agent.history(history, until, boot) for agent in fleet))
    else:
        begin = asyncio.get_running_loop().time() + 0.5
        await asyncio.gather(*(agent.live(seconds, warm, i / agents, begin) for i, agent in enumerate(fleet)))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    latencies = np.asarray(outcome.latencies or [float("nan")])
    print(
        json.dumps(
            {
                "agents": agents,
                "sent": outcome.sent,
                "acknowledged": outcome.acknowledged,
                "refused": outcome.refused,
                "late": outcome.late,
                "ack_p50_ms": float(np.quantile(latencies, 0.5)) * 1e3,
                "ack_p99_ms": float(np.quantile(latencies, 0.99)) * 1e3,
                "ack_max_ms": float(latencies.max()) * 1e3,
                "seconds": time.monotonic() - begun,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "failed": outcome.failed[:3],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
