"""What outlasts a restart of the analysis: how far healthy instances stray, as one line of JSON in the store."""

from __future__ import annotations

import json
import math

import numpy as np

from trimtab.detector.budget import Budget

_VERSION = 1


def written(budget: Budget) -> str:
    """What `restore` takes; equal for equal states."""
    return json.dumps({"version": _VERSION, "budget": budget.save()["tail"].tolist()})


def restore(budget: Budget, memory: str) -> None:
    """Go on where `written` was called; an empty memory changes nothing. Raises ValueError, and then nothing has changed."""
    if not memory:
        return
    try:
        found = json.loads(memory)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        raise ValueError(f"not of version {_VERSION}")
    tail = found.get("budget")
    if not isinstance(tail, list) or not all(isinstance(v, int | float) and math.isfinite(v) for v in tail):
        raise ValueError("budget: not a list of finite numbers")
    budget.restore({"tail": np.asarray(tail, dtype=np.float64)})
