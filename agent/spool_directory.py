"""The directory of a spool: who may use it, what it is called, and what an agent before this one left in it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from trimtab import Exit, TrimtabError
from trimtab.agent.segment import SUFFIX, Segment, scan
from trimtab.agent.settings import DISK_TROUBLE

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9]{1,64}")
# What is beyond is garbage: it would leave no numbers for the windows to come.
_SEQ_MAX = 1 << 62


class SpoolDirectory:
    """Held by one agent at a time. Raises OSError where the disk does not do what it should, TrimtabError where another agent has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._lock = _lock(path)
        try:
            self.id = _spool_id(path)
            self._acknowledged = os.open(path / "acknowledged", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            text = os.pread(self._acknowledged, 21, 0).strip()
            self.acknowledged_seq = int(text) if text.isdigit() and int(text) <= _SEQ_MAX else 0
            """The last number that was noted; 0 where there is none, or nothing that could be one."""
            self.left = list(self._recover())
            """Each file that was left, in order; how many windows are known to be lost after its end, and why."""
        except BaseException:
            os.close(self._lock)
            raise

    def note_acknowledged(self, seq: int) -> None:
        """Only saves numbers when the spool's end is lost too: a disk that does not take it loses nothing."""
        with contextlib.suppress(OSError):
            os.pwrite(self._acknowledged, b"%020d\n" % seq, 0)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._acknowledged)
        os.close(self._lock)

    def _recover(self) -> Iterator[tuple[Segment, int, str]]:
        """What a file holds beyond its last whole record is cut off."""
        found = [_scanned(path) for path in _files(self.path)]
        for at, (segment, problem) in enumerate(found):
            following = found[at + 1][0] if at + 1 < len(found) else None
            beyond = 0 if problem else segment.path.stat().st_size - segment.bytes
            why = f"{segment.path.name} cannot be read: {problem}" if problem else ""
            if beyond:
                os.truncate(segment.path, segment.bytes)
                why = f"{segment.path.name} is torn or corrupt after window {segment.last}: {beyond} bytes are cut off"
            lost = max(0, following.first - segment.last - 1) if following else 1
            yield segment, lost if why else 0, why


def open_directory(path: Path) -> SpoolDirectory | None:
    """None, and a line in the log, where the disk is broken, full or read-only. Raises TrimtabError for what a person has to mend."""
    try:
        return SpoolDirectory(path)
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            message = f"spool {path}: {error.strerror}; give another state directory with --state"
            raise TrimtabError(message, Exit.STATE) from error
        log.warning(
            "spool %s cannot be used: %s; windows are kept in memory only, and lost when the agent ends; "
            "mend the disk, then start the agent again",
            path,
            error.strerror,
        )
        return None


def _files(directory: Path) -> list[Path]:
    """By number; only names that the spool itself gives."""
    numbered = [p for p in directory.glob(f"*{SUFFIX}") if re.fullmatch(r"[0-9]{20}", p.name.removesuffix(SUFFIX))]
    return sorted(p for p in numbered if 0 < int(p.name.removesuffix(SUFFIX)) <= _SEQ_MAX)


def _scanned(path: Path) -> tuple[Segment, str]:
    """One file that cannot be read is no reason to give up the others: it is put out of the way."""
    try:
        return scan(path), ""
    except OSError as error:
        path.rename(path.with_suffix(".unreadable"))
        return Segment(path, int(path.name.removesuffix(SUFFIX))), error.strerror or type(error).__name__


def _lock(directory: Path) -> int:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        message = f"spool {directory}: another agent uses it; stop that one, or give this one its own --state"
        raise TrimtabError(message, Exit.STATE) from error
    return descriptor


def _spool_id(directory: Path) -> str:
    path = directory / "spool-id"
    known = path.read_bytes().decode("ascii", "replace").strip() if path.exists() else ""
    if _ID.fullmatch(known):
        return known
    if known:
        log.warning("spool %s: its spool-id is damaged: it gets a new one, and its windows are sent again", directory)
    fresh = directory / "spool-id.new"
    known = uuid.uuid4().hex
    with fresh.open("w") as file:
        file.write(known)
        file.flush()
        # Synced, unlike the windows: a spool that forgot its name would be stored a second time.
        os.fsync(file.fileno())
    fresh.replace(path)
    return known
