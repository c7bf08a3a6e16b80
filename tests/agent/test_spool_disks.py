"""The spool on disks that fail for real: full, read-only from the start, read-only from one moment on."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.fakes import NODE, Service, until
from tests.agent.test_service import fake_host
from tests.agent.test_spool import BIG, drain, files, fill, numbers
from trimtab import TrimtabError
from trimtab.agent import service as agent
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.settings import AgentSettings, Tls, state_dir
from trimtab.agent.spool import Spool


def run(*command: str | Path) -> bool:
    return subprocess.run([str(part) for part in command], capture_output=True, check=False).returncode == 0


def remount(point: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    points: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / f"disk{len(points)}"
        point.mkdir()
        if not run("mount", "-t", "tmpfs", "-o", options, "tmpfs", point):
            pytest.skip("cannot mount a tmpfs here")
        points.append(point)
        return point

    yield mount
    for point in points:
        run("umount", "-l", point)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system of 8 MiB that turns read-only at its first error, and the file that makes one."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("no mkfs.ext4 here")
    image, point = tmp_path / "image", tmp_path / "ext4"
    image.write_bytes(b"")
    subprocess.run(["truncate", "-s", "8M", str(image)], check=True)
    point.mkdir()
    if not run("mkfs.ext4", "-q", image) or not run("mount", "-o", "loop,errors=remount-ro", image, point):
        pytest.skip("cannot mount a loop device here")
    try:
        device = subprocess.check_output(["findmnt", "-no", "SOURCE", str(point)], text=True).strip()
        yield point, Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    finally:
        run("umount", "-l", point)


def messages(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


def test_a_full_disk_and_one_that_has_room_again(tmpfs: Callable[[str], Path]) -> None:
    small = tmpfs("size=256k")
    vitals = Vitals()
    spool = Spool(small / "spool", BIG, vitals)
    fill(spool, 400, 1000)
    assert spool.unwritten
    assert numbers(spool) == list(range(1, 401))
    remount(small, "size=4m")
    fill(spool, 1)
    spool.close()
    spool = Spool(small / "spool", BIG, vitals)
    assert numbers(spool) == list(range(1, 402))
    assert vitals.windows_lost == 0
    spool.close()


def test_on_a_disk_that_stays_full_the_oldest_go_first(
    tmpfs: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    small = tmpfs("size=256k")
    vitals = Vitals()
    spool = Spool(small / "spool", BIG, vitals)
    for _ in range(30):
        fill(spool, 100, 1000)
        held = numbers(spool)
        assert held == list(range(spool.last_seq + 1 - len(held), spool.last_seq + 1))
        assert vitals.windows_lost_by.get("disk", 0) == spool.last_seq - len(held)
        assert len(held) >= min(spool.last_seq, 600)
    assert len(spool.unwritten) <= 600
    # A line each time that it is full again, and not one for each window.
    assert messages(caplog, "No space left") <= 15
    assert messages(caplog, "are dropped") == 1
    on_disk = sum(segment.windows for segment in spool.segments)
    assert on_disk > 0
    spool.close()
    spool = Spool(small / "spool", BIG, Vitals())
    assert len(numbers(spool)) == on_disk
    spool.close()


def test_on_a_disk_that_others_have_filled_memory_is_bounded(tmpfs: Callable[[str], Path]) -> None:
    disk = tmpfs("size=4m,nr_inodes=5")  # its root, the directory and the three files in it that hold no windows
    vitals = Vitals()
    spool = Spool(disk / "spool", BIG, vitals)
    fill(spool, 700)
    assert not spool.segments
    assert numbers(spool) == list(range(101, 701))
    assert vitals.windows_lost_by == {"disk": 100}
    remount(disk, "nr_inodes=0")
    fill(spool, 1)
    assert spool.writable
    spool.close()


def test_a_disk_without_room_for_a_file_is_as_good_as_none(
    tmpfs: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmpfs("size=64k,nr_inodes=2") / "spool", BIG, Vitals())
    fill(spool, 10)
    assert numbers(spool) == list(range(1, 11))
    assert messages(caplog, "No space left on device; windows are kept in memory only") == 1
    spool.close()


def test_on_a_read_only_disk_it_starts_and_goes_on_in_memory(
    tmpfs: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmpfs("size=1m")
    remount(disk, "ro")
    vitals = Vitals()
    spool = Spool(disk / "agent" / "spool", BIG, vitals)
    fill(spool, 700)
    assert numbers(spool) == list(range(101, 701))
    assert vitals.windows_lost_by == {"disk": 100}
    assert not spool.writable
    assert messages(caplog, "Read-only file system; windows are kept in memory only") == 1
    spool.acknowledge(650)
    assert spool.waiting == 50
    assert spool.first_seq == 651
    spool.close()
    assert vitals.windows_lost_by == {"disk": 150}
    other = Spool(disk / "agent" / "spool", BIG, Vitals())
    # Its numbers begin at one again, so they must not be taken for those of the run before.
    assert other.last_seq == 0
    assert other.id != spool.id
    other.close()


def test_what_a_read_only_disk_held_is_sent_when_it_can_be_written_again(tmpfs: Callable[[str], Path]) -> None:
    disk = tmpfs("size=1m")
    spool = Spool(disk / "spool", BIG, Vitals())
    fill(spool, 5)
    spool.acknowledge(2)
    before = spool.id
    spool.close()
    content = {path.name: path.read_bytes() for path in (disk / "spool").iterdir()}
    remount(disk, "ro")
    meanwhile = Spool(disk / "spool", BIG, Vitals())
    assert meanwhile.id != before
    fill(meanwhile, 3)
    assert numbers(meanwhile) == [1, 2, 3]
    meanwhile.acknowledge(3)
    meanwhile.close()
    remount(disk, "rw")
    assert {path.name: path.read_bytes() for path in (disk / "spool").iterdir()} == content
    spool = Spool(disk / "spool", BIG, Vitals())
    assert spool.id == before
    assert numbers(spool, spool.acknowledged_seq) == [3, 4, 5]
    fill(spool, 1)
    assert spool.last_seq == 6
    spool.close()


def test_a_disk_that_turns_read_only_while_it_runs(ext4: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    disk, trigger = ext4
    vitals = Vitals()
    spool = Spool(disk / "spool", 1 << 20, vitals)
    fill(spool, 300, 1000)
    assert spool.writable
    assert len(files(disk / "spool")) >= 3
    trigger.write_text("test")
    fill(spool, 300, 1000)
    assert not spool.writable
    # What it holds can still be read, and is sent with what came since.
    assert numbers(spool) == list(range(1, 601))
    assert vitals.windows_lost == 0
    assert messages(caplog, "cannot be written: Read-only file system") == 1
    spool.acknowledge(290)
    assert spool.waiting == 310
    assert messages(caplog, "files cannot be deleted") == 1
    fill(spool, 400, 1000)
    assert len(spool.unwritten) == 600
    assert vitals.windows_lost_by == {"disk": 100}
    assert [record.seq for record in drain(spool, 290)] == [*range(291, 301), *range(401, 1001)]
    spool.close()


def test_a_mistake_is_not_taken_for_a_broken_disk(tmp_path: Path, tmpfs: Callable[[str], Path]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrimtabError, match="--state"):
        state_dir(tmp_path / "file", required=False)
    disk = tmpfs("size=1m")
    remount(disk, "ro")
    assert state_dir(disk / "x", required=False) == disk / "x"
    with pytest.raises(TrimtabError, match="Read-only"):
        state_dir(disk / "x")


def test_an_agent_on_a_read_only_disk_delivers(
    tmpfs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmpfs("size=1m")
    remount(disk, "ro")
    fake_host(lambda name, value: monkeypatch.setattr(agent, name, value))
    service = Service()
    service.refuse = {2}
    service.start()
    stop = threading.Event()
    settings = AgentSettings(
        node=NODE, collector=f"127.0.0.1:{service.port}", window_seconds=0.1, metrics_listen="127.0.0.1:0"
    )
    arguments = (settings, Tls(), disk / "agent", SystemClock(), stop, lambda: None)
    runner = threading.Thread(target=agent.run, args=arguments)
    runner.start()
    try:
        until(lambda: len(service.stored) >= 5)
    finally:
        stop.set()
        runner.join(10)
        service.stop()
    stored = [seq for _, seq in service.stored]
    assert stored == [1, *range(3, stored[-1] + 1)]
    assert messages(caplog, "cannot be set aside") == 1
