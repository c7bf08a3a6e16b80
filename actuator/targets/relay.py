"""A target that balancers ask: the actuator's end of a front, which is a process of its own (front.py)."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from trimtab import Exit, TrimtabError
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import Snapshot
from trimtab.actuator.targets.addresses import networks
from trimtab.actuator.targets.front import Answer, Start
from trimtab.agent.settings import Tls, default_node
from trimtab.agent.wire.channel import certificate_files, is_loopback

_START_SECONDS = 20.0
_ANSWER_SECONDS = 4.0
_LEAVE_SECONDS = 2.5
_ANSWER_BYTES_MAX = 16 << 20


def relays(settings: ActuatorSettings, tls: Tls, state: Path) -> list[Relay]:
    """Those that the settings want; none of them runs yet. Raises TrimtabError where the settings do not go together."""
    node = settings.node or default_node()
    starts = []
    if listen := settings.haproxy_agent_listen:
        field = f"actuator.haproxy_agent_listen = {listen!r}"
        if not is_loopback(listen):
            raise TrimtabError(f"{field}: agent checks are plain text; use 127.0.0.1", Exit.SETTINGS)
        if "auto" in settings.haproxy_sockets:
            message = f"{field}: an HAProxy that asks must not be steered by its socket too; set actuator.haproxy_sockets = []"
            raise TrimtabError(message, Exit.SETTINGS)
        starts.append(Start("haproxy agent", listen, node))
    if listen := settings.xds_listen:
        networks(settings.xds_networks)
        if not is_loopback(listen):
            certificate_files(tls, "actuator.xds_listen", listen)
        starts.append(Start("xds", listen, node, tls, settings.xds_networks, str(state.absolute() / "members.json")))
    return [Relay(start) for start in starts]


class Relay:
    """Starts the front, hands it each snapshot, and starts another when it died or hangs."""

    def __init__(self, start: Start) -> None:
        self.name = f"{start.kind} {start.listen}"
        self.matched: frozenset[str] = frozenset()
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        self._line = socket.socket()

    def apply(self, snapshot: Snapshot) -> None:
        try:
            seconds = _ANSWER_SECONDS
            if self._process is None or self._process.poll() is not None:
                self._open()
                seconds = _START_SECONDS
            answer = self._ask(msgspec.json.encode(snapshot) + b"\n", seconds)
        except (OSError, msgspec.DecodeError) as error:
            self._end()
            raise TrimtabError(f"{self.name}: its process is started again: {error}") from error
        self.matched = frozenset(answer.matched)
        if answer.trouble:
            raise TrimtabError(answer.trouble)

    def neutral(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._line.close()
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired as error:
            message = "not all who ask have heard of neutral weights yet; its process tells them alone"
            raise TrimtabError(f"{self.name}: {message}") from error

    def _open(self) -> None:
        self._line.close()
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trimtab.actuator.targets.front"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        self._line.settimeout(_ANSWER_SECONDS)
        self._line.sendall(msgspec.json.encode(self._start) + b"\n")

    def _ask(self, line: bytes, seconds: float) -> Answer:
        """Raises OSError when there is no answer in time."""
        deadline = time.monotonic() + seconds
        self._line.settimeout(seconds)
        self._line.sendall(line)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            self._line.settimeout(max(deadline - time.monotonic(), 1e-3))
            part = self._line.recv(1 << 20)
            answer += part
            if not part or len(answer) > _ANSWER_BYTES_MAX:
                raise OSError("it hung up")
        return msgspec.json.decode(answer, type=Answer)

    def _end(self) -> None:
        """It may hang, and holds the port."""
        if self._process:
            self._process.kill()
            self._process.wait()
