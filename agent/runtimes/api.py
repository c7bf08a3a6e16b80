"""Which of a server's endpoints trimtab may ask, and what the operator is told of those it may not."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from trimtab.agent.runtimes.netns import inside
from trimtab.agent.runtimes.process import ProcessInfo, own_netns, url

SAID_MAX = 256

log = logging.getLogger(__name__)


class Told:
    """Warnings, each said once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def tell(self, message: str) -> None:
        """Only the first 256 different ones are."""
        if message not in self._said and len(self._said) < SAID_MAX:
            self._said.add(message)
            log.warning("%s", message)


def urls(
    instance_id: str, process: ProcessInfo, listeners: Mapping[int, str], ports: Mapping[str, int], told: Told
) -> dict[str, str]:
    """By role, where the process itself listens on the port of that role; nothing where its network namespace is closed to us.

    A port of 0 is an endpoint that does not speak plain HTTP. Raises OSError.
    """
    netns = process.netns()
    if netns != own_netns():
        try:
            inside(process.pid, netns, lambda: None)
        except PermissionError:
            why = "it is in another network namespace, which only CAP_SYS_ADMIN may enter"
            told.tell(f"{instance_id}: {why}; its API cannot be asked, and its signals are unknown")
            return {}
    out = {}
    for role, port in ports.items():
        if port in listeners:
            out[role] = url(listeners[port], port)
        else:
            told.tell(
                f"{instance_id}: its {role} API is not plain HTTP on a port it listens on; its signals are unknown"
            )
    return out
