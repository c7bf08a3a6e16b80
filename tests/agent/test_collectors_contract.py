"""Every collector there is keeps the contract, and the contract's check can fail."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.agent.fakes import Fake
from trimtab.agent.check import NODE, check_collector
from trimtab.agent.collectors.own import Own, Vitals
from trimtab.agent.registry import Collector, Reading, Signal, Unavailable, discover
from trimtab.agent.sketch.loglinear import BUCKETS, Sketch

AGENT = Path(__file__).resolve().parents[2] / "agent"
COLLECTORS = list(discover())


@pytest.mark.parametrize("collector", COLLECTORS, ids=lambda collector: collector.name)
def test_collector(collector: type[Collector]) -> None:
    try:
        check_collector(collector)
    except Unavailable as error:
        pytest.skip(f"collector {collector.name}: {error}")


def test_a_signal_belongs_to_one_collector() -> None:
    owners = Counter((s.kind, s.name) for collector in COLLECTORS for s in collector.signals)
    assert [signal for signal, count in owners.items() if count > 1] == []
    names = [collector.name for collector in COLLECTORS]
    assert len(set(names)) == len(names)


class Made(Fake):
    """A class of fakes, as the check wants a class."""

    instances: list[Made]


def made(name: str, signals: tuple[Signal, ...], read: Callable[[Reading], object]) -> type[Made]:
    def init(self: Made) -> None:
        Fake.__init__(self, name, read, signals=signals)
        self.instances.append(self)

    return type("Made", (Made,), {"name": name, "signals": signals, "instances": [], "__init__": init})


SIGNALS = (Signal("value", "1", "help", "node"), Signal("latency", "s", "help", "node", sketch=True))


def sketch(probability: float = 1.0, sum_seconds: float = 0.0, size: int = BUCKETS) -> Sketch:
    return Sketch(np.zeros(size, dtype=np.int64), sum_seconds, probability)


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (lambda r: r.set("node", NODE, "other", 1.0), "other"),
        (lambda r: r.set("gpu", NODE, "value", 1.0), "value"),
        (lambda r: r.set("node", "elsewhere", "value", 1.0), "elsewhere"),
        (lambda r: r.set("node", NODE, "value", math.inf), "infinite"),
        (lambda r: r.set("node", NODE, "value", "1"), "no number"),
        (lambda r: r.set("node", NODE, "latency", 1.0), "latency"),
        (lambda r: r.sketch("node", NODE, "value", sketch()), "value"),
        (lambda r: r.sketch("node", NODE, "latency", sketch(probability=0)), "probability"),
        (lambda r: r.sketch("node", NODE, "latency", sketch(sum_seconds=math.nan)), "sum"),
        (lambda r: r.sketch("node", NODE, "latency", sketch(size=3)), "counts"),
        (lambda r: r.event("node", NODE, "Bad name"), "event"),
        (lambda r: r.event("node", NODE, "oom_kill", math.nan), "event"),
    ],
)
def test_a_broken_reading_is_found(read: Callable[[Reading], object], names: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=names):
        check_collector(made("broken", SIGNALS, read))


@pytest.mark.parametrize(
    ("signals", "names"),
    [
        ((SIGNALS[0], SIGNALS[0]), "twice"),
        ((Signal("value", "", "help", "node"),), "unit"),
        ((Signal("value", "1", "", "node"),), "help"),
        ((Signal("Value", "1", "help", "node"),), "Value"),
        ((Signal("value", "1", "help", "rack"),), "rack"),  # type: ignore[arg-type]
        ((Signal("latency", "ms", "help", "node", sketch=True),), "seconds"),
    ],
)
def test_a_broken_declaration_is_found(signals: tuple[Signal, ...], names: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=names):
        check_collector(made("broken", signals, lambda _: None))


def test_a_good_collector_passes_and_is_closed() -> None:
    def fill(reading: Reading) -> None:
        reading.set("node", NODE, "value", math.nan)
        reading.sketch("node", NODE, "latency", sketch(0.5))

    good = made("good", SIGNALS, fill)
    assert len(check_collector(good)) == 2
    (one,) = good.instances
    assert (one.opened, one.closed) == (1, 1)
    assert math.isnan(one.seconds[0])
    assert one.seconds[1] > 0


def test_what_a_read_may_raise() -> None:
    def raising(error: Exception) -> type[Made]:
        def read(_: Reading) -> None:
            raise error

        return made("bad", SIGNALS, read)

    for allowed in (OSError(5, "Input/output error"), Unavailable("gone")):
        bad = raising(allowed)
        with pytest.raises(type(allowed)):
            check_collector(bad)
        assert len(bad.instances[0].seconds) == 2
        assert bad.instances[0].closed == 1
    bug = raising(KeyError("bug"))
    with pytest.raises(KeyError):
        check_collector(bug)
    assert len(bug.instances[0].seconds) == 1
    assert bug.instances[0].closed == 1


def test_own_reports_the_vitals_and_its_cost() -> None:
    class Sick(Own):
        def __init__(self) -> None:
            super().__init__(Vitals(windows_lost=3, collector_failures=2, spool_bytes=4096))

    readings = check_collector(Sick)
    values = {name: value for (_, _, name), value in readings[1].values.items()}
    assert (values["agent_windows_lost"], values["agent_collector_failures"]) == (3, 2)
    assert values["agent_spool_bytes"] == 4096
    assert 10e6 < values["agent_memory_resident_bytes"] < 10e9
    assert values["agent_cpu_used_cores"] >= 0
    assert math.isnan(readings[0].values["node", NODE, "agent_cpu_used_cores"])


def test_only_the_loader_starts_a_process() -> None:
    starters = {"subprocess", "multiprocessing", "pty"}
    calls = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}
    found = set()
    for path in AGENT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names} & starters
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]} & starters
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                names = {node.attr} & calls or {name for name in (node.attr,) if name.startswith(("exec", "spawn"))}
            if names:
                found.add(str(path.relative_to(AGENT)))
    assert found <= {"bpf/loader.py"}
