"""`python -m tests.bench.converging FOUND`: whether training converges sooner with hyper-parameters that `trimtab tune search` found.

With each seed a network is trained with the defaults and one with FOUND, on the same fleets. On the way both are scored on fleets that
neither the training nor the search has seen, taking always the best choice, without margin: else a network that dares nothing is as good
as one that knows. Converged is whose last three scores, on average, have come 95 % of the way from the defaults' first score to their
last: one goal for all seeds, since where a network begins is a matter of chance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.bench.command import run as command
from tests.bench.spread import Estimate, bootstrap
from trimtab.actuator.policy.dqn import Network
from trimtab.actuator.tune.dqn import Settings, train
from trimtab.actuator.tune.fleets import fleet
from trimtab.actuator.tune.score import score

FLEETS = 1_000_081
"""Seed of the fleets that are scored on."""
WAY = 0.95
_TOGETHER = 3
"""One score alone is a matter of chance."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The scores of one training: lower is better, 0 is the rule's."""

    steps: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def last(self) -> float:
        """The mean of the last few."""
        return float(np.mean(self.scores[-_TOGETHER:]))

    def reaches(self, goal: float) -> int | None:
        """After how many steps a few in a row are that good on average for the first time."""
        ends = range(_TOGETHER, len(self.steps) + 1)
        return next((self.steps[k - 1] for k in ends if np.mean(self.scores[k - _TOGETHER : k]) <= goal), None)


def curve(settings: Settings, every: int, held_out: int) -> Curve:
    """Train, and score every so many steps."""
    steps: list[int] = []
    scores: list[float] = []

    def scored(step: int, network: Network) -> None:
        steps.append(step)
        scores.append(score(replace(network, margin=0.0), held_out, FLEETS).mean)

    def told(step: int, _reward: float, network: Callable[[], Network]) -> bool:
        if not steps or step >= steps[-1] + every:
            scored(step, network())
        return True

    scored(settings.steps, train(settings, partial(fleet, seed=settings.seed), told))
    return Curve(tuple(steps), tuple(scores))


def goal(defaults: Sequence[Curve]) -> float:
    """What counts as converged."""
    first, last = np.mean([c.scores[0] for c in defaults]), np.mean([c.last for c in defaults])
    return float(first + WAY * (last - first))


def ratio(pairs: Sequence[tuple[int, int]]) -> Estimate:
    """Steps of the found to those of the defaults: the geometric mean over pairs (found, defaults), with its bootstrap interval."""
    logs = np.log(np.asarray(pairs, dtype=float))
    return bootstrap(logs[:, 0] - logs[:, 1], lambda chosen: math.exp(_mean(chosen)))


@click.command()
@click.argument("found_file", metavar="FOUND", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(2, 100))
@click.option("--steps", default=12_000, show_default=True, type=click.IntRange(1_000, 10_000_000), help="Of each.")
@click.option("--every", default=800, show_default=True, type=click.IntRange(1, 1_000_000), help="Steps to a score.")
@click.option("--held-out", default=20, show_default=True, type=click.IntRange(2, 10_000), help="Fleets to score on.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the curves to this JSON file.")
def main(found_file: Path, seeds: int, steps: int, every: int, held_out: int, save: Path | None) -> None:
    """FOUND, as `trimtab tune search` prints it, against the defaults; the last line is JSON."""
    found = msgspec.json.decode(found_file.read_bytes(), type=Settings)
    both = {"defaults": replace(Settings(), steps=steps), "found": replace(found, steps=steps)}
    curves: dict[str, list[Curve]] = {name: [] for name in both}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=2 * seeds)
        # The search had seed 0: these fleets are new to both.
        for seed in range(1, seeds + 1):
            for name, settings in both.items():
                curves[name].append(curve(replace(settings, seed=seed), every, held_out))
                progress.advance(task)
    if save:
        told = {name: [{"steps": c.steps, "scores": c.scores} for c in some] for name, some in curves.items()}
        save.write_text(json.dumps(told))
    _report(curves["found"], curves["defaults"])


def _report(found: Sequence[Curve], defaults: Sequence[Curve]) -> None:
    """A training that does not converge counts as one that does with its last step."""
    aim = goal(defaults)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("seed", "first", "last: defaults", "found", f"steps to {aim:+.3f}: defaults", "found"):
        table.add_column(column, justify="right")
    reached = []
    for seed, (mine, theirs) in enumerate(zip(found, defaults, strict=True), 1):
        steps = [each.reaches(aim) for each in (mine, theirs)]
        reached.append((steps[0] or mine.steps[-1], steps[1] or theirs.steps[-1]))
        scores = (f"{x:+.3f}" for x in (theirs.scores[0], theirs.last, mine.last))
        table.add_row(str(seed), *scores, *(str(x or "never") for x in reversed(steps)))
    Console().print(table)
    better = bootstrap(np.array([f.last - d.last for f, d in zip(found, defaults, strict=True)]), _mean)
    figures = {"steps_found_to_defaults": ratio(reached), "last_found_less_defaults": better}
    print(json.dumps({name: [round(v, 3) for v in (e.value, e.low, e.high)] for name, e in figures.items()}))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


if __name__ == "__main__":
    command(main, "bench-converging")
