"""Settings of the detectors and of the incidents they raise."""

from __future__ import annotations

from typing import Annotated

import msgspec

from trimtab.agent.settings import Positive, PositiveInt, Ratio, Section

Factor = Annotated[float, msgspec.Meta(gt=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class DetectorSettings(Section, frozen=True):
    """Detection: how much worse is bad, for how long, and when it is over."""

    warmup_windows: PositiveInt = 30
    """Healthy windows of an instance before its own history counts."""
    false_alarms_per_week: Positive = 1.0
    """How many incidents a week the whole fleet may raise when nothing is wrong. How far healthy instances stray is learnt, and what has to
    be exceeded follows from it; before enough was seen, and for what has a nearly proved cause, it is four robust standard deviations."""
    open_seconds: Positive = 7.0
    """How long an instance must be anomalous before an incident opens; twice as long with fewer than two peers,
    three times with nobody to compare with."""
    common_open_seconds: Positive = 30.0
    """How long all instances of a model or a node must be anomalous together before an incident of the model or the node opens."""
    resolve_seconds: Positive = 60.0
    """How long it must be normal again before the incident is resolved."""
    stale_seconds: Positive = 10.0
    """Age of the last window beyond which nothing is known of an instance."""
    latency_factor_min: Factor = 1.5
    """How many times slower than usual is bad."""
    common_latency_factor_min: Factor = 2.0
    """The same where all instances of a model or a node are slower together, as they are whenever the host of a virtual machine is busy."""
    latency_seconds_min: Positive = 0.005
    """How much slower it must be at the least, seconds."""
    error_ratio_min: Ratio = 0.05
    """Share of errors, beyond the usual, that is bad."""
    drift_share_min: Share = 0.1
    """Share of a model's predictions that must have moved to other scores before an incident of model drift opens."""
