"""What the analysis costs: CPU time a second of a fleet that sends one window a second a node, and memory.

    python -m tests.bench.analysis 10 100 1000 1000:0.1

"1000:0.1": a tenth of the 1,000 nodes gets slow, so that 100 incidents are opened and explained.

The windows are made beforehand by the simulated fleet of the detector's tests, for a few nodes, and every node of the fleet
replays one of them under its own name. The last line is JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.detector.fleet import START_NS, Fleet, Node, Noise, Recorder
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.collector.backlog import Backlog
from trimtab.collector.window import Window
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.watch import Watch
from trimtab.rootcause.rank import Ranking

INSTANCES, MODELS, TEMPLATES = 8, 4, 8
SECONDS_RECORDED, SECONDS_WARM = 30, 45
SECOND_NS = 1_000_000_000


def fleet(nodes: int) -> list[list[Window]]:
    """By second, then by node; the seconds repeat."""
    models = [f"m{k % MODELS}" for k in range(INSTANCES)]
    few = Fleet([models] * TEMPLATES, noise=Noise(bursts_per_second=0))
    recorded = [few.step() for _ in range(SECONDS_RECORDED)]
    schemas = [Node(f"n{k}", models, few.nodes[0].chance, few.nodes[0].noise, gpus=False).schema for k in range(nodes)]
    return [
        [replace(windows[k % TEMPLATES], node=f"n{k}", schema=schemas[k]) for k in range(nodes)] for windows in recorded
    ]


def stricken(windows: list[Window], share: float) -> list[Window]:
    """This share of the nodes answers eight times as slowly: an octave is 64 buckets."""
    step = round(1 / share)
    return [_slower(window) if k % step == 0 else window for k, window in enumerate(windows)]


def _slower(window: Window) -> Window:
    message = pb.Window()
    message.CopyFrom(window.message)
    for column in message.sketches:
        buckets = np.frombuffer(column.buckets, dtype="<u2") + 3 * 64
        column.buckets = buckets.astype("<u2").tobytes()
    return replace(window, message=message)


def measure(nodes: int, seconds: int, storm: float = 0.0) -> dict[str, float]:
    """CPU seconds of the analysis, in cores, and how much memory it took. `storm`: share of the nodes that get slow in the end."""
    recorded = fleet(nodes)
    struck = [stricken(windows, storm) for windows in recorded] if storm else recorded
    before = _resident_bytes()
    watch = Watch(DetectorSettings(), Ranking(), 180)
    journal = Recorder()
    watch.start(journal, lambda incident: None)
    observing = ticking = 0.0
    slowest = 0.0
    for second in range(SECONDS_WARM + seconds):
        now_ns = START_NS + second * SECOND_NS
        source = struck if second >= SECONDS_WARM else recorded
        windows = [replace(w, start_unix_ns=now_ns) for w in source[second % SECONDS_RECORDED]]
        began = time.process_time()
        watch.observe(windows)
        middle = time.process_time()
        watch.tick(now_ns + 1_200_000_000)
        end = time.process_time()
        if second >= SECONDS_WARM:
            observing += middle - began
            ticking += end - middle
            slowest = max(slowest, end - began)
    return {
        "observe_us_per_window": round(observing / seconds / nodes * 1e6, 1),
        "tick_ms": round(ticking / seconds * 1e3, 1),
        "cores": round((observing + ticking) / seconds, 3),
        "slowest_second": round(slowest, 3),
        "resident_bytes": _resident_bytes() - before,
        "incidents": len(journal.stored),
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def main(arguments: Sequence[str]) -> None:
    found = {}
    for argument in arguments or ("10", "100", "1000", "1000:0.1"):
        nodes, _, storm = argument.partition(":")
        found[argument] = measure(int(nodes), 25, float(storm or 0))
        print(argument, found[argument])
    found["handing over"] = hand_over(100)
    print("handing over", found["handing over"])
    print(json.dumps({f"analysis_{k}_{name}": v for name, line in found.items() for k, v in line.items()}))


def hand_over(nodes: int) -> dict[str, float]:
    """What it costs the collector: the writer's thread for a window, and the backlog's size a window."""
    backlog, recorded = Backlog(), fleet(nodes)
    for windows in recorded:
        backlog.put(windows)
        while backlog.take(0) is not None:
            pass
    began = time.process_time()
    for _ in range(10):
        for windows in recorded:
            backlog.put(windows)
        turn = backlog.take(0)
    spent, count = time.process_time() - began, 10 * len(recorded) * nodes
    assert turn is not None
    return {
        "put_us_per_window": round(spent / count * 1e6, 1),
        "bytes_per_window": turn.size_bytes // len(turn.entries),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
