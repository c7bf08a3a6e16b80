"""Everything that the demo starts, and the picture of it."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from tests.e2e import report, view
from tests.e2e.confine import apart
from tests.e2e.faults import FAULTS, Fault
from tests.e2e.fleet import Instance, check_alive, fleet
from tests.e2e.haproxy import HAProxy, haproxy
from tests.e2e.load import Load, Request, load
from tests.e2e.observe import Observer, observe
from tests.e2e.services import NODE, Installation, install

INSTANCES = 3
STEPS = (
    "start fleet, HAProxy, load and trimtab",
    "healthy baseline",
    "fault, neutral weights",
    "fault, trimtab steers",
    "report",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, and for how many seconds."""

    fault: str
    instance: int
    rate: float
    seed: int
    baseline_seconds: float
    fault_seconds: float
    trimtab_seconds: float
    settle_seconds: float


@dataclass(slots=True)
class Course:
    """What happened: the marks between the phases, in monotonic seconds, and when the fault began by the wall clock."""

    start: float = math.nan
    fault: float = math.nan
    trimtab: float = math.nan
    end: float = math.nan
    fault_unix_ns: int = 0

    def phases(self, requests: list[Request], settle_seconds: float) -> dict[str, report.Phase]:
        cuts = {
            report.BASELINE: (self.start, self.fault),
            report.FAULT: (self.fault, self.trimtab),
            report.TRIMTAB: (self.trimtab, self.end),
            report.SETTLED: (self.trimtab + settle_seconds, self.end),
        }
        return {name: report.phase(name, requests, *cut) for name, cut in cuts.items()}


class Stage:
    """Everything that runs, and the picture of it."""

    def __init__(self, console: Console, plan: Plan, stack: ExitStack) -> None:
        self.console, self.plan, self._stack = console, plan, stack
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self._shown: set[str] = set()
        self._live: Live | None = None

    def build(self) -> None:
        """Start all but the actuator."""
        enter = self._stack.enter_context
        directory = Path(enter(tempfile.TemporaryDirectory(prefix="trimtab-demo-")))
        self.console.print(f"starting {INSTANCES} TorchServe instances, HAProxy, the load generator, trimtab …")
        self.instances: list[Instance] = enter(fleet(directory, INSTANCES))
        self.proxy: HAProxy = enter(haproxy(directory, self.instances))
        if self.fault.apart:
            enter(apart(self.faulty, [i for i in self.instances if i is not self.faulty]))
        self.trimtab: Installation = install(directory, self.proxy.socket)
        self.start_service("collector")
        self.start_service("agent")
        self.load: Load = enter(load(self.proxy.address, self.plan.rate, self.plan.seed, directory / "requests.csv"))
        self.observer: Observer = enter(observe(self.trimtab.collector, self.proxy))
        if self.console.is_terminal:
            self._live = enter(Live(console=self.console, refresh_per_second=4, transient=True))

    @property
    def fault(self) -> Fault:
        return FAULTS[self.plan.fault]

    @property
    def faulty(self) -> Instance:
        return self.instances[self.plan.instance]

    @property
    def subjects(self) -> dict[str, str]:
        """trimtab's ids of the instances, and their names at HAProxy."""
        return {f"{NODE}/{i.port}": i.name for i in self.instances}

    def start_service(self, name: str) -> None:
        self._services[name] = self._stack.enter_context(self.trimtab.run(name))

    def break_instance(self) -> None:
        self._stack.enter_context(self.fault.apply(self.faulty))

    def play(self, step: int, seconds: float) -> None:
        """Let `seconds` pass in this step, show what happens. Raises TrimtabError when something died."""
        ends = time.monotonic() + seconds
        if not self._live:
            self.console.print(f"{STEPS[step]}: {seconds:.0f} s")
        while time.monotonic() < ends:
            for instance in self.instances:
                check_alive(instance)
            for name, process in self._services.items():
                self.trimtab.check(name, process)
            self.load.check()
            self._show(step, ends)
            time.sleep(min(0.25, max(0.0, ends - time.monotonic())))

    def end_picture(self) -> None:
        """Leave the terminal to what is printed from now on."""
        if self._live:
            self._live.stop()

    def _show(self, step: int, ends: float) -> None:
        incidents = list(self.observer.incidents.values())
        subject = f"{NODE}/{self.faulty.port}"
        if self._live:
            table = view.fleet(self.observer, self.subjects, subject if step >= 2 else "")
            self._live.update(view.live(STEPS, step, ends, table, incidents))
        for line in (view.one_line(i) for i in incidents):
            if not self._live and line not in self._shown:
                self._shown.add(line)
                self.console.print(line, highlight=False)
