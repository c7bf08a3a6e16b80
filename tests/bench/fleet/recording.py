"""The recorded windows, and how they become those of any node."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import schema_hash

FILE = Path(__file__).with_name("windows.xz")
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Recording:
    """Windows of one node, a second each."""

    schema: pb.Schema
    windows: list[pb.Window]

    @property
    def values(self) -> int:
        """Scalars a window."""
        return sum(len(table.series) * len(table.subjects) for table in self.schema.tables)

    @property
    def sketches(self) -> float:
        """Sketches a window, on average."""
        return sum(len(c.subjects) // 4 for w in self.windows for c in w.sketches) / len(self.windows)

    def of(self, node: str) -> pb.Schema:
        """The schema as `node` would send it."""
        schema = pb.Schema()
        schema.CopyFrom(self.schema)
        for table in schema.tables:
            for subject in table.subjects:
                _, _, rest = subject.id.partition("/")
                subject.id = f"{node}/{rest}" if rest else node
        schema.hash = schema_hash(schema)
        return schema

    def window(self, index: int, schema: bytes, seq: int, start_ns: int, boottime_ns: int) -> bytes:
        """Window `index` of the recording, as if it had begun then: an AgentMessage."""
        window = self.windows[index % len(self.windows)]
        window.seq, window.schema_hash = seq, schema
        window.start_unix_ns, window.start_boottime_ns, window.duration_ns = start_ns, boottime_ns, SECOND_NS
        return pb.AgentMessage(window=window).SerializeToString()


def read() -> Recording:
    """What tests/bench/fleet/record.py has made."""
    raw = lzma.decompress(FILE.read_bytes())
    messages, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        messages.append(pb.AgentMessage.FromString(raw[at + 4 : at + 4 + size]))
        at += 4 + size
    return Recording(messages[0].schema, [message.window for message in messages[1:]])
