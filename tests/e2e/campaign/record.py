"""What became of a run: one line of JSON, written as soon as the run is over, so that a campaign can go on where it ended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from trimtab import Exit, TrimtabError


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


def append(file: Path, record: Record) -> None:
    """Add a run to the file."""
    with file.open("ab") as out:
        out.write(msgspec.json.encode(record) + b"\n")


def read(file: Path) -> list[Record]:
    """The runs of the file; none if it is not there. A last line that was cut short is cut off.

    Raises TrimtabError that names the first other line that is not a run.
    """
    if not file.exists():
        return []
    whole, _, rest = file.read_bytes().rpartition(b"\n")
    if rest:
        file.write_bytes(whole + b"\n" * bool(whole))
    return [_decode(file, number, line) for number, line in enumerate(whole.splitlines(), 1)]


def _decode(file: Path, number: int, line: bytes) -> Record:
    try:
        return msgspec.json.decode(line, type=Record)
    except msgspec.DecodeError as error:
        raise TrimtabError(f"{file}:{number}: {error}: remove that line or name another file", Exit.STATE) from error
