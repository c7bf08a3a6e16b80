"""The Prometheus text format, as far as trimtab needs it: totals of counters."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def totals(text: str, names: Collection[str]) -> dict[str, float]:
    """Each named counter, summed over its labels. A counter that is declared but has no sample yet is 0; others are left out.

    Raises ValueError on a sample of these names that is no finite number from 0 on.
    """
    out: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, declared, kind, *_ = [*line.split(maxsplit=3), "", ""]
            if declared in names and kind == "counter":
                out.setdefault(declared, 0.0)
        elif (name := NAME.match(line)) and name[0] in names:
            rest = line[name.end() :]
            value = float((rest.rpartition("}")[2] if rest.startswith("{") else rest).strip().partition(" ")[0])
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name[0]}: {value} is no total")
            out[name[0]] = out.get(name[0], 0.0) + value
    return out
