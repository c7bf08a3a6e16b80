"""`make bench-agent`: what the agent costs, on this machine, now. The last line is one JSON object (docs/overhead.md)."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.bench import fleet_latency, packages, request_cost, side_by_side, tables
from tests.bench.command import run
from tests.bench.peers import peers
from tests.bench.targets import TARGETS, verdict
from tests.e2e import preflight
from trimtab import Exit, TrimtabError

QUICK = (request_cost.Plan(11, 0.2, 0.5), side_by_side.Plan(1.5, 6.0, 4.0, 2), None)
FULL = (request_cost.Plan(40, 0.5, 5.0), side_by_side.Plan(5.0, 40.0, 30.0, 5), fleet_latency.Plan(10, 7.0, 2.0, 20.0))


class Report:
    """The figures as they come in, and how far each could be off."""

    def __init__(self, quick: bool) -> None:
        self.figures: dict[str, Any] = dict.fromkeys(target.figure for target in TARGETS)
        self.spreads: dict[str, tuple[float, float]] = {}
        self._quick = quick
        self._begun = time.monotonic()

    def take_requests(self, result: request_cost.Result) -> None:
        """Experiment 1."""
        names = {"requests": "cpu_us_per_request", "scheduler": "scheduler_us_per_request"}
        for group, estimate in result.added_us.items():
            name = names.get(group, f"{group}_probes_us_per_request")
            self.figures[name] = estimate.value
            self.spreads[name] = (estimate.low, estimate.high)
        self.figures["base_us_per_request"] = result.base_us.value
        self.figures["probes"] = result.probes

    def take_side_by_side(self, result: side_by_side.Result) -> None:
        """Experiments 2 to 4."""
        firsts, mine = result.first_window_seconds, side_by_side.AGENT
        self.figures["first_window_seconds"] = max(firsts)
        self.spreads["first_window_seconds"] = (min(firsts), max(firsts))
        self.figures["resident_mb"] = result.memory[mine].resident_mb
        self.figures["proportional_mb"] = result.memory[mine].proportional_mb
        self.figures["peak_mb"] = result.memory[mine].peak_mb
        for name, span in (("idle", result.idle), ("loaded", result.loaded)):
            others = sum(percent for who, percent in span.mean_percent.items() if who != mine)
            self.figures[f"{name}_kernel_percent"] = span.kernel_percent
            self.figures[f"{name}_cpu_percent"] = span.mean_percent[mine] + span.kernel_percent
            # The slots' spread, about a mean that leaves nothing out.
            self.spreads[f"{name}_cpu_percent"] = (
                span.cpu_percent[mine].low + span.kernel_percent,
                span.cpu_percent[mine].high + span.kernel_percent,
            )
            ratio = "cpu_vs_peers" if name == "idle" else "loaded_cpu_vs_peers"
            self.figures[ratio] = (span.mean_percent[mine] + span.kernel_percent) / others
        self.figures["peers_cpu_percent"] = result.idle.mean_percent
        self.figures["peers_resident_mb"] = {name: memory.resident_mb for name, memory in result.memory.items()}
        self.figures["loaded_requests_per_second"] = result.loaded.requests_per_second
        self.figures["loaded_reported"] = result.reported

    def take_fleet(self, result: fleet_latency.Result) -> None:
        """Experiment 5."""
        for name, estimate in (("torchserve_p50_ratio", result.p50_ratio), ("torchserve_p99_ratio", result.p99_ratio)):
            self.figures[name] = estimate.value
            self.spreads[name] = (estimate.low, estimate.high)

    def as_object(self) -> dict[str, Any]:
        """What the last line says; what was not measured is null."""
        verdicts = {target.figure: verdict(target, self.figures, self.spreads) for target in TARGETS}
        return {
            **_rounded(self.figures),
            "spreads": _rounded(self.spreads),
            "missed": [name for name, said in verdicts.items() if said == "missed"],
            "too_noisy": [name for name, said in verdicts.items() if said == "too noisy"],
            "not_measured": [name for name, said in verdicts.items() if said == "not measured"],
            "quick": self._quick,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "kernel": platform.release(),
            "cpus": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 2),
            "seconds": round(time.monotonic() - self._begun, 1),
        }


def _rounded(value: Any) -> Any:
    """Four significant digits; NaN becomes None."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


@click.command()
@click.option("--quick", is_flag=True, help="Under 50 s: wider intervals, and no TorchServe.")
@click.option("--only", type=click.Choice(["requests", "side-by-side", "torchserve"]), help="One experiment alone.")
def main(quick: bool, only: str | None) -> None:
    """Measure what the agent costs, beside what Debian has."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if os.geteuid() != 0:
        raise TrimtabError("eBPF programs are loaded and other programs started: run it as root (sudo)", Exit.SETTINGS)
    packages.install(console)
    requests, beside, fleet = QUICK if quick else FULL
    report = Report(quick)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-bench-")))
        # Those who are in a hurry let them warm up meanwhile.
        others = stack.enter_context(peers()) if quick and only is None else None
        if only in {None, "requests"}:
            console.print("probes off and on in turns, nginx and wrk on one CPU …")
            measured = request_cost.measure(directory / "requests", requests)
            report.take_requests(measured)
            console.print(tables.requests(measured), tables.probes(measured))
        if only in {None, "side-by-side"}:
            console.print("the whole agent beside its peers …")
            with nullcontext(others) if others else peers() as running:
                spans = side_by_side.measure(directory / "beside", beside, running)
            report.take_side_by_side(spans)
            console.print(tables.beside(spans))
        if fleet and only in {None, "torchserve"}:
            console.print("TorchServe beside the agent, and alone, in turns …")
            preflight.check_programs()
            latency = fleet_latency.measure(directory / "torchserve", fleet)
            report.take_fleet(latency)
            console.print(tables.fleet(latency))
    console.print(tables.targets(report.figures, report.spreads))
    print(json.dumps(report.as_object(), allow_nan=False))


if __name__ == "__main__":
    run(main, "bench-agent")
