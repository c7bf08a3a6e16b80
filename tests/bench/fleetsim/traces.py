"""Recorded arrivals for the simulator: published traces of requests to language models, as files on disk.

`.csv` and `.csv.xz` with a TIMESTAMP column are those of Azure (Patel et al., ISCA 2024); `.jsonl` and `.jsonl.xz` with `timestamp` in
milliseconds are Mooncake's (Qin et al., FAST 2025); a CSV of six columns without a header is a client of ServeGen (Xiang et al., 2025):
start, rate, coefficient of variation, and a fitted distribution, which is not read.
"""

from __future__ import annotations

import csv
import json
import lzma
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np

from trimtab.actuator.fleetsim.scenario import Arrivals


def recorded(path: Path, rate_per_second: float | None = None, seconds_max: float | None = None) -> Arrivals:
    """A trace, from 0 on; stretched to a mean rate, then cut. Raises ValueError when nothing is in it."""
    times = np.sort(np.fromiter(_times(path), dtype=np.float64))
    if len(times) < 2 or times[0] == times[-1]:
        raise ValueError(f"{path}: needs two arrivals at different times")
    times -= times[0]
    if rate_per_second is not None:
        times *= len(times) / times[-1] / rate_per_second
    if seconds_max is not None:
        times = times[times < seconds_max]
    mean = len(times) / times[-1]
    return Arrivals(float(mean), "recorded", times_seconds=tuple(times.tolist()))


def client(path: Path, rate_per_second: float) -> Arrivals:
    """A ServeGen client: gamma gaps of its usual burstiness under its rate's ups and downs, on average at the rate that is given."""
    with _opened(path) as lines:
        rows = np.array([[float(cell) for cell in (row[0], row[1], row[2] or "nan")] for row in csv.reader(lines)])
    step = int(np.diff(rows[:, 0]).min())
    rates = rows[:, 1] / rows[:, 1].mean()
    burstiness = float(np.nanmedian(rows[rows[:, 2] > 0, 2]))
    profile = np.repeat(rates, step)
    return Arrivals(rate_per_second, "gamma", cv=min(max(burstiness, 0.05), 20.0), profile=tuple(profile.tolist()))


def _times(path: Path) -> Iterator[float]:
    with _opened(path) as lines:
        if ".jsonl" in path.name:
            yield from (json.loads(line)["timestamp"] / 1000 for line in lines)
        else:
            for row in csv.DictReader(lines):
                # Python's microseconds have six digits, Azure's stamps seven.
                yield datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()


def _opened(path: Path) -> lzma.LZMAFile:
    return lzma.open(path, "rt") if path.suffix == ".xz" else path.open()  # type: ignore[return-value]
