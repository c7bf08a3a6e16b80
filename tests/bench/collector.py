"""`make bench-collector`: what the collector costs at fleet scale, beside its peers (docs/performance.md). The last line is JSON."""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import grpc
from rich.console import Console
from rich.table import Table

from tests.bench.fleet import merging, systems
from tests.bench.fleet.growth import plot
from tests.bench.fleet.histograms import samples
from tests.bench.fleet.recording import read
from trimtab import TrimtabError
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire.query_pb2_grpc import QueryStub

P99 = "histogram_quantile(0.99, sum by (le) (increase(instance_request_latency_bucket[1h])))"
ROLLED_SECONDS_MAX = 300.0
UNROLLED = """
SELECT (SELECT count(*) FROM late_minutes) = 0
    AND (SELECT max(value::BIGINT) FROM meta WHERE key = 'rolled_1m') > epoch_us(now()) - 120_000_000
"""
GOALS: dict[str, tuple[str, float]] = {
    "ingest_cores": ("at most", 0.6),
    "ack_p99_ms": ("at most", 250),
    "resident_mb": ("at most", 1000),
    "samples_per_cpu_second_vs_prometheus": ("at least", 5),
    "samples_per_cpu_second_vs_victoriametrics": ("at least", 2),
    "bytes_per_sample_vs_victoriametrics": ("at most", 1),
    "fleet_p99_query_ms": ("at most", 100),
    "fleet_p99_query_vs_victoriametrics": ("at most", 1),
    "merge_vs_ddsketch": ("at least", 50),
    "merge_vs_kll": ("at least", 5),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, and how many."""

    rounds: int
    whats: tuple[str, ...]
    """Which of the samples the peers get."""
    peers: int
    warm_seconds: int
    seconds: int
    growth: tuple[int, ...]
    growth_seconds: int
    """With the most agents at least a minute, so that a rollup is in it."""
    history_agents: int
    history_seconds: int
    asked: int


FULL = Plan(3, ("all", "scalars"), 200, 6, 12, (10, 30, 100, 300, 1000), 60, 20, 3600, 20)
QUICK = Plan(1, ("all",), 40, 3, 4, (100,), 3, 4, 60, 5)


class Report:
    """The figures as they come in."""

    def __init__(self, console: Console) -> None:
        recording = read()
        self.console = console
        self.samples = len(samples(recording).names)
        self.scalars = recording.values
        self.figures: dict[str, Any] = dict.fromkeys(GOALS)
        console.print(
            f"a window: {recording.values} scalars and {recording.sketches:.0f} sketches, which are {self.samples} samples "
            f"to the peers (a classical histogram of 12 buckets for each sketch); {platform.machine()}, "
            f"Linux {platform.release()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        )

    def put_at_scale(self, agents: int, cores: float) -> None:
        """The same ratios with the collector's most agents: what a window takes the peers hardly depends on how many nodes there are."""
        mine = agents * self.samples / cores
        for peer in ("prometheus", "victoriametrics"):
            name = f"samples_per_cpu_second_vs_{peer}"
            ratio = self.figures[name] * mine / self.figures["samples_per_cpu_second"]
            self.figures[f"{name}_at_{agents}_agents"] = ratio

    def put(self, **figures: Any) -> None:
        self.figures.update(figures)


def side_by_side(report: Report, plan: Plan, scratch: Path) -> None:
    """CPU for the same windows, in turn."""
    cores: dict[str, list[float]] = {}
    for turn in range(plan.rounds):
        for what in plan.whats:
            for name, measured in (("victoriametrics", victoria), ("prometheus", prometheus)):
                found = measured(plan, scratch / f"{name}-{what}-{turn}", what)
                cores.setdefault(f"{name} {what}", []).append(found)
                if name == "victoriametrics" and what == "all":
                    cores.setdefault("trimtab", []).append(trimtab(plan, scratch / f"trimtab-{turn}"))
    medians = {name: statistics.median(found) for name, found in cores.items()}
    per_second = {name: plan.peers * report.samples / found for name, found in medians.items()}
    report.put(
        peers_agents=plan.peers,
        samples_per_cpu_second=per_second["trimtab"],
        samples_per_cpu_second_vs_prometheus=medians["prometheus all"] / medians["trimtab"],
        samples_per_cpu_second_vs_victoriametrics=medians["victoriametrics all"] / medians["trimtab"],
    )
    if "scalars" in plan.whats:
        for peer in ("prometheus", "victoriametrics"):
            ratio = medians[f"{peer} scalars"] / medians["trimtab"]
            report.put(**{f"samples_per_cpu_second_vs_{peer}_scalars_only": ratio})
    table = Table("cores", "median", "lowest", "highest", title=f"{plan.peers} nodes, a window a second each")
    for name, found in cores.items():
        table.add_row(name, *(f"{value:.3f}" for value in (medians[name], min(found), max(found))))
    report.console.print(table)


def trimtab(plan: Plan, directory: Path) -> float:
    with systems.collector(directory) as (installed, pid):
        return live(installed.collector, pid, plan.peers, plan.warm_seconds, plan.seconds).cores


def live(target: str, pid: int, agents: int, warm: int, seconds: int) -> systems.Cost:
    """Agents that send, and what the collector takes for it."""
    with systems.load("load", target, 0, agents, warm + seconds + 2, 0, warm) as load:
        return replace(systems.measure(pid, warm, seconds), load=load.result(60))


def victoria(plan: Plan, directory: Path, what: str) -> float:
    with systems.victoria(directory) as (port, pid):
        seconds = plan.warm_seconds + plan.seconds + 2
        with systems.load("remote_write", port, plan.peers, seconds, what) as load:
            cost = systems.measure(pid, plan.warm_seconds, plan.seconds)
            load.result(60)
    return cost.cores


def prometheus(plan: Plan, directory: Path, what: str) -> float:
    exporter = systems.free_ports(1)
    with (
        systems.load("exporter", exporter, plan.peers, what),
        systems.prometheus(directory, exporter, plan.peers) as (port, pid),
    ):
        cost = systems.measure(pid, plan.warm_seconds, plan.seconds)
        up = systems.ask(port, "sum(up)")
        if up != plan.peers:
            raise TrimtabError(f"Prometheus scraped {up} of {plan.peers} nodes")
    return cost.cores


def growth(report: Report, plan: Plan, scratch: Path) -> None:
    """What it takes as the fleet grows."""
    rows: list[dict[str, Any]] = []
    table = Table(
        "agents",
        "cores",
        "µs a window",
        "analysis",
        "resident MB",
        "ack p50",
        "ack p99",
        "refused",
        "late",
        title="growth",
    )
    for agents in plan.growth:
        with systems.collector(scratch / f"growth-{agents}") as (installed, pid):
            cost = live(installed.collector, pid, agents, plan.warm_seconds, plan.growth_seconds)
        lost = cost.load["sent"] - cost.load["acknowledged"]
        if lost or cost.load["failed"]:
            report.console.print(f"{lost} windows of {agents} agents were not acknowledged: {cost.load['failed']}")
        rows.append(
            {
                "agents": agents,
                "cores": cost.cores,
                "beside_cores": cost.beside_cores,
                "resident_mb": cost.resident_mb,
                **cost.load,
            }
        )
        last = rows[-1]
        table.add_row(
            str(agents),
            f"{cost.cores:.3f}",
            f"{cost.cores / agents * 1e6:.0f}",
            f"{cost.beside_cores:.2f}",
            f"{cost.resident_mb:.0f}",
            f"{last['ack_p50_ms']:.0f} ms",
            f"{last['ack_p99_ms']:.0f} ms",
            str(last["refused"]),
            str(last["late"]),
        )
    report.console.print(table)
    last = rows[-1]
    report.put(
        agents=last["agents"],
        ingest_cores=last["cores"],
        analysis_cores=last["beside_cores"],
        ack_p50_ms=last["ack_p50_ms"],
        ack_p99_ms=last["ack_p99_ms"],
        resident_mb=last["resident_mb"],
        growth=[{name: row[name] for name in ("agents", "cores", "ack_p99_ms", "resident_mb")} for row in rows],
    )
    report.put_at_scale(last["agents"], last["cores"])
    if len(rows) > 1:
        plot(rows, Path("docs/collector-growth.svg"))


def history(report: Report, plan: Plan, scratch: Path) -> None:
    """An hour of the past: its bytes, and a question about all of it."""
    seconds, agents = plan.history_seconds, plan.history_agents
    total = seconds * agents * report.samples
    directory = scratch / "history"
    with systems.collector(directory) as (installed, _):
        with systems.load("load", installed.collector, 0, agents, 0, seconds) as load:
            load.result(600)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(installed.collector, options=options) as channel:
            stub = QueryStub(channel)  # type: ignore[no-untyped-call]
            request = q.LatencyRequest(since_seconds=3700, fleet_only=True)
            at_once = [timed(lambda: stub.Latency(request, timeout=60)) for _ in range(plan.asked)]
            if plan.rounds > 1:
                # Which is longer than a quick one may take.
                rolled_up(stub)
            mine = [timed(lambda: stub.Latency(request, timeout=60)) for _ in range(plan.asked)]
            p99 = stub.Latency(request, timeout=60).all.p99_seconds.value
    own = sum(path.stat().st_size for path in directory.rglob("trimtab.duckdb*"))
    with systems.victoria(scratch / "history-victoria") as (port, _):
        with systems.load("remote_write", port, agents, 0, "all", seconds) as load:
            load.result(600)
        systems.call(port, "/internal/force_flush")
        theirs = [timed(lambda: systems.ask(port, P99)) for _ in range(plan.asked)]
        other_p99 = systems.ask(port, P99)
        systems.call(port, "/internal/force_merge")
        time.sleep(5 if plan.rounds > 1 else 1)
    # Its index of names is left out: over a longer time it weighs little.
    data = systems.size_bytes(scratch / "history-victoria" / "data")
    report.put(
        bytes_per_sample=own / total,
        bytes_per_sample_vs_victoriametrics=own / data,
        bytes_per_window=own / (seconds * agents),
        fleet_p99_query_ms=statistics.quantiles(mine, n=100)[98] * 1e3,
        fleet_p99_query_median_ms=statistics.median(mine) * 1e3,
        fleet_p99_query_before_rollup_ms=statistics.median(at_once) * 1e3,
        fleet_p99_query_vs_victoriametrics=statistics.median(mine) / statistics.median(theirs),
        fleet_p99_seconds=p99,
    )
    table = Table("", "trimtab", "VictoriaMetrics", title=f"{agents} nodes, {seconds} s of history")
    table.add_row("bytes a sample", f"{own / total:.3f}", f"{data / total:.3f}")
    table.add_row("p99 of the fleet, asked: median", *(f"{statistics.median(s) * 1e3:.0f} ms" for s in (mine, theirs)))
    table.add_row("the same, before the hour is rolled up", f"{statistics.median(at_once) * 1e3:.0f} ms", "")
    table.add_row("its answer", f"{p99 * 1e3:.3f} ms", f"{other_p99 * 1e3:.3f} ms")
    report.console.print(table)


def rolled_up(stub: QueryStub) -> None:
    """Wait until the hour, which came at once, is as it would be had it come in an hour: all but its last minutes rolled up."""
    deadline = time.monotonic() + ROLLED_SECONDS_MAX
    while time.monotonic() < deadline:
        [chunk] = stub.Sql(q.SqlRequest(sql=UNROLLED), timeout=60)
        if json.loads(chunk.rows[0]) == [True]:
            return
        time.sleep(0.5)
    raise TrimtabError(f"the hour was not rolled up within {ROLLED_SECONDS_MAX:.0f} s")


def timed(ask: Any) -> float:
    begun = time.perf_counter()
    ask()
    return time.perf_counter() - begun


def judge(report: Report) -> None:
    table = Table("figure", "goal", "measured", "", title="goals")
    for name, (kind, bound) in GOALS.items():
        value = report.figures[name]
        if value is None or math.isnan(value):
            said = "not measured"
        else:
            said = "met" if (value <= bound if kind == "at most" else value >= bound) else "missed"
        table.add_row(name, f"{kind} {bound:g}", "–" if value is None else f"{value:.3g}", said)
    report.console.print(table)


@click.command()
@click.option("--quick", is_flag=True, help="Under 50 s: fewer agents, shorter spans, one round.")
def main(quick: bool) -> None:
    """What the collector costs, beside Prometheus and VictoriaMetrics."""
    plan, report = (QUICK if quick else FULL), Report(Console(width=110))
    with tempfile.TemporaryDirectory(prefix="bench-collector-") as directory:
        scratch = Path(directory)
        side_by_side(report, plan, scratch)
        growth(report, plan, scratch)
        history(report, plan, scratch)
    report.put(**merging.measure(quick))
    judge(report)
    click.echo(json.dumps({name: _rounded(value) for name, value in report.figures.items()}))


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


if __name__ == "__main__":
    try:
        main()
    except TrimtabError as error:
        sys.exit(f"bench-collector: {error}")
