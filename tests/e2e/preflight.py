"""What the demo needs of this machine, looked at before anything is started."""

from __future__ import annotations

import importlib.util
import os
import shutil

from trimtab import Exit, TrimtabError

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
