"""`python -m tests.bench.fleetsim`: the simulator's speed; with `--compare`, its figures beside those of real balancers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.bench.fleetsim import measured, speed, traces
from trimtab.actuator.fleetsim.drive import drive
from trimtab.actuator.fleetsim.outcome import Outcome
from trimtab.actuator.fleetsim.scenario import Balancers, Scenario, Service, instances

console = Console(width=140)
SEEDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true", help="beside what was measured on real balancers")
    parser.add_argument("--trace", type=Path, help="a recorded trace, at 60 %% load of four instances")
    chosen = parser.parse_args()
    if chosen.trace:
        console.print(trace_table(chosen.trace))
    else:
        console.print(compare_table() if chosen.compare else speed_table())


def speed_table() -> Table:
    table = Table("balancer", "million requests/s", "95 % interval", title="one core, CPU time", title_justify="left")
    for name, figure in speed.kernels().items():
        table.add_row(name, f"{figure.value:.2f}", f"{figure.low:.2f} – {figure.high:.2f}")
    step = speed.seconds()
    table.caption = f"a second of 4 instances at 120 requests/s: {step.value:.0f} µs ({step.low:.0f} – {step.high:.0f})"
    return table


def compare_table() -> Table:
    """Mean/p99 in ms, or the share of errors: simulated, the mean over seeds; and measured in parentheses."""
    table = Table(
        "scenario", *measured.ALGORITHMS, title="simulated (measured); † grows with run length", title_justify="left"
    )
    for row in measured.ROWS:
        cells = dict(row.measured)
        table.add_row(row.name, *(_cell(row, name, cells.get(name)) for name in measured.ALGORITHMS))
    return table


def _cell(row: measured.Row, algorithm: str, real: measured.Measured | None) -> str:
    even = np.ones(len(row.speeds))
    runs = [drive(row.scenario(algorithm, seed), lambda _: even) for seed in range(SEEDS)]
    if row.measured and not math.isnan(dict(row.measured)["RR"].errors):
        known = f"{real.errors:.1%}" if real else "–"
        return f"{np.mean([o.error_ratio for o in runs]):.1%} ({known})"
    known = "–"
    if real:
        known = f"{real.mean_ms:.0f}" + ("†" if real.grows else f"/{real.p99_ms:.0f}")
    return f"{_milliseconds(runs, real)} ({known})"


def _milliseconds(runs: list[Outcome], real: measured.Measured | None) -> str:
    mean, p99 = (np.mean([getattr(o, name) for o in runs]) * 1e3 for name in ("mean_seconds", "p99_seconds"))
    return f"{mean:.0f}†" if real and real.grows else f"{mean:.0f}/{p99:.0f}"


def trace_table(path: Path) -> Table:
    """What balancers make of recorded arrivals, and of Poisson arrivals at their rate."""
    rate = 0.6 * 4 / 0.02
    arrivals = traces.recorded(path, rate, seconds_max=1800)
    table = Table(
        "balancer", "mean/p99 ms", "errors", title=f"{path.name} at {rate:.0f} requests/s", title_justify="left"
    )
    seconds = math.ceil(arrivals.times_seconds[-1])
    for name in measured.ALGORITHMS.values():
        scenario = Scenario(
            seconds=seconds,
            arrivals=arrivals,
            instances=instances([1] * 4),
            service=Service(0.02),
            balancers=Balancers(name),
        )
        outcome = drive(scenario, lambda _: np.ones(4))
        table.add_row(
            name, f"{outcome.mean_seconds * 1e3:.0f}/{outcome.p99_seconds * 1e3:.0f}", f"{outcome.error_ratio:.1%}"
        )
    return table


if __name__ == "__main__":
    main()
