"""How `trimtab nodes` shows what it was told. Unknown is "unknown" or "–", never 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.table import Table
from rich.text import Text

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector import trouble
from trimtab.collector.timeline import ERROR_SECONDS_MAX

FULL_COLUMNS = 100
"""A terminal that has room for more than what matters most."""


def as_object(node: pb.Node, now_unix_ns: int) -> dict[str, Any]:
    """JSON as the messages have it, with null for what is unknown."""
    out = known(node)
    for name in ("last_window_unix_ns", "windows", "duplicates", "lost", "refused"):
        out[name] = int(out[name])
    last = node.last_window_unix_ns
    return {
        **out,
        "last_window_unix_ns": last or None,
        "last_window": datetime.fromtimestamp(last / 1e9, UTC).isoformat() if last else None,
        "age_seconds": (now_unix_ns - last) / 1e9 if last else None,
        "state": trouble.state(node, now_unix_ns),
        "trouble": trouble.troubles(node, now_unix_ns),
        "instance_count": len(node.instances),
    }


def known(message: Any) -> dict[str, Any]:
    """A message as JSON. protobuf writes NaN as text; unknown is null."""
    out: dict[str, Any] = _known(
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )
    return out


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return None if value == "NaN" else value


def nodes_table(nodes: Sequence[pb.Node], now_unix_ns: int, width: int) -> Table:
    """One row a node, with all its counts where they fit in `width`; its age is that of its last window."""
    full = width >= FULL_COLUMNS
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("node", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("age", "inst.", *(("GPUs", "windows") if full else ()), "lost", "refused", "clock"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("incident")
    for node in nodes:
        state = trouble.state(node, now_unix_ns)
        last = node.last_window_unix_ns
        error = node.clock_error_seconds
        table.add_row(
            Text(printable(node.name)),
            Text(state, style={"connected": "green", "silent": "yellow"}.get(state, "red")),
            duration((now_unix_ns - last) / 1e9) if last else "–",
            f"{len(node.instances):,}",
            *(f"{count:,}" for count in ((node.gpus, node.windows) if full else ())),
            *(Text(f"{count:,}", style="red" if count else "") for count in (node.lost, node.refused)),
            Text(f"{error:+.3f} s", style="red" if abs(error) > ERROR_SECONDS_MAX else ""),
            Text(" ".join(trouble.incidents(node)) or "–", style="red" if trouble.incidents(node) else ""),
        )
    return table


def refusals(nodes: Sequence[pb.Node]) -> list[Text]:
    """A line for each node that had a window refused: why the last one was."""
    return [
        Text(f"{printable(n.name)}: last refusal: {printable(n.last_refusal)}", style="red")
        for n in nodes
        if n.last_refusal
    ]


def number(value: float, form: str) -> str:
    """A value in this form, or "–"."""
    return "–" if math.isnan(value) else form.format(value)


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def printable(text: str) -> str:
    """What an agent sent must not steer the operator's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
