"""Faults of an instance's network, made by traffic control on the loopback interface, for the packets of its port alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.campaign.cannot import Cannot
from tests.e2e.fleet import Instance

_RANDOM = 0xFFFFF038
"""Where classic BPF reads a random number of 32 bits (SKF_AD_OFF + SKF_AD_RANDOM in linux/filter.h)."""
_NO_WORD = 0xFFFFFFFF
_DROP = 2


@contextmanager
def bandwidth(instance: Instance, bits_per_second: int = 6_000_000) -> Iterator[None]:
    """Let no more than this pass to the instance, by a token bucket. Raises Cannot."""
    _tc("qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb")
    try:
        rate = f"{bits_per_second}bit"
        _tc("class", "add", "dev", "lo", "parent", "1:", "classid", "1:1", "htb", "rate", rate, "burst", "16kb")
        port = ("match", "ip", "dport", str(instance.port), "0xffff")
        _tc("filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", "u32", *port, "flowid", "1:1")
        yield
    finally:
        _tc("qdisc", "del", "dev", "lo", "root")


@contextmanager
def loss(instance: Instance, share: float = 0.2) -> Iterator[None]:
    """Lose this share of the packets from and to the instance. Raises Cannot.

    They are dropped where they arrive: a sender that is told of a drop does not count it as a loss.
    """
    _tc("qdisc", "add", "dev", "lo", "clsact")
    try:
        program = _dropping(instance.port, share)
        code = ",".join([str(len(program)), *(" ".join(map(str, line)) for line in program)])
        _tc("filter", "add", "dev", "lo", "ingress", "bpf", "direct-action", "bytecode", code)
        yield
    finally:
        _tc("qdisc", "del", "dev", "lo", "clsact")


def _dropping(port: int, share: float) -> list[tuple[int, int, int, int]]:
    """A classic BPF program: code, jumps if true and if false, operand."""
    half, byte, word, equal, greater, end = 40, 48, 32, 21, 37, 6
    return [
        (half, 0, 0, 12),
        (equal, 0, 9, 0x0800),  # IPv4
        (byte, 0, 0, 23),
        (equal, 0, 7, 6),  # TCP
        (half, 0, 0, 34),
        (equal, 2, 0, port),
        (half, 0, 0, 36),
        (equal, 0, 3, port),
        (word, 0, 0, _RANDOM),
        (greater, 1, 0, round(share * 0xFFFFFFFF)),
        (end, 0, 0, _DROP),
        (end, 0, 0, _NO_WORD),
    ]


def _tc(*arguments: str) -> None:
    program = shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        raise Cannot("tc is not installed: apt-get install iproute2")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[0]
        raise Cannot(f"tc {' '.join(arguments[:2])} on lo: {said}")
