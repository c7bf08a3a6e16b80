"""A window as the collector holds it: checked, with its time by the collector's clock. What is in it is unpacked by whoever looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Sketches, unpack_sketches, unpack_values


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one node."""

    node: str
    spool: str
    seq: int
    start_unix_ns: int
    """Start by the collector's clock."""
    duration_ns: int
    schema: pb.Schema
    message: pb.Window
    """As it came, but for the times of its events, which are by the collector's clock."""
    came: bytes = b""
    """The AgentMessage that it was in, where it is known."""

    @property
    def values(self) -> list[NDArray[np.float64]]:
        """One float64 [series, subjects] a table of the schema; NaN is unknown."""
        return unpack_values(self.message, self.schema)

    @property
    def sketches(self) -> list[Sketches]:
        """The sketches, a series of a table each."""
        return [unpack_sketches(column, self.schema) for column in self.message.sketches]

    def said(self) -> bytes:
        """As an AgentMessage."""
        if self.came and not self.message.events:
            return self.came
        return pb.AgentMessage(window=self.message).SerializeToString()

    @property
    def events(self) -> Sequence[pb.Event]:
        """What happened."""
        return self.message.events

    @property
    def talkers(self) -> Sequence[pb.Talkers]:
        """Checked: what is in them can be merged."""
        return self.message.talkers
