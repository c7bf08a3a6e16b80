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
from trimtab.detector.base import Detector
from trimtab.detector.baseline import DEPTH
from trimtab.detector.check import discover
from trimtab.detector.creep import BLOCK_SECONDS
from trimtab.detector.evidence import Evidence, ranks
from trimtab.detector.views import LEARN_EVERY

GROUP = 100
GOAL_SECONDS = 0.2
_RIVER_ROWS = 200
_SCORED_EVERY = {"own": 1.0, "peers": 1.0, "daily": BLOCK_SECONDS, "subspace": LEARN_EVERY, "forest": LEARN_EVERY}
"""Windows of a second for each score. Those of the subspace and the forest are asked for only when an incident opens: at most as often."""
_LEARNT_EVERY = _SCORED_EVERY | {"own": 5.0, "peers": 5.0}


def cpu_seconds(work: Callable[[], object], times: int) -> float:
    """The median of the CPU time of a run."""
    taken = []
    for _ in range(times):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return float(np.median(taken))


def detectors(instances: int, features: int, windows: int) -> dict[str, tuple[float, float]]:
    """CPU seconds to score a window and to learn one, of each detector."""
    chance = np.random.default_rng(0)
    groups = np.arange(instances) // GROUP
    everybody = np.ones(instances, dtype=np.bool_)
    found = {}
    for make in discover():
        detector = make((0.05,) * features, 8)
        detector.resize(instances)
        for _ in range(DEPTH // 4):
            detector.learn(_window(chance, instances, features), groups, everybody)
        window = _window(chance, instances, features)
        detector.score(window, groups)
        found[detector.name] = _of(detector, window, groups, windows)
    return found


def _of(
    detector: Detector, window: NDArray[np.float32], groups: NDArray[np.int64], windows: int
) -> tuple[float, float]:
    everybody = np.ones(len(window), dtype=np.bool_)
    score = cpu_seconds(lambda: detector.score(window, groups), windows)
    return score, cpu_seconds(lambda: detector.learn(window, groups, everybody), windows)


def evidence(instances: int) -> float:
    """CPU seconds to enter a minute into the e-detector."""
    made, values = Evidence(instances), np.random.default_rng(0).standard_normal(instances)
    return cpu_seconds(lambda: made.update(ranks(values)), 15)


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
        minute = evidence(instances)
    path = sum(score / _SCORED_EVERY[name] for name, (score, _) in ours.items()) + minute / BLOCK_SECONDS
    learning = sum(learn / _LEARNT_EVERY[name] for name, (_, learn) in ours.items())
    table = Table(
        title=f"{instances:,} instances x {features} features, CPU ms", title_justify="left", header_style="bold"
    )
    for column in ("", "to score", "every … windows", "to learn", "every … windows", "times the path"):
        table.add_column(column, justify="right" if column else "left")
    for name, (score, learn) in ours.items():
        every = f"{_SCORED_EVERY[name]:.0f}", f"{_LEARNT_EVERY[name]:.0f}"
        table.add_row(name, f"{1000 * score:.0f}", every[0], f"{1000 * learn:.0f}", every[1], f"{score / path:.1f}")
    table.add_row("e-detector", f"{1000 * minute:.0f}", f"{BLOCK_SECONDS:.0f}", "", "", f"{minute / path:.1f}")
    table.add_row("the path, a window", f"{1000 * path:.0f}", "", f"{1000 * learning:.0f}", "", "1.0")
    for name, seconds in others.items():
        table.add_row(name, f"{1000 * seconds:.0f}", "", "", "", f"{seconds / path:.1f}")
    Console(width=110).print(table)
    print(
        json.dumps(
            {"window_seconds": path, "learn_seconds": learning, "goal_seconds": GOAL_SECONDS}
            | {f"{name}_seconds": score for name, (score, _) in ours.items()}
            | {f"times_{name}": s / path for name, s in others.items()}
        )
    )


if __name__ == "__main__":
    run(main, "speed")
