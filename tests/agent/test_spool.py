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
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.agent.fakes import schema_of, window_of
from trimtab import Exit, TrimtabError
from trimtab.agent.clock import ManualClock
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
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", torn)
    fill(spool, 700)
    assert len(spool.unwritten) == 600
    assert len(files(tmp_path)) <= 2
    assert vitals.windows_lost_by == {"disk": 100}
    assert numbers(spool) == [1, 2, 3, *range(104, 704)]
    assert not spool.writable
    assert sum("Input/output error" in record.message for record in caplog.records) == 1
    assert sum("are dropped" in record.message for record in caplog.records) == 1
    monkeypatch.setattr(os, "pwrite", real)
    fill(spool, 1)
    assert not spool.unwritten
    assert spool.writable
    spool.close()
    again = Vitals()
    spool = Spool(tmp_path, BIG, again)
    assert numbers(spool) == [1, 2, 3, *range(104, 705)]
    assert spool.last_seq == 704


def test_what_waits_in_memory_is_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    vitals = Vitals()
    spool = Spool(tmp_path, BIG, vitals)
    monkeypatch.setattr(os, "pwrite", full)
    fill(spool, 40, 1 << 20)
    assert 0 < sum(len(record.window) for record in spool.unwritten) <= 16 << 20
    assert vitals.windows_lost == 40 - len(spool.unwritten)


def test_windows_that_never_reached_the_disk_are_counted_when_the_agent_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vitals = Vitals()
    spool = Spool(tmp_path, BIG, vitals)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    fill(spool, 3)
    spool.acknowledge(1)
    spool.close()
    assert vitals.windows_lost_by == {"disk": 2}
    assert sum("windows lost: 2" in record.message for record in caplog.records) == 1


class Ageing:
    """A spool by a clock that is moved by hand."""

    def __init__(self, directory: Path, age_seconds_max: float = 800.0) -> None:
        self.directory, self.age = directory, age_seconds_max
        self.clock = ManualClock()
        self.open()

    def open(self) -> None:
        self.vitals = Vitals()
        self.spool = Spool(self.directory, BIG, self.vitals, self.age, self.clock)

    def second(self, count: int = 1) -> None:
        schema = schema_of()
        for _ in range(count):
            self.clock.advance(1)
            window = window_of(schema)
            window.start_unix_ns = self.clock.unix_ns()
            self.spool.append(schema, window)


def test_no_window_is_kept_longer_than_it_may_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Ageing(tmp_path)
    one.second(800)
    assert numbers(one.spool) == list(range(1, 801))
    assert one.vitals.windows_lost == 0
    one.second(1000)
    held = numbers(one.spool)
    # The age is a bound that is never passed; files are an eighth of it, so that at most so much goes before its time.
    assert held == list(range(1801 - len(held), 1801))
    assert 700 <= len(held) <= 801
    assert one.vitals.windows_lost_by == {"age": 1800 - len(held)}
    assert sum("too old" in record.message for record in caplog.records) == 1
    assert one.spool.oldest_age_seconds == pytest.approx(len(held) - 1, abs=1)


def test_age_goes_on_while_the_agent_is_away(tmp_path: Path) -> None:
    one = Ageing(tmp_path)
    one.second(500)
    one.spool.close()
    one.clock.advance(400)
    one.open()
    held = numbers(one.spool)
    assert held == list(range(501 - len(held), 501))
    assert 300 <= len(held) <= 401
    assert one.vitals.windows_lost_by == {"age": 500 - len(held)}
    assert one.spool.oldest_age_seconds == pytest.approx(400 + len(held) - 1, abs=1)
    one.spool.close()
    one.clock.advance(10_000)
    one.open()
    assert numbers(one.spool) == []
    one.second()
    assert numbers(one.spool) == [501]


def test_a_wall_clock_that_was_set_back_ages_nothing(tmp_path: Path) -> None:
    one = Ageing(tmp_path)
    one.second(10)
    one.spool.close()
    one.clock = ManualClock(one.clock.unix_ns() - 10**18)
    one.open()
    assert numbers(one.spool) == list(range(1, 11))
    assert one.spool.oldest_age_seconds == 0


def test_the_age_of_the_oldest_is_that_of_what_waits(tmp_path: Path) -> None:
    one = Ageing(tmp_path, 10_000.0)
    assert one.spool.oldest_age_seconds == 0
    one.second(100)
    assert one.spool.oldest_age_seconds == 99
    one.spool.acknowledge(90)
    assert one.spool.oldest_age_seconds == 9
    one.spool.acknowledge(100)
    one.clock.advance(50)
    assert one.spool.oldest_age_seconds == 0


def test_what_waits_in_memory_ages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Ageing(tmp_path, 100.0)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    one.second(300)
    assert len(one.spool.unwritten) == 101
    assert one.vitals.windows_lost_by == {"age": 199}
    assert one.spool.oldest_age_seconds == 100


def test_a_last_record_that_is_torn_anywhere_costs_that_one_window(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "whole", BIG, Vitals())
    fill(spool, 4, 20)
    spool.close()
    (whole,) = files(tmp_path / "whole")
    content = whole.read_bytes()
    torn = tmp_path / "torn"
    for keep in range(len(content) + 1):
        shutil.rmtree(torn, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", torn)
        os.truncate(torn / whole.name, keep)
        windows, is_torn = whole_windows(content[:keep])
        vitals = Vitals()
        spool = Spool(torn, BIG, vitals)
        fill(spool, 1)
        there = drain(spool)
        spool.close()
        assert [record.seq for record in there] == list(range(1, windows + 2)), keep
        assert vitals.windows_lost_by == ({"damage": 1} if is_torn else {}), keep
        assert [pb.Window.FromString(record.window).seq for record in there] == [record.seq for record in there]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_garbage_anywhere_costs_windows_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    spool = Spool(directory, 16 << 10, Vitals())
    fill(spool, 30, 300)
    held = {record.seq: record.window for record in drain(spool)}
    spool.close()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(files(directory)))
        content = path.read_bytes()
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, len(content)))
        path.write_bytes(content[:start] + data.draw(st.binary(max_size=64)) + content[end:])
    vitals = Vitals()
    spool = Spool(directory, 16 << 10, vitals)
    there = drain(spool, vitals=vitals)
    # What is given out is what was put in; what is gone is counted, as far as the files' names tell how much it was.
    assert all(held[record.seq] == record.window for record in there)
    assert [record.seq for record in there] == sorted({record.seq for record in there})
    last = int(files(directory)[-1].name.split(".")[0])
    gone = [seq for seq in held if seq < last and seq not in {record.seq for record in there}]
    assert vitals.windows_lost >= len(gone)
    before = spool.last_seq
    fill(spool, 2)
    assert numbers(spool, before) == [before + 1, before + 2]
    spool.close()
    shutil.rmtree(directory)


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"9" * 20, b"\xff\xfe", b"\0" * 21, "²".encode()])
def test_a_damaged_number_of_the_last_acknowledgement_is_none(tmp_path: Path, text: bytes) -> None:
    spool = Spool(tmp_path, BIG, Vitals())
    fill(spool, 5)
    spool.acknowledge(3)
    spool.close()
    (tmp_path / "acknowledged").write_bytes(text)
    spool = Spool(tmp_path, BIG, Vitals())
    fill(spool, 1)
    assert numbers(spool) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("text", [b"", b"x" * 300, b"a b", b"\xff\xfe\xff", b"../../x"])
def test_a_damaged_name_is_replaced(tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, BIG, Vitals())
    before = spool.id
    fill(spool, 5)
    spool.close()
    (tmp_path / "spool-id").write_bytes(text)
    spool = Spool(tmp_path, BIG, Vitals())
    assert spool.id != before
    assert len(spool.id) == 32
    assert numbers(spool) == [1, 2, 3, 4, 5]
    assert sum("damaged" in record.message for record in caplog.records) == (1 if text else 0)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    names = ["1.windows", "x.windows", "²²²²²²²²²²²²²²²²²²²².windows", f"{10**20 - 1}.windows", f"{0:020d}.windows"]
    for name in names:
        (tmp_path / name).write_bytes(b"not ours")
    spool = Spool(tmp_path, BIG, Vitals())
    fill(spool, 3)
    assert numbers(spool) == [1, 2, 3]
    assert all((tmp_path / name).read_bytes() == b"not ours" for name in names)


def test_a_file_that_cannot_be_read_does_not_take_the_others_down(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 80_000, Vitals())
    fill(spool, 40, 1000)
    spool.close()
    first, second, *_ = files(tmp_path)
    first.unlink()
    first.mkdir()
    vitals = Vitals()
    spool = Spool(tmp_path, 80_000, vitals)
    following = int(second.name.split(".")[0])
    assert numbers(spool) == list(range(following, 41))
    assert vitals.windows_lost_by == {"damage": following - int(first.name.split(".")[0])}


def test_windows_too_large_to_send_are_counted_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vitals = Vitals()
    spool = Spool(tmp_path, 1 << 20, vitals)
    fill(spool, 1)
    fill(spool, 3, 1 << 20)
    fill(spool, 1)
    assert numbers(spool) == [1, 2]
    assert vitals.windows_lost_by == {"oversize": 3}
    assert caplog.text.count("that can be sent") == 1
    spool.acknowledge(2)
    fill(spool, 1, 1 << 20)
    assert caplog.text.count("that can be sent") == 2


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
