"""What `trimtab doctor` asks about the balancers on this host."""

from __future__ import annotations

import shutil
import socket

from trimtab import Check, TrimtabError
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.targets import runtime
from trimtab.actuator.targets.discovery import identify, sockets
from trimtab.actuator.targets.haproxy import COARSE, STATIC

_NO_SOCKET = (
    'add "stats socket /run/haproxy/admin.sock mode 660 level admin" to the global section of haproxy.cfg, and reload'
)
_CONNECT_SECONDS = 1.0
_BALANCE = '"balance random(2)" or "balance roundrobin" follow weights'


def checks(settings: ActuatorSettings | None = None) -> list[Check]:
    """HAProxy, its sockets, what they allow, and how its backends balance; who listens for those who ask. Nothing is changed."""
    settings = settings or ActuatorSettings()
    asked = {"haproxy agent": settings.haproxy_agent_listen, "xds": settings.xds_listen}
    return [*_haproxy(settings), *(_listens(name, listen) for name, listen in asked.items() if listen)]


def _listens(name: str, listen: str) -> Check:
    host, _, port = listen.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return Check(name, None, f"{listen}: {reason.lower()}; `trimtab actuator` listens there when it runs")
    return Check(name, True, f"somebody listens on {listen}")


def _haproxy(settings: ActuatorSettings) -> list[Check]:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    found = sockets(settings.haproxy_sockets)
    if not program and not found:
        return [Check("haproxy", None, "not on this host; the routing feed works without it")]
    out = [Check("haproxy", True, program or "runs here")]
    if not found and not settings.haproxy_agent_listen:
        out.append(
            Check("haproxy socket", False, "no HAProxy that runs here has a Runtime API socket for us", _NO_SOCKET)
        )
    for path in found:
        out += _socket(path)
    return out


def _socket(path: str) -> list[Check]:
    try:
        _, admin = identify(path)
        servers, algorithms = runtime.servers(path)
    except TrimtabError as error:
        return [Check("haproxy socket", False, str(error), _NO_SOCKET)]
    out = [Check("haproxy socket", True, f"{path}: {len(servers)} servers in {len(algorithms)} backends")]
    if not admin:
        out.append(
            Check("haproxy level", False, f"{path}: may not set weights", 'give its "stats socket" line "level admin"')
        )
    for backend, algorithm in sorted(algorithms.items()):
        if algorithm in COARSE:
            detail = f"{backend}: {algorithm} does not heed small weights while servers are idle; at the least weight trimtab drains"
            out.append(Check("haproxy balance", None, detail, _BALANCE))
        elif algorithm in STATIC:
            detail = f"{backend}: {algorithm} takes no weights at run time, it can only be drained"
            out.append(Check("haproxy balance", None, detail, _BALANCE))
    return out
