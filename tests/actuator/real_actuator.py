"""`trimtab actuator` as a process, as it would run beside a balancer."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from tests.actuator.conftest import NODE, Collector


class Actuator:
    """`settings`: more lines of its section."""

    def __init__(self, directory: Path, collector: Collector, settings: str) -> None:
        file = directory / "trimtab.toml"
        file.write_text(
            f'[actuator]\nlisten = "127.0.0.1:0"\ncollector = "127.0.0.1:{collector.port}"\nnode = "{NODE}"\n'
            f"{settings}\n[actuator.guard]\nstale_seconds = 3\n"
        )
        self.state = directory / "state"
        self._log = (directory / "log").open("ab")
        self._command = [sys.executable, "-m", "trimtab", "--config", str(file), "actuator", "--state", str(self.state)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=self._log)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def children(self) -> dict[int, str]:
        """Those that run, and with which command: not the dead that nobody has waited for yet."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
                if int(parent) == self.process.pid and state != "Z":
                    found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text()
        return found

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self._log.close()
