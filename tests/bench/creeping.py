"""`python -m tests.bench.creeping`: faults that creep in, on a simulated fleet of windows of a second. The last line is JSON.

200 instances of ten models on 25 nodes; noise that a host shares, noise of each instance that lasts for minutes, day and night. After the
quiet hours five instances get slower, twice as slow in so many minutes, until they are three times slower.
"""

from __future__ import annotations

import json
import math

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from tests.bench.command import run
from tests.detector.test_budget import made
from trimtab.detector.decide import Judge
from trimtab.detector.features import Readings
from trimtab.detector.settings import DetectorSettings

COUNT, MODELS, A_NODE, VICTIMS = 200, 10, 8, 5
_REQUESTS = 60
_MOST = math.log(3)


class Fleet:
    """Readings of each second."""

    def __init__(self, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.groups, self.nodes = np.arange(COUNT) % MODELS, np.arange(COUNT) // A_NODE
        self.base = math.log(0.02) + 0.5 * self.chance.standard_normal(MODELS)[self.groups]
        self.base += 0.1 * self.chance.standard_normal(COUNT)
        self.host, self.fast, self.slow = np.zeros(self.nodes.max() + 1), np.zeros(COUNT), np.zeros(COUNT)

    def readings(self, second: int, slower: np.ndarray) -> Readings:
        chance = self.chance
        self.host = 0.8 * self.host + 0.6 * 0.12 * chance.standard_normal(len(self.host))
        self.fast = 0.5 * self.fast + 0.05 * chance.standard_normal(COUNT)
        # A standard deviation of 6 %, and a memory of eight minutes.
        self.slow = 0.998 * self.slow + 0.0632 * 0.06 * chance.standard_normal(COUNT)
        day = 0.2 * math.sin(2 * math.pi * second / 86400)
        log = self.base + day + self.host[self.nodes] + self.fast + self.slow + slower
        errors = chance.binomial(_REQUESTS, 0.0005, COUNT)
        out = made(log, log + 0.8 + 0.05 * np.abs(chance.standard_t(4, COUNT)), errors, second)
        out.slot_seconds[:], out.requests[:], out.error_ratio[:] = 1, _REQUESTS, errors / _REQUESTS
        return out


def found(seed: int, quiet_minutes: float, doubling_minutes: float) -> tuple[list[tuple[float, float]], int]:
    """Of each victim that was told: after how many minutes, and how many times slower it was then. And how many others were told."""
    fleet, judge, chance = Fleet(seed), Judge(DetectorSettings()), np.random.default_rng(seed + 1)
    judge.resize(COUNT)
    victims = chance.choice(COUNT, VICTIMS, replace=False)
    begins = round(quiet_minutes * 60)
    ends = begins + round(doubling_minutes * _MOST / math.log(2) * 60) + 600
    told, excluded = dict[int, tuple[float, float]](), np.zeros(COUNT, dtype=np.bool_)
    for second in range(ends):
        slower, minutes = np.zeros(COUNT), (second - begins) / 60
        slower[victims] = min(max(minutes, 0) / doubling_minutes * math.log(2), _MOST)
        readings = fleet.readings(second, slower)
        verdicts = judge.judge(readings, fleet.groups, fleet.nodes)
        for row in np.flatnonzero(verdicts.opens & ~excluded).tolist():
            told.setdefault(row, (minutes, math.exp(slower[row])))
        excluded = (excluded | verdicts.opens) & (verdicts.lingers | verdicts.opens)
        judge.learn(readings, fleet.groups, verdicts, excluded, np.zeros_like(excluded))
    late = {row: when for row, when in told.items() if row in victims and when[0] >= 0}
    return sorted(late.values()), len(told) - len(late)


@click.command()
@click.option("--doubling-minutes", default="20,40,80", show_default=True, help="How fast it creeps in.")
@click.option("--quiet-minutes", default=42.0, show_default=True, help="What is learnt before.")
@click.option("--seed", default=1, show_default=True)
def main(doubling_minutes: str, quiet_minutes: float, seed: int) -> None:
    """After how long, and how slow by then."""
    table, told = Table(header_style="bold"), {}
    for column in ("twice as slow in", "found", "after minutes", "times slower by then", "others told"):
        table.add_column(column, justify="right")
    for minutes in map(float, doubling_minutes.split(",")):
        with threadpool_limits(1):
            late, others = found(seed, quiet_minutes, minutes)
        after, factors = ([when[k] for when in late] for k in (0, 1))
        spans = (f"{min(after):.0f}–{max(after):.0f}", f"{min(factors):.1f}–{max(factors):.1f}") if late else ("", "")
        table.add_row(f"{minutes:.0f} min", f"{len(late)} of {VICTIMS}", *spans, str(others))
        told |= {f"{minutes:.0f}_found": len(late), f"{minutes:.0f}_others": others}
        told |= {f"{minutes:.0f}_factors": [round(factor, 2) for _, factor in late]}
    Console(width=100).print(table)
    print(json.dumps(told))


if __name__ == "__main__":
    run(main, "creeping")
