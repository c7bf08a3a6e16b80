"""A number and its unit, as a person reads them."""

from __future__ import annotations

import math

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(value: float, unit: str) -> str:
    """Three digits and a prefix: "310 ms", "1.4 GHz", "12 a second"; "–" where it is unknown."""
    if not math.isfinite(value):
        return "–"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit in {"", "1"}:
        return f"{value:.3g}"
    if unit == "1/s":
        return f"{value:.3g} a second"
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), (1.0, ""))
    return f"{value / scale:.3g} {prefix}{unit}"
