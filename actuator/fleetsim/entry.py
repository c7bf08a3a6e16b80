"""The two kernels that Python calls, compiled once and then read from numba's cache for as long as no source here changes.

numba asks only whether the file of a cached function changed, not those of the functions it calls. But what a function closes over is
part of the cache's key, so these close over a hash of all sources; and nothing that they call is cached by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

from trimtab.actuator.fleetsim import engine


def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _cached(sources: str) -> tuple[Callable[..., None], Callable[..., None]]:
    @njit(cache=True, nogil=True, error_model="numpy")
    def begin(fleet: Any, t: float) -> str:
        engine.begin(fleet, t)
        return sources

    @njit(cache=True, nogil=True, error_model="numpy")
    def advance(fleet: Any, arrivals: Any, first: int, end: float) -> str:
        engine.advance(fleet, arrivals, first, end)
        return sources

    return begin, advance


begin, advance = _cached(_sources())
"""`engine.begin` and `engine.advance`."""
