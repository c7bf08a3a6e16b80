"""Plays a scene under every policy, over several seeds, and compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trimtab.actuator.fleetsim.drive import Decide
from trimtab.actuator.fleetsim.scenario import Balancers
from trimtab.actuator.replay.fidelity import Figure, averaged, fidelity
from trimtab.actuator.replay.play import AS_IT_WAS, Beat, first_weights, play
from trimtab.actuator.replay.scene import Scene
from trimtab.actuator.replay.verdict import Row, Run, before, judge, rows

Deciders = Mapping[str, Callable[[], Decide]]
"""By name, what makes one who decides; `AS_IT_WAS` is the first."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    rows: list[Row]
    fidelity: list[Figure]


def compare(scene: Scene, deciders: Deciders, balancers: Balancers, seeds: int, beat: Beat) -> Result:
    """Every policy meets the same requests in each seed, with the same service times. `beat` is called after each second of each run."""
    runs: dict[str, list[Run]] = {name: [] for name in deciders}
    figures = []
    for seed in range(seeds):
        scenario = scene.scenario(seed, balancers)
        usual = None
        for name, make in deciders.items():
            played = play(scenario, make(), first_weights(scene, name), beat)
            if usual is None:
                usual = before(scene, played)
                figures.append(fidelity(scene, played))
            runs[name].append(judge(scene, played, usual))
    return Result(rows(scene, runs, AS_IT_WAS), averaged(figures))
