"""Whether the agent grows: `python -m tests.bench.endurance --seconds 3600`, beside 1,000 requests/s.

The real agent and a real collector. Memory, descriptors, threads and the spool are looked at every ten seconds; the last line is one
JSON object. What an agent takes while it starts is no growth: the slopes are those of the time after the first fifth.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from tests.bench import packages, services, usage
from tests.bench.command import run
from tests.bench.nginx import nginx, wrk
from tests.bench.spread import Estimate, bootstrap
from tests.e2e.processes import free_ports
from trimtab import Exit, TrimtabError

_THINK_SECONDS = 0.02
_CONNECTIONS = 22
"""So many ask 1,000 times a second, with that pause and the millisecond that the answer and two timers take."""
GROWTH_MB_PER_HOUR_MAX = 1.0
_TELLING_SECONDS = 600.0
"""A shorter run says what it saw, and is no verdict: an interpreter takes minutes until its memory is what it will be."""
_SAMPLES_MIN = 10
Sample = dict[str, float]


@click.command()
@click.option("--seconds", type=click.FloatRange(min=20), default=3600.0, show_default=True)
@click.option(
    "--every", type=click.FloatRange(min=0.5), default=10.0, show_default=True, help="Seconds between samples."
)
def main(seconds: float, every: float) -> None:
    """Run the agent beside 1,000 requests/s, and see whether it grows."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if os.geteuid() != 0:
        raise TrimtabError("the agent loads eBPF programs: run it as root (sudo)", Exit.SETTINGS)
    packages.install(console)
    samples, rate = watch(console, seconds, every)
    settled = [sample for sample in samples if sample["seconds"] >= samples[-1]["seconds"] / 5]
    slopes = {name: slope_per_hour(settled, name) for name in samples[0] if name not in {"seconds", "cpu_seconds"}}
    console.print(_table(settled, slopes))
    growth = slopes["resident_mb"]
    grows = growth.low > GROWTH_MB_PER_HOUR_MAX and samples[-1]["seconds"] >= _TELLING_SECONDS
    print(
        json.dumps(
            {
                "seconds": round(samples[-1]["seconds"], 1),
                "requests_per_second": round(rate, 1),
                "resident_mb": {"first": settled[0]["resident_mb"], "last": settled[-1]["resident_mb"]},
                "resident_mb_per_hour": round(growth.value, 3),
                "interval_mb_per_hour": [round(growth.low, 3), round(growth.high, 3)],
                "per_hour": {name: round(slope.value, 3) for name, slope in slopes.items()},
                "cpu_percent": round(_cpu_percent(settled), 3),
                "missed": ["resident_mb_per_hour"] if grows else [],
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "kernel": platform.release(),
            },
            allow_nan=False,
        )
    )


def watch(console: Console, seconds: float, every: float) -> tuple[list[Sample], float]:
    """Samples of the agent, and the requests a second. Raises TrimtabError when something ends before its time."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-endurance-")))
        port = free_ports(2)
        server = stack.enter_context(nginx(directory / "nginx", port=port))
        installation = stack.enter_context(services.collector(directory / "services"))
        running = stack.enter_context(services.agent(installation, port))
        stack.enter_context(wrk(server, _CONNECTIONS, _THINK_SECONDS))
        begun, requests = time.monotonic(), server.requests()
        samples: list[Sample] = []
        cpu_before = usage.tree_cpu_seconds(running.process.pid)
        while not samples or samples[-1]["seconds"] < seconds:
            if running.process.poll() is not None:
                raise TrimtabError(f"the agent ended with exit code {running.process.returncode}", Exit.INTERNAL)
            at = time.monotonic() - begun
            samples.append(
                {
                    "seconds": at,
                    **_look(running),
                    "cpu_seconds": usage.tree_cpu_seconds(running.process.pid) - cpu_before,
                }
            )
            if len(samples) % 30 == 1:
                console.print(", ".join(f"{name} {value:,.1f}" for name, value in samples[-1].items()))
            time.sleep(every)
        return samples, (server.requests() - requests) / (time.monotonic() - begun)


def slope_per_hour(samples: Sequence[Sample], name: str) -> Estimate:
    """By least squares; the interval from drawing the samples again."""
    if len(samples) < _SAMPLES_MIN:
        return Estimate(math.nan)

    def slope(chosen: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        hours, values = chosen[:, 0] / 3600 - chosen[:, 0].mean() / 3600, chosen[:, 1]
        return float(hours @ values / (hours @ hours))

    return bootstrap(np.array([(sample["seconds"], sample[name]) for sample in samples]), slope)


def _cpu_percent(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return (last["cpu_seconds"] - first["cpu_seconds"]) / (last["seconds"] - first["seconds"]) * 100


def _look(running: services.Running) -> Sample:
    process = Path(f"/proc/{running.process.pid}")
    memory = usage.memory(running.process.pid)
    return {
        "resident_mb": round(memory.resident_mb, 3),
        "proportional_mb": round(memory.proportional_mb, 3),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "spool_mb": sum(file.stat().st_size for file in (running.state / "agent" / "spool").rglob("*"))
        / usage.MEGABYTE,
    }


def _table(samples: list[Sample], slopes: dict[str, Estimate]) -> Table:
    table = Table(
        title=f"the agent from {samples[0]['seconds']:,.0f} to {samples[-1]['seconds']:,.0f} s",
        title_justify="left",
        header_style="bold",
    )
    for number, column in enumerate(("", "first", "lowest", "highest", "last", "an hour", "95 % interval")):
        table.add_column(column, justify="right" if number else "left")
    for name, slope in slopes.items():
        values = [sample[name] for sample in samples]
        cells = [f"{value:,.2f}" for value in (values[0], min(values), max(values), values[-1])]
        table.add_row(name, *cells, f"{slope.value:+.2f}", f"{slope.low:+.2f} – {slope.high:+.2f}")
    return table


if __name__ == "__main__":
    run(main, "endurance")
