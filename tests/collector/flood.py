"""Agents that ask for more than their share: `python -m tests.collector.flood PORT NODE SUBJECTS greedy|deaf`.

A process of its own, so that it takes no time from the good agent beside it. It says `in` once its first window is answered.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import count

import numpy as np

from tests.collector.sender import channel, hello, schema, window
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub

SERIES = 20


def messages(node: str, subjects: int) -> Iterator[pb.AgentMessage]:
    """Hello, a schema, and windows without end."""
    of = schema({"instance": ([f"flood{i}" for i in range(SERIES)], [f"{node}/{i}" for i in range(subjects)])})
    yield hello(node)
    yield pb.AgentMessage(schema=of)
    message = window(1, of, [np.ones((SERIES, subjects))])
    for seq in count(1):
        message.window.seq = seq
        yield message


def main(port: int, node: str, subjects: int, deaf: bool) -> None:
    with channel(port) as link:
        answers = TelemetryStub(link).Publish(messages(node, subjects))  # type: ignore[no-untyped-call] # generated
        next(answers)
        next(answers)
        print("in", flush=True)
        if deaf:
            time.sleep(3600)
        for _ in answers:
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "deaf")
