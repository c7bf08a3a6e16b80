"""`python -m tests.bench.speed`: what scoring a large fleet costs, beside River and PyOD where they are installed. The last line is JSON.

CPU time of one thread; the medians of windows. River and PyOD judge the same matrix, each with a detector that is meant to be fast.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from tests.bench.command import run
from trimtab.detector.baseline import DEPTH
from trimtab.detector.own import Own
from trimtab.detector.peers import Peers

GROUP = 100
GOAL_SECONDS = 0.2
_RIVER_ROWS = 200


def cpu_seconds(work: Callable[[], object], times: int) -> float:
    """The median of the CPU time of a run."""
    taken = []
    for _ in range(times):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return float(np.median(taken))


def detectors(instances: int, features: int, windows: int) -> dict[str, float]:
    """CPU seconds a window, of each detector."""
    chance = np.random.default_rng(0)
    groups = np.arange(instances) // GROUP
    everybody = np.ones(instances, dtype=np.bool_)
    found = {}
    for make in (Own, Peers):
        detector = make((0.05,) * features, 8)
        detector.resize(instances)
        for _ in range(DEPTH // 4):
            detector.learn(_window(chance, instances, features), groups, everybody)
        window = _window(chance, instances, features)
        detector.score(window, groups)
        found[detector.name] = cpu_seconds(lambda d=detector, w=window: d.score(w, groups), windows)  # type: ignore[misc]
    return found


def peers(instances: int, features: int) -> dict[str, float]:
    """CPU seconds a window of so many rows, of those that are installed."""
    chance, found = np.random.default_rng(0), {}
    if importlib.util.find_spec("river"):
        from river.anomaly import HalfSpaceTrees

        rows = [dict(enumerate(row)) for row in _window(chance, _RIVER_ROWS, features).tolist()]
        trees = HalfSpaceTrees(seed=0)
        # It says nothing before its first window of 250 rows is full.
        for row in 3 * rows:
            trees.learn_one(row)
        share = instances / _RIVER_ROWS
        found["River HalfSpaceTrees"] = share * cpu_seconds(lambda: [trees.score_one(row) for row in rows], 5)
    if importlib.util.find_spec("pyod"):
        from pyod.models.ecod import ECOD

        model = ECOD(n_jobs=1).fit(_window(chance, 2000, features))
        window = _window(chance, instances, features)
        found["PyOD ECOD"] = cpu_seconds(lambda: model.decision_function(window), 3)
    return found


def _window(chance: np.random.Generator, rows: int, features: int) -> NDArray[np.float32]:
    return (3 + 0.1 * chance.standard_normal((rows, features))).astype(np.float32)


@click.command()
@click.option("--instances", default=10_000, show_default=True)
@click.option("--features", default=64, show_default=True)
@click.option("--windows", default=15, show_default=True, help="How many are timed.")
def main(instances: int, features: int, windows: int) -> None:
    """How long scoring one window takes."""
    with threadpool_limits(1):
        ours, others = detectors(instances, features, windows), peers(instances, features)
    both = sum(ours.values())
    table = Table(
        title=f"one window of {instances:,} instances x {features} features", title_justify="left", header_style="bold"
    )
    for column in ("", "CPU ms", "values a CPU second", "times both of ours"):
        table.add_column(column, justify="right" if column else "left")
    for name, seconds in [*ours.items(), ("both", both), *others.items()]:
        table.add_row(name, f"{1000 * seconds:.0f}", f"{instances * features / seconds:.2e}", f"{seconds / both:.1f}")
    Console(width=100).print(table)
    print(
        json.dumps(
            {"window_seconds": both, "goal_seconds": GOAL_SECONDS}
            | {f"times_{name}": s / both for name, s in others.items()}
        )
    )


if __name__ == "__main__":
    run(main, "speed")
