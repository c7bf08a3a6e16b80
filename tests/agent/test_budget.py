"""The budget: what it gives up and takes back, by its laws; and what the kernel says of a program that really runs."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agent.bpf import capability, cost, loader, syscall
from trimtab.agent.bpf.source import Source
from trimtab.agent.budget import ORDER, PATIENCE, PROBABILITIES, TRY_AGAIN_SECONDS, TRY_AGAIN_SECONDS_MAX, WORTH, Budget
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.budget import EVERY_SECONDS, BudgetKeeper
from trimtab.agent.probes import Probe, Probes
from trimtab.agent.registry import Host, Reading

CORES = 0.01
MISSING = [check.detail for check in capability.what_is_missing() if not check.ok]


class Fleet:
    """Probes with a cost a request, of which the sketches' part shrinks with sampling."""

    def __init__(self, costs: dict[str, float], own_cores: float = 0.0) -> None:
        self.costs = costs
        self.own_cores = own_cores
        self.budget = Budget(CORES, 1.0)
        self.now = 0.0
        self.log: list[str] = []

    def steps(self, count: int) -> None:
        for _ in range(count):
            on = {name: cores for name, cores in self.costs.items() if name not in self.budget.off}
            change = self.budget.step(self.now, self.own_cores, on)
            if change:
                self.log.append(f"{change.probe or 'sampling'} {'up' if change.on else 'down'}")
            self.now += EVERY_SECONDS


def test_within_the_budget_nothing_is_given_up() -> None:
    fleet = Fleet({"requests": CORES / 4, "scheduler": CORES / 8})
    fleet.steps(50)
    assert fleet.log == []
    assert fleet.budget.sampling_probability == 1.0


def test_it_gives_up_in_the_documented_order_and_the_requests_last() -> None:
    fleet = Fleet(dict.fromkeys(ORDER, CORES * 2))
    fleet.steps(PATIENCE + len(PROBABILITIES) + len(ORDER) - 2)
    assert fleet.log == ["sampling down"] * (len(PROBABILITIES) - 1) + [f"{name} down" for name in ORDER]


def test_one_peak_is_no_reason() -> None:
    fleet = Fleet({"requests": CORES / 4})
    for _ in range(20):
        fleet.costs["requests"] = CORES * 5
        fleet.steps(PATIENCE - 1)
        fleet.costs["requests"] = CORES / 4
        fleet.steps(1)
    assert fleet.log == []


def test_what_costs_nothing_stays_on() -> None:
    fleet = Fleet({"scheduler": CORES * WORTH / 2, "requests": CORES * 2})
    fleet.steps(6)
    assert "scheduler" not in fleet.budget.off
    assert fleet.budget.off == ("requests",)


def test_it_takes_back_when_the_load_has_gone() -> None:
    fleet = Fleet(dict.fromkeys(ORDER, CORES))
    fleet.steps(20)
    fleet.costs = dict.fromkeys(ORDER, CORES / 100)
    fleet.steps(int(len(ORDER) * (TRY_AGAIN_SECONDS_MAX / EVERY_SECONDS + 1)) + 10)
    assert fleet.budget.off == ()
    assert fleet.budget.sampling_probability == 1.0


def test_requests_are_seen_some_of_the_time_at_any_load() -> None:
    fleet = Fleet({"requests": CORES * 100})
    fleet.steps(400)
    tries = [index for index, line in enumerate(fleet.log) if line == "requests up"]
    assert len(tries) >= 400 * EVERY_SECONDS / (TRY_AGAIN_SECONDS + 4 * EVERY_SECONDS) - 2


def test_what_never_fits_is_tried_less_and_less() -> None:
    fleet = Fleet({"scheduler": CORES * 100, "requests": CORES / 10})
    fleet.steps(400)
    assert 3 <= fleet.log.count("scheduler up") <= 400 * EVERY_SECONDS / TRY_AGAIN_SECONDS_MAX + 4
    assert "requests down" not in fleet.log


def test_the_agents_own_work_does_not_starve_the_probes() -> None:
    fleet = Fleet({"requests": CORES * 0.45}, own_cores=CORES * 3)
    fleet.steps(30)
    assert fleet.log == []


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.dictionaries(st.sampled_from([*ORDER, "another"]), st.floats(0, 1))), max_size=60
    )
)
def test_whatever_comes_it_switches_on_only_what_it_switched_off(steps: list[tuple[float, dict[str, float]]]) -> None:
    budget = Budget(CORES, 0.5)
    off: set[str] = set()
    for index, (own_cores, probes) in enumerate(steps):
        on = {name: cores for name, cores in probes.items() if name not in off}
        change = budget.step(index * EVERY_SECONDS, own_cores, on)
        if change and change.probe:
            assert (change.probe in off) == change.on
            off ^= {change.probe}
        assert set(budget.off) == off
        assert 0 < budget.sampling_probability <= 0.5


class Counted:
    """A program whose cost is what the test says."""

    def __init__(self) -> None:
        self.programs = {"hook": -1}
        self.switched: list[bool] = []

    def switch(self, hook: str, on: bool) -> None:
        self.switched.append(on)


def test_a_probe_over_the_budget_is_switched_off_and_on_again_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"scheduler": 0.0}
    monkeypatch.setattr(cost, "counting", lambda: None)
    monkeypatch.setattr(cost, "nominal_seconds", lambda probes: {p.name: seconds[p.name] for p in probes})
    clock, probes, program = ManualClock(), Probes(), Counted()
    probe = Probe("scheduler", program, ["hook"])
    probes.add(probe)
    keeper = BudgetKeeper()
    keeper.open(Host("n", clock, probes, CORES))
    events: list[tuple[str, str]] = []
    values: dict[str, float] = {}

    def windows(count: int, cores: float) -> None:
        for _ in range(count):
            clock.advance(1.0)
            seconds["scheduler"] += cores
            reading = Reading((), 1.0)
            keeper.read(reading)
            events.extend((name, detail) for _, _, name, _, detail in reading.events)
            values.update({signal: value for (_, _, signal), value in reading.values.items()})

    windows(50, CORES * 2)
    assert program.switched == [False]
    assert values["agent_probes_off"] == 1
    assert values["agent_sampling_probability"] == PROBABILITIES[-1]
    assert [name for name, _ in events] == ["sampling_change", "sampling_change", "probe_off"]
    assert "scheduler" in events[-1][1]
    assert not probe.whole()
    windows(round(TRY_AGAIN_SECONDS) + 60, 0.0)
    assert program.switched == [False, True]
    assert ("probe_on") in [name for name, _ in events]
    assert not probe.whole()
    assert probe.whole()
    keeper.close()


def test_a_look_that_fails_at_its_beginning_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0

    def spent(probes: Sequence[Probe]) -> dict[str, float]:
        if clock.monotonic() == 11:
            raise OSError(errno.EBADF, "closed meanwhile")
        return dict.fromkeys((probe.name for probe in probes), seconds)

    monkeypatch.setattr(cost, "counting", lambda: None)
    monkeypatch.setattr(cost, "nominal_seconds", spent)
    clock, probes = ManualClock(), Probes()
    probes.add(Probe("scheduler", Counted(), ["hook"]))
    keeper = BudgetKeeper()
    keeper.open(Host("n", clock, probes, 1.0))
    used: list[float] = []
    for _ in range(25):
        clock.advance(1.0)
        seconds += 0.25
        reading = Reading((), 1.0)
        with contextlib.suppress(OSError):
            keeper.read(reading)
        used.extend(value for (_, _, name), value in reading.values.items() if name == "agent_probes_used_cores")
    assert set(used) == {0.25}
    keeper.close()


def test_the_nominal_cost_follows_the_hosts_counters() -> None:
    probes = [Probe("scheduler", Counted(), ["hook"]), Probe("unheard of", Counted(), ["hook"])]
    before = cost.nominal_seconds(probes)
    ours, theirs = os.pipe(), os.pipe()
    echo = threading.Thread(target=lambda: [os.write(theirs[1], os.read(ours[0], 1)) for _ in range(1000)])
    echo.start()
    for _ in range(1000):  # each is at least one switch to the other thread
        os.write(ours[1], b"x")
        os.read(theirs[0], 1)
    echo.join()
    after = cost.nominal_seconds(probes)
    assert before.keys() == after.keys() == {"scheduler"}
    assert after["scheduler"] - before["scheduler"] >= 1000 * cost.NOMINAL["scheduler"][1]
    for descriptor in (*ours, *theirs):
        os.close(descriptor)


@pytest.mark.ebpf
@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
def test_the_kernel_counts_the_run_time_while_asked_and_only_of_what_is_on(tmp_path: Path) -> None:
    text = '#include "hook.h"\nHOOK(inet_sock_set_state)\n{\n    return 0;\n}\n'
    path = tmp_path / "idle.c"
    path.write_text(text)
    program = loader.load(Source(file=str(path), maps=(), raw_tracepoints=("inet_sock_set_state",)))
    probe = Probe("tcp", program, ["inet_sock_set_state"])

    def connect() -> float:
        """What the probe ran for while ten connections came and went."""
        before = cost.run_seconds([probe])["tcp"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            for _ in range(10):
                socket.create_connection(server.getsockname()).close()
        return cost.run_seconds([probe])["tcp"] - before

    counting = syscall.count_run_time()
    assert connect() > 0
    probe.switch(on=False)
    assert connect() == 0
    probe.switch(on=True)
    assert connect() > 0
    cost.close(counting)
    program.close()
