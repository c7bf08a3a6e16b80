"""How an incident's impact is told: what it did to users, and what was done about it."""

from __future__ import annotations

import math
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.node_tables import known, printable
from trimtab.detector.quantity import quantity
from trimtab.detector.when import clock

_QUANTILES = (("median", "p50"), ("p95", "p95"))


def as_objects(reply: pb.IncidentReportReply) -> dict[str, Any]:
    """JSON; null for what is unknown."""
    found = None
    if reply.HasField("impact"):
        found = {field.name: getattr(reply.impact, field.name) for field in pb.Impact.DESCRIPTOR.fields}
        found = {name: None if math.isnan(value) else value for name, value in found.items()}
    return {
        "impact": found,
        "actions": [_action(one) for one in reply.actions],
        "actions_left_out": reply.actions_left_out,
    }


def rows(reply: pb.IncidentReportReply) -> list[tuple[str, str]]:
    """Names and what is told of them: users, and latency."""
    if not reply.HasField("impact"):
        return [("users hit", "unknown: nothing is stored of its requests")]
    told = reply.impact
    latency = ("latency", "; ".join(_latency(label, told, name) for label, name in _QUANTILES))
    if math.isnan(told.requests):
        return [("users hit", "unknown: nothing is known of its requests since the onset"), latency]
    known = [value for value in (told.slow, told.errors) if not math.isnan(value)]
    # An error may have been slow, too.
    hit = f"{_count(max(known))}–{_count(sum(known))}" if len(known) == 2 and min(known) >= 1 else ""
    hit = hit or (_count(sum(known)) if known else "unknown")
    parts = f"{_count(told.slow)} slower than usual, {_count(told.errors)} more errors than usual"
    return [("users hit", f"{hit} of {_count(told.requests)} requests: {parts}"), latency]


def actions(reply: pb.IncidentReportReply) -> list[RenderableType]:
    """A table of what the actuator did."""
    if not reply.actions:
        return [Text("\nno weight was changed for it", style="dim")]
    out = Table("done", "instance", "weight", "mode", "reason", header_style="bold", box=None, pad_edge=False)
    for one in reply.actions:
        weight = one.weight
        out.add_row(
            clock(one.unix_ns), Text(printable(weight.instance)), f"{weight.weight:.3f}", Text(printable(one.mode)),
            Text(printable(weight.reason)),
        )  # fmt: skip
    return [Text(), out, *([Text("and more", style="dim")] if reply.actions_left_out else [])]


def _action(action: pb.Action) -> dict[str, Any]:
    return {"unix_ns": action.unix_ns, "mode": action.mode, **known(action.weight)}


def _latency(label: str, told: pb.Impact, name: str) -> str:
    before, after = (getattr(told, f"{name}_{when}_seconds") for when in ("before", "after"))
    added = after - before
    change = "" if math.isnan(added) else f" ({'+' if added >= 0 else '−'}{quantity(abs(added), 's')})"
    return f"{label} {quantity(before, 's')} → {quantity(after, 's')}{change}"


def _count(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:,.0f}"
