"""What a service tells systemd: that it is ready, that its heart beats, what it does, that it stops (sd_notify(3)).

A few datagrams to one Unix socket: a library for it would be longer than this file. There is no thread here: whoever does the
work beats, so a loop that hangs falls silent, and systemd starts the service again (WatchdogSec=).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping

BEATS_MISSED_MAX = 3
"""The watchdog waits for at least that many beats, however rare they are."""
_SPARE_SECONDS = 10.0


class Notify:
    """The line to systemd; mute where systemd did not start this process. Used by one thread, and by signal handlers."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes $NOTIFY_SOCKET out of `environment`: processes that the service starts do not speak for it."""
        address = environment.pop("NOTIFY_SOCKET", "")
        self._watchdog_usec = _watchdog_usec(environment)
        self._socket: socket.socket | None = None
        self._ready = False
        self._status = ""
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
            except OSError:
                self._socket = None

    def expect(self, beat_seconds: float) -> None:
        """Beats come every `beat_seconds`: where the unit's WatchdogSec= is too short for that, have it longer."""
        needed = round((BEATS_MISSED_MAX * beat_seconds + _SPARE_SECONDS) * 1e6)
        if 0 < self._watchdog_usec < needed:
            self._watchdog_usec = needed
            self._send(f"WATCHDOG_USEC={needed}")

    def beat(self, status: str = "") -> bool:
        """The work goes on; `status` is one line for `systemctl status`. True at the first beat, which says that the service is ready."""
        first, self._ready = not self._ready, True
        lines = ["READY=1"] if first else []
        if self._watchdog_usec:
            lines.append("WATCHDOG=1")
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={' '.join(status.split())}")
        if lines:
            self._send("\n".join(lines))
        return first

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            try:
                self._socket.send(message.encode())
            except OSError:
                # systemd is being started again, or has too much to read. A beat that is lost is not the end: the next comes soon.
                return


def _watchdog_usec(environment: Mapping[str, str]) -> int:
    """How long systemd waits for a beat; 0 where it does not, or waits for another process's."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) if text.isascii() and text.isdigit() else 0
