"""What a value of a stream costs: `trimtab.detector.adwin` beside `river.drift.ADWIN`, over 10,000 streams in one process.

    python -m tests.bench.adwin

River needs to be importable, as by `pip install river`; without it only our own figure is told. CPU time, in turns, so that both have
the same machine. Windows are 512 values wide to begin with, and nothing changes. The last line is JSON.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable

import numpy as np

from trimtab.detector.adwin import Adwin

STREAMS, WARM, STEPS, TURNS = 10_000, 512, 32, 5
OURS_A_TURN = 8
"""Ours is over so soon that one turn would only measure how it begins."""
DELTA = 0.002


def spent(step: Callable[[int], object], looks: int = 1) -> float:
    """CPU nanoseconds a value, over as many steps as these looks take."""
    began = time.process_time_ns()
    for number in range(looks * STEPS):
        step(number % STEPS)
    return (time.process_time_ns() - began) / (looks * STEPS * STREAMS)


def main() -> None:
    rows = np.random.default_rng(0).random((STEPS, STREAMS), dtype=np.float32)
    adwin = Adwin(STREAMS, DELTA)
    for number in range(WARM):
        adwin.update(rows[number % STEPS])
    told: dict[str, object] = {"streams": STREAMS}
    try:
        theirs = [importlib.import_module("river.drift").ADWIN(delta=DELTA) for _ in range(STREAMS)]
    except ImportError:
        theirs = []
    lists = rows.tolist()

    def river(number: int) -> None:
        for one, value in zip(theirs, lists[number], strict=True):
            one.update(value)

    for number in range(WARM if theirs else 0):
        river(number % STEPS)
    ours_ns, river_ns = [], []
    for _ in range(TURNS):
        ours_ns.append(spent(lambda number: adwin.update(rows[number]), OURS_A_TURN))
        river_ns += [spent(river)] if theirs else []
    told["ours_ns"] = round(float(np.median(ours_ns)), 2)
    print(f"trimtab: {told['ours_ns']} ns a value")
    if theirs:
        told["river_ns"] = round(float(np.median(river_ns)), 1)
        told["ratio"] = round(float(np.median(np.divide(river_ns, ours_ns))), 1)
        print(f"river: {told['river_ns']} ns a value, {told['ratio']} times as much")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
