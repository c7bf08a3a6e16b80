"""What this host lacks for request latency, found by trying: each check is a fact, why it matters, and how to get it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from trimtab import Check
from trimtab.agent.bpf import syscall

BCC = Path("/usr/lib/python3/dist-packages/bcc")
"""Where Debian and Ubuntu put python3-bpfcc; a virtual environment does not see it by itself."""
BTF = Path("/sys/kernel/btf/vmlinux")
KPROBES = Path("/sys/bus/event_source/devices/kprobe/type")

TRACEPOINTS = ("tcp_probe", "tcp_rcv_space_adjust", "inet_sock_set_state", "tcp_retransmit_skb")
SENT = "tcp_sendmsg_locked"
"""A tracepoint that sees an answer go, with its first bytes; the function of the same name does, where there is none."""


class SentHook(Enum):
    """How it is seen."""

    TRACEPOINT = "tracepoint"
    FUNCTION = "function"


_RIGHTS_REMEDY = "run the agent as root or with CAP_BPF and CAP_PERFMON"
# r1 = r10 - 8; *r1 = 0; r2 = 8; r3 = 0; bpf_probe_read_kernel(); r0 = 0; exit
_READS_KERNEL = b"".join(
    struct.pack("<BBhi", *instruction)
    for instruction in (
        (0x7A, 10, -8, 0),
        (0xBF, 10 << 4 | 1, 0, 0),
        (0x07, 1, 0, -8),
        (0xB7, 2, 0, 8),
        (0xB7, 3, 0, 0),
        (0x85, 0, 0, 113),
        (0xB7, 0, 0, 0),
        (0x95, 0, 0, 0),
    )
)


def what_is_missing() -> list[Check]:
    """All that request latency needs, and whether it is there. Loads one tiny program, attaches it for an instant, leaves nothing."""
    return [_bcc(), _btf(), *_kernel()]


def sent_hook() -> SentHook | None:
    """How an answer is seen to go on this host; None where it cannot be. Raises OSError without the rights."""
    program = syscall.load_raw_tracepoint_program(_READS_KERNEL)
    try:
        if _attaches(SENT, program):
            return SentHook.TRACEPOINT
    finally:
        os.close(program)
    # Kernels that have kprobes are built to be traced by function too: the one is seen without loading anything.
    return SentHook.FUNCTION if KPROBES.exists() else None


def _bcc() -> Check:
    if BCC.is_dir():
        return Check("python3-bpfcc", True, f"{BCC}")
    return Check("python3-bpfcc", False, "python3-bpfcc is not installed", "apt-get install python3-bpfcc")


def _btf() -> Check:
    if os.access(BTF, os.R_OK):
        return Check("kernel BTF", True, f"{BTF}")
    remedy = "use a kernel built with CONFIG_DEBUG_INFO_BTF, as those of Debian, Ubuntu and RHEL are"
    return Check("kernel BTF", False, f"the kernel's type information {BTF} cannot be read", remedy)


def _kernel() -> Iterator[Check]:
    try:
        program = syscall.load_raw_tracepoint_program(_READS_KERNEL)
    except PermissionError:
        yield Check("eBPF rights", False, "this process may not load eBPF programs", _RIGHTS_REMEDY)
        return
    except OSError as error:
        detail = f"the kernel refuses programs that read its memory: {error.strerror or error}"
        yield Check(
            "eBPF rights", False, detail, "use a kernel of version 5.8 or newer, not locked down for confidentiality"
        )
        return
    yield Check("eBPF rights", True, "may load programs")
    try:
        missing = [name for name in TRACEPOINTS if not _attaches(name, program)]
    finally:
        os.close(program)
    if missing:
        yield Check("eBPF hooks", False, f"no tracepoint {', '.join(missing)}", "use a kernel with CONFIG_TRACEPOINTS")
    else:
        yield Check("eBPF hooks", True, ", ".join(TRACEPOINTS))
    sent = sent_hook()
    if sent:
        yield Check("eBPF answer hook", True, f"{sent.value} {SENT}")
    else:
        detail = f"no hook sees an answer go: neither the tracepoint {SENT}, nor functions"
        remedy = "use a kernel with CONFIG_KPROBES and CONFIG_FUNCTION_TRACER, or of version 6.16 or newer"
        yield Check("eBPF answer hook", False, detail, remedy)


def _attaches(name: str, program: int) -> bool:
    try:
        os.close(syscall.attach_raw_tracepoint(name, program))
    except FileNotFoundError:
        return False
    return True
