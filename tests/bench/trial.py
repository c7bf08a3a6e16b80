"""How often the guard's trial suspends steering that is not worse, and how soon steering that is: `python -m tests.bench.trial`."""

from __future__ import annotations

import numpy as np

from tests.actuator.test_trial import Costs, drifting, heavy, loud, played, steady

PAIRS = 300
TRAFFIC: dict[str, Costs] = {
    "steady, 10 % noise": steady,
    "drifting, autocorrelated": drifting,
    "quiet, with outliers of 100": loud,
    "heavy-tailed (Student, 1.5)": heavy,
}


def row(costs: Costs, worse: float, runs: int) -> str:
    """Share of the runs that were suspended within `PAIRS` pairs, and the median number of pairs until then."""
    found = [after for run in range(runs) if (after := played(costs, np.random.default_rng([1, run]), PAIRS, worse))]
    return f"{len(found) / runs:6.1%}" + (f" after {np.median(found):3.0f}" if worse > 0 and found else "")


def main() -> None:
    levels = (-0.05, 0.0, 0.05, 0.1, 0.2)
    print("| beyond the margin | " + " | ".join(f"{worse:+.0%}" for worse in levels) + " |", flush=True)
    for name, costs in TRAFFIC.items():
        cells = [row(costs, worse, 1000 if worse <= 0 else 300) for worse in levels]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
