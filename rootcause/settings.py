"""Settings of the root-cause analyzer."""

from __future__ import annotations

from trimtab.agent.settings import Positive, Section


class RootcauseSettings(Section, frozen=True):
    """Root cause: how far back it looks."""

    history_seconds: Positive = 180.0
    """How much of every signal is kept to compare with."""
