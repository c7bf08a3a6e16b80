"""What the parsers make of recorded files, and that garbage gives ValueError and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agent import cgroup, procfs
from trimtab.agent.runtimes import torchserve_settings

STAT = (
    "7109 (java) ) (x) S 1 7109 7075 0 -1 4194304 31841 12 3 4 250 50 7 8 20 0 28 0 197491 3541684224 33012 "
    "18446744073709551615 94 94 140 0 0 0 0 0 16800975 0 0 0 17 1 0 0 0 0 0 94 94 94 140 140 140 140 0\n"
)
CPU = "cpu  1000 200 300 9000 50 10 20 30 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1 2\n"
PRESSURE = (
    "some avg10=0.05 avg60=0.10 avg300=0.15 total=7106980\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n"
)
SNMP = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: InSegs OutSegs RetransSegs InErrs\nTcp: 11 12 13 14\n"
TCP6 = (
    "  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode\n"
    "   0: 0000000000000000FFFF00000100007F:5A2A 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 12408 1 0\n"
    "   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 99 1 0\n"
    "   2: 0000000000000000FFFF00000100007F:5A2A 0000000000000000FFFF00000100007F:0050 01 0:0 00:0 0 0 0 7 1 0\n"
)
TCP = "head\n   0: 0100007F:1F90 00000000:0000 0A 0:0 00:0 0 0 0 1 1 0\n"
FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.0.0
        /24 link UNICAST
     |-- 10.0.0.5
        /32 host LOCAL
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
"""
IF_INET6 = (
    "00000000000000000000000000000001 01 80 10 80       lo\n"
    "fd000000000000000000000000000005 02 40 00 80     eth0\n"
    "fe80000000000000005efffe00000001 02 40 20 80     eth0\n"
)
HYBRID = (
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
PURE_V2 = "41 31 0:38 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"

V1 = cgroup.Mount(1, PurePosixPath("/sys/fs/cgroup/cpu"), PurePosixPath("/"))
V2 = cgroup.Mount(2, PurePosixPath("/sys/fs/cgroup"), PurePosixPath("/"))


def test_process_stat() -> None:
    stat = procfs.process_stat(STAT)
    assert (stat.state, stat.major_faults, stat.threads) == ("S", 3, 28)
    assert stat.cpu_seconds == 300 / procfs.TICKS_PER_SECOND
    assert stat.started == 197491 / procfs.TICKS_PER_SECOND
    assert stat.resident_bytes == 33012 * procfs.PAGE_BYTES


def test_other_files() -> None:
    tick = 1 / procfs.TICKS_PER_SECOND
    assert procfs.run_queue_seconds("500 1500000000 7\n") == 1.5
    assert procfs.host_cpu(CPU) == procfs.HostCpu(busy=pytest.approx(1530 * tick), iowait=50 * tick, steal=30 * tick)
    assert procfs.counters("oom_kill 3\nnr_periods 8\nsome text here\n") == {"oom_kill": 3, "nr_periods": 8}
    assert procfs.pressure(PRESSURE) == {"some": 7.10698, "full": 1.0}
    assert procfs.tcp_retransmits(SNMP) == 13


def test_only_listening_sockets_and_ipv4_within_ipv6() -> None:
    assert procfs.listeners(TCP6) == {12408: ("127.0.0.1", 23082), 99: ("::", 80)}
    assert procfs.listeners(TCP) == {1: ("127.0.0.1", 8080)}


def test_addresses_of_a_namespace() -> None:
    assert procfs.local_ipv4(FIB_TRIE) == {"127.0.0.1", "10.0.0.5"}
    assert procfs.global_ipv6(IF_INET6) == {"fd00::5"}


def test_v1_carries_the_cpu_controller_on_a_hybrid_host() -> None:
    assert cgroup.cpu_mount(HYBRID) == V1
    assert cgroup.cpu_mount(PURE_V2) == V2
    assert cgroup.cpu_mount("23 1 254:0 / / rw - ext4 /dev/vda rw\n") is None


def test_every_parent_may_hold_a_limit() -> None:
    assert cgroup.directories(V1, "9:name=systemd:/x\n1:cpu,cpuacct:/pod/box\n0::/y\n") == (
        "/sys/fs/cgroup/cpu/pod/box",
        "/sys/fs/cgroup/cpu/pod",
        "/sys/fs/cgroup/cpu",
    )
    assert cgroup.directories(V2, "0::/a.slice\n") == ("/sys/fs/cgroup/a.slice", "/sys/fs/cgroup")
    assert cgroup.directories(V2, "0::/\n") == ("/sys/fs/cgroup",)


def test_a_cgroup_that_is_not_mounted_here_is_unknown() -> None:
    within = cgroup.Mount(2, PurePosixPath("/sys/fs/cgroup"), PurePosixPath("/box"))
    assert cgroup.directories(within, "0::/box/a\n") == ("/sys/fs/cgroup/a", "/sys/fs/cgroup")
    assert cgroup.directories(within, "0::/other\n") == ()
    assert cgroup.directories(V2, "0::/../other\n") == ()


def test_v2_files(tmp_path: Path) -> None:
    mount = cgroup.Mount(2, PurePosixPath(tmp_path), PurePosixPath("/"))
    (tmp_path / "cpu.stat").write_text(
        "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 100\nnr_throttled 40\nthrottled_usec 7\nnr_bursts 0\n"
    )
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cgroup.throttling(str(tmp_path)) == cgroup.Throttling(100, 40)
    assert cgroup.limit_cores(mount, str(tmp_path)) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup.limit_cores(mount, str(tmp_path)) == float("inf")
    (tmp_path / "cpu.max").unlink()  # as in the root
    assert cgroup.limit_cores(mount, str(tmp_path)) == float("inf")


def test_properties_as_java_writes_them() -> None:
    text = "#comment\n! too\na=1\n b : two words \nc\\ d=e\nurl=http\\://127.0.0.1\\:80\nno_value\n"
    expected = {"a": "1", "b": "two words", "c d": "e", "url": "http://127.0.0.1:80"}
    assert torchserve_settings.properties(text) == expected


PARSERS: list[tuple[Callable[[str], object], str]] = [
    (procfs.whole, "123"),
    (procfs.process_stat, STAT),
    (procfs.run_queue_seconds, "500 1500000000 7\n"),
    (procfs.host_cpu, CPU),
    (procfs.counters, "oom_kill 3\n"),
    (procfs.pressure, PRESSURE),
    (procfs.tcp_retransmits, SNMP),
    (procfs.listeners, TCP6),
    (procfs.listeners, TCP),
    (procfs.local_ipv4, FIB_TRIE),
    (procfs.global_ipv6, IF_INET6),
    (cgroup.cpu_mount, HYBRID),
    (lambda text: cgroup.directories(V2, text), "0::/a/b\n"),
    (cgroup.quota_cores, "150000 100000\n"),
    (torchserve_settings.properties, "a=1\nb: 2\n"),
    (torchserve_settings.port, "http://127.0.0.1:8080"),
]


@given(st.data())
def test_garbage_is_a_value_error(data: st.DataObject) -> None:
    parse, good = data.draw(st.sampled_from(PARSERS))
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    digits = st.text("0123456789ABCDEFabcdef.-+ :", max_size=400)
    with contextlib.suppress(ValueError):
        parse(good[:start] + data.draw(st.text() | digits) + good[end:])
