"""Settings of the detectors and of the incidents they raise."""

from __future__ import annotations

from trimtab.agent.settings import Positive, PositiveInt, Section


class DetectorSettings(Section, frozen=True):
    """Detection: how much worse is bad, for how long, and when it is over."""

    warmup_windows: PositiveInt = 30
    """Healthy windows of an instance before its own history counts."""
    open_seconds: Positive = 4.0
    """How long an instance must be anomalous before an incident opens."""
    resolve_seconds: Positive = 60.0
    """How long it must be normal again before the incident is resolved."""
    stale_seconds: Positive = 10.0
    """Age of the last window beyond which nothing is known of an instance."""
