"""How well incidents are resembled when they are played again: every incident of every store below a directory, as it was.

`python -m tests.bench.replaying DIRECTORY`, where DIRECTORY holds what `make campaign` left: one state directory a round.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from statistics import median

from trimtab import TrimtabError
from trimtab.actuator.fleetsim.scenario import Balancers
from trimtab.actuator.replay.fidelity import Figure
from trimtab.actuator.replay.play import deciders
from trimtab.actuator.replay.record import read
from trimtab.actuator.replay.run import compare
from trimtab.actuator.replay.scene import scene
from trimtab.actuator.settings import ActuatorSettings, GuardSettings
from trimtab.collector.offline import Ask, asking
from trimtab.settings import Settings

NOBODY = Settings(actuator=ActuatorSettings(collector="127.0.0.1:9"))
"""No collector answers there, and the file is read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found: list[list[Figure]] = []
    print("| incident | lasted | mean | p99 | errors | share |\n| --- | --- | --- | --- | --- | --- |")
    for state in sorted({p.parent.parent for p in arguments.directory.rglob("trimtab.duckdb")}):
        with contextlib.redirect_stderr(None), asking(NOBODY, None, state) as ask:
            for id_, mechanism in ask("SELECT id, coalesce(mechanism, '') FROM incidents ORDER BY since"):
                figures, seconds = _replayed(ask, id_, arguments.seeds)
                if figures:
                    found.append(figures)
                    cells = [f"{mechanism} ({state.name})", f"{seconds} s", *map(_cell, figures)]
                    print("| " + " | ".join(cells) + " |", flush=True)
    for figures in zip(*found, strict=True):
        off = [abs(f.simulated / f.recorded - 1) for f in figures if f.recorded > 0]
        within = sum(not f.differs for f in figures)
        print(f"{figures[0].name}: {within} of {len(figures)} within 30 %; off by {median(off):.0%} in the median")


def _replayed(ask: Ask, incident: str, seeds: int) -> tuple[list[Figure], int]:
    try:
        played = scene(read(ask, incident))
    except TrimtabError as error:
        print(error, file=sys.__stderr__)
        return [], 0
    only = dict(list(deciders(played, [], GuardSettings(), None).items())[:1])
    result = compare(played, only, Balancers(), seeds, lambda: None)
    return result.fidelity, played.seconds - played.onset_second


def _cell(figure: Figure) -> str:
    scale, unit = (1e3, " ms") if figure.unit == "s" else (100, " %")
    mark = " !" if figure.differs else ""
    return f"{figure.recorded * scale:.0f} → {figure.simulated * scale:.0f}{unit}{mark}"


if __name__ == "__main__":
    main()
