"""What the files of /proc say: text in, values out. Garbage raises ValueError, and nothing else."""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from string import hexdigits

BYTES_MAX = 1 << 20
"""No file is read further. The listening sockets come first in /proc/net/tcp, so none of them is missed."""
DIGITS_MAX = 20
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ESTABLISHED, LISTEN = "01", "0A"


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """/proc/PID/stat."""

    state: str
    major_faults: int
    cpu_seconds: float
    threads: int
    started: float
    """Seconds from the boot to its start; with the pid it names a process for good."""
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class HostCpu:
    """The first line of /proc/stat: seconds since boot, summed over the cores."""

    busy: float
    iowait: float
    steal: float


def read(path: str) -> str:
    """The text of a file of procfs, sysfs or a cgroup. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        left = BYTES_MAX
        while left > 0 and (part := os.read(descriptor, min(left, 65536))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def whole(text: str) -> int:
    """A whole number that is not negative."""
    if len(text) > DIGITS_MAX or not text.isdecimal():
        raise ValueError(f"not a whole number: {text[:40]!r}")
    return int(text)


def process_stat(text: str) -> ProcessStat:
    """/proc/PID/stat. The name of the program may hold spaces and parentheses."""
    fields = text[text.rfind(")") + 1 :].split()
    if len(fields) < 22:
        raise ValueError(f"/proc/PID/stat: {len(fields)} fields after the name")
    return ProcessStat(
        state=fields[0],
        major_faults=whole(fields[9]),
        cpu_seconds=(whole(fields[11]) + whole(fields[12])) / TICKS_PER_SECOND,
        threads=whole(fields[17]),
        started=whole(fields[19]) / TICKS_PER_SECOND,
        resident_bytes=whole(fields[21]) * PAGE_BYTES,
    )


def run_queue_seconds(text: str) -> float:
    """/proc/PID/task/TID/schedstat: how long the thread has been runnable without running."""
    fields = text.split()
    if len(fields) < 2:
        raise ValueError("schedstat: fewer than 2 fields")
    return whole(fields[1]) / 1e9


def host_cpu(text: str) -> HostCpu:
    """/proc/stat. Guests are counted within user and nice."""
    fields = text.partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        raise ValueError("/proc/stat: the first line is not that of all CPUs")
    user, nice, system, _idle, iowait, irq, softirq, steal = (whole(f) / TICKS_PER_SECOND for f in fields[1:9])
    return HostCpu(busy=user + nice + system + irq + softirq, iowait=iowait, steal=steal)


def counters(text: str) -> dict[str, int]:
    """Lines of "name value": /proc/vmstat, cpu.stat."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: whole(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def pressure(text: str) -> dict[str, float]:
    """/proc/pressure/*: stalled seconds since boot, by "some" and "full"."""
    out = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        _, found, total = rest.partition("total=")
        if kind not in {"some", "full"} or not found:
            raise ValueError(f"pressure: {line[:80]!r}")
        out[kind] = whole(total.strip()) / 1e6
    return out


def tcp_retransmits(text: str) -> int:
    """/proc/net/snmp: segments that TCP has sent again."""
    rows = [line.split() for line in text.splitlines() if line.startswith("Tcp:")]
    if len(rows) != 2 or "RetransSegs" not in rows[0] or len(rows[0]) != len(rows[1]):
        raise ValueError("/proc/net/snmp: no Tcp RetransSegs")
    return whole(rows[1][rows[0].index("RetransSegs")])


def tcp_segments(text: str) -> int:
    """/proc/net/snmp: segments that TCP has received and sent."""
    rows = [line.split() for line in text.splitlines() if line.startswith("Tcp:")]
    if len(rows) != 2 or not {"InSegs", "OutSegs"} <= set(rows[0]) or len(rows[0]) != len(rows[1]):
        raise ValueError("/proc/net/snmp: no Tcp InSegs and OutSegs")
    return sum(whole(rows[1][rows[0].index(name)]) for name in ("InSegs", "OutSegs"))


def context_switches(text: str) -> int:
    """/proc/stat: since boot, on all cores."""
    found = counters(text).get("ctxt")
    if found is None:
        raise ValueError("/proc/stat: no ctxt")
    return found


def listeners(text: str) -> dict[int, tuple[str, int]]:
    """/proc/PID/net/tcp and tcp6: address and port of each listening socket, by its inode."""
    return {inode: local for inode, (local, _) in _sockets(text, LISTEN).items()}


def established(text: str) -> dict[int, tuple[tuple[str, int], tuple[str, int]]]:
    """/proc/PID/net/tcp and tcp6: local and remote address and port of each established connection, by the inode of its socket."""
    return _sockets(text, ESTABLISHED)


def local_ipv4(text: str) -> set[str]:
    """/proc/PID/net/fib_trie: the addresses of its network namespace."""
    lines = [line.split() for line in text.splitlines()]
    pairs = ((above, below) for above, below in pairwise(lines) if below == ["/32", "host", "LOCAL"])
    return {str(ipaddress.IPv4Address(above[-1])) for above, _ in pairs if above}


def global_ipv6(text: str) -> set[str]:
    """/proc/PID/net/if_inet6: the addresses of its network namespace that are good beyond one link."""
    rows = (line.split() for line in text.splitlines())
    return {str(ipaddress.IPv6Address(bytes.fromhex(row[0]))) for row in rows if len(row) == 6 and row[3] == "00"}


def _sockets(text: str, state: str) -> dict[int, tuple[tuple[str, int], tuple[str, int]]]:
    rows = (line.split() for line in text.splitlines()[1:])
    return {whole(row[9]): (_end(row[1]), _end(row[2])) for row in rows if len(row) >= 10 and row[3] == state}


def _end(text: str) -> tuple[str, int]:
    address, _, port = text.partition(":")
    return _address(address), _hex(port, 4)


def _hex(digits: str, width: int) -> int:
    """int() would take signs, blanks and underscores too."""
    if len(digits) != width or not all(digit in hexdigits for digit in digits):
        raise ValueError(f"not {width} hexadecimal digits: {digits[:40]!r}")
    return int(digits, 16)


def _address(digits: str) -> str:
    """32-bit words in the host's byte order; IPv4 within IPv6 is given as IPv4."""
    if len(digits) not in {8, 32}:
        raise ValueError(f"not an address: {digits[:40]!r}")
    words = (_hex(digits[at : at + 8], 8) for at in range(0, len(digits), 8))
    address = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
