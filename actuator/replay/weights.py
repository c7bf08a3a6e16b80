"""The weights that were in force while an incident went on, by the decisions that the actuator stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.actuator.replay.recording import Matrix
from trimtab.collector.offline import Ask

SILENT_SECONDS = 20.0
"""A decision is stored every 10 s at least: so long after the last one, the actuator was gone and weights neutral."""
_DECISIONS = """
SELECT epoch_us(d.decided), d.policy, list(w.instance), list(w.weight)
FROM decision_records d LEFT JOIN weights w ON w.decided = d.decided AND w.version = d.version
WHERE d.decided >= make_timestamp({since}) AND d.decided < make_timestamp({until})
GROUP BY d.decided, d.version, d.policy ORDER BY d.decided, d.version
"""


def recorded_weights(ask: Ask, instances: Sequence[str], origin_us: int, seconds: int) -> tuple[Matrix, str]:
    """float64 [seconds, instances], and the policy that decided last; "" where no decision is stored, and all weights are neutral."""
    since, until = origin_us - round(SILENT_SECONDS * 1e6), origin_us + seconds * 1_000_000
    rows = ask(_DECISIONS.format(since=since, until=until))
    weights = np.ones((seconds, len(instances)))
    place = {name: k for k, name in enumerate(instances)}
    for at, (decided, _, names, shares) in enumerate(rows):
        # What is decided within a second is in force from the next one on.
        first = max(0, -(-(decided - origin_us) // 1_000_000))
        following = rows[at + 1][0] if at + 1 < len(rows) else until
        end = min(
            seconds, -(-min(following - origin_us, decided - origin_us + round(SILENT_SECONDS * 1e6)) // 1_000_000)
        )
        known = {place[n]: w for n, w in zip(names, shares, strict=True) if n in place}
        weights[first:end] = 1.0
        weights[first:end, list(known)] = list(known.values())
    return weights, rows[-1][1] if rows else ""
