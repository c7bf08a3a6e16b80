"""The kernel's log: its parser on anything at all, its reader, and the collector on the real /dev/kmsg."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.agent.fakes import until
from trimtab.agent import kmsg
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.kernel_log import EVENTS_MAX, KernelLog
from trimtab.agent.registry import Host, Reading, Unavailable

XID = "NVRM: Xid (PCI:0000:41:00): 79, pid=1234, name=python, GPU has fallen off the bus."
SXID = "nvidia-nvswitch0: SXid (PCI:0000:c2:00.0): 20034, Fatal, Link 28 LTSSM Fault Up"


def record(message: str, seq: int = 1, priority: int = 4, seconds: float = 1.0) -> bytes:
    return f"{priority},{seq},{round(seconds * 1e6)},-;{message}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:41:00.0\n".encode()


@given(st.binary(max_size=300))
@example(b"")
@example(b";")
@example(b"4,1,1,-;")
@example(b"-4,1,1,-;x")
@example(b"4," + b"9" * 400 + b",1,-;x")
@example("4,²,1,-;x".encode())
@example(b"4,1,1,-;NVRM: Xid (PCI:0000:41:00): " + b"9" * 9 + b", x")
def test_any_bytes_are_a_record_or_none(data: bytes) -> None:
    found = kmsg.parse(data)
    if found is not None:
        assert 0 <= found.level <= 7
        assert math.isfinite(found.seconds)
        look_at(found.message)


WORDS = st.sampled_from([
    "NVRM: Xid (", "PCI:", "0000:41:00", "00000000:41:00.0", "): ", "79", ", ", "NVRM: GPU at ", ": GPU-", "nvidia-nvswitch0: SXid (",
    "GPU recovery action changed from 0x0 (None) to 0x", " GPU-I:", " GPU-CI:", "05", "99999999999", "\n", "\0", "é", "Fatal",
])  # fmt: skip


@given(st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=12).map("".join))
def test_any_message_is_a_line_of_the_driver_or_not(message: str) -> None:
    look_at(message)


def look_at(message: str) -> None:
    for error in (kmsg.xid(message), kmsg.sxid(message)):
        assert error is None or (0 <= error.code < 10**6 and kmsg.canonical(error.address) == error.address)
    kmsg.gpu_at(message)
    kmsg.recovery_action(message)
    kmsg.driver_loaded(message)


@pytest.mark.parametrize(
    ("message", "address", "code", "text"),
    [
        (XID, "0000:41:00", 79, "pid=1234, name=python, GPU has fallen off the bus."),
        ("NVRM: Xid (PCI:0000:CB:00): 13, pid='<unknown>', name=<unknown>, Exception", "0000:cb:00", 13, None),
        ("NVRM: Xid (0000:03:00): 14, Channel 00000001", "0000:03:00", 14, "Channel 00000001"),
        ("NVRM: Xid (PCI:0009:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01", "0009:01:00", 149, None),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained", "0000:01:00", 94, "pid=7194, Contained"),
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:01 GPU-CI:02): 13, pid=9", "0000:3b:00", 13, "pid=9"),
        ("[12.5] NVRM: Xid (PCI:00010000:41:00.0): 31", "10000:41:00", 31, ""),
    ],
)
def test_the_ways_in_which_the_driver_writes_an_xid(message: str, address: str, code: int, text: str | None) -> None:
    found = kmsg.xid(message)
    assert found is not None
    assert (found.address, found.code) == (address, code)
    assert text is None or found.text == text


@pytest.mark.parametrize(
    "message", ["", "NVRM: Xid error: xyz", "NVRM: Xid (invalid): 79, x", "Xid (PCI:0000:41:00): 79"]
)
def test_what_is_no_xid(message: str) -> None:
    assert kmsg.xid(message) is None


def test_other_lines_of_the_driver() -> None:
    assert kmsg.gpu_at("NVRM: GPU at PCI:0000:41:00: GPU-b850f46d-d5ea") == ("0000:41:00", "GPU-b850f46d-d5ea")
    text = "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
    assert kmsg.recovery_action(text) == 2
    assert kmsg.recovery_action("GPU recovery action changed") is None
    for kind in ("x86_64 Kernel Module", "Open Kernel Module for x86_64"):
        assert kmsg.driver_loaded(f"NVRM: loading NVIDIA UNIX {kind}  580.65.06")
    assert not kmsg.driver_loaded("NVRM: GPU at PCI:0000:41:00: GPU-1")


Reads = list[bytes | int]


def log_of(reads: Reads) -> kmsg.Log:
    """A log whose reads give these records, or fail with these errors, and then have nothing."""

    def read(_fd: int, _size: int) -> bytes:
        if not reads:
            raise BlockingIOError
        answer = reads.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    return kmsg.Log("/dev/null", read)


def test_records_that_were_overwritten_are_counted() -> None:
    reads: Reads = [record("a", 5), record("b", 6), errno.EPIPE, record("c", 17), b"broken", record("d", 18)]
    log = log_of(reads)
    assert [one.message for one in log.records()] == ["a", "b", "c", "d"]
    assert log.lost == 10
    reads += [record("e", 19), record("f", 19)]  # a number that comes twice loses nothing
    assert [one.seq for one in log.records()] == [19, 19]
    assert log.lost == 10


def test_one_reading_has_an_end_though_the_log_has_none() -> None:
    log = kmsg.Log("/dev/null", lambda _fd, _size: record("again"))
    assert len(list(log.records())) == kmsg.RECORDS_MAX


def test_other_errors_are_the_runners() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        list(log_of([errno.EIO]).records())


def test_without_permission_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(Unavailable) as refused:
            KernelLog().open(Host("n", SystemClock()))
    assert "CAP_SYSLOG" in refused.value.remedy


def test_without_a_kernel_log(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as missing:
        KernelLog(lambda: kmsg.Log(str(tmp_path / "kmsg"))).open(Host("n", SystemClock()))
    assert "/dev/kmsg" in missing.value.remedy


def collector_of(log: kmsg.Log) -> Callable[[], Reading]:
    collector = KernelLog(lambda: log)
    collector.open(Host("n", SystemClock()))

    def read() -> Reading:
        reading = Reading([], 2.0)
        collector.read(reading)
        return reading

    return read


def test_errors_of_the_kernel_and_lost_lines_are_rates() -> None:
    by_program = 8 + 3
    reads: Reads = [record("bad", seq, 3) for seq in range(1, 8)]
    reads += [record("fine", 8, 4), record("a program's", 9, by_program), record("emergency", 14, 0)]
    read = collector_of(log_of(reads))
    values = {name: value for (_, _, name), value in read().values.items()}
    assert values == {"kernel_log_errors_per_second": 4, "kernel_log_lost_per_second": 2}
    assert set(read().values.values()) == {0}


def test_errors_of_switches_are_events() -> None:
    mild = "nvidia-nvswitch4: SXid (PCI:0000:c6:00.0): 19084, Non-fatal, Link 29 AN1 Heartbeat Timeout Error (First)"
    first, second = collector_of(log_of([record(SXID), record(mild), record(XID)]))().events
    assert first[:4] == ("node", "n", "sxid", 20034)
    assert "0000:c2:00" in first[4]
    assert "fatal: the links" in first[4]
    assert "not fatal" in second[4]


def test_a_storm_of_switch_errors_is_limited() -> None:
    assert len(collector_of(log_of([record(SXID, seq) for seq in range(500)]))().events) == EVENTS_MAX


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK | os.W_OK), reason="needs to read and write /dev/kmsg")
def test_the_real_log() -> None:
    def write(message: str) -> None:  # opened anew each time: the kernel limits the rate of one writer
        with Path("/dev/kmsg").open("w") as real:
            real.write(message + "\n")  # a line without its end can still grow, and is not shown

    before, after = (f"trimtab test {os.getpid()} {when}: {SXID}" for when in ("before", "after"))
    write(before)
    try:
        collector = KernelLog()
        collector.open(Host("n", SystemClock()))
    except Unavailable as error:
        pytest.skip(str(error))
    write(after)
    seen: list[str] = []

    def seen_some() -> bool:
        reading = Reading([], 1.0)
        collector.read(reading)
        seen.extend(detail for _, _, name, _, detail in reading.events if name == "sxid")
        return bool(seen)

    until(seen_some)
    collector.close()
    assert len(seen) == 1  # what was there before is not new
    with_history = kmsg.Log()
    messages = [one.message for one in with_history.records(1 << 18)]
    with_history.close()
    assert [messages.count(one) for one in (before, after)] == [1, 1]
