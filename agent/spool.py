"""The windows that the collector has not stored yet, on disk.

A window is written once and not synced: killing the agent loses none that was written, and cuts at most the one that is being
written; a power cut may lose the last seconds. As the collector may have stored some of what a power cut took from the spool,
numbering then goes on after the collector's last number.
Size and age are bounded: beyond, the oldest windows go, and are counted. Where the disk takes no more, windows wait in memory, and
when there are too many, a disk that is full gives up this spool's oldest file for them. Where there is no disk to begin with, memory
is all there is: the spool goes by a name of its own until the agent ends, so that its numbers meet no others.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import uuid
from collections import deque
from pathlib import Path

from trimtab.agent.clock import Clock, SystemClock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.losses import Losses
from trimtab.agent.segment import SCHEMA, WINDOW, Record, Segment, pack, path_of
from trimtab.agent.spool_directory import open_directory
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import MESSAGE_BYTES_MAX

log = logging.getLogger(__name__)

_SEGMENT_BYTES = 4 << 20
# A bound is kept by dropping whole files, so they are small beside it.
_SEGMENTS_MIN = 8
_UNWRITTEN_MAX = 600
_UNWRITTEN_BYTES_MAX = 16 << 20
# What gRPC and the envelope add to a window.
_ENVELOPE_BYTES = 4096
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOCK = SystemClock()


class Spool:
    """Written by the loop, read by the publisher; safe to use from both.

    Raises TrimtabError when `directory` is not for this agent to use. One that the disk does not let it use is left alone.
    """

    def __init__(
        self,
        directory: Path,
        bytes_max: int,
        vitals: Vitals,
        age_seconds_max: float = math.inf,
        clock: Clock = _CLOCK,
    ) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._age_ns_max = age_seconds_max * 1e9
        self._segment_bytes = min(_SEGMENT_BYTES, bytes_max // _SEGMENTS_MIN)
        self._window_bytes_max = min(MESSAGE_BYTES_MAX - _ENVELOPE_BYTES, bytes_max // 4)
        self._vitals = vitals
        self._clock = clock
        self.changed = threading.Condition()
        self.closed = False
        self.segments: list[Segment] = []
        self.unwritten: deque[Record] = deque()
        self._unwritten_bytes = 0
        self._file: int | None = None
        self._file_schema = b""
        self._schema = pb.Schema()
        self._schema_bytes = b""
        self._said: set[str] = set()
        self._losses = Losses(directory, vitals)
        self._undeletable = False
        self.last_seq = self.acknowledged_seq = 0
        self._home = open_directory(directory)
        self.id = self._home.id if self._home else uuid.uuid4().hex
        self._recover()
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
            return sum(map(self._waiting_in, self.segments)) + len(self.unwritten)

    @property
    def oldest_age_seconds(self) -> float:
        """How long the oldest window that is not acknowledged has been waiting; 0 when none is."""
        with self.changed:
            now_ns = self._clock.boottime_ns()
            oldest = next((s for s in self.segments if self._waiting_in(s)), None)
            if oldest is not None:
                since_ns = oldest.time_ns(max(oldest.first, self.acknowledged_seq + 1))
            else:
                since_ns = self.unwritten[0].appended_ns if self.unwritten else now_ns
            return (now_ns - since_ns) / 1e9

    @property
    def writable(self) -> bool:
        """Whether the last window that was appended is on disk."""
        with self.changed:
            return self._home is not None and not self.unwritten

    def append(self, schema: pb.Schema, window: pb.Window) -> None:
        """Number the window and keep it. Never raises for the disk's sake."""
        with self.changed:
            if schema.hash != self._schema.hash:
                self._schema, self._schema_bytes = schema, schema.SerializeToString()
            window.seq = self.last_seq + 1
            data = window.SerializeToString()
            if len(data) + len(self._schema_bytes) > self._window_bytes_max:
                why = f"a window of {len(data)} bytes is more than the {self._window_bytes_max} that can be sent"
                self._losses.lose(1, "oversize", why)
                return
            self.last_seq += 1
            self._expire()
            self.unwritten.append(Record(window.seq, self._schema_bytes, data, self._clock.boottime_ns()))
            self._unwritten_bytes += len(data)
            self._write()
            self._count_bytes()
            self.changed.notify_all()

    def acknowledge(self, seq: int) -> None:
        """The collector has all windows up to `seq`: forget them."""
        with self.changed:
            if seq <= self.acknowledged_seq or self.closed:
                return
            self.acknowledged_seq = seq
            self.last_seq = max(self.last_seq, seq)
            if self._home:
                self._home.note_acknowledged(seq)
            while self.unwritten and self.unwritten[0].seq <= seq:
                self._forget_unwritten()
            # The last segment stays: its name and length say where numbering goes on.
            while len(self.segments) > 1 and self.segments[0].last <= seq:
                self._delete(self.segments.pop(0))
            self._count_bytes()
            if self.newest_seq <= seq:
                self._losses.settle()
            self.changed.notify_all()

    def resume(self, high_water_mark: int) -> None:
        """What the collector says that it has, before anything is sent on this connection."""
        with self.changed:
            if self._resume_from is not None:
                reused = min(high_water_mark, self.last_seq) - self._resume_from + 1
                if reused > 0:
                    why = "the collector has other windows of their numbers: this spool lost its end"
                    self._losses.lose(reused, "numbers", why)
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
            if self.unwritten:
                self._losses.lose(len(self.unwritten), "disk", "they were in memory only, and the agent ends")
            self._close_file()
            if self._home:
                self._home.close()
                self._home = None

    def _recover(self) -> None:
        if not self._home:
            return
        self.acknowledged_seq = self.last_seq = self._home.acknowledged_seq
        # From here on time is that of the clock that never steps. A window from the future is as good as one from now.
        now_ns, unix_ns = self._clock.boottime_ns(), self._clock.unix_ns()
        left = self._home.left
        for segment, lost, why in left:
            if why:
                self._losses.lose(lost, "damage", why)
            segment.began_ns = now_ns - max(0, unix_ns - segment.began_ns)
            segment.ended_ns = now_ns - max(0, unix_ns - segment.ended_ns)
            self.last_seq = max(self.last_seq, segment.last)
            is_last = segment is left[-1][0]
            if segment.windows and (segment.last > self.acknowledged_seq or is_last):
                self.segments.append(segment)
            elif not is_last:
                self._delete(segment)
        self._expire()
        self._count_bytes()

    def _write(self) -> None:
        """Put what waits in memory on the disk, as much as it takes, and keep the rest within bounds."""
        if self._home is None:
            self._shed_memory()
            return
        while self.unwritten:
            try:
                self._put(self.unwritten[0])
            except OSError as error:
                self._say(f"cannot be written: {error.strerror}; windows are kept in memory, at most {_UNWRITTEN_MAX}")
                if self._memory_is_full() and error.errno in _FULL and self._drop_file("disk"):
                    continue
                self._shed_memory()
                return
            self._forget_unwritten()
        if self._said:
            log.info("spool %s can be written again", self._directory)
            self._said.clear()

    def _put(self, record: Record) -> None:
        segment = self.segments[-1] if self.segments and self._file is not None else None
        # Within a segment numbers have no gap.
        if segment is None or self._is_whole(segment, record) or record.seq != segment.last + 1:
            segment = self._roll(record)
        schema = b"" if record.schema == self._file_schema else pack(SCHEMA, record.schema)
        data = schema + pack(WINDOW, record.window)
        while len(self.segments) > 1 and sum(s.bytes for s in self.segments) + len(data) > self._bytes_max:
            if not self._drop_file("size"):
                raise OSError(errno.ENOSPC, "the oldest file cannot be deleted to make room")
        assert self._file is not None
        # At the known end, so that what a failed write left behind is overwritten.
        if os.pwrite(self._file, data, segment.bytes) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file_schema = record.schema
        segment.bytes += len(data)
        segment.windows += 1
        segment.ended_ns = record.appended_ns

    def _is_whole(self, segment: Segment, record: Record) -> bool:
        seconds_over = record.appended_ns - segment.began_ns >= self._age_ns_max / _SEGMENTS_MIN
        return segment.bytes >= self._segment_bytes or (segment.windows > 0 and seconds_over)

    def _roll(self, record: Record) -> Segment:
        path = path_of(self._directory, record.seq)
        fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        if self._file is not None:
            self._close_file()
            if not self.segments[-1].windows:  # its first window could not be written, and was lost since
                self._delete(self.segments.pop())
        self._file = fresh
        segment = Segment(path, record.seq, began_ns=record.appended_ns, ended_ns=record.appended_ns)
        self.segments.append(segment)
        return segment

    def _expire(self) -> None:
        """Drop what is too old: all of a file with its first window, so that none is ever older."""
        before_ns = self._clock.boottime_ns() - self._age_ns_max
        while self.segments and self.segments[0].began_ns < before_ns:
            self._delete(self.segments[0])
            self._forget_file("age")
        while self.unwritten and self.unwritten[0].appended_ns < before_ns:
            self._losses.drop(1, "age")
            self._forget_unwritten()

    def _drop_file(self, reason: str) -> bool:
        """Give up the oldest file for the room it takes; whether there is room now."""
        # None is left where others fill the disk too: the room that was made goes to them.
        if not self.segments or not self.segments[0].windows or not self._delete(self.segments[0]):
            return False
        self._forget_file(reason)
        return True

    def _forget_file(self, reason: str) -> None:
        self._losses.drop(self._waiting_in(self.segments.pop(0)), reason)
        if not self.segments:
            self._close_file()

    def _shed_memory(self) -> None:
        while self._memory_is_full():
            self._losses.drop(1, "disk")
            self._forget_unwritten()

    def _memory_is_full(self) -> bool:
        return len(self.unwritten) > _UNWRITTEN_MAX or self._unwritten_bytes > _UNWRITTEN_BYTES_MAX

    def _forget_unwritten(self) -> None:
        self._unwritten_bytes -= len(self.unwritten.popleft().window)

    def _waiting_in(self, segment: Segment) -> int:
        return max(0, segment.last - max(segment.first - 1, self.acknowledged_seq))

    def _delete(self, segment: Segment) -> bool:
        """Whether its file is gone; if not, the next start tries again."""
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            if not self._undeletable:
                self._undeletable = True
                log.warning("spool %s: files cannot be deleted: %s", self._directory, error.strerror)
            return False
        return True

    def _say(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            log.warning("spool %s %s", self._directory, problem)

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a disk that fails at the close has taken what it has taken
                os.close(self._file)
        self._file, self._file_schema = None, b""

    def _count_bytes(self) -> None:
        self._vitals.spool_bytes = sum(segment.bytes for segment in self.segments)
