"""The spool: what was appended and not acknowledged is there, whatever happened in between; what is lost is counted."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.agent.fakes import schema_of, window_of
from trimtab import Exit, TrimtabError
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.cursor import Cursor
from trimtab.agent.segment import Record
from trimtab.agent.spool import Spool
from trimtab.agent.wire import telemetry_pb2 as pb

BIG = 64 << 20


def drain(spool: Spool, after: int = 0, vitals: Vitals | None = None) -> list[Record]:
    cursor = Cursor(spool, after, vitals or Vitals())
    out = []
    while record := cursor.next(0):
        out.append(record)
    cursor.close()
    return out


def numbers(spool: Spool, after: int = 0) -> list[int]:
    return [record.seq for record in drain(spool, after)]


def fill(spool: Spool, count: int, padding: int = 100) -> None:
    schema = schema_of()
    for _ in range(count):
        spool.append(schema, window_of(schema, padding))


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.windows"))


def whole_windows(data: bytes) -> tuple[int, bool]:
    """How many windows `data` holds, and whether something torn follows; by the format, not by the code."""
    offset, windows = 0, 0
    while offset + 9 <= len(data):
        length, _, kind = struct.unpack_from("<IIB", data, offset)
        if offset + 9 + length > len(data):
            break
        offset += 9 + length
        windows += kind == 2
    return windows, offset < len(data)


class Life(RuleBasedStateMachine):
    """Appends, acknowledgements, restarts and torn files in any order, against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.vitals = Vitals()
        self.bytes_max = 16 << 10
        self.spool = Spool(self.directory, self.bytes_max, self.vitals)
        self.held: dict[int, bytes] = {}
        self.acknowledged = 0
        self.torn = 0

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.directory)

    @rule(count=st.integers(1, 12), padding=st.integers(0, 900), name=st.sampled_from("ab"))
    def append(self, count: int, padding: int, name: str) -> None:
        schema = schema_of(name)
        for _ in range(count):
            window = window_of(schema, padding)
            self.spool.append(schema, window)
            assert window.seq > max([self.acknowledged, *self.held], default=0)
            self.held[window.seq] = window.SerializeToString()
        assert self.spool.last_seq == window.seq
        # Of those that are gone, the oldest went, and each was counted.
        there = numbers(self.spool, self.acknowledged)
        assert there == sorted(self.held)[len(self.held) - len(there) :]
        gone = sorted(self.held)[: len(self.held) - len(there)]
        for seq in gone:
            del self.held[seq]
        self.torn += len(gone)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(0, self.spool.last_seq))
        self.spool.acknowledge(seq)
        self.acknowledged = max(self.acknowledged, seq)
        self.held = {other: window for other, window in self.held.items() if other > seq}

    @rule()
    def restart(self) -> None:
        first, last, spool_id = self.spool.first_seq, self.spool.last_seq, self.spool.id
        self.spool.close()
        self.spool = Spool(self.directory, self.bytes_max, self.vitals)
        assert self.spool.last_seq == last
        assert self.spool.first_seq >= first
        assert self.spool.id == spool_id

    @precondition(lambda self: files(self.directory))
    @rule(data=st.data())
    def tear(self, data: st.DataObject) -> None:
        self.spool.close()
        last = files(self.directory)[-1]
        content = last.read_bytes()
        keep = data.draw(st.integers(0, len(content)))
        os.truncate(last, keep)
        windows, torn = whole_windows(content[:keep])
        end = int(last.name.split(".")[0]) + windows
        self.held = {seq: window for seq, window in self.held.items() if seq < end}
        self.torn += torn
        self.spool = Spool(self.directory, self.bytes_max, self.vitals)
        assert self.spool.last_seq >= self.acknowledged

    @invariant()
    def all_that_is_held_can_be_read(self) -> None:
        read = drain(self.spool, self.acknowledged)
        assert {record.seq: record.window for record in read} == self.held
        assert [record.seq for record in read] == sorted(self.held)
        for record in read:
            assert pb.Schema.FromString(record.schema).hash == pb.Window.FromString(record.window).schema_hash
        assert self.spool.waiting == len(self.held)

    @invariant()
    def it_is_bounded_and_every_loss_is_counted(self) -> None:
        on_disk = sum(path.stat().st_size for path in files(self.directory))
        assert on_disk <= self.bytes_max
        assert self.vitals.spool_bytes <= self.bytes_max
        assert self.vitals.windows_lost == self.torn


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_numbers_start_at_one_and_go_on_when_all_is_acknowledged(tmp_path: Path) -> None:
    for expected in (1, 4, 7):
        spool = Spool(tmp_path, BIG, Vitals())
        assert spool.last_seq + 1 == expected
        fill(spool, 3)
        spool.acknowledge(spool.last_seq)
        assert spool.waiting == 0
        spool.close()


def test_numbering_goes_on_without_the_acknowledged_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, BIG, Vitals())
    fill(spool, 5)
    spool.acknowledge(5)
    spool.close()
    (tmp_path / "acknowledged").unlink()
    assert Spool(tmp_path, BIG, Vitals()).last_seq == 5


def test_acknowledged_segments_leave_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 80_000, Vitals())
    fill(spool, 60, 1000)
    before = len(files(tmp_path))
    assert before > 3
    spool.acknowledge(59)
    assert len(files(tmp_path)) <= 2
    assert numbers(spool, 59) == [60]


def test_a_corrupt_record_costs_the_rest_of_its_segment_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 80_000, Vitals())
    fill(spool, 40, 1000)
    spool.close()
    first, second = files(tmp_path)[:2]
    following = int(second.name.split(".")[0])
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 0xFF
    first.write_bytes(bytes(data))
    vitals = Vitals()
    spool = Spool(tmp_path, 80_000, vitals)
    there = numbers(spool)
    assert there[-1] == 40
    assert set(range(following, 41)) <= set(there)
    assert 0 < vitals.windows_lost == 40 - len(there) < following


def test_what_rots_while_it_runs_is_skipped_and_counted(tmp_path: Path) -> None:
    vitals = Vitals()
    spool = Spool(tmp_path, 80_000, vitals)
    fill(spool, 30, 1000)
    first, second = files(tmp_path)[:2]
    with first.open("r+b") as file:
        file.seek(3000)
        file.write(b"rot")
    there = [record.seq for record in drain(spool, vitals=vitals)]
    following = int(second.name.split(".")[0])
    assert set(range(following, 31)) <= set(there)
    assert vitals.windows_lost == 30 - len(there) > 0


def test_two_agents_cannot_share_a_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, BIG, Vitals())
    with pytest.raises(TrimtabError, match=str(tmp_path)) as caught:
        Spool(tmp_path, BIG, Vitals())
    assert caught.value.exit_code == Exit.STATE
    spool.close()
    Spool(tmp_path, BIG, Vitals()).close()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrimtabError, match=r"file.*--state"):
        Spool(tmp_path / "file", BIG, Vitals())


def test_without_disk_windows_wait_in_memory_and_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vitals = Vitals()
    spool = Spool(tmp_path, BIG, vitals)
    fill(spool, 3)
    real = os.pwrite

    def torn(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", torn)
    fill(spool, 700)
    assert len(spool.unwritten) == 600
    assert len(files(tmp_path)) <= 2
    assert vitals.windows_lost == 100
    assert numbers(spool) == [1, 2, 3, *range(104, 704)]
    assert sum("No space left" in record.message for record in caplog.records) == 1
    monkeypatch.setattr(os, "pwrite", real)
    fill(spool, 1)
    assert not spool.unwritten
    spool.close()
    again = Vitals()
    spool = Spool(tmp_path, BIG, again)
    assert numbers(spool) == [1, 2, 3, *range(104, 705)]
    assert spool.last_seq == 704


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """On a file system of 256 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        vitals = Vitals()
        spool = Spool(small / "spool", BIG, vitals)
        fill(spool, 400, 1000)
        assert spool.unwritten
        assert numbers(spool) == list(range(1, 401))
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        fill(spool, 1)
        spool.close()
        spool = Spool(small / "spool", BIG, vitals)
        assert numbers(spool) == list(range(1, 402))
        assert vitals.windows_lost == 0
        spool.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_window_too_large_to_send_is_counted(tmp_path: Path) -> None:
    vitals = Vitals()
    spool = Spool(tmp_path, 1 << 20, vitals)
    fill(spool, 1)
    fill(spool, 1, 1 << 20)
    fill(spool, 1)
    assert numbers(spool) == [1, 2]
    assert vitals.windows_lost == 1


def test_numbering_goes_on_after_what_the_collector_has(tmp_path: Path) -> None:
    """A power cut took windows 4 and 5 from the spool, and the collector has them."""
    vitals = Vitals()
    spool = Spool(tmp_path, BIG, Vitals())
    fill(spool, 3)
    spool.close()
    spool = Spool(tmp_path, BIG, vitals)
    fill(spool, 1)
    spool.resume(5)
    assert vitals.windows_lost == 1
    fill(spool, 2)
    assert numbers(spool, 5) == [6, 7]
    # From then on a mark beyond the last acknowledgement is an acknowledgement that got lost.
    spool.resume(7)
    assert vitals.windows_lost == 1
    spool.close()
    assert Spool(tmp_path, BIG, Vitals()).last_seq == 7


def test_a_reader_waits_for_the_writer(tmp_path: Path) -> None:
    spool = Spool(tmp_path, BIG, Vitals())
    seen: list[int] = []

    def read() -> None:
        cursor = Cursor(spool, 0, Vitals())
        while record := cursor.next(10):
            seen.append(record.seq)
            spool.acknowledge(record.seq)

    reader = threading.Thread(target=read)
    reader.start()
    fill(spool, 1000, 20_000)
    assert spool.wait_acknowledged(10)
    spool.close()
    reader.join(10)
    assert not reader.is_alive()
    assert seen == list(range(1, 1001))


WRITER = """
import sys
from pathlib import Path
from tests.agent.test_spool import *
spool = Spool(Path(sys.argv[1]), BIG, Vitals())
while True:
    fill(spool, 1, 5000)
    print(spool.last_seq, flush=True)
"""


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    expected = 0
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= expected + 200:
                break
        writer.kill()
        said = [int(rest) for rest in writer.stdout.read().split(b"\n") if rest.strip()]
        writer.wait()
        vitals = Vitals()
        spool = Spool(tmp_path, BIG, vitals)
        assert spool.last_seq >= max([expected + 200, *said])
        assert numbers(spool) == list(range(1, spool.last_seq + 1))
        # The kernel may stop a write at a page's end: that one window was cut, and never read by anyone.
        assert vitals.windows_lost <= 1
        expected = spool.last_seq
        spool.close()
