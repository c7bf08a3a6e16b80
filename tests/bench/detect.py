"""`make bench-detect ARGS="--data DIR"`: the detectors on data that others labelled. The last line is one JSON object (docs/detection.md).

Every set goes through the same functions with the same constants. What differs is what a set asks: whole machines with a training
(smd8, asd12, jumpstarter24), one signal as it comes (nab), one signal in hindsight (msft-cloud-monitoring), or workers that are
each other's peers (alibaba-gpu-v2020-minibatch).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from tests.bench.command import run
from tests.bench.published import Machine, jobs, machines, monitoring, nab, unusable
from tests.bench.scoring.nab import standard
from tests.bench.scoring.ranges import best_f1, f1
from tests.bench.scoring.vus import vus_pr
from tests.bench.stragglers import stragglers
from trimtab import Exit, TrimtabError
from trimtab.detector.budget import WEEK_SECONDS
from trimtab.detector.episodes import Bools, episodes, runs, strangest, usual
from trimtab.detector.lookback import Lookback
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.single import ALARM, news, novelty, strange

Figures = dict[str, float | str | None]
SLACK_ROWS = {"smd8": 100, "asd12": 24, "jumpstarter24": 24}
"""How many rows early or late still counts something in VUS-PR: part of the sets' protocol."""
ROW_SECONDS = {"smd8": 60.0, "asd12": 300.0, "jumpstarter24": 300.0}
GOALS = {
    "smd8_vus_pr": 0.68,
    "smd8_f1_auto": 0.50,
    "asd12_vus_pr": 0.55,
    "asd12_f1_auto": 0.45,
    "nab_standard": 67.0,
    "msft_f1": 0.50,
}
STRAGGLERS = {"job_1_norm": ("6",), "job_2_norm": ()}


def of_machines(name: str, folder: Path, workers: int) -> Figures:
    """Means over the machines: VUS-PR, F1 at the automatic threshold and at the best one; the z-score beside them.

    And what the default budget leaves of it: F1, and how many episodes a machine and healthy week are told where nothing is labelled.
    """
    found = machines(folder)
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(_one_machine, found, [SLACK_ROWS[name]] * len(found), [ROW_SECONDS[name]] * len(found)))
    names = (
        "vus_pr",
        "f1_auto",
        "f1_best",
        "zscore_vus_pr",
        "zscore_f1_auto",
        "false_a_week",
        "f1_in_budget",
        "false_a_week_in_budget",
    )
    return {f"{name}_{key}": float(np.mean([row[k] for row in rows])) for k, key in enumerate(names)}


def _one_machine(machine: Machine, slack: int, row_seconds: float) -> tuple[float, ...]:
    with threadpool_limits(1):
        judged = Lookback(machine.train).judge(machine.test)
    above = judged.test - usual(judged.train, judged.test, judged.season_rows)
    z_train, z_test = _zscore(machine.train, machine.train), _zscore(machine.train, machine.test)
    labels = machine.labels
    at = runs(episodes(above))
    weeks = len(above) * row_seconds / WEEK_SECONDS
    told = strangest(
        np.asarray([np.nanmax(above[first:end]) for first, end in at]), weeks, DetectorSettings().false_alarms_per_week
    )
    within = [span for span, tells in zip(at, told, strict=True) if tells]
    healthy_weeks = float((~labels).sum()) * row_seconds / WEEK_SECONDS
    return (
        vus_pr(labels, judged.test, slack),
        f1(labels, episodes(above)),
        best_f1(labels, judged.test),
        vus_pr(labels, z_test, slack),
        f1(labels, z_test >= float(z_train.mean() + 3 * z_train.std())),
        _false(at, labels) / healthy_weeks,
        f1(labels, _rows(within, len(labels))),
        _false(within, labels) / healthy_weeks,
    )


def _false(spans: Sequence[tuple[int, int]], labels: Bools) -> int:
    """How many of them hold no labelled row."""
    return sum(not labels[first:end].any() for first, end in spans)


def _rows(spans: Sequence[tuple[int, int]], rows: int) -> Bools:
    inside = np.zeros(rows, dtype=np.bool_)
    for first, end in spans:
        inside[first:end] = True
    return inside


def _zscore(train: NDArray[np.float64], course: NDArray[np.float64]) -> NDArray[np.float64]:
    """The peer: root mean square of the z-scores of a row. Its automatic threshold is three standard deviations of the training."""
    spread = train.std(axis=0)
    moving = spread > 0
    z = (course[:, moving] - train[:, moving].mean(axis=0)) / spread[moving]
    out: NDArray[np.float64] = np.sqrt((z**2).mean(axis=1))
    return out


def of_nab(_: str, folder: Path, workers: int) -> Figures:
    """The standard profile at `ALARM`."""
    signals = nab(folder)
    scores = {s.name: (news(novelty(s.values, s.season_rows)), s.windows) for s in signals}
    return {"nab_standard": standard(scores, ALARM), "nab_files": float(len(signals))}


def of_monitoring(_: str, folder: Path, workers: int) -> Figures:
    """F1 over the rows of all domains, and the mean of the domains' F1; the median absolute deviation beside it, at its best threshold."""
    domains = monitoring(folder)
    labels = {d: np.concatenate([s.labels for s in signals]) for d, signals in domains.items()}
    found = {d: np.concatenate([strange(s.values, s.season_rows) for s in signals]) for d, signals in domains.items()}
    far = np.concatenate([_deviations(s.values) for signals in domains.values() for s in signals])
    every = np.concatenate(list(labels.values()))
    return {
        "msft_f1": f1(every, np.concatenate(list(found.values()))),
        "msft_f1_domains": float(np.mean([f1(labels[d], found[d]) for d in domains])),
        "msft_mad_f1_best": best_f1(every, far),
    }


def _deviations(values: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = np.median(values)
    out: NDArray[np.float64] = np.abs(values - middle) / (1.4826 * np.median(np.abs(values - middle)) + 1e-9)
    return out


def of_jobs(_: str, folder: Path, workers: int) -> Figures:
    """Who is called a straggler."""
    found: dict[str, tuple[str, ...]] = {job.name: stragglers(job) for job in jobs(folder)}
    figures: Figures = {f"gpu_{name}_stragglers": ", ".join(who) or "nobody" for name, who in found.items()}
    figures["gpu_right"] = float(np.mean([found[name] == who for name, who in STRAGGLERS.items() if name in found]))
    return figures


SETS: dict[str, Callable[[str, Path, int], Figures]] = {
    "smd8": of_machines,
    "asd12": of_machines,
    "jumpstarter24": of_machines,
    "nab": of_nab,
    "msft-cloud-monitoring": of_monitoring,
    "alibaba-gpu-v2020-minibatch": of_jobs,
}


def table(figures: Figures) -> Table:
    """For people."""
    out = Table(title="detection on published data", title_justify="left", header_style="bold")
    for column in ("figure", "measured", "goal", ""):
        out.add_column(column, justify="right" if column in {"measured", "goal"} else "left")
    for name, value in figures.items():
        goal = GOALS.get(name)
        said = "" if goal is None or not isinstance(value, float) else "met" if value >= goal else "missed"
        measured = f"{value:.3f}" if isinstance(value, float) else str(value)
        out.add_row(name, measured, "" if goal is None else f"{goal:g}", said)
    return out


def chosen(data: Path, sets: str) -> list[str]:
    """The sets to run: those named, or all that are there."""
    names = [name.strip() for name in sets.split(",") if name.strip()] or [n for n in SETS if (data / n).is_dir()]
    for name in names:
        if name not in SETS:
            raise TrimtabError(f"--sets: {name} is not known; choose among {', '.join(SETS)}", Exit.USAGE)
        if not (data / name).is_dir():
            raise unusable(data / name, "is not a folder")
    if not names:
        raise unusable(data, f"holds none of {', '.join(SETS)}")
    return names


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The folder that holds the sets.")
@click.option("--sets", default="", help="Only these, by comma.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Machines that are judged at once.")
def main(data: Path, sets: str, workers: int) -> None:
    """How well the detectors do on data that others labelled."""
    figures: Figures = {}
    for name in chosen(data, sets):
        begun = time.monotonic()
        figures |= SETS[name](name, data / name, workers)
        figures[f"{name}_seconds"] = time.monotonic() - begun
    Console(width=100).print(table(figures))
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}))


if __name__ == "__main__":
    run(main, "bench-detect")
