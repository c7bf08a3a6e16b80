"""Reads a spool from a window on, in order, while it is being written."""

from __future__ import annotations

import logging
import os
from collections import deque

from trimtab.agent.collectors.own import Vitals
from trimtab.agent.segment import SCHEMA, Record, Segment, unpack
from trimtab.agent.spool import Spool

log = logging.getLogger(__name__)


class Cursor:
    """For one thread. It holds one open file, and at most one segment in memory."""

    def __init__(self, spool: Spool, after: int, vitals: Vitals) -> None:
        self._spool = spool
        self._vitals = vitals
        self._after = after
        """The last window that was read."""
        self._ready: deque[Record] = deque()
        self._segment: Segment | None = None
        self._file: int | None = None
        self._offset = 0
        self._seq = 0
        self._schema = b""

    def next(self, timeout_seconds: float) -> Record | None:
        """The next window, or None when there is none within `timeout_seconds` or the spool was closed."""
        if not self._ready:
            self._fill(timeout_seconds)
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _fill(self, timeout_seconds: float) -> None:
        spool = self._spool
        with spool.changed:
            spool.changed.wait_for(lambda: spool.closed or spool.newest_seq > self._after, timeout_seconds)
            if spool.closed:
                return
            segment = next((s for s in spool.segments if s.windows and s.last > self._after), None)
            if segment is None:
                self._ready.extend(record for record in spool.unwritten if record.seq > self._after)
                self._after = max(self._after, spool.newest_seq)
                return
            last, end = segment.last, segment.bytes
            problem = self._enter(segment)
        problem = problem or self._read(end)
        missing = last - max(self._seq, self._after)
        self._seq, self._offset, self._after = last, end, last
        if missing > 0:
            with spool.changed:
                self._vitals.lose(missing, "damage")
            log.warning("windows lost: %d: spool file %s %s", missing, segment.path.name, problem)

    def _enter(self, segment: Segment) -> str:
        """Open the file while the spool cannot drop it; what was wrong."""
        if segment is self._segment:
            return ""
        self.close()
        self._segment, self._offset, self._seq, self._schema = segment, 0, segment.first - 1, b""
        try:
            self._file = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return f"cannot be opened: {error.strerror}"
        return ""

    def _read(self, end: int) -> str:
        """Take the records up to `end`; what was wrong, should any be missing."""
        if self._file is None:
            return "is not open"
        try:
            data = os.pread(self._file, end - self._offset, self._offset)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        for kind, payload, _ in unpack(data):
            if kind == SCHEMA:
                self._schema = payload
                continue
            self._seq += 1
            if self._seq > self._after:
                self._ready.append(Record(self._seq, self._schema, payload))
        return "is torn or corrupt"
