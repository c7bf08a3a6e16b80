"""What a scenario may not hold, in one line that names the field and the remedy."""

from __future__ import annotations

import math

from trimtab import Exit, TrimtabError


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raises TrimtabError, exit code SETTINGS, unless the condition holds."""
    if not condition:
        raise TrimtabError(f"{field} = {value!r}: {remedy}", Exit.SETTINGS)


def number(field: str, value: float, low: float, high: float, above: bool = False) -> None:
    """A finite number in [low, high], or in (low, high] with `above`."""
    bounds = f"{'above' if above else 'at least'} {low:g}, at most {high:g}"
    inside = math.isfinite(value) and (value > low if above else value >= low) and value <= high
    require(inside, field, value, f"must be a number, {bounds}")


def span(field: str, onset: float, end: float) -> None:
    """Seconds from `onset` on, to a later `end` that may be infinite."""
    number(f"{field}.onset_seconds", onset, 0, SECONDS_MAX)
    require(end > onset, f"{field}.end_seconds", end, f"must be after onset_seconds = {onset:g}, or math.inf for never")


SECONDS_MAX = 1e6
"""Longest that a scenario may last."""
