"""A window as the collector holds it: checked, with its time by the collector's clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Sketches


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
    values: list[NDArray[np.float64]]
    """One float64 [series, subjects] a table of the schema; NaN is unknown."""
    sketches: list[Sketches]
    events: list[pb.Event]
    talkers: list[pb.Talkers] = field(default_factory=list)
    """Checked: what is in them can be merged."""
