"""trimtab: finds the degraded serving instance, says why, and moves traffic away from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__version__ = "0.1.0"


class Exit(IntEnum):
    """Exit codes of every trimtab command (docs/commands.md)."""

    OK = 0
    NO = 1  # the question was answered, and the answer is no: not found, a check failed
    USAGE = 2
    SETTINGS = 3
    UNREACHABLE = 4
    LISTEN = 5
    STATE = 6
    INTERNAL = 70
    INTERRUPTED = 130


class TrimtabError(Exception):
    """An error a person can act on: one line that names what is wrong and the remedy."""

    def __init__(self, message: str, exit_code: Exit = Exit.NO) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `trimtab doctor` looked at."""

    name: str
    ok: bool | None
    """None where it is neither good nor bad: it is not there, and nothing needs it."""
    detail: str
    """What was found."""
    remedy: str = ""
    """How to get it; empty where nothing is missing."""
