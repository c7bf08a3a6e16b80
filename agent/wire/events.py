"""Events that both ends of the line know by name."""

from __future__ import annotations

AGENT_STOPPED = "agent_stopped"
"""The last of a node whose agent ends in order."""
