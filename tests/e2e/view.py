"""What the demo shows: the live picture, and the tables at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.e2e.observe import Observer
from tests.e2e.report import Phase
from trimtab.agent.wire import query_pb2 as pb


def fleet(observer: Observer, names: dict[str, str], faulty: str) -> Table:
    """One row an instance: what trimtab sees of it, and its weight at HAProxy. `names`: instance id → server name."""
    table = Table(title="what trimtab sees", title_justify="left")
    table.add_column("instance")
    for column in ("req/s", "p50 ms", "p95 ms", "errors", "score", "weight"):
        table.add_column(column, justify="right")
    table.add_column("incident")
    weights = observer.weights[-1][1] if observer.weights else {}
    for subject, name in names.items():
        seen = observer.instances.get(subject, _UNSEEN)
        table.add_row(
            f"{name} {subject}" + (" (fault)" if subject == faulty else ""),
            _number(seen.requests_per_second, 1, ".1f"),
            _number(seen.latency_p50_seconds, 1e3, ".0f"),
            _number(seen.latency_p95_seconds, 1e3, ".0f"),
            _number(seen.error_ratio, 100, ".0f", " %"),
            _number(seen.score, 1, ".2f"),
            str(weights.get(name, "")),
            f"{seen.incident} {seen.mechanism}".strip(),
            style="yellow" if seen.incident else None,
        )
    return table


def live(
    steps: Sequence[str], current: int, step_ends: float, table: RenderableType, incidents: Sequence[pb.Incident]
) -> Group:
    """The whole picture: the steps, the fleet, the incidents so far."""
    lines = []
    for i, step in enumerate(steps):
        left = f"  {max(0.0, step_ends - time.monotonic()):.0f} s" if i == current and math.isfinite(step_ends) else ""
        mark, style = ("✔", "green") if i < current else ("▶", "bold") if i == current else (" ", "dim")
        lines.append(Text(f"{mark} {step}{left}", style=style))
    return Group(*lines, table, *(Text(one_line(i), style="yellow") for i in incidents))


def one_line(incident: pb.Incident) -> str:
    """An incident in one line."""
    cause = incident.causes[0].mechanism if incident.causes else "no cause yet"
    status = "resolved" if incident.status == pb.Incident.STATUS_RESOLVED else "open"
    return f"{incident.id} {status}: {incident.subject}: {incident.symptom} ({cause})"


def clients(phases: Sequence[Phase]) -> Table:
    """What clients saw, a row a phase."""
    table = Table(
        title="what clients saw (latency from the scheduled arrival; lag: of the load generator)", title_justify="left"
    )
    table.add_column("phase", no_wrap=True)
    for column in ("requests", "answers/s", "mean ms", "p50 ms", "p95 ms", "p99 ms", "errors", "lag p99 ms"):
        table.add_column(column, justify="right")
    for p in phases:
        latencies = (p.mean_seconds, p.p50_seconds, p.p95_seconds, p.p99_seconds)
        table.add_row(
            f"{p.name} ({p.seconds:.0f} s)",
            str(p.requests),
            _number(p.throughput, 1, ".1f"),
            *(_number(x, 1e3, ".0f") for x in latencies),
            _number(p.error_ratio, 100, ".1f", " %"),
            _number(p.generator_lag_p99_seconds, 1e3, ".1f"),
        )
    return table


def weights(history: Sequence[tuple[float, dict[str, int]]], start: float) -> Table:
    """The weights in force at HAProxy, a row for each change; `start`: the monotonic second that counts as 0."""
    names = sorted({name for _, row in history for name in row})
    table = Table(title="weights at HAProxy (neutral: all equal)", title_justify="left")
    table.add_column("seconds since the fault", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    last: dict[str, int] = {}
    for when, row in history:
        if row != last:
            table.add_row(f"{when - start:+.0f}", *(str(row.get(name, "")) for name in names))
        last = row
    return table


def plain_console() -> Console:
    """A console that does not wrap tables where its output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _number(value: float, factor: float, form: str, unit: str = "") -> str:
    return f"{value * factor:{form}}{unit}" if math.isfinite(value) else "-"


_UNSEEN = pb.InstanceState(
    requests_per_second=math.nan,
    latency_p50_seconds=math.nan,
    latency_p95_seconds=math.nan,
    error_ratio=math.nan,
    score=math.nan,
)
