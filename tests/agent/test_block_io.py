"""Reads, writes, flushes and failures of a real disk, counted one by one; and what /proc/diskstats says."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.fakes import until
from trimtab.agent import disks
from trimtab.agent.bpf.host import HOST_PROGRAM
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.block_io import BlockIo
from trimtab.agent.disks import diskstats
from trimtab.agent.probes import Probes
from trimtab.agent.registry import Host, Reading, Unavailable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
BLOCK_BYTES = 4096


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[None]:
    """The program stays loaded between the tests, for compiling it takes a second."""
    try:
        program = HOST_PROGRAM.open("oom")
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield
    HOST_PROGRAM.close(program, "oom")


class Disk:
    """A loop device: a disk of our own, whose every request is ours. It counts as hardware here."""

    def __init__(self, file: Path, hardware: Path) -> None:
        done = subprocess.run(
            ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=False, timeout=20
        )
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        self.path = Path(done.stdout.strip())
        self.name = self.path.name
        (hardware / self.name / "device").mkdir(parents=True)
        (hardware / self.name / "dev").write_text(Path(f"/sys/block/{self.name}/dev").read_text())
        self._open = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        # Direct access wants whole, aligned blocks.
        self._block = mmap.mmap(-1, BLOCK_BYTES)

    def write(self, at: int) -> None:
        os.pwritev(self._open, [self._block], at * BLOCK_BYTES)

    def read(self, at: int) -> None:
        os.preadv(self._open, [self._block], at * BLOCK_BYTES)

    def flush(self) -> None:
        os.fsync(self._open)

    def close(self) -> None:
        os.close(self._open)
        subprocess.run(["losetup", "--detach", str(self.path)], check=False, timeout=20)


class Watch:
    """The collector, read by hand; a window is one second by decree."""

    def __init__(self) -> None:
        self.probes = Probes()
        self.collector = BlockIo()
        self.collector.open(Host("n", SystemClock(), self.probes))

    def read(self) -> Reading:
        reading = Reading((), 1.0)
        self.collector.read(reading)
        return reading


@pytest.fixture
def hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "block"
    folder.mkdir()
    monkeypatch.setattr(disks, "BLOCK_DEVICES", folder)
    return folder


@pytest.fixture
def disk(tmp_path: Path, hardware: Path) -> Iterator[Disk]:
    file = tmp_path / "disk"
    file.write_bytes(bytes(256 * BLOCK_BYTES))
    disk = Disk(file, hardware)
    yield disk
    disk.close()


@pytest.fixture
def full_disk(tmp_path: Path, hardware: Path) -> Iterator[Disk]:
    """It has room for 16 blocks fewer than it promises."""
    mount = tmp_path / "full"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mount)], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (mount / "disk").touch()
        os.truncate(mount / "disk", 32 * BLOCK_BYTES)
        disk = Disk(mount / "disk", hardware)
        yield disk
        disk.close()
        until(lambda: not subprocess.run(["umount", str(mount)], check=False, capture_output=True).returncode)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True)


@pytest.fixture
def watch(hardware: Path) -> Iterator[Watch]:
    try:
        watch = Watch()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield watch
    watch.collector.close()


def tries(attempt: Callable[[], bool], times: int = 5) -> None:
    """Until it succeeds: whenever a program is attached or detached anywhere on the host, the kernel may skip ours once."""
    assert any(attempt() for _ in range(times))


def values(reading: Reading, disk: Disk) -> dict[str, float]:
    return {name: v for (_, subject, name), v in reading.values.items() if subject == f"n/disk/{disk.name}"}


def test_reads_writes_and_flushes_are_counted_one_by_one(disk: Disk, watch: Watch) -> None:
    assert watch.read().values == {}
    watch.read()

    def exact() -> bool:
        for at in range(23):
            disk.write(at * 2)  # with gaps, so that none is merged with another
        for at in range(17):
            disk.read(at * 2)
        for at in range(5):
            disk.write(at)
            disk.flush()
        reading = watch.read()
        io = reading.sketches.get(("disk", f"n/disk/{disk.name}", "block_io_latency"))
        flushes = reading.sketches.get(("disk", f"n/disk/{disk.name}", "block_flush_latency"))
        assert io is not None
        assert flushes is not None
        assert 0 < io.mean_seconds < 1
        expected = {
            "block_reads_per_second": 17,
            "block_writes_per_second": 23 + 5,
            "block_flushes_per_second": 5,
            "block_errors_per_second": 0,
        }
        return values(reading, disk) == expected and (io.sampled, flushes.sampled) == (17 + 23 + 5, 5)

    tries(exact)
    still = watch.read()
    assert set(values(still, disk).values()) == {0}
    assert still.sketches == {}


def test_failures_are_counted_one_by_one(full_disk: Disk, watch: Watch) -> None:
    for at in range(8):
        full_disk.write(at)
    for _ in range(2):
        watch.read()

    def exact() -> bool:
        failed = 0
        for at in range(31, 25, -1):
            try:
                full_disk.write(at)
            except OSError:
                failed += 1
        return failed > 0 and values(watch.read(), full_disk)["block_errors_per_second"] == failed

    for at in range(8, 16):  # now the file system is full
        full_disk.write(at)
    watch.read()
    tries(exact)


def test_switched_off_it_is_unknown(disk: Disk, watch: Watch) -> None:
    for _ in range(2):
        watch.read()
    (probe,) = watch.probes.all()
    probe.switch(False)
    disk.write(0)
    assert watch.read().values == {}
    probe.switch(True)
    assert watch.read().values == {}
    disk.write(0)
    assert values(watch.read(), disk)["block_writes_per_second"] == 1


def test_a_disk_that_is_not_hardware_is_not_watched(disk: Disk, watch: Watch, hardware: Path) -> None:
    (hardware / disk.name / "device").rmdir()
    for _ in range(2):
        watch.read()
    disk.write(0)
    reading = watch.read()
    assert reading.values == {}
    assert reading.sketches == {}


def test_diskstats_of_this_kernel() -> None:
    found = diskstats(Path("/proc/diskstats").read_text())
    assert set(found) >= {path.name for path in Path("/sys/block").iterdir() if (path / "device").exists()}


ROW = st.lists(st.integers(0, 2**64 - 1), min_size=11, max_size=17)


@given(st.dictionaries(st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), ROW, max_size=4))
def test_diskstats_of_any_kernel(rows: dict[str, list[int]]) -> None:
    text = "".join(f"   8 0 {name} {' '.join(map(str, row))}\n" for name, row in rows.items())
    found = diskstats(text)
    assert {name: (stats.reads, stats.writes, stats.in_flight) for name, stats in found.items()} == {
        name: (row[0], row[4], row[8]) for name, row in rows.items()
    }


@given(st.text())
def test_garbage_for_diskstats(text: str) -> None:
    try:
        diskstats(text)
    except ValueError:
        return
