"""How `trimtab nodes` shows what it was told. Unknown is "unknown" or "–", never 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.table import Table
from rich.text import Text

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.timeline import ERROR_SECONDS_MAX

_SILENT_SECONDS = 10.0


def as_object(node: pb.Node, now_unix_ns: int) -> dict[str, Any]:
    """JSON as the messages have it, with null for what is unknown."""
    out = _known(MessageToDict(node, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
    for name in ("last_window_unix_ns", "windows", "duplicates", "lost", "refused"):
        out[name] = int(out[name])
    last = node.last_window_unix_ns
    age = (now_unix_ns - last) / 1e9 if last else None
    return {**out, "last_window_unix_ns": last or None, "age_seconds": age, "state": _state(node, now_unix_ns)}


def _known(value: Any) -> Any:
    """protobuf writes NaN as text; unknown is null."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return None if value == "NaN" else value


def _state(node: pb.Node, now_unix_ns: int) -> str:
    if not node.connected:
        return "gone"
    fresh = now_unix_ns - node.last_window_unix_ns < _SILENT_SECONDS * 1e9
    return "connected" if node.last_window_unix_ns and fresh else "silent"


def nodes_table(reply: pb.NodesReply) -> Table:
    """One row a node; its age is that of its last window."""
    headings = ("node", "state", "age", "inst.", "GPUs", "windows", "repeats", "lost", "refused", "clock")
    table = Table(*headings, header_style="bold", box=None, pad_edge=False)
    for node in reply.nodes:
        state = _state(node, reply.now_unix_ns)
        last = node.last_window_unix_ns
        error = node.clock_error_seconds
        table.add_row(
            Text(node.name),
            Text(state, style={"connected": "green", "silent": "yellow"}.get(state, "red")),
            _duration((reply.now_unix_ns - last) / 1e9) if last else "–",
            *(str(count) for count in (len(node.instances), node.gpus, node.windows, node.duplicates)),
            *(Text(str(count), style="red" if count else "") for count in (node.lost, node.refused)),
            Text(f"{error:+.3f} s", style="red" if abs(error) > ERROR_SECONDS_MAX else ""),
        )
    return table


def refusals(reply: pb.NodesReply) -> list[Text]:
    """A line for each node that had a window refused: why the last one was."""
    return [
        Text(f"{n.name}: last refusal: {printable(n.last_refusal)}", style="red") for n in reply.nodes if n.last_refusal
    ]


def instances_table(instances: Sequence[pb.InstanceState]) -> Table:
    """One row an instance."""
    headings = ("instance", "model", "requests/s", "p50", "p99", "errors", "score", "incident")
    table = Table(*headings, header_style="bold", box=None, pad_edge=False)
    for i in sorted(instances, key=lambda i: i.id):
        table.add_row(
            Text(printable(i.id)),
            Text(printable(i.model) or "unknown"),
            _number(i.requests_per_second, "{:.1f}"),
            _number(i.latency_p50_seconds * 1e3, "{:.1f} ms"),
            _number(i.latency_p99_seconds * 1e3, "{:.1f} ms"),
            _number(i.error_ratio * 100, "{:.1f} %"),
            _number(i.score, "{:.2f}"),
            Text(f"{i.incident} {i.mechanism}".strip() or "–", style="red" if i.incident else ""),
        )
    return table


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else form.format(value)


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def printable(text: str) -> str:
    """What an agent sent must not steer the operator's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
