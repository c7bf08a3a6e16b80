"""The kernel's log, from /dev/kmsg: one record a read, without waiting; and the lines of NVIDIA's driver in it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trimtab.agent.registry import Unavailable

PATH = "/dev/kmsg"
RECORDS_MAX = 4096
"""Read at once; a log that fills faster is overrun, which is counted."""
_RECORD_BYTES_MAX = 16 << 10
ERROR = 3
"""Levels up to this one are errors."""

_ADDRESS = r"(?:PCI:)?(?P<address>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.[0-9a-fA-F])?"
_MIG = r"(?: GPU-I:[0-9]{1,3}(?: GPU-CI:[0-9]{1,3})?)?"
"""The MIG instance in which it happened: the error is its GPU's."""
_XID = re.compile(rf"NVRM: Xid \({_ADDRESS}{_MIG}\): (?P<code>[0-9]{{1,6}})(?:, (?P<text>.*))?", re.DOTALL)
_GPU = re.compile(rf"NVRM: GPU at {_ADDRESS}: (?P<uuid>GPU-[0-9A-Za-z-]{{1,64}})")
_SXID = re.compile(rf"nvidia-nvswitch[0-9]*: SXid \({_ADDRESS}\): (?P<code>[0-9]{{1,6}})(?:, (?P<text>.*))?", re.DOTALL)
_RECOVERY = re.compile(r"GPU recovery action changed from 0x[0-9a-fA-F]{1,8} \(.*?\) to 0x(?P<action>[0-9a-fA-F]{1,8})")
_LOADED = "NVRM: loading NVIDIA UNIX"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log."""

    level: int
    """0 emergency to 7 debug."""
    by_kernel: bool
    """False: a program wrote it."""
    seq: int
    seconds: float
    """Since the host booted, without the time that it was suspended."""
    message: str


@dataclass(frozen=True, slots=True)
class XidLine:
    """An error of a GPU, or of an NVSwitch."""

    address: str
    """PCI address, as `canonical` writes it."""
    code: int
    text: str


def parse(data: bytes) -> Record | None:
    """The record in `data`; None where there is none. Never raises."""
    head, found, rest = data.partition(b";")
    fields = head.split(b",")
    if not found or len(fields) < 3 or not all(field.isdigit() and len(field) <= 20 for field in fields[:3]):
        return None
    priority, seq, microseconds = map(int, fields[:3])
    message = rest.partition(b"\n")[0].decode("utf-8", "replace")
    return Record(priority & 7, priority >> 3 == 0, seq, microseconds / 1e6, message)


def xid(message: str) -> XidLine | None:
    """The XID error in a line of the driver."""
    return _error(_XID, message)


def sxid(message: str) -> XidLine | None:
    """The SXID error in a line of the NVSwitch driver."""
    return _error(_SXID, message)


def gpu_at(message: str) -> tuple[str, str] | None:
    """(PCI address, UUID), which the driver says of a GPU before its first error."""
    match = _GPU.search(message)
    return (canonical(match["address"]), match["uuid"]) if match else None


def recovery_action(text: str) -> int | None:
    """What the driver now asks for to recover the GPU, from the text of XID 154; 0: nothing."""
    match = _RECOVERY.search(text)
    return int(match["action"], 16) if match else None


def driver_loaded(message: str) -> bool:
    """Whether the driver says here that it is being loaded: all it knew of GPUs before is gone."""
    return message.startswith(_LOADED)


def canonical(address: str) -> str:
    """A PCI address as "0000:41:00": the driver writes it in several ways."""
    domain, bus, device = address.lower().split(":")
    return f"{int(domain, 16):04x}:{bus}:{device.partition('.')[0]}"


def _error(pattern: re.Pattern[str], message: str) -> XidLine | None:
    match = pattern.search(message)
    return XidLine(canonical(match["address"]), int(match["code"]), match["text"] or "") if match else None


class Log:
    """The records from the oldest that the kernel still has. Not for two threads at once."""

    def __init__(self, path: str = PATH, read: Callable[[int, int], bytes] = os.read) -> None:
        """Raises Unavailable where it may not be read."""
        self.lost = 0
        """Records that were overwritten before they were read."""
        self._read = read
        self._next: int | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError as error:
            remedy = (
                "give the agent CAP_SYSLOG and read access to /dev/kmsg, or leave this collector out with agent.disable"
            )
            raise Unavailable("the kernel log may not be read", remedy) from error
        except OSError as error:
            raise Unavailable(f"no kernel log: {error.strerror}", "let the agent see /dev/kmsg") from error

    def to_end(self) -> None:
        """Skip what is there already."""
        os.lseek(self._fd, 0, os.SEEK_END)

    def records(self, limit: int = RECORDS_MAX) -> Iterator[Record]:
        """What has come since, oldest first, at most `limit`. Raises OSError."""
        for _ in range(limit):
            try:
                data = self._read(self._fd, _RECORD_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                if (
                    error.errno == errno.EPIPE
                ):  # overwritten: the next read gives the oldest there is, and its number says how many
                    continue
                raise
            if not data:
                return
            record = parse(data)
            if record is None:
                continue
            if self._next is not None:
                self.lost += max(0, record.seq - self._next)
            self._next = record.seq + 1
            yield record

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)
