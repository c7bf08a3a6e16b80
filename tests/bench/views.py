"""`python -m tests.bench.views --data DIR`: each view of the fleet alone, on machines that others labelled. The last line is JSON.

A machine is an instance without peers; every feature is given twice, as it is and turned over, for what is odd there may be low as well.
All learn the training, and then what own history does not call odd, row by row as in the service. A score is the mean of the last ten rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from tests.bench.command import run
from tests.bench.detect import SLACK_ROWS
from tests.bench.published import Machine, machines
from tests.bench.scoring.ranges import best_f1
from tests.bench.scoring.vus import vus_pr
from trimtab.detector.base import Detector
from trimtab.detector.daily import Daily
from trimtab.detector.isolation import Isolation
from trimtab.detector.own import Own
from trimtab.detector.spanned import Spanned

Scores = dict[str, NDArray[np.float64]]
ROW_SECONDS = {"smd8": 60.0, "asd12": 300.0}
_WARMUP, _FLOOR, _SMOOTH, _FOREST_EVERY = 30, 0.3, 10, 5
_CUT = 1e4


def judged(found: list[Machine], row_seconds: float) -> Scores:
    """float64 [rows, machines] of each view; the machines end with the last row."""
    courses = [_both_ways(machine) for machine in found]
    rows, features = max(map(len, courses)), courses[0].shape[1]
    windows = np.full((rows, len(found), features), np.nan, dtype=np.float32)
    for k, course in enumerate(courses):
        windows[rows - len(course) :, k] = course
    daily = Daily((_FLOOR,) * features, _WARMUP)
    views: list[Detector] = [make((_FLOOR,) * features, _WARMUP) for make in (Own, Spanned, Isolation)]
    views.append(daily)
    for view in views:
        view.resize(len(found))
    scores = {view.name: np.full((rows, len(found)), np.nan) for view in views}
    groups, tests = np.arange(len(found)), np.asarray([rows - len(machine.test) for machine in found])
    for row, window in enumerate(windows):
        daily.at(row * row_seconds, row_seconds)
        for view in views:
            kept = row and row % _FOREST_EVERY and view.name == "forest"
            scores[view.name][row] = scores[view.name][row - 1] if kept else view.score(window, groups)
        healthy = (row < tests) | ~(scores["own"][row] >= 0.5)
        for view in views:
            view.learn(window, groups, healthy)
    return scores


def _both_ways(machine: Machine) -> NDArray[np.float32]:
    """float32 [rows, 2 x features], in standard deviations of the training."""
    least = np.maximum(0.01 * np.ptp(machine.train, axis=0), 1e-9)
    course = np.concatenate([machine.train, machine.test]) / np.maximum(machine.train.std(axis=0), least)
    return np.clip(np.concatenate([course, -course], axis=1), -_CUT, _CUT).astype(np.float32)


def figures(found: list[Machine], scores: Scores, slack: int) -> dict[str, tuple[float, float, float]]:
    """VUS-PR, the best F1, and the share of healthy rows that score 0.5 or more: means over the machines."""
    every = scores | {"mean of all": np.mean([np.nan_to_num(s) for s in scores.values()], axis=0)}
    out = {}
    for name, score in every.items():
        rows = []
        for k, machine in enumerate(found):
            own = np.nan_to_num(score[len(score) - len(machine.test) :, k])
            smooth = np.convolve(own, np.ones(_SMOOTH) / _SMOOTH)[: len(own)]
            labels = machine.labels
            rows.append((vus_pr(labels, smooth, slack), best_f1(labels, smooth), float((own[~labels] >= 0.5).mean())))
        mean = np.mean(rows, axis=0).tolist()
        out[name] = (mean[0], mean[1], mean[2])
    return out


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Holds smd8 and asd12.")
@click.option("--sets", default="asd12,smd8", show_default=True)
def main(data: Path, sets: str) -> None:
    """How well each view tells what was labelled."""
    told = {}
    for name in sets.split(","):
        found = machines(data / name)
        with threadpool_limits(1):
            of_views = figures(found, judged(found, ROW_SECONDS[name]), SLACK_ROWS[name])
        table = Table(title=f"{name}, {len(found)} machines", title_justify="left", header_style="bold")
        for column in ("view", "VUS-PR", "best F1", "healthy rows called odd"):
            table.add_column(column, justify="left" if column == "view" else "right")
        for view, (vus, best, odd) in of_views.items():
            table.add_row(view, f"{vus:.2f}", f"{best:.2f}", f"{odd:.0%}")
            told |= {f"{name}_{view}_vus_pr": vus, f"{name}_{view}_best_f1": best, f"{name}_{view}_odd": odd}
        Console(width=100).print(table)
    print(json.dumps(told))


if __name__ == "__main__":
    run(main, "views")
