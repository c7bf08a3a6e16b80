"""HAProxy's Runtime API over its Unix socket: ask, read the servers, set weights, give back the configured ones.

https://docs.haproxy.org/2.6/management.html#9.3. Standard library only: the dead man's switch runs with it.
"""

from __future__ import annotations

import csv
import io
import math
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trimtab import TrimtabError
from trimtab.actuator.targets.ledger import Held

TIMEOUT_SECONDS = 1.0
ANSWER_BYTES_MAX = 8 << 20
WEIGHT_MAX = 256
_MAXCONN_MAX = 1_000_000
_RUNNING = 2
"""SRV_ST_RUNNING of srv_op_state."""
_OUT = 0x7B
"""The bits of srv_admin_state that are maintenance or drain: all but 0x04, which tells only where maintenance came from."""
_LINE_BYTES_MAX = 8000
"""HAProxy reads a line of commands into a buffer of 16 KiB (tune.bufsize)."""
_REMEDIES = {
    "Permission denied": 'the stats socket needs "level admin" in haproxy.cfg',
    "Unknown command": "is this the socket of an HAProxy 2.0 or later?",
    "No such": "HAProxy was reloaded in between; asked again",
}


@dataclass(frozen=True, slots=True)
class Server:
    """One server line of a backend. Weights are in HAProxy's units, [0, 256]."""

    backend: str
    name: str
    address: str
    """The address that it resolved, without port."""
    port: int
    weight: int
    initial: int
    """The weight in the configuration file: neutral."""
    usable: bool
    """Whether it takes requests: it runs, and is neither in maintenance nor drained by its administrative state."""
    maxconn: int = 0
    """How many requests it may have at once, the others wait in HAProxy; 0 for no limit."""
    waiting: int = 0
    """Requests that wait in HAProxy for any server of the backend."""

    @property
    def path(self) -> str:
        """How commands name it."""
        return f"{self.backend}/{self.name}"


def ask(path: str, commands: str) -> str:
    """The answer to `commands`, joined by ";". Raises TrimtabError on no answer within a second, or on one that is too long."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
            line.settimeout(TIMEOUT_SECONDS)
            line.connect(path)
            line.sendall(commands.encode() + b"\n")
            while part := line.recv(1 << 16):
                answer += part
                if len(answer) > ANSWER_BYTES_MAX:
                    raise TrimtabError(f"{path}: answers with over {ANSWER_BYTES_MAX >> 20} MiB")
                line.settimeout(max(deadline - time.monotonic(), 1e-3))
    except TimeoutError as error:
        raise TrimtabError(f"{path}: no answer within {TIMEOUT_SECONDS:.0f} s; is HAProxy stopped?") from error
    except PermissionError as error:
        raise TrimtabError(
            f"{path}: permission denied; run as root or as a user who may write to the socket"
        ) from error
    except OSError as error:
        raise TrimtabError(f"{path}: {error.strerror or error}; is HAProxy running?") from error
    return answer.decode(errors="replace")


def servers(path: str) -> tuple[list[Server], dict[str, str]]:
    """All servers, and the balancing algorithm of each backend ("" where the socket's level hides it)."""
    state, _, statistics = ask(path, "show servers state;show stat -1 6 -1").partition("\n\n")
    lines = state.splitlines()
    if len(lines) < 2 or not lines[1].startswith("# "):
        _complain(path, lines)
        raise TrimtabError(f"{path}: does not speak HAProxy's Runtime API")
    try:
        rows = list(csv.DictReader(io.StringIO(statistics.lstrip("# \n"))))
        limits = {(row["pxname"], row["svname"]): int(row["slim"] or 0) for row in rows}
        waiting = {row["pxname"]: int(row["qcur"] or 0) for row in rows if row["svname"] == "BACKEND"}
        found = [
            _server(dict(zip(lines[1][2:].split(), line.split(), strict=False)), limits, waiting)
            for line in lines[2:]
            if line
        ]
        return found, {row["pxname"]: row.get("algo") or "" for row in rows if row["svname"] == "BACKEND"}
    except (KeyError, ValueError) as error:
        raise TrimtabError(f"{path}: `show servers state` of an HAProxy that trimtab does not know: {error}") from error


def set_weights(path: str, weights: Iterable[tuple[Server, str]]) -> None:
    """Set each server's weight: "0" to "256", or "100%" for the configured one. Raises TrimtabError when one was refused."""
    _obey(path, (f"set weight {server.path} {weight}" for server, weight in weights))


def set_maxconn(path: str, limits: Iterable[tuple[Server, int]]) -> None:
    """Set how many requests each server may have at once; what is under way goes on. Raises TrimtabError when one was refused.

    HAProxy forgets what waits when a limit becomes none. So the limits are first raised far enough for all that waits, in equal shares.
    """
    orders = list(limits)
    freed = [server for server, limit in orders if not limit and server.maxconn]
    backends = Counter(server.backend for server in freed)
    shares = [(s, s.maxconn + math.ceil(s.waiting / backends[s.backend])) for s in freed]
    raised = [*shares, *((server, _MAXCONN_MAX) for server in freed)]
    _obey(path, (f"set maxconn server {server.path} {limit}" for server, limit in (*raised, *orders)))


def neutral(path: str, held: Held) -> None:
    """Give back what is in our hands: the weights that the configuration has, and the limits that there were. Raises TrimtabError."""
    found, _ = servers(path)
    set_weights(path, [(s, "100%") for s in found if s.backend in held.backends and s.weight != s.initial])
    set_maxconn(
        path, [(s, held.maxconn[s.path][0]) for s in found if s.maxconn == held.maxconn.get(s.path, (0, None))[1]]
    )


def _obey(path: str, commands: Iterable[str]) -> None:
    for line in _lines(commands):
        _complain(path, ask(path, line).splitlines())


def _server(fields: dict[str, str], limits: Mapping[tuple[str, str], int], waiting: Mapping[str, int]) -> Server:
    return Server(
        backend=fields["be_name"],
        name=fields["srv_name"],
        address=fields["srv_addr"],
        port=int(fields["srv_port"]),
        weight=int(fields["srv_uweight"]),
        initial=int(fields["srv_iweight"]),
        usable=int(fields["srv_op_state"]) == _RUNNING and not int(fields["srv_admin_state"]) & _OUT,
        maxconn=limits.get((fields["be_name"], fields["srv_name"]), 0),
        waiting=waiting.get(fields["be_name"], 0),
    )


def _complain(path: str, lines: Iterable[str]) -> None:
    """HAProxy answers a command that it obeyed with an empty line, any other with a sentence."""
    for line in lines:
        if line.strip():
            remedy = next((r for start, r in _REMEDIES.items() if line.startswith(start)), "")
            raise TrimtabError(f"{path}: HAProxy says {line.strip()[:120]!r}" + (f"; {remedy}" if remedy else ""))


def _lines(commands: Iterable[str]) -> Iterator[str]:
    """The commands joined into as few lines as HAProxy takes."""
    line: list[str] = []
    size = 0
    for command in commands:
        if line and size + len(command) > _LINE_BYTES_MAX:
            yield ";".join(line)
            line, size = [], 0
        line.append(command)
        size += len(command) + 1
    if line:
        yield ";".join(line)
