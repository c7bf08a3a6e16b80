"""What the collector counts of itself, for its own metrics (docs/metrics.md)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Vitals:
    """Each figure is written by one thread, and read by another."""

    windows: int = 0
    samples: int = 0
    """Values of windows that were stored; a sketch counts as one."""
    duplicates: int = 0
    lost: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By the field that was wrong."""
    received_bytes: int = 0
    held_up: int = 0
    """How often a message had to wait for room in the inbox, or for answers."""
    transactions: int = 0
    transaction_seconds: float = 0.0
    failures: int = 0
    """Transactions that could not be written, and were tried again."""
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    rollups: int = 0
    """Minutes and hours rolled up, of all kinds."""
    rollups_late: int = 0
    """Minutes among them that were rolled up again, for windows that came late."""
    rollups_damaged: int = 0
    """Those that were left out because a part of the file is broken."""
    deleted: Counter[str] = field(default_factory=Counter)
    """Rows, by what they were: windows, minutes, hours; and `unrolled`, those of the windows that were in no rollup yet."""
    keeper_failures: int = 0
    """Checkpoints, rollups and deletions that failed, and were tried again."""
    questions: Counter[str] = field(default_factory=Counter)
    question_seconds: float = 0.0
    webhook_sent: int = 0
    webhook_failed: int = 0
