"""How instances are shown: a table for people, plain objects for programs. Unknown is "–" or null, never 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.node_tables import FULL_COLUMNS, duration, known, number, printable
from trimtab.collector.output import Column

WIDE_COLUMNS = 120
"""A terminal that has room for where an instance is, too."""
_NUMBERS = (
    "age_seconds",
    "requests_per_second",
    "latency_mean_seconds",
    "latency_p50_seconds",
    "latency_p95_seconds",
    "latency_p99_seconds",
    "error_ratio",
    "in_flight",
    "queue",
    "utilisation",
    "workers",
    "memory_bytes",
    "score",
)
_UNKNOWN = pb.InstanceState()
for _name in _NUMBERS:
    setattr(_UNKNOWN, _name, math.nan)
COLUMNS = [
    *(Column(name, "VARCHAR") for name in ("instance", "node", "model", "runtime")),
    Column("addresses", "VARCHAR[]"),
    Column("current", "BOOLEAN"),
    *(Column(name, "DOUBLE") for name in _NUMBERS),
    Column("incident", "VARCHAR"),
    Column("mechanism", "VARCHAR"),
    Column("confidence", "DOUBLE"),
]


def state_of(one: pb.Instance) -> pb.InstanceState:
    """Its newest state; all unknown where it has none."""
    return one.state if one.HasField("state") else _UNKNOWN


def as_object(one: pb.Instance) -> dict[str, Any]:
    """The columns of `COLUMNS`."""
    state = state_of(one)
    told = known(state)
    named = {"incident": state.incident or None, "mechanism": state.mechanism or None}
    return {
        "instance": one.id,
        "node": one.node,
        "model": one.model,
        "runtime": one.runtime,
        "addresses": list(one.addresses),
        "current": one.current,
        **{name: told[name] for name in _NUMBERS},
        **named,
        "confidence": told["confidence"] if state.incident else None,
    }


def worst_first(found: Sequence[pb.Instance]) -> list[pb.Instance]:
    """Those with an incident, then by score, then those without one; the gone last."""

    def rank(one: pb.Instance) -> tuple[bool, bool, float, str]:
        state = state_of(one)
        return not one.current, not state.incident, -state.score if state.score >= 0 else 1, one.id

    return sorted(found, key=rank)


def instances_table(found: Sequence[pb.Instance], width: int) -> Table:
    """One row an instance, with as much about it as fits in `width`; its name always does."""
    full, wide = width >= FULL_COLUMNS, width >= WIDE_COLUMNS
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("instance", no_wrap=True)
    table.add_column("model")
    if wide:
        table.add_column("runtime")
        table.add_column("addresses")
        table.add_column("age", justify="right", no_wrap=True)
    for heading in ("requests/s", *(("p50",) if full else ()), "p99", "errors", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("incident")
    for one in found:
        state = state_of(one)
        about = (
            Text(printable(one.runtime) or "unknown"),
            Text(printable(" ".join(one.addresses)) or "–"),
            "–" if math.isnan(state.age_seconds) else duration(state.age_seconds),
        )
        table.add_row(
            Text(printable(one.id), style="" if one.current else "dim"),
            Text(printable(one.model) or "unknown"),
            *(about if wide else ()),
            number(state.requests_per_second, "{:,.1f}"),
            *((number(state.latency_p50_seconds * 1e3, "{:,.1f} ms"),) if full else ()),
            number(state.latency_p99_seconds * 1e3, "{:,.1f} ms"),
            number(state.error_ratio * 100, "{:.1f} %"),
            number(state.score, "{:.2f}"),
            _incident(one, state, full),
        )
    return table


def _incident(one: pb.Instance, state: pb.InstanceState, full: bool) -> Text:
    if state.incident:
        named = f"{state.incident} {state.mechanism}" if full else state.incident
        return Text(printable(named.strip()), style="red")
    return Text("–") if one.current else Text("gone", style="dim")
