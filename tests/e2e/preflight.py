"""What the demo needs of this machine, looked at before anything is started."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab import Exit, TrimtabError

_TRACEFS = Path("/sys/kernel/tracing")
_PROGRAMS = {"haproxy": "apt-get install haproxy", "java": "apt-get install openjdk-17-jre-headless"}
_MODULES = ("torch", "transformers", "ts", "model_archiver", "yaml", "psutil", "duckdb")


def check() -> None:
    """Raises TrimtabError that names the first thing that is missing, and how to get it."""
    if os.geteuid() != 0:
        raise TrimtabError(
            "the demo loads eBPF programs and makes faults with cgroups: run it as root (sudo)", Exit.SETTINGS
        )
    if len(os.sched_getaffinity(0)) < 2:
        raise TrimtabError("the demo needs two CPUs", Exit.SETTINGS)
    check_programs()


def check_programs() -> None:
    """Raises TrimtabError when the serving stack is not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    for program, remedy in _PROGRAMS.items():
        if shutil.which(program, path=path) is None:
            raise TrimtabError(f"{program} is not installed: {remedy}", Exit.SETTINGS)
    for module in _MODULES:
        if importlib.util.find_spec(module) is None:
            raise TrimtabError(
                f"Python module {module} is missing: pip install -e '.[agent,collector,fleet]'", Exit.SETTINGS
            )


@contextmanager
def tracefs(say: Callable[[str], None]) -> Iterator[None]:
    """Mount tracefs, which the eBPF programs attach by, for the time of the demo if it is not mounted."""
    if (_TRACEFS / "events").exists():
        yield
        return
    done = subprocess.run(
        ["mount", "-t", "tracefs", "nodev", str(_TRACEFS)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        say(f"tracefs cannot be mounted, so trimtab has no request latencies from the kernel: {done.stderr.strip()}")
        yield
        return
    say(f"tracefs was not mounted: mounted it at {_TRACEFS} for the demo")
    try:
        yield
    finally:
        subprocess.run(["umount", str(_TRACEFS)], capture_output=True, check=False)
