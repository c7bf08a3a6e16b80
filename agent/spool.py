"""The windows that the collector has not stored yet, on disk.

A window is written once and not synced: killing the agent loses none that was written, and cuts at most the one that is being
written; a power cut may lose the last seconds. As the collector may have stored some of what a power cut took from the spool,
numbering then goes on after the collector's last number.
The size is bounded: when it is reached, the oldest windows go, and are counted. Where the disk takes no more, windows wait in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import uuid
from collections import deque
from itertools import zip_longest
from pathlib import Path

from trimtab import Exit, TrimtabError
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.segment import SCHEMA, SUFFIX, WINDOW, Record, Segment, pack, path_of, scan
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import MESSAGE_BYTES_MAX

log = logging.getLogger(__name__)

_SEGMENT_BYTES = 4 << 20
_UNWRITTEN_MAX = 600
# What gRPC and the envelope add to a window.
_ENVELOPE_BYTES = 4096


class Spool:
    """Written by the loop, read by the publisher; safe to use from both.

    Raises TrimtabError when `directory` cannot be used, or another agent uses it.
    """

    def __init__(self, directory: Path, bytes_max: int, vitals: Vitals) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._segment_bytes = min(_SEGMENT_BYTES, bytes_max // 8)
        self._window_bytes_max = min(MESSAGE_BYTES_MAX - _ENVELOPE_BYTES, bytes_max // 4)
        self._vitals = vitals
        self.changed = threading.Condition()
        self.closed = False
        self.segments: list[Segment] = []
        self.unwritten: deque[Record] = deque()
        self._file: int | None = None
        self._file_schema = b""
        self._schema = pb.Schema()
        self._schema_bytes = b""
        self.last_seq = self.acknowledged_seq = 0
        self._said = ""
        self._full = False
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = _lock(directory)
            self.id = _spool_id(directory)
            self._acknowledged_file = os.open(directory / "acknowledged", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._recover()
        except OSError as error:
            message = f"spool {directory}: {error.strerror}; give another state directory with --state"
            raise TrimtabError(message, Exit.STATE) from error
        self._resume_from: int | None = self.last_seq + 1

    @property
    def first_seq(self) -> int:
        """The oldest window that is still held; the next one's number when none is."""
        with self.changed:
            held = [s.first for s in self.segments if s.windows] + [record.seq for record in self.unwritten]
            return min(held, default=self.last_seq + 1)

    @property
    def newest_seq(self) -> int:
        """The newest window that can be read; 0 for none. To be called with `changed` held."""
        if self.unwritten:
            return self.unwritten[-1].seq
        return max((s.last for s in self.segments if s.windows), default=0)

    @property
    def waiting(self) -> int:
        """How many windows are not acknowledged."""
        with self.changed:
            acknowledged = self.acknowledged_seq
            on_disk = sum(max(0, s.last - max(s.first - 1, acknowledged)) for s in self.segments)
            return on_disk + sum(record.seq > acknowledged for record in self.unwritten)

    def append(self, schema: pb.Schema, window: pb.Window) -> None:
        """Number the window and keep it. Never raises for the disk's sake."""
        with self.changed:
            if schema.hash != self._schema.hash:
                self._schema, self._schema_bytes = schema, schema.SerializeToString()
            window.seq = self.last_seq + 1
            data = window.SerializeToString()
            if len(data) + len(self._schema_bytes) > self._window_bytes_max:
                self._lose(
                    1, f"a window of {len(data)} bytes is more than the {self._window_bytes_max} that can be sent"
                )
                return
            self.last_seq += 1
            self.unwritten.append(Record(window.seq, self._schema_bytes, data))
            self._write()
            self.changed.notify_all()

    def acknowledge(self, seq: int) -> None:
        """The collector has all windows up to `seq`: forget them."""
        with self.changed:
            if seq <= self.acknowledged_seq or self.closed:
                return
            self.acknowledged_seq = seq
            self.last_seq = max(self.last_seq, seq)
            with contextlib.suppress(OSError):  # only saves numbers when the spool's end is lost too
                os.pwrite(self._acknowledged_file, b"%020d\n" % seq, 0)
            while self.unwritten and self.unwritten[0].seq <= seq:
                self.unwritten.popleft()
            # The last segment stays: its name and length say where numbering goes on.
            while len(self.segments) > 1 and self.segments[0].last <= seq:
                done = self.segments.pop(0)
                try:
                    done.path.unlink(missing_ok=True)
                except OSError as error:  # the next start deletes it
                    log.warning("spool: cannot delete %s: %s", done.path, error.strerror)
            self._count_bytes()
            self._full = self._full and self._vitals.spool_bytes > self._bytes_max // 2
            self.changed.notify_all()

    def resume(self, high_water_mark: int) -> None:
        """What the collector says that it has, before anything is sent on this connection."""
        with self.changed:
            if self._resume_from is not None:
                reused = min(high_water_mark, self.last_seq) - self._resume_from + 1
                if reused > 0:
                    self._lose(reused, "the collector has other windows of their numbers: this spool lost its end")
                self._resume_from = None
            self.acknowledge(high_water_mark)

    def wait_acknowledged(self, seconds: float) -> bool:
        """Wait until nothing is waiting, for at most `seconds`; whether so."""
        with self.changed:
            return self.changed.wait_for(lambda: self.newest_seq <= self.acknowledged_seq, seconds)

    def close(self) -> None:
        """Let go of the directory."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
            for descriptor in (self._file, self._acknowledged_file, self._lock):
                if descriptor is not None:
                    os.close(descriptor)
            self._file = None

    def _recover(self) -> None:
        acknowledged = os.pread(self._acknowledged_file, 21, 0).strip()
        self.acknowledged_seq = self.last_seq = int(acknowledged) if acknowledged.isdigit() else 0
        paths = sorted(p for p in self._directory.glob(f"*{SUFFIX}") if p.name.removesuffix(SUFFIX).isdigit())
        found = [scan(path) for path in paths]
        segment: Segment
        following: Segment | None
        for segment, following in zip_longest(found, found[1:]):
            beyond = segment.path.stat().st_size - segment.bytes
            if beyond:
                os.truncate(segment.path, segment.bytes)
                cut = f"{segment.path.name} is torn or corrupt after window {segment.last}: {beyond} bytes are cut off"
                self._lose(following.first - segment.last - 1 if following else 1, cut)
            self.last_seq = max(self.last_seq, segment.last)
            if segment.windows and (segment.last > self.acknowledged_seq or following is None):
                self.segments.append(segment)
            elif following is not None:
                segment.path.unlink()
        self._count_bytes()

    def _write(self) -> None:
        try:
            while self.unwritten:
                self._put(self.unwritten[0])
                self.unwritten.popleft()
        except OSError as error:
            self._say(f"cannot be written: {error.strerror}; windows are kept in memory, at most {_UNWRITTEN_MAX}")
            while len(self.unwritten) > _UNWRITTEN_MAX:
                self.unwritten.popleft()
                self._vitals.windows_lost += 1
        else:
            if self._said:
                log.info("spool %s can be written again", self._directory)
                self._said = ""
        self._count_bytes()

    def _put(self, record: Record) -> None:
        segment = self.segments[-1] if self.segments and self._file is not None else None
        # Within a segment numbers have no gap.
        if segment is None or segment.bytes >= self._segment_bytes or record.seq != segment.last + 1:
            segment = self._roll(record.seq)
        schema = b"" if record.schema == self._file_schema else pack(SCHEMA, record.schema)
        data = schema + pack(WINDOW, record.window)
        self._make_room(len(data))
        assert self._file is not None
        # At the known end, so that what a failed write left behind is overwritten.
        if os.pwrite(self._file, data, segment.bytes) < len(data):
            raise OSError(0, "no space left for a whole window")
        self._file_schema = record.schema
        segment.bytes += len(data)
        segment.windows += 1

    def _roll(self, first: int) -> Segment:
        path = path_of(self._directory, first)
        fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        if self._file is not None:
            os.close(self._file)
            if not self.segments[-1].windows:  # its first window could not be written, and was lost since
                self.segments.pop().path.unlink(missing_ok=True)
        self._file, self._file_schema = fresh, b""
        segment = Segment(path, first)
        self.segments.append(segment)
        return segment

    def _make_room(self, wanted_bytes: int) -> None:
        while len(self.segments) > 1 and sum(s.bytes for s in self.segments) + wanted_bytes > self._bytes_max:
            oldest = self.segments[0]
            oldest.path.unlink(missing_ok=True)
            self.segments.pop(0)
            lost = max(0, oldest.last - max(oldest.first - 1, self.acknowledged_seq))
            self._vitals.windows_lost += lost
            if lost and not self._full:
                self._full = True
                log.warning("spool %s is full: the oldest windows are dropped", self._directory)

    def _lose(self, windows: int, why: str) -> None:
        self._vitals.windows_lost += windows
        log.warning("windows lost: %d: %s", windows, why)

    def _say(self, problem: str) -> None:
        if problem != self._said:
            self._said = problem
            log.warning("spool %s %s", self._directory, problem)

    def _count_bytes(self) -> None:
        self._vitals.spool_bytes = sum(segment.bytes for segment in self.segments)


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
    if not path.exists() or not path.read_text().strip():
        fresh = directory / "spool-id.new"
        with fresh.open("w") as file:
            file.write(uuid.uuid4().hex)
            file.flush()
            # Synced, unlike the windows: a spool that forgot its name would be stored a second time.
            os.fsync(file.fileno())
        fresh.replace(path)
    return path.read_text().strip()
