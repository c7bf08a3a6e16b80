"""XID errors: told once by two sources, sticky until they are truly over."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.nvml.stub import DRIVER_NOT_LOADED, GPU, NOT_SUPPORTED, build, of, read, step
from trimtab.agent.nvml.latch import Latch
from trimtab.agent.nvml.sightings import ERRORS_MAX, PAIR_SECONDS, WAITING_MAX, Sightings
from trimtab.agent.nvml.xid_faults import IDLE_WATTS_MIN, XidFaults
from trimtab.agent.wire.columns import TEXT_MAX
from trimtab.agent.xid import CATALOGUE, STICKY, Action, is_fatal, look_up

FALLEN, PAGE_FAULT, STOPPED = 79, 31, 46


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


# The catalogue


def test_every_documented_code_says_what_it_is_and_what_to_do() -> None:
    documented = {
        13,
        31,
        32,
        38,
        *range(43, 47),
        48,
        *range(61, 65),
        68,
        69,
        74,
        79,
        92,
        *range(94, 96),
        *range(119, 127),
    }
    documented |= {109, 136, 137, 140, 143, *range(144, 151), 154, *range(155, 173)}
    assert documented <= CATALOGUE.keys()
    for code, xid in CATALOGUE.items():
        assert xid.code == code
        assert len(str(xid)) < TEXT_MAX
        assert f"XID {code}: " in str(xid)


def test_what_is_sticky_is_what_takes_more_than_a_restart_of_the_application() -> None:
    sticky = {code for code, xid in CATALOGUE.items() if xid.sticky}
    assert sticky >= {46, 48, 62, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158}
    assert not sticky & {13, 31, 43, 45, 63, 68, 92, 94, 154}


def test_the_page_has_every_code() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "gpu.md").read_text()
    rows = [
        row.strip("| ").split(" | ") for row in page.partition("## Every code")[2].splitlines() if row.startswith("| ")
    ]
    listed: dict[int, list[str]] = {}
    for codes_of_row, *what in rows[2:]:
        for part in codes_of_row.split(", "):
            first, _, last = part.partition("–")
            listed |= dict.fromkeys(range(int(first), int(last or first) + 1), what)
    assert {code: what[:3] for code, what in listed.items()} == {
        code: [xid.meaning, xid.suspects, xid.action.value] for code, xid in CATALOGUE.items()
    }
    assert {code for code, what in listed.items() if "yes" in what[-1]} == {c for c, x in CATALOGUE.items() if x.sticky}


def test_whom_nvidia_suspects_first() -> None:
    first = {code: CATALOGUE[code].suspects.split(", ")[0] for code in (13, 31, 32, 43, 79, 110, 137)}
    assert first == {13: "application", 31: "application", 32: "system", 43: "application", 79: "hardware"} | {
        110: "hardware",
        137: "application",
    }
    assert all("hardware" in CATALOGUE[code].suspects for code in (13, 31, 137))


def test_unknown_codes_say_so() -> None:
    assert "no meaning" in str(look_up(999))
    assert not look_up(999).sticky


def test_links_of_the_fifth_generation_are_faulty_only_where_the_log_says_fatal() -> None:
    assert look_up(149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6)").action is Action.CHECK_LINKS
    assert look_up(149, "NETIR_LINK_DOWN Nonfatal XC1 i2 Link 17").action is Action.NOTHING
    assert look_up(149).action is Action.NOTHING
    assert [is_fatal(text) for text in ("Fatal, Link 28", "Non-fatal, Link 29", "")] == [True, False, False]


# The state machine. Times are whole seconds.

codes = st.sampled_from(sorted(CATALOGUE))
sticky_codes = st.sampled_from(sorted(code for code, xid in CATALOGUE.items() if xid.action in STICKY))
times = st.integers(0, 10_000).map(float)


def raised(code: int, at: float = 100.0) -> XidFaults:
    faults = XidFaults()
    assert faults.seen(CATALOGUE[code], at)
    return faults


@given(st.lists(st.tuples(codes, times)))
def test_only_sticky_errors_stand_and_the_gravest_is_told(seen: list[tuple[int, float]]) -> None:
    faults = XidFaults()
    for code, at in seen:
        faults.seen(CATALOGUE[code], at)
    gravities = [STICKY[CATALOGUE[code].action] for code, _ in seen if CATALOGUE[code].sticky]
    gravest = faults.gravest
    assert (STICKY[gravest.action] if gravest else 0) == max(gravities, default=0)


@given(sticky_codes, times, st.integers(0, 5))
def test_what_the_driver_never_asked_for_is_not_over_because_it_asks_for_nothing(code: int, at: float, n: int) -> None:
    faults = raised(code, at)
    assert [faults.recovery(0, at + 1 + i) for i in range(n)] == [[]] * n
    assert faults.gravest is not None


@given(sticky_codes, times)
def test_what_the_driver_asked_for_is_over_when_it_asks_no_more(code: int, at: float) -> None:
    faults = raised(code, at)
    assert faults.recovery(1, at) == []
    assert faults.recovery(2, at + 5) == []
    assert faults.recovery(0, at + 10) == [CATALOGUE[code]]
    assert faults.gravest is None
    assert faults.recovery(0, at + 20) == []


def test_an_error_after_the_recovery_stands_anew() -> None:
    faults = raised(STOPPED)
    faults.recovery(1, 110)
    assert not faults.seen(CATALOGUE[STOPPED], 120)  # again, and the driver has not asked since
    assert faults.recovery(0, 130) == []
    assert faults.gravest is not None


@given(sticky_codes, times, times)
def test_a_driver_that_was_loaded_later_knows_nothing_of_it(code: int, at: float, loaded: float) -> None:
    faults = raised(code, at)
    assert faults.driver_loaded(loaded) == ([CATALOGUE[code]] if loaded > at else [])


@given(sticky_codes, times, st.floats(0, 1e5), st.floats(0, 1e6))
def test_it_was_reset_where_no_gpu_could_have_used_so_little_since(
    code: int, at: float, later: float, joules: float
) -> None:
    over = raised(code, at).used(joules, at + later)
    if joules > IDLE_WATTS_MIN * later + 1:
        assert over == []
    elif 0 < joules < IDLE_WATTS_MIN * later - 1:
        assert over == [CATALOGUE[code]]
    elif joules == 0:  # a counter that does not count
        assert over == []


sights = st.lists(st.tuples(st.integers(0, 50), st.sampled_from([True, False, None])), max_size=40)


@given(sights, st.sampled_from([0.0, 60.0]))
def test_a_latch_is_what_its_law_says(sights: list[tuple[int, bool | None]], hold: float) -> None:
    latch = Latch(hold)
    now, state = 0.0, None
    since_bad: list[tuple[float, bool | None]] = []
    for gap, condition in sights:
        now += gap
        before = latch.raised
        change = latch.step(now, condition)
        since_bad = [] if condition is True else [*since_bad, (now, condition)]
        assert change is None or (change == latch.raised and before == (not change))
        if condition is True:
            assert latch.raised is True
        elif before is True and latch.raised is False:
            # Every sight within the hold was without it, and known.
            well = [at for at, seen in reversed(since_bad) if seen is False]
            unknown = [at for at, seen in since_bad if seen is None]
            assert condition is False
            assert now - min(at for at in well if not unknown or at > max(unknown) or at == now) >= hold
        elif condition is None:
            assert latch.raised == before
        state = latch.raised
    if hold == 0.0 and any(seen is not None for _, seen in sights):
        assert state == [seen for _, seen in sights if seen is not None][-1]


@given(st.lists(st.sampled_from(["kernel log", "NVML"]), max_size=60))
def test_of_two_sources_the_one_that_saw_more_counts(sources: list[str]) -> None:
    sightings = Sightings()
    new = sum(sightings.is_new(source, GPU, FALLEN, 5.0) for source in sources)  # type: ignore[arg-type]
    assert max(sources.count("kernel log"), sources.count("NVML")) <= new + min(
        map(sources.count, ("kernel log", "NVML"))
    )
    assert new == expected(sources)


def expected(sources: list[str]) -> int:
    """Each sighting takes one of the other source that still waits, whichever came first."""
    waiting = {"kernel log": 0, "NVML": 0}
    new = 0
    for source in sources:
        other = "NVML" if source == "kernel log" else "kernel log"
        if waiting[other]:
            waiting[other] -= 1
        else:
            waiting[source] += 1
            new += 1
    return new


@given(st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_one_burst_told_by_both_is_counted_once(log: int, nvml: int, log_first: bool) -> None:
    sightings = Sightings()
    bursts = [("kernel log", log), ("NVML", nvml)]
    told = [source for source, n in (bursts if log_first else bursts[::-1]) for _ in range(n)]
    assert sum(sightings.is_new(source, GPU, FALLEN, 5.0) for source in told) == max(log, nvml)  # type: ignore[arg-type]


class Compared(str):
    """Counts how often it is compared."""

    times = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return str.__eq__(self, other)


def test_a_sighting_costs_the_same_however_many_wait() -> None:
    sightings = Sightings()
    for _ in range(WAITING_MAX // 4):
        assert sightings.is_new("kernel log", GPU, FALLEN, 5.0)
    for _ in range(100):
        assert sightings.is_new("NVML", Compared("n/gpu/other"), FALLEN, 5.0)
    assert Compared.times <= 1000


def test_the_errors_that_wait_are_limited() -> None:
    sightings = Sightings()
    for code in range(ERRORS_MAX + 1):
        assert sightings.is_new("kernel log", GPU, code, 5.0)
    assert sightings.is_new("NVML", GPU, 0, 5.0)  # the oldest gave way
    assert not sightings.is_new("NVML", GPU, ERRORS_MAX, 5.0)


def test_long_after_or_elsewhere_it_is_another() -> None:
    sightings = Sightings()
    assert sightings.is_new("NVML", GPU, FALLEN, 0.0)
    assert sightings.is_new("kernel log", "n/gpu/other", FALLEN, 1.0)
    assert sightings.is_new("kernel log", GPU, STOPPED, 1.0)
    assert sightings.is_new("kernel log", GPU, FALLEN, PAIR_SECONDS + 1.0)


# The collector, on the stub library and records of the kernel


def line(code: int, text: str = "pid=7, name=python", gpu: int = 0, seconds: float = 1.0) -> str:
    return f"4,{round(seconds * 1e6)},{round(seconds * 1e6)},-;NVRM: Xid (PCI:0000:{0x41 + gpu:02x}:00): {code}, {text}"


def xids(reading: dict[str, list[list[object]]]) -> list[list[object]]:
    return [event for event in reading["events"] if event[2] == "xid"]


def names(reading: dict[str, list[list[object]]]) -> list[tuple[object, object]]:
    return [(event[2], event[3]) for event in reading["events"]]


def test_both_sources_tell_of_one_error(driver: Path) -> None:
    nvml = f"xid 0 {PAGE_FAULT} 0"
    steps = [step(), step(nvml, log=[line(PAGE_FAULT)], after=1), step(nvml, after=1)]
    quiet, together, after = read(driver, steps, "gpu_faults")
    assert quiet["events"] == after["events"] == []
    ((kind, subject, _, code, detail),) = xids(together)
    assert (kind, subject, code) == ("gpu", GPU, PAGE_FAULT)
    assert detail.startswith("XID 31: page fault")
    for part in ("application, driver", "restart the application", "pid=7"):
        assert part in detail
    assert of(together)["xids_per_second"] == 1
    assert of(together)["fault_xid"] == 0
    assert of(quiet)["fault_xid"] == 0
    assert math.isnan(of(quiet)["xids_per_second"])


def test_the_second_source_may_come_a_window_later(driver: Path) -> None:
    nvml = [f"xid 0 {FALLEN} 0"]
    for steps in (
        [step(), step(*nvml, after=1), step(*nvml, log=[line(FALLEN)], after=1)],
        [step(), step(log=[line(FALLEN)], after=1), step(*nvml, after=1)],
    ):
        readings = read(driver, steps, "gpu_faults")
        assert sum(len(xids(reading)) for reading in readings) == 1
        assert [of(reading)["fault_xid"] for reading in readings] == [0, FALLEN, FALLEN]


@pytest.mark.parametrize("by", ["log", "NVML"])
def test_twenty_three_errors_are_read_as_that(driver: Path, by: str) -> None:
    told = {"log": {"log": [line(13)] * 23}, "NVML": {}}[by]
    lines = ["xid 1 13 0"] * 23 if by == "NVML" else []
    _, reading = read(driver, [step("count 0 2 0"), step("count 0 2 0", *lines, after=1, **told)], "gpu_faults")
    subject = "n/gpu/GPU-0001" if by == "NVML" else GPU
    ((_, whose, _, _, detail),) = xids(reading)
    assert whose == subject
    assert "(23 times)" in detail
    assert of(reading, subject)["xids_per_second"] == 23


def test_an_error_from_before_the_agent_stands_but_is_not_told_again(driver: Path) -> None:
    history = [line(PAGE_FAULT), line(FALLEN, seconds=900)]
    first, second = read(driver, [step(log=history), step()], "gpu_faults")
    assert of(first)["fault_xid"] == of(second)["fault_xid"] == FALLEN
    assert first["events"] == second["events"] == []


LOADED = "4,1,{},-;NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.65.06"


def test_a_driver_loaded_after_it_clears_it(driver: Path) -> None:
    for loaded, expected_code in ((500, FALLEN), (950, 0)):
        history = [line(FALLEN, seconds=900), LOADED.format(loaded * 10**6)]
        (reading,) = read(driver, [step(log=sorted(history, key=lambda one: int(one.split(",")[2])))], "gpu_faults")
        assert of(reading)["fault_xid"] == expected_code


RECOVERY, ENERGY = "field:230:0 0 {} 0", "field:83:0 0 {} 0"
MUCH = ENERGY.format(10**12)


def test_it_is_over_when_the_driver_asks_for_no_recovery_any_more(driver: Path) -> None:
    told = [line(STOPPED)]
    actions = [step(MUCH, log=[]), step(MUCH, RECOVERY.format(1), log=told), step(MUCH, RECOVERY.format(1)), step(MUCH)]
    readings = read(driver, actions, "gpu_faults")
    assert [of(reading)["fault_xid"] for reading in readings] == [0, STOPPED, STOPPED, 0]
    assert [of(reading)["recovery_action"] for reading in readings] == [0, 1, 1, 0]
    assert names(readings[1]) == [("xid", STOPPED), ("fault_raised", STOPPED)]
    assert names(readings[2]) == []
    assert names(readings[3]) == [("fault_cleared", STOPPED)]


def test_a_driver_that_never_asks_clears_nothing(driver: Path) -> None:
    readings = read(driver, [step(MUCH), step(MUCH, log=[line(STOPPED)]), *[step(MUCH)] * 30], "gpu_faults")
    assert [of(reading)["fault_xid"] for reading in readings] == [0, *[STOPPED] * 31]


def test_what_the_log_says_the_driver_asked_for_counts_across_a_restart_of_the_agent(driver: Path) -> None:
    asked = line(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", seconds=901)
    history = [line(STOPPED, seconds=900), asked]
    still, over = (
        read(driver, [step(MUCH, field, log=history)], "gpu_faults")[0] for field in (RECOVERY.format(1), "")
    )
    assert of(still)["fault_xid"] == STOPPED
    assert of(over)["fault_xid"] == 0
    assert over["events"] == []


def test_a_gpu_that_used_hardly_any_energy_since_was_reset(driver: Path) -> None:
    unsupported = f"field:230:0 0 0 {NOT_SUPPORTED}"
    joules = {200: 0, 2000: STOPPED}  # in the 510 s since, at the least 1530 J
    for used, expected_code in joules.items():
        lines = (unsupported, ENERGY.format(used * 1000))
        (reading,) = read(driver, [step(*lines, log=[line(STOPPED, seconds=500)])], "gpu_faults")
        assert of(reading)["fault_xid"] == expected_code
        assert "recovery_action" not in of(reading)


def test_links_of_the_fifth_generation(driver: Path) -> None:
    texts = ("NETIR_LINK_DOWN Nonfatal XC1 i2 Link 17", "NETIR_LINK_EVT  Fatal   XC0 i0 Link 01")
    steps = [step(MUCH), *(step(MUCH, log=[line(149, text)], after=1) for text in texts)]
    _, mild, fatal = read(driver, steps, "gpu_faults")
    assert (of(mild)["fault_xid"], of(fatal)["fault_xid"]) == (0, 149)


def test_unknown_codes_and_gpus_are_told(driver: Path) -> None:
    _, reading = read(driver, [step(), step("xid 99 48 0", log=[line(999), line(31, gpu=9)])], "gpu_faults")
    told = {(subject, code) for _, subject, _, code, _ in xids(reading)}
    assert told == {(GPU, 999), ("n/gpu/PCI-0000:4a:00", 31), ("n/gpu/unknown", 48)}


def test_the_log_names_gpus_that_nvml_cannot(driver: Path) -> None:
    history = ["4,1,1,-;NVRM: GPU at PCI:0000:4a:00: GPU-dead-beef"]
    dead = f"nvmlInitWithFlags 0 0 {DRIVER_NOT_LOADED}"
    first, reading = read(driver, [step(dead, log=history), step(dead, log=[line(FALLEN, gpu=9)])], "gpu_faults")
    assert first["values"] == {}
    assert [event[1] for event in xids(reading)] == ["n/gpu/GPU-dead-beef"]
    assert of(reading, "n/gpu/GPU-dead-beef")["fault_xid"] == FALLEN


def test_a_gpu_that_comes_back_is_listened_to_again(driver: Path) -> None:
    away, back = step("count 0 2 0", "nvmlDeviceGetHandleByIndex_v2 1 0 15"), step("count 0 2 0")
    told = step("count 0 2 0", "xid 1 79 0", log=[line(31, gpu=1)])
    *_, reading = read(driver, [away, away, back, told], "gpu_faults")
    assert {(event[1], event[3]) for event in xids(reading)} == {("n/gpu/GPU-0001", 79), ("n/gpu/GPU-0001", 31)}
    assert of(reading, "n/gpu/index-1") == {}  # it has its name again


def test_without_the_log_nvml_tells_and_what_was_before_is_unknown(driver: Path) -> None:
    quiet, reading = read(driver, [step(), step(f"xid 0 {FALLEN} 0")], "gpu_faults", has_log=False)
    assert "fault_xid" not in of(quiet)
    assert names(reading) == [("xid", FALLEN), ("fault_raised", FALLEN)]
    assert of(reading)["fault_xid"] == FALLEN


def test_a_driver_without_events_leaves_the_log(driver: Path) -> None:
    for call in ("nvmlEventSetCreate", "nvmlDeviceRegisterEvents"):
        state = f"{call} 0 0 {NOT_SUPPORTED}"
        _, reading = read(driver, [step(state), step(state, log=[line(FALLEN)])], "gpu_faults")
        assert len(xids(reading)) == 1


def test_without_either_source(driver: Path, tmp_path: Path) -> None:
    (nothing,) = read(driver, [step(f"nvmlInitWithFlags 0 0 {DRIVER_NOT_LOADED}")], "gpu_faults", has_log=False)
    assert "no NVML" in nothing["unavailable"]
    assert "kernel log" in nothing["unavailable"]
    assert nothing["remedy"]
    (no_gpus,) = read(tmp_path, [step()], "gpu_faults")
    assert no_gpus["remedy"] == ""


def test_a_storm_makes_one_event_a_code(driver: Path) -> None:
    storm = [line(code) for code in (13, 31, 43) for _ in range(1000)]
    _, reading = read(driver, [step(), step(log=storm, after=1)], "gpu_faults")
    assert len(reading["events"]) == 3
    assert of(reading)["xids_per_second"] == 3000


def test_a_lost_gpu_keeps_its_fault(driver: Path) -> None:
    lost = "nvmlDeviceGetFieldValues 0 0 15"
    readings = read(driver, [step(MUCH), step(MUCH, log=[line(FALLEN)]), step(lost), step(MUCH)], "gpu_faults")
    assert [of(reading)["fault_xid"] for reading in readings] == [0, FALLEN, FALLEN, FALLEN]
    assert "recovery_action" not in of(readings[2])


def test_what_the_driver_asks_for_is_known_where_the_gpu_itself_is_lost(driver: Path) -> None:
    (reading,) = read(driver, [step(RECOVERY.format(2), "field:83:0 0 0 15")], "gpu_faults")
    assert of(reading)["recovery_action"] == 2


def test_an_error_in_a_mig_instance_is_its_gpus(driver: Path) -> None:
    contained = line(94, "pid=7194, Contained: CE User Channel (0x9). RST: No, D-RST: No").replace(
        ":41:00)", ":41:00 GPU-I:05)"
    )
    _, reading = read(driver, [step(), step(log=[contained], after=1)], "gpu_faults")
    assert [(event[1], event[3]) for event in xids(reading)] == [(GPU, 94)]
