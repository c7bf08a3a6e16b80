"""Where log lines go: to a terminal or a file with the time, to the journal with fields.

The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) is one datagram an entry. systemd-python does the same, but is
compiled, and nothing is compiled on a host that trimtab is installed on.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import TextIO

from trimtab import __version__

JOURNAL = "/run/systemd/journal/socket"
FIELD_BYTES_MAX = 64 << 10
"""A datagram takes about 200 KiB, and only the message can be long."""
_FORMAT = "%(levelname)s %(name)s: %(message)s"


def set_up(level: int, service: str, environment: Mapping[str, str]) -> None:
    """Log to standard error: with the time, or as entries of the journal where that is what standard error leads to."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {_FORMAT}"))
    if _is_journal(sys.stderr, environment.get("JOURNAL_STREAM", "")):
        handler = JournalHandler(JOURNAL, service)
    logging.basicConfig(level=level, handlers=[handler])


class JournalHandler(logging.StreamHandler[TextIO]):
    """Entries with PRIORITY, TRIMTAB_SERVICE, TRIMTAB_VERSION, LOGGER and the place in the code.

    What the journal does not take goes to standard error, without the time: systemd reads that too, and knows the time.
    """

    def __init__(self, path: str, service: str) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter(_FORMAT))
        self._path, self._service = path, service
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._message = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendto(self._entry(record), self._path)
        except OSError:
            super().emit(record)
        except Exception:  # noqa: BLE001 - as every handler: a line that cannot be formatted must not stop the service
            self.handleError(record)

    def _entry(self, record: logging.LogRecord) -> bytes:
        fields = {
            "MESSAGE": self._message.format(record),
            "PRIORITY": str(priority(record.levelno)),
            "SYSLOG_IDENTIFIER": f"trimtab-{self._service}",
            "TRIMTAB_SERVICE": self._service,
            "TRIMTAB_VERSION": __version__,
            "LOGGER": record.name,
            "THREAD_NAME": record.threadName or "",
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        return b"".join(field(name, value) for name, value in fields.items())


def priority(level: int) -> int:
    """The syslog priority (sd-daemon(3)) of a level of `logging`."""
    for least, found in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return found
    return 7


def field(name: str, value: str) -> bytes:
    """One field of an entry. A value of several lines goes with its length, or its second line would be read as a field."""
    data = value.encode(errors="replace")[:FIELD_BYTES_MAX]
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _is_journal(stream: TextIO, told: str) -> bool:
    """Whether `stream` is the one that systemd connected to the journal ($JOURNAL_STREAM: device and inode), and not redirected since."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return told == f"{status.st_dev}:{status.st_ino}"
