"""Settings of the collector."""

from __future__ import annotations

from trimtab.agent.settings import Port, Positive, PositiveInt, Section


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
