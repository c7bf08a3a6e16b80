"""What all runs share: the fleet, its balancer, load and GPUs; and the agent and the collector that each run has anew."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.e2e.campaign import disk, gpus, memory
from tests.e2e.confine import memory_homes
from tests.e2e.fleet import Instance, check_alive, fleet, wait_ready
from tests.e2e.haproxy import BACKEND, haproxy
from tests.e2e.load import load
from tests.e2e.observe import Observer, observe
from tests.e2e.services import NODE, install
from tests.e2e.stage import INSTANCES
from trimtab import TrimtabError

REQUESTS_PER_SECOND = 20.0
"""Healthy, the fleet is a third busy; two of three instances can bear it."""
PADDING_BYTES = 100_000
"""A request is as large as a small picture, so that it takes a network to bring it."""
_RECOVERED_SECONDS_MAX = 60.0
_IN_FLIGHT_HEALTHY_MAX = 4
_LOOK_SECONDS = 0.25


class Ground:
    """Everything that runs through the whole campaign, in `directory`."""

    def __init__(self, directory: Path, seed: int, stack: ExitStack) -> None:
        enter = stack.enter_context
        library = gpus.build(directory / "nvml")
        self.directory = directory
        self.instances: list[Instance] = enter(fleet(directory, INSTANCES, started_as=enter(memory_homes())))
        enter(disk.features(self.instances))
        enter(memory.embeddings(self.instances))
        self.gpus = gpus.Gpus(library, self.instances)
        self.gpus.write()
        self.proxy = enter(haproxy(directory, self.instances))
        environment = {"LD_LIBRARY_PATH": str(library), "NVML_STUB": str(library / "state")}
        self._trimtab = replace(install(directory, self.proxy.socket), environment=environment)
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self._watches = 0
        requests = directory / "requests.csv"
        self.load = enter(load(self.proxy.address, REQUESTS_PER_SECOND, seed, requests, padding_bytes=PADDING_BYTES))

    @contextmanager
    def watched(self) -> Iterator[Observer]:
        """An agent and a collector without a past, and what they say.

        With one, a fault soon after another one of the same instance would open the same incident again, with the causes of the first;
        and an agent's spool holds minutes, in which the last fault would be taken for what is usual.
        """
        self._watches += 1
        state = self.directory / f"watch-{self._watches}"
        state.mkdir()
        trimtab = replace(self._trimtab, state=state)
        with (
            trimtab.run("collector") as collector,
            trimtab.run("agent") as agent,
            observe(trimtab.collector, self.proxy) as observer,
        ):
            self._services = {"collector": collector, "agent": agent}
            try:
                yield observer
            finally:
                self._services = {}

    def subject(self, instance: Instance) -> str:
        """trimtab's name of the instance."""
        return f"{NODE}/{instance.port}"

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true in time. Raises TrimtabError when something died that should not."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._check()
            time.sleep(_LOOK_SECONDS)
        return True

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises as `until`."""
        self.until(lambda: False, seconds)

    def warm(self, observer: Observer) -> bool:
        """Whether trimtab knows what is usual of every instance, and nothing is wrong."""
        seen = [observer.instances.get(self.subject(i)) for i in self.instances]
        return all(s is not None and math.isfinite(s.score) and not s.incident for s in seen)

    def recover(self) -> None:
        """Return when every instance answers again and no more requests wait than usual. Raises TrimtabError after a minute."""
        wait_ready(self.instances, _RECOVERED_SECONDS_MAX)
        if not self.until(lambda: self._in_flight() <= _IN_FLIGHT_HEALTHY_MAX, _RECOVERED_SECONDS_MAX):
            raise TrimtabError(f"{self._in_flight()} requests still wait {_RECOVERED_SECONDS_MAX:.0f} s after a fault")

    def _in_flight(self) -> int:
        rows = [line.split(",") for line in self.proxy.ask("show stat").splitlines() if line]
        place = rows[0].index("scur")
        return next(int(row[place]) for row in rows if row[:2] == [BACKEND, "BACKEND"])

    def _check(self) -> None:
        for instance in self.instances:
            check_alive(instance)
        for service, process in self._services.items():
            self._trimtab.check(service, process)
        self.load.check()
