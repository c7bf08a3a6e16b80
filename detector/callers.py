"""One fault is one incident: who only suffers from whom it calls has none of its own while the callee has one, or is about to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.explain import Explainer
from trimtab.detector.history import History

Standing = Literal["told", "worse", ""]
"""Of a callee: it has an incident, it is worse than usual, or neither."""
Features = NDArray[np.floating[Any]]
"""How ill one instance is, one number a feature; NaN where unknown."""

_LOOK_SECONDS = 5.0
_SETTLED_SECONDS = 30.0
"""Until then evidence grows, and it is asked again; what comes later is another matter, and shows in that it gets worse."""


@dataclass(slots=True)
class _Held:
    since_ns: int
    onset_ns: int
    blamed: list[str]
    looked_ns: int
    asked_ns: int
    worst: Features


class Callers:
    """Asks the explainer whose fault it is, and remembers who is held back for that."""

    def __init__(self, explainer: Explainer, patience_seconds: float, margins: Features) -> None:
        """`patience_seconds`: for how long the incident of a callee that is worse is waited for. `margins`: what counts as even worse."""
        self._explainer, self._patience_ns, self._margins = explainer, patience_seconds * 1e9, margins
        self._held: dict[str, _Held] = {}

    @property
    def held(self) -> set[str]:
        """Instances that are ill, and have no incident for that."""
        return set(self._held)

    def holds(
        self,
        history: History,
        instance: str,
        features: Features,
        onset: Callable[[], int],
        standing: Callable[[str], Standing],
        now_unix_ns: int,
    ) -> bool:
        """Whether this instance, ill since `onset`, suffers from a callee that is told, or that is worse and may soon be told."""
        held = self._look(history, instance, features, onset, now_unix_ns)
        callees = {standing(callee) for callee in held.blamed}
        waits = "worse" in callees and now_unix_ns - held.since_ns < self._patience_ns
        if "told" not in callees and not waits:
            return False
        held.asked_ns = now_unix_ns
        self._held[instance] = held
        return True

    def forget(self, now_unix_ns: int) -> None:
        """Those that nobody asked about lately: they are well again."""
        self._held = {i: h for i, h in self._held.items() if now_unix_ns - h.asked_ns <= 2 * _LOOK_SECONDS * 1e9}

    def _look(
        self, history: History, instance: str, features: Features, onset: Callable[[], int], now_unix_ns: int
    ) -> _Held:
        held = self._held.get(instance)
        if held is None or (features - held.worst >= self._margins).any():
            onset_ns = onset()
            blamed = self._explainer.blamed(history, instance, onset_ns)
            return _Held(now_unix_ns, onset_ns, blamed, now_unix_ns, now_unix_ns, features)
        if now_unix_ns - held.since_ns <= _SETTLED_SECONDS * 1e9:
            held.worst = np.fmax(held.worst, features)
            if now_unix_ns - held.looked_ns >= _LOOK_SECONDS * 1e9:
                held.looked_ns = now_unix_ns
                held.blamed = self._explainer.blamed(history, instance, held.onset_ns)
        return held
