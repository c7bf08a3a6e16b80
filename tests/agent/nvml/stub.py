"""Runs a GPU collector on the stub of NVML. Each time in a process of its own, for pynvml loads its library once and for all."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOT_SUPPORTED, DRIVER_NOT_LOADED, LOST, RESET_REQUIRED, UNKNOWN, HANG = 3, 9, 15, 16, 999, 1000
GPU = "n/gpu/GPU-0000"

# Takes one JSON array a line, and reads it in a fork of its own, which prints one JSON object a step and then how it ended. Python and
# what it imports are started once.
_READ = """
import json, math, os, sys, traceback
from pathlib import Path
from trimtab.agent import kmsg
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors import gpu, gpu_faults
from trimtab.agent.registry import Host, Instance, Reading, Unavailable

def run(name, steps, has_log, instances):
    lines = []

    def next_line(_fd, _size):
        if not lines:
            raise BlockingIOError
        return lines.pop(0).encode()

    def open_log():
        if not has_log:
            raise Unavailable("the kernel log may not be read", "allow it")
        return kmsg.Log("/dev/null", next_line)

    collector = gpu_faults.COLLECTOR(open_log) if name == "gpu_faults" else gpu.COLLECTOR()
    clock = ManualClock()
    clock.advance(1000.0)
    read_at = math.nan
    for step in steps:
        Path(os.environ["NVML_STUB"]).write_text(step["state"].replace("ME", str(os.getpid())))
        lines += step["log"]
        clock.advance(step["after"])
        if step is steps[0]:
            try:
                collector.open(Host("n", clock))
            except Unavailable as error:
                print(json.dumps({"unavailable": error.reason, "remedy": error.remedy}))
                return
            lines += step["new"]
        now = clock.monotonic()
        me = [Instance(one, "torchserve", os.getpid(), 0.0, 80, 0, ()) for one in step.get("instances", instances)]
        reading = Reading(me, now - read_at)
        read_at = now
        collector.read(reading)
        values = {f"{subject} {name}": value for (kind, subject, name), value in reading.values.items()}
        labels = {subject: labels for (kind, subject), labels in reading.labels.items()}
        print(json.dumps({"values": values, "labels": labels, "events": reading.events}))
    collector.close()

for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            run(*json.loads(line))
        except BaseException:
            print(json.dumps({"failed": traceback.format_exc()}))
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"ended": status}), flush=True)
"""


def build(folder: Path, *flags: str) -> Path:
    """The stub library in `folder`."""
    library = folder / "libnvidia-ml.so.1"
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", *flags, soname, "-o", library, HERE / "nvml.c"]
    subprocess.run(command, check=True)
    return folder


def environment(library: Path) -> dict[str, str]:
    """In which a program finds it."""
    return os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_STUB": str(library / "state")}


def step(*lines: str, after: float = 10.0, log: Sequence[str] = (), new: Sequence[str] = ()) -> dict[str, Any]:
    """One window, `after` seconds since the one before. `log`: records of the kernel; for the first step, from before the agent, and
    `new` are those after."""
    state = lines if any(line.startswith("count") for line in lines) else ("count 0 1 0", *lines)
    return {"state": "\n".join(state) + "\n", "after": after, "log": list(log), "new": list(new)}


def read(
    library: Path,
    steps: Iterable[dict[str, Any]],
    collector: str = "gpu",
    has_log: bool = True,
    instances: Sequence[str] = ("n/80",),
) -> list[dict[str, Any]]:
    """What the collector read in each step."""
    reader = _reader(library)
    assert reader.stdin
    assert reader.stdout
    reader.stdin.write(json.dumps([collector, list(steps), has_log, list(instances)]) + "\n")
    reader.stdin.flush()
    readings: list[dict[str, Any]] = []
    while "ended" not in (said := json.loads(reader.stdout.readline())):
        readings.append(said)
    failed = [said["failed"] for said in readings if "failed" in said]
    assert not failed, failed[0]
    assert said["ended"] == 0
    return readings


@functools.cache
def _reader(library: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _READ]
    pipe = subprocess.PIPE
    reader = subprocess.Popen(command, env=environment(library), stdin=pipe, stdout=pipe, text=True)
    atexit.register(reader.communicate)
    return reader


def of(reading: dict[str, Any], subject: str = GPU) -> dict[str, float]:
    """The signals of one subject."""
    return {name.split(" ")[1]: value for name, value in reading["values"].items() if name.split(" ")[0] == subject}
