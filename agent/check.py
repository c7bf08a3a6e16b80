"""The contract of a collector, as a check that every one of them has to pass; for those built outside this house too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from trimtab.agent.clock import SystemClock
from trimtab.agent.registry import Collector, Host, Instance, Kind, Reading, Unavailable
from trimtab.agent.sketch.loglinear import BUCKETS
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import check_name
from trimtab.agent.wire.talkers import check_talkers

NODE = "check"
# Above the kernel's PID_MAX_LIMIT: a process that is gone by the time it is looked at.
_GONE = Instance(f"{NODE}/1", "torchserve", (1 << 22) + 1, 1.0, 1, 0, ("127.0.0.1:1",))


def check_collector(collector_class: type[Collector], instances: Sequence[Instance] = ()) -> list[Reading]:
    """Open it, read twice, close it. The readings, for what else there is to check.

    One of the instances it is given has just died. Raises AssertionError that names what is broken; Unavailable, or OSError, where
    this host lacks what it needs to be opened or to be read at all.
    """
    check_declaration(collector_class)
    clock = SystemClock()
    collector = collector_class()
    collector.open(Host(NODE, clock))
    readings = []
    failed: Exception | None = None
    try:
        read_at = math.nan
        for _ in range(2):
            now = clock.monotonic()
            reading = Reading([*instances, _GONE], now - read_at)
            read_at = now
            try:
                collector.read(reading)
            except (OSError, Unavailable) as error:
                failed = error
                continue
            check_reading(collector, reading)
            readings.append(reading)
    finally:
        collector.close()
    if failed is not None and not readings:
        raise failed
    return readings


def check_declaration(collector: type[Collector] | Collector) -> None:
    """Its name and its signals."""
    check_name("name", collector.name)
    assert collector.signals, f"{collector.name}: no signals"
    keys = [(signal.kind, signal.name) for signal in collector.signals]
    assert len(set(keys)) == len(keys), f"{collector.name}: a signal is declared twice"
    for signal in collector.signals:
        check_name(f"{collector.name}: signal", signal.name)
        assert signal.kind in get_args(Kind), f"{collector.name}: {signal.name}: kind {signal.kind}"
        assert signal.unit, f"{collector.name}: {signal.name}: no unit"
        assert signal.help, f"{collector.name}: {signal.name}: no help"
        assert not (signal.sketch and signal.unit != "s"), f"{collector.name}: {signal.name}: sketches are in seconds"
        assert not (signal.sketch and signal.rate), f"{collector.name}: {signal.name}: a distribution is no rate"


def check_reading(collector: Collector, reading: Reading) -> None:
    """Only what is declared, about subjects of this node, and finite or unknown."""
    declared = {(signal.kind, signal.name): signal.sketch for signal in collector.signals}
    for (kind, subject, name), value in reading.values.items():
        where = f"{collector.name}: {kind} {name}"
        assert declared.get((kind, name)) is False, f"{where}: set, but not declared as a value"
        assert subject.split("/")[0] == NODE, f"{where}: of {subject}, which is not of this node"
        assert isinstance(value, float | int | np.number), f"{where}: {value!r} is no number"
        assert not math.isinf(value), f"{where}: infinite; unknown is NaN or left out"
    for (kind, _, name), sketch in reading.sketches.items():
        where = f"{collector.name}: {kind} {name}"
        assert declared.get((kind, name)) is True, f"{where}: set, but not declared as a distribution"
        assert sketch.counts.shape == (BUCKETS,), f"{where}: {sketch.counts.shape} counts"
        assert sketch.counts.min() >= 0, f"{where}: negative counts"
        assert 0 < sketch.probability <= 1, f"{where}: probability {sketch.probability}"
        assert 0 <= sketch.sum_seconds < math.inf, f"{where}: sum {sketch.sum_seconds}"
    for (kind, subject, name), talkers in reading.talkers.items():
        assert subject.split("/")[0] == NODE, f"{collector.name}: {kind} talkers {name}: of {subject}, not of this node"
        message = pb.Talkers(name=name, seconds=talkers.seconds)
        message.frequent_items, message.hll = talkers.frequent_items, talkers.hll
        check_talkers(message)
    for kind, _, name, value, _ in reading.events:
        check_name(f"{collector.name}: {kind} event", name)
        assert math.isfinite(value), f"{collector.name}: {kind} event {name}: {value}"
