"""What became of a run: one line of the file of results."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An incident, as it stood at the end of the run."""

    subject: str
    mechanism: str
    """Of the surest cause; empty: none was told."""
    confidence: float
    opened_unix_ns: int


class Clients(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients saw over a time. None: nothing."""

    p50_seconds: float | None
    p99_seconds: float | None
    error_ratio: float | None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run."""

    fault: str
    instance: str
    """Where the fault was, by trimtab's name of it."""
    subjects: tuple[str, ...]
    """Whom a good diagnosis names."""
    mechanisms: tuple[str, ...]
    """And what it says."""
    injected_unix_ns: int = 0
    told: Told | None = None
    """The first incident about the fault; if there is none, the first one after it began."""
    others: tuple[Told, ...] = ()
    """All other incidents: false alarms."""
    before: Clients | None = None
    during: Clients | None = None
    cannot: str = ""
    """Why there was no run."""

    @property
    def right_instance(self) -> bool:
        """Whether an incident names whom it should."""
        return self.told is not None and self.told.subject in self.subjects

    @property
    def right_mechanism(self) -> bool:
        """Whether that incident also says why."""
        return self.told is not None and self.right_instance and self.told.mechanism in self.mechanisms

    @property
    def incidents(self) -> int:
        """How many there were."""
        return len(self.others) + (self.told is not None)

    @property
    def delay_seconds(self) -> float | None:
        """From the fault to the incident about it."""
        return (self.told.opened_unix_ns - self.injected_unix_ns) / 1e9 if self.told and self.right_instance else None


def sort_out(told: Iterable[Told], injected_unix_ns: int, subjects: tuple[str, ...]) -> tuple[Told | None, list[Told]]:
    """The incident that the fault is to be judged by, and the others."""
    by_time = sorted(told, key=lambda t: t.opened_unix_ns)
    later = [t for t in by_time if t.opened_unix_ns >= injected_unix_ns]
    # A fault has a subject, a healthy run has none: there every incident is one of the others.
    about = [t for t in later if t.subject in subjects] or (later if subjects else [])
    chosen = about[0] if about else None
    return chosen, [t for t in by_time if t is not chosen]
