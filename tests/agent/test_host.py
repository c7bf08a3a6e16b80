"""The signals of the host, against this kernel: loads of known size, and what must hold whatever the load."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.agent import disks, procfs
from trimtab.agent.clock import ManualClock, SystemClock
from trimtab.agent.collectors import cpu, disk, memory, network, pressure
from trimtab.agent.counters import Rise
from trimtab.agent.registry import Collector, Host, Reading, Unavailable


class Watch:
    """A collector of the node, read by hand."""

    def __init__(self, collector: type[Collector]) -> None:
        self.clock = SystemClock()
        self.collector = collector()
        self.collector.open(Host("n", self.clock))
        self._before = math.nan
        self.reading = self.read()

    def read(self) -> Reading:
        now = self.clock.monotonic()
        self.reading = Reading((), now - self._before)
        self._before = now
        self.collector.read(self.reading)
        return self.reading

    def value(self, name: str) -> float:
        return self.reading.values.get(("node", "n", name), math.nan)

    def until(self, condition: Callable[[], bool], windows: int = 20) -> None:
        for _ in range(windows):
            time.sleep(0.3)
            self.read()
            if condition():
                return
        pytest.fail(f"not within {windows} windows: {self.reading.values}")


@pytest.mark.parametrize("module", [cpu, memory, pressure, disk, network])
def test_rates_are_unknown_at_first_and_declared_signals_come(module: object) -> None:
    try:
        watch = Watch(module.COLLECTOR)
    except Unavailable as reason:
        pytest.skip(str(reason))
    gauges = {s.name for s in watch.collector.signals if not s.rate and not s.name.endswith("_ratio")}
    assert {name for _, _, name in watch.reading.values} <= gauges
    # A disk that had nothing to do has no waiting time, and most virtual cards have no speed.
    unknown = {"disk_await_seconds", "await_seconds", "speed_bits_per_second"}
    expected = {s.name for s in watch.collector.signals} - unknown
    watch.until(lambda: expected <= {name for _, _, name in watch.reading.values})
    assert all(value >= 0 for value in watch.reading.values.values())


def test_rise_leaves_out_what_is_new_or_was_reset() -> None:
    rise: Rise[str] = Rise()
    assert rise.since({"a": 5, "b": 5}) == {}
    assert rise.since({"a": 7, "b": 2, "c": 1}) == {"a": 2}
    assert rise.since({"b": 3}) == {"b": 1}
    assert rise.since({"a": 9}) == {}


def test_a_burning_core_is_busy() -> None:
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        watch = Watch(cpu.COLLECTOR)
        watch.until(lambda: watch.value("cpu_busy_cores") > 0.8)
        assert watch.value("cpu_busy_cores") <= watch.value("cpu_cores") * 1.1
        assert watch.value("cpu_cores") == os.cpu_count()
    finally:
        burner.kill()
        burner.wait()


def test_waiting_for_a_core_is_pressure() -> None:
    try:
        watch = Watch(pressure.COLLECTOR)
    except Unavailable as reason:
        pytest.skip(str(reason))
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for burner in burners:
            os.sched_setaffinity(burner.pid, {0})
        watch.until(lambda: watch.value("psi_cpu_some_ratio") > 0.7)
        assert watch.value("psi_cpu_some_ratio") <= 1
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_memory_is_that_of_the_host() -> None:
    watch = Watch(memory.COLLECTOR)
    assert watch.value("memory_total_bytes") == os.sysconf("SC_PHYS_PAGES") * procfs.PAGE_BYTES
    assert 0 < watch.value("memory_available_bytes") < watch.value("memory_total_bytes")


def test_oom_kills_and_swapping_are_counted_from_vmstat(monkeypatch: pytest.MonkeyPatch) -> None:
    vmstat = iter(["pswpin 10\npgmajfault 5\noom_kill 1\n", "pswpin 20\npgmajfault 9\noom_kill 3\n"])
    monkeypatch.setattr(procfs, "read", lambda path: next(vmstat))
    collector = memory.COLLECTOR()
    collector.open(Host("n", ManualClock()))
    collector.read(Reading((), math.nan))
    reading = Reading((), 2.0)
    collector.read(reading)
    assert reading.values["node", "n", "swap_in_bytes_per_second"] == 5 * procfs.PAGE_BYTES
    assert reading.values["node", "n", "major_faults_per_second"] == 2
    assert reading.values["node", "n", "oom_kills_per_second"] == 1
    assert reading.events == [("node", "n", "oom_kill", 2, "")]


def test_no_pressure_information_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(procfs, "read", absent)
    with pytest.raises(Unavailable, match="psi=1"):
        pressure.COLLECTOR().open(Host("n", ManualClock()))


def test_what_is_written_reaches_the_disk(tmp_path: Path) -> None:
    watch = Watch(disk.COLLECTOR)
    if math.isnan(watch.read().values.get(("node", "n", "disk_busy_ratio"), math.nan)):
        pytest.skip("no physical disk here")
    with (tmp_path / "written").open("wb") as file:
        file.write(os.urandom(16 << 20))
        os.fsync(file.fileno())
    reading = watch.read()
    written = watch.value("disk_write_bytes_per_second") * reading.seconds
    if written == 0:
        pytest.skip(f"{tmp_path} is not on a disk")
    assert written >= 16 << 20
    assert 0 < watch.value("disk_await_seconds") < 10
    assert 0 < watch.value("disk_busy_ratio") <= 1


def test_the_worst_disk_counts_and_a_mapped_one_not_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, name in enumerate(("sda", "sdb")):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "dev").write_text(f"8:{number * 16}\n")
    (tmp_path / "dm-0").mkdir()
    monkeypatch.setattr(disks, "BLOCK_DEVICES", tmp_path)
    looks = iter(
        [
            "8 0 sda 0 0 0 0 0 0 0 0 0 0 0\n8 16 sdb 0 0 0 0 0 0 0 0 0 0 0\n252 0 dm-0 0 0 0 0 0 0 0 0 0 0 0\n",
            "8 0 sda 10 0 2 10 0 0 0 0 0 100 10\n8 16 sdb 0 0 0 0 4 0 1 400 3 900 400\n252 0 dm-0 9 0 2 9 9 0 1 9 0 9 9\n",
        ]
    )
    read = procfs.read
    monkeypatch.setattr(procfs, "read", lambda path: next(looks) if path == "/proc/diskstats" else read(path))
    collector = disk.COLLECTOR()
    collector.open(Host("n", ManualClock()))
    collector.read(Reading((), math.nan))
    reading = Reading((), 1.0)
    collector.read(reading)
    assert {name: value for (kind, _, name), value in reading.values.items() if kind == "node"} == {
        "disk_busy_ratio": 0.9,
        "disk_await_seconds": 0.1,
        "disk_read_bytes_per_second": 1024,
        "disk_write_bytes_per_second": 512,
    }
    assert {name: value for (_, subject, name), value in reading.values.items() if subject == "n/disk/sdb"} == {
        "busy_ratio": 0.9,
        "await_seconds": 0.1,
        "in_flight": 3,
        "read_bytes_per_second": 0,
        "write_bytes_per_second": 512,
        "reads_per_second": 0,
        "writes_per_second": 4,
    }
    assert "n/disk/dm-0" not in {subject for _, subject, _ in reading.values}


# In a network namespace of its own: two cards with a cable between them, and nobody who answers.
NETWORK = """
import json, math, socket, subprocess, sys, time
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.network import COLLECTOR
from trimtab.agent.registry import Host, Reading

def ip(*words): subprocess.run(["ip", *words], check=True)
ip("link", "add", "left", "type", "veth", "peer", "name", "right")
for card in ("left", "right"):
    open(f"/proc/sys/net/ipv6/conf/{card}/disable_ipv6", "w").write("1")
    ip("link", "set", card, "up")
ip("addr", "add", "10.1.1.1/24", "dev", "left")
ip("neigh", "add", "10.1.1.2", "lladdr", "02:00:00:00:00:02", "dev", "left")

def read(seconds):
    reading = Reading((), seconds)
    collector.read(reading)
    return {name: value for (_, _, name), value in reading.values.items()}

collector = COLLECTOR()
collector.open(Host("n", ManualClock()))
read(math.nan)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(100):
    sender.sendto(bytes(1000), ("10.1.1.2", 9))
sent = read(2.0)
caller = socket.socket()
caller.setblocking(False)
caller.connect_ex(("10.1.1.2", 9))
deadline = time.monotonic() + 10
while not (called := read(1.0))["tcp_retransmits_per_second"] and time.monotonic() < deadline:
    time.sleep(0.1)
print(json.dumps([sent, called]))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_packets_and_retransmits_are_counted() -> None:
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", NETWORK], capture_output=True, text=True, timeout=60, check=False
    )
    if "Unknown device type" in done.stderr:
        pytest.skip("this kernel has no veth")
    assert done.returncode == 0, done.stderr
    sent, called = json.loads(done.stdout)
    frame = 14 + 20 + 8 + 1000
    assert sent["network_transmit_bytes_per_second"] * 2 == 100 * frame
    assert sent["network_receive_bytes_per_second"] * 2 == 100 * frame
    assert sent["tcp_retransmits_per_second"] == 0
    assert called["tcp_retransmits_per_second"] == 1
