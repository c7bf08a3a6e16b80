"""Rows of recorded arrivals, from published files that are not part of the repository. None may be worse than the balancer alone.

The traces of Azure and Mooncake are squeezed to the load, the day of ServeGen's busiest client into a run.
"""

from __future__ import annotations

import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.bench.fleetsim import traces
from tests.bench.routing.rows import ILL, SECONDS, Row, fleet, slow
from trimtab.actuator.fleetsim.scenario import Arrivals

_LOAD, _LOAD_DAY = 0.5, 0.3
"""Of what four equal instances can do; where there is a day's rush hour, it is two and a half times as much."""
_RATE = 100.0
"""Requests per second at half load."""


def recorded(data: Path) -> list[Row]:
    """Each trace with all instances equal, and with one three times slower. Raises OSError where a file is not there."""
    found = {
        "azure": traces.recorded(_only(data / "llm-traces", "azure*"), _RATE, SECONDS),
        "mooncake": traces.recorded(_only(data / "llm-traces", "mooncake*"), _RATE, SECONDS),
        "servegen": busiest(_only(data / "servegen-rates", "*.tar.xz")),
    }
    rows = []
    for name, arrivals in found.items():
        load = _LOAD_DAY if arrivals.profile else _LOAD
        equal, ailing = (fleet(load=load, arrivals=arrivals, faults=faults) for faults in ((), (slow(3),)))
        rows.append(Row(name, f"arrivals of {name}, equal", equal, 0, compare="harmless"))
        rows.append(
            Row(f"{name}-slow3", f"arrivals of {name}, one 3 × slower", ailing, 0, compare="harmless", ill=(ILL,))
        )
    return rows


def busiest(archive: Path) -> Arrivals:
    """Of the clients in an archive of ServeGen's the one with the most requests; its day takes one run."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as packed:
        for number, member in enumerate(packed):
            if member.name.endswith("-trace.csv") and (file := packed.extractfile(member)):
                (Path(folder) / f"{number}.csv").write_bytes(file.read())
        path = max(Path(folder).iterdir(), key=_rate)
        arrivals = traces.client(path, _RATE)
    parts = np.array_split(np.asarray(arrivals.profile), SECONDS)
    return replace(arrivals, profile=tuple(float(part.mean()) for part in parts))


def _rate(path: Path) -> float:
    rates: float = np.loadtxt(path, delimiter=",", usecols=1).mean()
    return rates


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder / pattern}: there is none")
    return found[0]
