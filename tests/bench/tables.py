"""The results, for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from tests.bench import fleet_latency, request_cost, side_by_side
from tests.bench.spread import Estimate
from tests.bench.targets import TARGETS, verdict


def requests(result: request_cost.Result) -> Table:
    """Experiment 1: CPU a request."""
    title = f"CPU a request: nginx and wrk on one CPU, {result.requests_per_second:,.0f} requests/s"
    table = _table(title, "probes on", "µs", "95 % interval", "share")
    table.add_row("none", f"{result.base_us.value:.2f}", _interval(result.base_us), "")
    for group, added in result.added_us.items():
        share = f"{added.value / result.base_us.value:+.1%}"
        table.add_row(group, f"{added.value:+.2f}", _interval(added), share)
    table.caption = "\n".join(f"not here: {name}: {why}" for name, why in result.unavailable.items()) or None
    return table


def probes(result: request_cost.Result) -> Table:
    """What the kernel itself counted of each hook."""
    table = _table(
        "the kernel's own count, all probes on", "program", "ns a run", "runs a request", "µs a request", "skipped"
    )
    for name, probe in result.probes.items():
        micros = probe["ns_per_run"] * probe["runs_per_request"] / 1000
        cells = (
            f"{probe['ns_per_run']:.0f}",
            f"{probe['runs_per_request']:.2f}",
            f"{micros:.3f}",
            f"{probe['skipped']}",
        )
        table.add_row(name, *cells)
    return table


def beside(result: side_by_side.Result) -> Table:
    """Experiments 2 to 4: whole agents over the same spans."""
    idle, loaded = result.idle, result.loaded
    load = f"{loaded.requests_per_second:,.0f} requests/s"
    title = f"same run, same spans: idle, and beside {load}"
    table = _table(title, "", "idle, % of a core", "loaded", "resident MB", "PSS", "peak")
    for name, memory in result.memory.items():
        cells = (f"{memory.resident_mb:.1f}", f"{memory.proportional_mb:.1f}", f"{memory.peak_mb:.1f}")
        table.add_row(name, _percent(idle, name), _percent(loaded, name), *cells)
    table.add_row(
        "  its probes, in the kernel", f"{idle.kernel_percent:.2f}", f"{loaded.kernel_percent:.2f}", "", "", ""
    )
    running = ", ".join(f"{name} {percent:.3f}" for name, percent in sorted(loaded.hooks.items(), key=lambda h: -h[1]))
    starts = ", ".join(f"{seconds:.2f}" for seconds in result.first_window_seconds)
    reported = ", ".join(f"{name} {value:,.4g}" for name, value in result.reported.items())
    starting = f"it reported: {reported or 'nothing'}\nfirst window after {starts} s; Netdata fills {result.netdata_charts} charts"
    table.caption = f"loaded, by program: {running or 'none ran'}\n{starting}"
    return table


def fleet(result: fleet_latency.Result) -> Table:
    """Experiment 5."""
    load = f"{fleet_latency.RATE_PER_SECOND:.0f} requests/s"
    title = f"TorchServe at {load}, with the agent / without: {result.requests:,} requests, {result.failed} failed"
    table = _table(title, "", "ratio", "95 % interval", "without, ms", "")
    for name, ratio, seconds in (
        ("p50", result.p50_ratio, result.p50_seconds),
        ("p99", result.p99_ratio, result.p99_seconds),
    ):
        said = (
            "no measurable change"
            if ratio.covers(1.0)
            else "slower"
            if ratio.value > 1
            else "faster: it was not steady"
        )
        table.add_row(name, f"{ratio.value:.3f}", _interval(ratio, 3), f"{seconds * 1000:.1f}", said)
    return table


def targets(figures: Mapping[str, Any], spreads: Mapping[str, tuple[float, float]]) -> Table:
    """Every target, and whether it is met."""
    table = _table("targets", "", "measured", "95 % interval", "at most", "")
    colours = {"met": "green", "missed": "red", "too noisy": "yellow", "not measured": "yellow"}
    for target in TARGETS:
        value, said = figures[target.figure], verdict(target, figures, spreads)
        low, high = spreads.get(target.figure, (math.nan, math.nan))
        measured = "–" if value is None else f"{value:.3g} {target.unit}"
        bound = f"{target.at_most:g} {target.unit}"
        table.add_row(target.what, measured, _interval(Estimate(0.0, low, high)), bound, f"[{colours[said]}]{said}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _percent(span: side_by_side.Span, name: str) -> str:
    estimate = span.cpu_percent[name]
    return f"{span.mean_percent[name]:.2f} ({estimate.low:.2f}–{estimate.high:.2f})"


def _interval(estimate: Estimate, digits: int = 2) -> str:
    if math.isnan(estimate.low):
        return ""
    return f"{estimate.low:.{digits}f} – {estimate.high:.{digits}f}"
