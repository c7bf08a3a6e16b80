"""A remote writer of Prometheus' protocol: `python -m tests.bench.fleet.remote_write PORT AGENTS SECONDS scalars|all [HISTORY]`.

A request a node and second. With HISTORY it sends so many seconds of the past instead, a minute a request, as fast as they are taken.
"""

from __future__ import annotations

import http.client
import json
import sys
import time

import cramjam
import numpy as np
from numpy.typing import NDArray

from tests.bench.fleet.histograms import Samples, samples
from tests.bench.fleet.recording import read

_HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
MINUTE = 60


class Node:
    """A WriteRequest of one node, whose values and times are patched in place."""

    def __init__(self, name: str, of: Samples, times: int) -> None:
        self._times = times
        out, self._values_at, self._stamps_at = bytearray(), [], []
        for series, labels in zip(of.names, of.labels, strict=True):
            named = {"__name__": series, "node": name, **labels}
            body = bytearray()
            for key, value in sorted(named.items()):
                pair = _field(1, key.encode()) + _field(2, value.encode())
                body += _field(1, pair)
            places = []
            for _ in range(times):
                # double value = 1; int64 timestamp = 2, which in this century takes six bytes.
                body += b"\x12\x10\x09" + bytes(8) + b"\x10" + bytes(6)
                places.append(len(body))
            head = b"\x0a" + _varint(len(body))
            base = len(out) + len(head)
            self._values_at += [base + place - 15 for place in places]
            self._stamps_at += [base + place - 6 for place in places]
            out += head + body
        self._data = np.frombuffer(out, dtype=np.uint8)
        self._eight = np.asarray(self._values_at)[:, None] + np.arange(8)
        self._six = np.asarray(self._stamps_at)[:, None] + np.arange(6)

    def request(self, values: NDArray[np.float64], stamps_ms: NDArray[np.int64]) -> bytes:
        """`values` float64 [series, times], compressed. A NaN is sent as it is: both peers keep it as no value or as one."""
        self._data[self._eight] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
        stamps = np.tile(np.frombuffer(b"".join(_varint(int(s)) for s in stamps_ms), dtype=np.uint8), len(values))
        self._data[self._six] = stamps.reshape(-1, 6)
        return bytes(cramjam.snappy.compress_raw(self._data.tobytes()))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def main(port: int, agents: int, seconds: int, what: str, history: int = 0) -> None:
    of = samples(read())
    of = of.scalars if what == "scalars" else of
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = MINUTE if history else 1
    nodes = [Node(f"node-{i:04d}", of, times) for i in range(agents)]
    print("ready", flush=True)
    begun, late = time.monotonic(), 0
    if history:
        until = time.time_ns() // 10**6
        for first in range(0, history, MINUTE):
            stamps = until - (history - first - np.arange(MINUTE)) * 1000
            for i, node in enumerate(nodes):
                values = np.stack([of.at(i * 7 + first + k) for k in range(MINUTE)], axis=1)
                _post(connection, node.request(values, stamps))
    else:
        for turn in range(seconds):
            for i, node in enumerate(nodes):
                due = begun + turn + i / agents
                time.sleep(max(0.0, due - time.monotonic()))
                late += time.monotonic() > due + 1
                stamp = np.asarray([time.time_ns() // 10**6])
                _post(connection, node.request(of.at(i * 7 + turn)[:, None], stamp))
    print(json.dumps({"late": late, "seconds": time.monotonic() - begun, "series": len(of.names)}), flush=True)


def _post(connection: http.client.HTTPConnection, body: bytes) -> None:
    connection.request("POST", "/api/v1/write", body, _HEADERS)
    answer = connection.getresponse()
    said = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"remote write: {answer.status} {said[:200]!r}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:]))
