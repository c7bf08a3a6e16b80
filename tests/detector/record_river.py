"""Records what `river.drift.ADWIN` says of a few streams, for test_adwin.py: `python -m tests.detector.record_river`, with river installed.

The streams: a mean that jumps, one that creeps, shares of 20 predictions, noise that gets louder, a constant, and jumps with gaps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RECORDED = Path(__file__).parent / "data" / "river_adwin.npz"
DELTA = 0.002
STEPS = 1500
EVERY = 25
"""Steps between two that the window is recorded of."""


def streams() -> NDArray[np.float32]:
    """float32 [STEPS, streams]"""
    chance = np.random.default_rng(7)
    time = np.arange(STEPS)
    noise = chance.normal(0, 0.1, (STEPS, 6))
    jumps = np.select([time < 400, time < 900], [0.3, 0.5], 0.35)
    values = np.stack(
        [
            jumps + noise[:, 0],
            0.2 + 0.6 * time / STEPS + noise[:, 1],
            chance.binomial(20, np.where(time < 800, 0.2, 0.35)) / 20,
            0.5 + noise[:, 3] * (1 + 3 * (time > 700)),
            np.full(STEPS, 0.25),
            np.where(chance.random(STEPS) < 0.2, np.nan, 1000 * (jumps + noise[:, 5])),
        ],
        axis=1,
    )
    return values.astype(np.float32)


def record() -> None:
    """Needs river."""
    import river
    from river.drift import ADWIN

    values = streams()
    drifts = np.zeros(values.shape, dtype=np.bool_)
    windows = np.zeros((len(values[::EVERY]), 3, values.shape[1]))
    for k in range(values.shape[1]):
        adwin = ADWIN(delta=DELTA, clock=32, max_buckets=5, min_window_length=5, grace_period=10)
        for step, value in enumerate(values[:, k].tolist()):
            if value == value:
                adwin.update(value)
                drifts[step, k] = adwin.drift_detected
            if step % EVERY == 0:
                # Its `variance` is the sum of squared deviations.
                windows[step // EVERY, :, k] = adwin.width, adwin.estimation, adwin.variance
    np.savez_compressed(RECORDED, values=values, drifts=drifts, windows=windows, river=np.asarray(river.__version__))


if __name__ == "__main__":
    record()
