"""Policies: a fleet state in, wished-for weights out, one a file."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.actuator.policy.base import Policy
from trimtab.actuator.policy.neutral import Neutral
from trimtab.actuator.policy.proportional import Proportional

POLICIES: dict[str, Callable[[], Policy]] = {"proportional": Proportional, "neutral": Neutral}
"""By the name that the settings give; each model gets one of its own."""
