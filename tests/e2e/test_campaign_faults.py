"""The campaign's faults on real instances: each hits one instance, and is undone exactly."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.agent.nvml import stub
from tests.e2e.archive import SLOW_SECONDS
from tests.e2e.campaign import disk, gpus, memory, network, version
from tests.e2e.campaign.cannot import Cannot
from tests.e2e.confine import memory_homes
from tests.e2e.faults import slow
from tests.e2e.fleet import Instance, fleet, predict
from trimtab import TrimtabError

pytestmark = pytest.mark.fleet
IDS = list(range(1000, 1064))


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """The least of several: what else runs here only adds."""
    taken = []
    for _ in range(times):
        began = time.monotonic()
        work()
        taken.append(time.monotonic() - began)
    return min(taken)


def queueing() -> str:
    return subprocess.run(
        ["/usr/sbin/tc", "qdisc", "show", "dev", "lo"], capture_output=True, text=True, check=True
    ).stdout


@contextmanager
def possible(fault: AbstractContextManager[None]) -> Iterator[None]:
    """The fault, or a test that is skipped."""
    try:
        with fault:
            yield
    except Cannot as why:
        pytest.skip(str(why))


def answer(instance: Instance) -> float:
    return seconds(lambda: predict(instance.address, IDS))


def test_slow_is_its_alone_and_undone(instances: list[Instance]) -> None:
    well = answer(instances[1])
    with slow(instances[1], 0.3):
        assert answer(instances[1]) > well + 0.25
        assert answer(instances[0]) < well + 0.25
    assert answer(instances[1]) < well + 0.25


def test_bandwidth_is_its_alone_and_undone(instances: list[Instance], root: None) -> None:
    before = queueing()
    # 120 kB take two seconds and more.
    large = [1000] * 20_000
    with possible(network.bandwidth(instances[1], 400_000)):
        assert seconds(lambda: predict(instances[0].address, large), 2) < 1
        assert seconds(lambda: predict(instances[1].address, large), 2) > 1
    assert queueing() == before


def test_loss_is_its_alone_and_undone(instances: list[Instance], root: None) -> None:
    before = queueing()
    with possible(network.loss(instances[1], 1.0)):
        predict(instances[0].address, IDS)
        with pytest.raises(OSError, match="timed out"):
            predict(instances[1].address, IDS, 0.5)
    assert queueing() == before
    predict(instances[1].address, IDS)


def test_what_is_there_already_is_left_alone(instances: list[Instance], root: None) -> None:
    with possible(network.loss(instances[1], 0.0)):
        before = queueing()
        with pytest.raises(Cannot, match="tc qdisc add on lo"), network.loss(instances[0], 1.0):
            pass
        assert queueing() == before


def test_pressure_is_undone(root: None, tmp_path: Path) -> None:
    def limits() -> dict[str, str]:
        homes = Path("/sys/fs/cgroup").glob("**/fleet-memory-*/memory.*")
        return {str(f): f.read_text() for f in homes if f.name in {"memory.limit_in_bytes", "memory.high"}}

    def major_faults(instance: Instance) -> int:
        stats = [Path(f"/proc/{p.pid}/stat").read_text() for p in instance.workers()]
        return sum(int(stat.rpartition(")")[2].split()[9]) for stat in stats)

    with memory_homes() as started_as, fleet(tmp_path, 1, started_as=started_as) as (single,):
        before = limits()
        assert len(before) == 1
        with possible(memory.swap(tmp_path)), possible(memory.pressure(single, 0.5)):
            assert limits() != before
            assert str(tmp_path) in Path("/proc/swaps").read_text()
            predict(single.address, IDS)
        assert limits() == before
        with memory.embeddings([single]):
            predict(single.address, IDS)
            with possible(memory.swap(tmp_path)), possible(memory.pressure(single)):
                swapped_in = major_faults(single)
                predict(single.address, IDS)
                assert major_faults(single) >= swapped_in + 100
        assert limits() == before
        assert str(tmp_path) not in Path("/proc/swaps").read_text()
    assert limits() == {}


def test_the_memory_of_others_is_not_limited(instances: list[Instance]) -> None:
    with pytest.raises(TrimtabError, match="no memory cgroup of its own"), memory.pressure(instances[0]):
        pass


def test_the_disk_is_read_for_each_request_and_saturation_ends(instances: list[Instance], tmp_path: Path) -> None:
    def reads() -> int:
        return sum(int(p.io_counters().read_bytes) for p in instances[0].workers())

    with disk.features(instances[:1]):
        before = reads()
        for _ in range(4):
            predict(instances[0].address, IDS)
        assert reads() - before >= 16 * 4096
    assert not instances[0].features.exists()
    with possible(disk.saturated(tmp_path, readers=1)):
        assert (tmp_path / "saturated").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_new_version_is_slower_and_taken_back(instances: list[Instance]) -> None:
    well = answer(instances[0])
    with version.loaded(instances[:1]):
        assert answer(instances[0]) < well + SLOW_SECONDS
        with version.rolled_out(instances[:1]):
            assert answer(instances[0]) > SLOW_SECONDS
            assert instances[0].ready()
    assert len(instances[0].workers()) == 1
    assert answer(instances[0]) < well + SLOW_SECONDS


def test_a_gpu_has_its_fault_alone_and_is_well_again(instances: list[Instance], tmp_path: Path) -> None:
    library = gpus.build(tmp_path / "nvml")
    stand_in = gpus.Gpus(library, instances)
    states = []

    def told() -> None:
        states.append({"state": (library / "state").read_text(), "after": 10.0, "log": [], "new": []})

    stand_in.write()
    told()
    with stand_in.throttled(instances[1]):
        told()
    with stand_in.uncorrected(instances[1]):
        told()
    with stand_in.halted(instances[1]):
        told()
    told()
    well, hot, broken, halted, again = (
        [stub.of(r, f"n/gpu/GPU-000{i}") for i in (0, 1)] for r in stub.read(library, states)
    )
    assert hot[1]["throttle_thermal"] == 1
    assert hot[1]["sm_clock_hertz"] < well[1]["sm_clock_hertz"]
    assert broken[1]["ecc_uncorrected_total"] == 3
    assert [state[0]["throttle_thermal"] for state in (well, hot, broken, halted, again)] == [0] * 5
    assert again[1].items() >= well[1].items()
    faults = [stub.of(r, "n/gpu/GPU-0001") for r in stub.read(library, states, "gpu_faults")]
    assert [f.get("fault_xid", 0) for f in faults] == [0, 0, 0, gpus.HALTED, 0]
