"""Settings of the collector."""

from __future__ import annotations

from typing import Annotated

import msgspec

from trimtab.agent.settings import Port, PortOrNone, Positive, PositiveInt, Ratio, Section, UrlOrNone


class CollectorSettings(Section, frozen=True):
    """The collector: where it listens, what it keeps, what a question may cost."""

    listen: Port = "127.0.0.1:7470"
    """Where agents, the actuator and the command connect."""
    query_seconds_max: Positive = 10.0
    """Longest time one SQL statement may run."""
    query_rows_max: PositiveInt = 10_000
    """Most rows one SQL statement may return."""
    memory_bytes_max: PositiveInt = 512 << 20
    """Memory that DuckDB may use."""
    agents_max: PositiveInt = 1024
    """Most agents connected at once."""
    keep_raw_hours: Positive = 48.0
    """How long single windows are kept, unless `store_bytes_max` is reached first; then their rollups remain."""
    keep_minutes_days: Positive = 30.0
    """How long rollups of a minute are kept."""
    keep_hours_days: Positive = 400.0
    """How long rollups of an hour, events, decisions and resolved incidents are kept."""
    store_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 20)] = 20 << 30
    """What the database may hold; beyond it the oldest windows go first, then minutes, then hours."""
    disk_free_ratio_min: Ratio = 0.05
    """Share of the disk that is left free: the database holds less than `store_bytes_max` where the disk is so full."""
    metrics_listen: PortOrNone = "127.0.0.1:7473"
    """Where the collector's own metrics and the fleet's fingerprints are served (docs/metrics.md), on loopback only; empty: nowhere."""
    webhook_url: UrlOrNone = ""
    """Where incidents are told of, as Alertmanager would or to an Alertmanager (docs/operations.md); empty: nowhere."""
