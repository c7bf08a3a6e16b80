"""`python -m tests.bench.reliability`: of causes told with confidence c, how many are right? The last line is JSON (docs/rootcause.md).

Simulated fleets with every mechanism of tests/detector/faults.py, strong and weak, some with a second thing that happens to move at
the same time. What a campaign on a real fleet wrote (`--campaign FILE`) is added as it is.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from tests.bench.command import run
from tests.detector.faults import FAULTS, VICTIM, signals, together
from tests.detector.fleet import Fleet, Scene, Stage
from tests.e2e.campaign.score import Share
from trimtab.rootcause.rank import Ranking

Told = tuple[str, str, float]
"""The mechanism that it was, the one that was told first, and with which confidence."""

EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
# What often moves without being the cause.
COINCIDENCES = {
    "": {},
    "page faults": {"major_faults_per_second": 40.0},
    "retransmits": {"tcp_retransmits_per_second": 2.0},
    "CPU": {"cpu_run_queue_ratio": 0.2},
}


def one(mechanism: str, seed: int) -> list[Told]:
    """What was told of one fleet."""
    chance = np.random.default_rng([seed, sum(mechanism.encode())])
    stage = Stage(Fleet((("m",) * 4, ("m",) * 4), seed=seed, gpus=True), Ranking())
    stage.run(60)
    beside = COINCIDENCES[str(chance.choice(list(COINCIDENCES)))]
    strength = float(chance.choice([0.25, 0.5, 1.0]))
    stage.fleet.strike(weakened(together(FAULTS[mechanism], signals(VICTIM, **beside)), strength))
    stage.run(75)
    return [(mechanism, i.causes[0].mechanism, i.causes[0].confidence) for i in stage.incidents if i.causes]


def weakened(fault, strength: float):  # type: ignore[no-untyped-def]
    """The fault moves its signals only a part of the way; what it does to users stays."""

    def weak(scene: Scene, elapsed: float) -> None:
        before = {subject: dict(values) for subject, values in scene.signals.items()}
        fault(scene, elapsed)
        for subject, values in scene.signals.items():
            for name, value in values.items():
                was = before[subject].get(name, value)
                if np.isfinite(value) and np.isfinite(was) and value != was and not float(value).is_integer():
                    values[name] = was + strength * (value - was)

    return weak


def of_campaign(file: Path) -> Iterator[Told]:
    """The incidents of a campaign's runs that named whom they should."""
    for line in file.read_text().splitlines():
        record = json.loads(line)
        told, expected = record["told"], record["mechanisms"]
        if told and expected and told["mechanism"]:
            right = told["mechanism"] in expected
            yield told["mechanism"] if right else expected[0], told["mechanism"], float(told["confidence"])


def bins(told: Sequence[Told]) -> list[dict[str, float]]:
    """For each span of confidence: how many, the mean of what was told, and the share that was right."""
    found = []
    for low, high in itertools.pairwise(EDGES):
        inside = [
            (truth == said, confidence)
            for truth, said, confidence in told
            if low <= confidence < high or confidence == high == 1
        ]
        if inside:
            right, confidence = np.mean(inside, axis=0)
            found.append(
                {"from": low, "to": high, "count": len(inside), "told": float(confidence), "right": float(right)}
            )
    return found


def draw(found: Sequence[dict[str, float]], file: Path) -> None:
    """What was right against what was told; on the diagonal is who keeps his word. Bars are Wilson's 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for b in found:
        low, high = Share(round(b["right"] * b["count"]), round(b["count"])).interval
        axes.plot([b["told"]] * 2, [low, high], color="tab:blue", linewidth=2)
        axes.plot(b["told"], b["right"], "o", color="tab:blue")
        axes.annotate(f"{b['count']:.0f}", (b["told"], b["right"]), textcoords="offset points", xytext=(7, -4))
    axes.set(xlabel="confidence told", ylabel="share that was right", xlim=(0, 1.05), ylim=(0, 1.05))
    figure.savefig(file, metadata={"Date": None})


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Fleets of each mechanism.")
@click.option(
    "--campaign", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Results of `make campaign`."
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this SVG file.")
@click.option("--workers", default=2, show_default=True)
def main(seeds: int, campaign: Path | None, plot: Path | None, workers: int) -> None:
    """How reliable the confidences are."""
    logging.disable(logging.WARNING)
    cases = [(mechanism, seed) for mechanism in FAULTS for seed in range(seeds)]
    with ProcessPoolExecutor(workers) as pool:
        told = [t for found in pool.map(one, *zip(*cases, strict=True)) for t in found]
    told += of_campaign(campaign) if campaign else []
    found = bins(told)
    table = Table(title=f"{len(told)} causes", title_justify="left", header_style="bold")
    for column in ("confidence", "causes", "told", "right", ""):
        table.add_column(column, justify="left" if column in {"confidence", ""} else "right")
    for b in found:
        bar = "█" * round(30 * b["right"])
        table.add_row(
            f"{b['from']:.2f}-{b['to']:.2f}", f"{b['count']:.0f}", f"{b['told']:.2f}", f"{b['right']:.2f}", bar
        )
    Console(width=100).print(table)
    if plot:
        draw(found, plot)
    wrong: dict[str, int] = {}
    for truth, said, _ in told:
        if truth != said:
            wrong[f"{truth}, told as {said}"] = wrong.get(f"{truth}, told as {said}", 0) + 1
    for what, count in sorted(wrong.items(), key=lambda item: -item[1]):
        print(f"{count:3d} x {what}")
    error = float(np.average([abs(b["told"] - b["right"]) for b in found], weights=[b["count"] for b in found]))
    print(json.dumps({"causes": len(told), "calibration_error": round(error, 4), "bins": found}))


if __name__ == "__main__":
    run(main, "reliability")
