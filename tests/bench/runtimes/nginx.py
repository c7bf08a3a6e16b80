"""nginx in the place of TorchServe: it answers at a rate that TorchServe cannot, and shows its API the same recorded answers."""

from __future__ import annotations

import os

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.process import ProcessInfo, reachable
from trimtab.agent.runtimes.torchserve import TorchServe


class Nginx(TorchServe):
    """Scraped as TorchServe is. The first port of each is in the agent's environment."""

    name = "nginx"

    def matches(self, process: ProcessInfo) -> bool:
        # Its own name for itself, and what it was started as until then.
        return process.command[0].startswith("nginx: master process") or process.command[0].endswith("/nginx")

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        listeners = process.listeners()
        port = next((port for port in map(int, os.environ["BENCH_PORT"].split(",")) if port in listeners), None)
        if port is None:
            return None
        return Instance(
            id=f"{node}/{port}",
            runtime=self.name,
            pid=process.pid,
            started=process.started,
            port=port,
            netns=process.netns(),
            addresses=reachable(process, listeners[port], port),
            urls=dict.fromkeys(("management", "metrics"), f"http://127.0.0.1:{port + 1}"),
        )


RUNTIME = Nginx
