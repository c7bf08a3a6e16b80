"""GPUs, through the real nvidia-ml-py and a library that stands in for the driver's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agent.nvml.stub import (
    DRIVER_NOT_LOADED,
    GPU,
    HANG,
    LOST,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    UNKNOWN,
    build,
    environment,
    of,
    read,
    step,
)
from trimtab.agent.collectors.gpu import Gpu
from trimtab.agent.nvml.fast import FAST


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def two(first: int, second: int) -> int:
    return first << 32 | second


# CALL and VALUE in the stub's file, and what the collector makes of it.
DRIVEN = [
    ("nvmlDeviceGetUtilizationRates", two(12, 37), {"utilisation_ratio": 0.37, "memory_busy_ratio": 0.12}),
    ("nvmlDeviceGetMemoryInfo", 1 << 30, {"memory_used_bytes": 1 << 30, "memory_total_bytes": 80 << 30}),
    ("nvmlDeviceGetPowerUsage", 250_500, {"power_watts": 250.5}),
    ("nvmlDeviceGetEnforcedPowerLimit", 300_000, {"power_limit_watts": 300}),
    ("nvmlDeviceGetPowerManagementDefaultLimit", 700_000, {"power_limit_default_watts": 700}),
    (
        "nvmlDeviceGetPowerManagementLimitConstraints",
        two(200_000, 700_000),
        {"power_limit_min_watts": 200, "power_limit_max_watts": 700},
    ),
    ("nvmlDeviceGetTemperature", 61, {"temperature_celsius": 61}),
    ("nvmlDeviceGetTemperatureThreshold:0", 95, {"temperature_shutdown_celsius": 95}),
    ("nvmlDeviceGetTemperatureThreshold:1", 90, {"temperature_slowdown_celsius": 90}),
    ("nvmlDeviceGetTemperatureThreshold:2", 105, {"temperature_memory_max_celsius": 105}),
    ("field:82:0", 71, {"memory_temperature_celsius": 71}),
    ("nvmlDeviceGetClockInfo:1", 1410, {"sm_clock_hertz": 1.41e9}),
    ("nvmlDeviceGetClockInfo:2", 2619, {"memory_clock_hertz": 2.619e9}),
    ("nvmlDeviceGetMaxClockInfo:1", 1980, {"sm_clock_max_hertz": 1.98e9}),
    ("nvmlDeviceGetMaxClockInfo:2", 2620, {"memory_clock_max_hertz": 2.62e9}),
    ("nvmlDeviceGetPerformanceState", 8, {"performance_state": 8}),
    ("nvmlDeviceGetEncoderUtilization", two(7, 1000), {"encoder_busy_ratio": 0.07}),
    ("nvmlDeviceGetDecoderUtilization", two(9, 1000), {"decoder_busy_ratio": 0.09}),
    ("nvmlDeviceGetTotalEccErrors:0", 3, {"ecc_corrected_total": 3}),
    ("nvmlDeviceGetTotalEccErrors:1", 4, {"ecc_corrected_lifetime": 4}),
    ("nvmlDeviceGetTotalEccErrors:2", 5, {"ecc_uncorrected_total": 5, "fault_ecc": 1}),
    ("nvmlDeviceGetTotalEccErrors:3", 6, {"ecc_uncorrected_lifetime": 6}),
    (
        "nvmlDeviceGetRemappedRows",
        0x0203,
        {"row_remap_corrected": 3, "row_remap_uncorrected": 2, "row_remap_pending": 0, "row_remap_failure": 0},
    ),
    ("field:29:0", 11, {"retired_pages_corrected": 11}),
    ("field:30:0", 12, {"retired_pages_uncorrected": 12}),
    ("field:31:0", 1, {"retired_pages_pending": 1, "fault_retired_pages": 1}),
    ("nvmlDeviceGetCurrPcieLinkGeneration", 4, {"pcie_generation": 4}),
    ("nvmlDeviceGetCurrPcieLinkWidth", 8, {"pcie_width": 8}),
    ("nvmlDeviceGetMaxPcieLinkGeneration", 5, {"pcie_generation_max": 5}),
    ("nvmlDeviceGetMaxPcieLinkWidth", 16, {"pcie_width_max": 16}),
    ("nvmlDeviceGetPersistenceMode", 1, {"persistence_mode": 1}),
    ("nvmlDeviceGetEccMode", two(1, 0), {"ecc_mode": 1, "ecc_mode_pending": 0}),
    ("nvmlDeviceGetMigMode", two(0, 1), {"mig_mode": 0, "mig_mode_pending": 1}),
    ("nvmlDeviceGetGspFirmwareMode", two(1, 1), {"gsp_firmware": 1}),
    ("nvmlDeviceGetGpuFabricInfoV", two(0xAA, 3), {"fabric_state": 3, "fabric_degraded": 0}),
    ("nvmlDeviceGetGpuFabricInfoV", two(0xA9, 2), {"fabric_state": 2, "fabric_degraded": 1}),
    ("nvmlDeviceGetGpuFabricInfoV", two(0x4AA, 3), {"fabric_state": 3, "fabric_degraded": 1}),
]


def test_every_signal_has_its_value_and_unit_or_is_unknown(driver: Path) -> None:
    steps = [step(f"{call} 0 {value} {outcome}") for call, value, _ in DRIVEN for outcome in (0, NOT_SUPPORTED, LOST)]
    readings = [of(reading) for reading in read(driver, steps)]
    for at, (call, _, expected) in enumerate(DRIVEN):
        with_it, without, lost = readings[3 * at : 3 * at + 3]
        assert {name: with_it.get(name) for name in expected} == pytest.approx(expected), call
        unknown = {name for name in expected if not name.startswith("fault_")}
        assert not unknown & without.keys(), call
        if not call.startswith("field"):
            assert {name for name in lost if not name.startswith("fault_")} == {"lost"}, call
            assert lost["lost"] == lost["fault_lost"] == 1


def test_what_a_sleeping_or_old_gpu_does_not_say_takes_nothing_else_along(driver: Path) -> None:
    (whole,) = read(driver, [step("field:91:0 0 1 0")])
    (without,) = read(
        driver, [step(f"nvmlDeviceGetFieldValues 0 0 {NOT_SUPPORTED}", "nvmlDeviceGetPerformanceState 0 32 0")]
    )
    missing = of(whole).keys() - of(without).keys() - {"fault_retired_pages"}
    # Its two counters of bytes are rates, which a first reading has none of.
    assert missing == {
        "memory_temperature_celsius",
        "retired_pages_corrected",
        "retired_pages_uncorrected",
        "retired_pages_pending",
        "performance_state",
    }


def test_what_is_read_seldom_is_carried_and_read_again(driver: Path) -> None:
    limits = [step(f"nvmlDeviceGetEnforcedPowerLimit 0 {watts}000 0", after=1) for watts in range(300, 312)]
    got = [of(reading)["power_limit_watts"] for reading in read(driver, limits)]
    assert got == [300] * 10 + [310] * 2


def test_the_slow_readings_of_several_gpus_are_spread(driver: Path) -> None:
    steps = [
        step("count 0 2 0", *(f"nvmlDeviceGetCurrPcieLinkWidth {gpu} {at} 0" for gpu in (0, 1)), after=1)
        for at in range(1, 13)
    ]
    readings = read(driver, steps)
    seen = [[of(reading, f"n/gpu/GPU-000{gpu}")["pcie_width"] for reading in readings] for gpu in (0, 1)]
    assert [sorted(set(one)) for one in seen] == [[1, 6], [1, 11]]


def test_a_fabric_that_was_joined_in_vain_is_degraded(driver: Path) -> None:
    joined = [
        step("fabric_status 0 999 0", f"nvmlDeviceGetGpuFabricInfoV 0 {two(health, state)} 0")
        for health, state in ((0xAA, 3), (0, 3), (0xAA, 2))
    ]
    failed, without_health, under_way = (of(reading) for reading in read(driver, joined))
    assert failed["fabric_degraded"] == without_health["fabric_degraded"] == 1
    assert under_way["fabric_degraded"] == 0  # the status is not meant yet


BITS = {
    0x001: ("throttle_idle", None, None),
    0x002: ("throttle_applications_clocks", None, None),
    0x004: ("throttle_sw_power_cap", "throttle_power", "software power cap"),
    0x008: ("throttle_hw_slowdown", "throttle_hardware", "hardware slowdown"),
    0x010: ("throttle_sync_boost", None, None),
    0x020: ("throttle_sw_thermal", "throttle_thermal", "software thermal slowdown"),
    0x040: ("throttle_hw_thermal", "throttle_thermal", "hardware thermal slowdown"),
    0x080: ("throttle_hw_power_brake", "throttle_power", "hardware power brake"),
    0x100: ("throttle_display_clock", None, None),
}


def test_throttling_is_named_bit_by_bit(driver: Path) -> None:
    steps = [step(f"nvmlDeviceGetCurrentClocksEventReasons 0 {bit} 0") for bit in (0, *BITS, 0x100)]
    nothing, *readings, last = read(driver, steps)
    assert not any(value for name, value in of(nothing).items() if name.startswith("throttle_"))
    for reading, (signal, together, onset) in zip(readings, BITS.values(), strict=True):
        on = {name for name, value in of(reading).items() if name.startswith("throttle_") and value}
        assert on == {signal, together} - {None}
        told = [(name, detail) for _, _, name, _, detail in reading["events"]]
        assert told == ([("throttle_onset", onset)] if onset else [])
    assert last["events"] == []


def test_unknown_throttling_is_unknown_and_its_return_no_onset(driver: Path) -> None:
    call = "nvmlDeviceGetCurrentClocksEventReasons"
    calls = (call, "nvmlDeviceGetCurrentClocksThrottleReasons")
    unknown = step(*(f"{one} 0 0 {NOT_SUPPORTED}" for one in calls))
    _, between, back = read(driver, [step(f"{call} 0 0 0"), unknown, step(f"{call} 0 8 0")])
    assert not any(name.startswith("throttle_") for name in of(between))
    assert of(back)["throttle_hw_slowdown"] == 1
    assert back["events"] == []


@pytest.mark.parametrize("flag", ["-DOLD_DRIVER", "-DNEW_DRIVER"])
def test_calls_have_other_names_in_other_drivers(tmp_path: Path, flag: str) -> None:
    library = build(tmp_path, flag)
    reasons = "ThrottleReasons" if flag == "-DOLD_DRIVER" else "EventReasons"
    lines = (f"nvmlDeviceGetCurrentClocks{reasons} 0 64 0", "nvmlDeviceGetTemperature 0 55 0")
    (reading,) = read(library, [step(*lines)])
    assert of(reading)["throttle_thermal"] == 1
    assert of(reading)["temperature_celsius"] == 55


MANY = 1 << 32
"""More bytes than a count of 32 bits can tell."""


def test_counters_are_rates(driver: Path) -> None:
    counters = ("nvmlDeviceGetPcieReplayCounter", "field:197:0", "field:198:0")
    steps = [
        step(*(f"{name} 0 {of_it} 0" for name, of_it in zip(counters, values, strict=True)), after=2)
        for values in ((100, MANY + 5000, MANY), (110, MANY + 7000, MANY + 600), (3, 0, 0))
    ]
    first, second, wrapped = (of(reading) for reading in read(driver, steps))
    names = ("pcie_replays_per_second", "pcie_sent_bytes_per_second", "pcie_received_bytes_per_second")
    assert [second[name] for name in names] == [5, 1000, 300]
    assert not set(names) & (first.keys() | wrapped.keys())


def test_a_count_of_32_bits_that_wrapped_unseen_is_no_rate(driver: Path) -> None:
    before, after = 100, (100 + 50 * 10**9) % MANY  # 25 GB/s
    assert after > before
    readings = read(driver, [step(f"field:198:0 0 {count} 0", after=2) for count in (before, after)])
    assert "pcie_received_bytes_per_second" not in of(readings[1])


def test_what_was_counted_while_the_gpu_was_lost_is_no_rate(driver: Path) -> None:
    counts = [step(f"field:197:0 0 {MANY + n} 0", after=1) for n in (0, 100, 90_000, 90_100)]
    readings = read(driver, [*counts[:2], step(f"nvmlDeviceGetPowerUsage 0 0 {LOST}"), *counts[2:]])
    assert [of(reading).get("pcie_sent_bytes_per_second") for reading in readings] == [None, 100, None, None, 100]


def links(up: range, *errors: str, total: int = 4) -> list[str]:
    return [f"field:91:0 0 {total} 0", *(f"nvmlDeviceGetNvLinkState:{link} 0 1 0" for link in up), *errors]


def test_nvlink_that_counts_all_links_together(driver: Path) -> None:
    def counts(n: int) -> list[str]:  # flow control and data CRC, replays, recoveries
        return [f"field:{number}:0 0 {n * times} 0" for number, times in ((38, 10), (45, 20), (52, 40), (59, 80))]

    first, second = read(driver, [step(*links(range(3), *counts(n))) for n in (1, 2)])
    assert (of(first)["nvlink_links"], of(first)["nvlink_links_up"]) == (4, 3)
    assert "nvlink_crc_errors_per_second" not in of(first)
    got = [of(second)[f"nvlink_{name}_per_second"] for name in ("crc_errors", "replays", "recoveries")]
    assert got == [3, 4, 8]


def test_nvlink_that_counts_each_link(driver: Path) -> None:
    none = [f"field:{number}:0 0 0 {NOT_SUPPORTED}" for number in (38, 45, 52, 59)]
    each = [[f"field:163:{link} 0 {n} 0" for link, n in enumerate(counts)] for counts in ((5, 9), (15, 9), (15, 29))]
    up = [range(2), range(1), range(2)]
    steps = [step(*links(which, *none, *counts)) for which, counts in zip(up, each, strict=True)]
    _, second, third = (of(reading) for reading in read(driver, steps))
    assert second["nvlink_crc_errors_per_second"] == 1
    # The link that came back had counted meanwhile; when is not known.
    assert third["nvlink_crc_errors_per_second"] == 0


def test_nvlink_without_a_count_of_links(driver: Path) -> None:
    absent = [f"field:91:0 0 0 {NOT_SUPPORTED}", f"nvmlDeviceGetNvLinkState:2 0 0 {NOT_SUPPORTED}"]
    two_links, no_links = read(
        driver,
        [
            step(*absent, "nvmlDeviceGetNvLinkState:1 0 1 0"),
            step(*absent, f"nvmlDeviceGetNvLinkState 0 0 {NOT_SUPPORTED}"),
        ],
    )
    assert (of(two_links)["nvlink_links"], of(two_links)["nvlink_links_up"]) == (2, 1)
    assert "nvlink_links" not in of(no_links)


REMOTE_TYPE, REMOTE_PCI = "nvmlDeviceGetNvLinkRemoteDeviceType", "nvmlDeviceGetNvLinkRemotePciInfo_v2"


def ends(*readings: dict[str, Any]) -> list[dict[str, str]]:
    return [{k: v for k, v in one["labels"][GPU].items() if k.startswith("nvlink")} for one in readings]


def test_what_nvlinks_lead_to(driver: Path) -> None:
    buses = [f"{REMOTE_PCI}:{link} 0 {bus} 0" for link, bus in enumerate((0x42, 0x43, 0x42, 0xC5))]
    others = [f"{REMOTE_TYPE}:3 0 2 0", f"{REMOTE_TYPE}:4 0 255 0"]  # a switch, and what is not known
    readings = read(
        driver,
        [
            step(*links(range(1), *buses, total=5)),
            step(*links(range(5), *buses, *others, total=5)),
            step(*links(range(1, 2), total=5)),
        ],
    )
    all_of_them = {"nvlink_gpus": "0000:42:00,0000:43:00", "nvlink_switches": "0000:c5:00"}
    # One that is down does not say; what is known stays known.
    assert ends(*readings) == [{"nvlink_gpus": "0000:42:00"}, all_of_them, all_of_them]


def test_where_nothing_is_known_of_the_other_ends_nothing_is_told(driver: Path, tmp_path: Path) -> None:
    silent = [[f"{call} 0 0 {NOT_SUPPORTED}"] for call in (REMOTE_TYPE, REMOTE_PCI)]
    no_links = step("field:91:0 0 0 0")
    readings = read(driver, [step(*links(range(2), *lines)) for lines in silent] + [no_links])
    (old,) = read(build(tmp_path, "-DOLD_DRIVER"), [step(*links(range(2)))])
    assert ends(*readings, old) == [{}] * 4
    assert [of(one).get("nvlink_links_up") for one in (*readings, old)] == [2, 2, 0, 2]
    assert not any(of(one)["lost"] for one in (*readings, old))


def test_a_lost_gpu_is_told_once_and_the_others_are_read(driver: Path) -> None:
    healthy = step("count 0 2 0")
    for outcome, why in ((LOST, "it fell off the bus"), (RESET_REQUIRED, "it waits for a reset")):
        lost = step("count 0 2 0", f"nvmlDeviceGetTemperature 0 0 {outcome}")
        _, first, second, back = read(driver, [healthy, lost, lost, healthy])
        assert {name for name in of(first) if not name.startswith("fault_")} == {"lost"}
        assert of(first)["lost"] == 1
        assert of(first, "n/gpu/GPU-0001")["lost"] == 0
        assert [event[:3] for event in first["events"]] == [["gpu", GPU, "gpu_lost"], ["gpu", GPU, "fault_raised"]]
        assert first["events"][0][4].startswith(why)
        assert second["events"] == []
        assert (of(back)["lost"], of(back)["fault_lost"]) == (0, 1)  # until it has answered for a minute


def test_a_gpu_that_was_lost_before_the_agent_came_is_told_and_found_again(driver: Path) -> None:
    lost = step("count 0 2 0", f"nvmlDeviceGetHandleByIndex_v2 1 0 {LOST}")
    first, second, third = read(driver, [lost, lost, step("count 0 2 0")])
    assert of(first, "n/gpu/index-1")["lost"] == of(second, "n/gpu/index-1")["lost"] == 1
    assert of(third, "n/gpu/GPU-0001")["lost"] == 0


def test_a_gpu_that_is_counted_and_cannot_be_reached_is_lost(driver: Path) -> None:
    gone = step("count 0 2 0", f"nvmlDeviceGetHandleByIndex_v2 1 0 {UNKNOWN}")
    first, second = read(driver, [gone, step("count 0 2 0")])
    assert of(first, "n/gpu/index-1")["lost"] == 1
    assert of(second, "n/gpu/GPU-0001")["lost"] == 0


SILENT = [f"{query.name} 0 0 {UNKNOWN}" for query in FAST] + [f"nvmlDeviceGetFieldValues 0 0 {UNKNOWN}"]


def test_a_gpu_that_answers_nothing_any_more_is_lost(driver: Path) -> None:
    _, silent, again = read(driver, [step(), step(*SILENT), step()])
    assert {name for name in of(silent) if not name.startswith("fault_")} == {"lost"}
    assert (of(silent)["lost"], of(again)["lost"]) == (1, 0)
    (gone,) = [detail for _, _, name, _, detail in silent["events"] if name == "gpu_lost"]
    assert gone.startswith("it answers nothing any more")


FAULTS = [
    ("fault_ecc", ["nvmlDeviceGetTotalEccErrors:2 0 2 0"], f"nvmlDeviceGetTotalEccErrors:2 0 0 {NOT_SUPPORTED}"),
    ("fault_row_remap", [f"nvmlDeviceGetRemappedRows 0 {1 << 16} 0"], f"nvmlDeviceGetRemappedRows 0 0 {NOT_SUPPORTED}"),
    ("fault_row_remap", [f"nvmlDeviceGetRemappedRows 0 {1 << 24} 0"], f"nvmlDeviceGetRemappedRows 0 0 {NOT_SUPPORTED}"),
    ("fault_retired_pages", ["field:31:0 0 1 0"], f"field:31:0 0 0 {NOT_SUPPORTED}"),
]


@pytest.mark.parametrize(("signal", "bad", "unknown"), FAULTS)
def test_a_fault_stays_until_it_is_seen_to_be_over(driver: Path, signal: str, bad: list[str], unknown: str) -> None:
    lost = step(f"nvmlDeviceGetPowerUsage 0 0 {LOST}")
    readings = read(driver, [step(), step(*bad), step(unknown), lost, step(*bad), step()])
    assert [of(reading)[signal] for reading in readings] == [0, 1, 1, 1, 1, 0]
    told = [[name for _, _, name, _, detail in reading["events"] if detail.startswith(signal)] for reading in readings]
    assert told == [[], ["fault_raised"], [], [], [], ["fault_cleared"]]


def test_a_fault_from_before_the_agent_is_no_event(driver: Path) -> None:
    first, second = read(driver, [step(*FAULTS[0][1]), step(*FAULTS[0][1])])
    assert of(first)["fault_ecc"] == of(second)["fault_ecc"] == 1
    assert first["events"] == second["events"] == []


def test_a_link_that_goes_down_is_a_fault_until_it_has_been_up_for_a_minute(driver: Path) -> None:
    whole, less = step(*links(range(4))), step(*links(range(3)))
    readings = read(driver, [whole, less, whole, less, *[whole] * 8])
    assert [of(reading)["fault_nvlink"] for reading in readings] == [0, *[1] * 9, 0, 0]
    names = [(at, event[2]) for at, reading in enumerate(readings) for event in reading["events"]]
    assert names == [(1, "fault_raised"), (10, "fault_cleared")]


def test_links_without_a_peer_are_no_fault(driver: Path) -> None:
    (reading,) = read(driver, [step(*links(range(2), total=12))])
    assert of(reading)["fault_nvlink"] == 0


RUNNING, MPS = "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v3"


def test_instances_on_the_gpu_are_labels(driver: Path) -> None:
    size = "process_bytes 0 4096 0"
    mine, foreign = read(driver, [step(f"{RUNNING} 0 ME 0", size), step(f"{RUNNING} 0 1 0", size)])
    expected = {"index": "0", "name": "Stub GPU", "driver": "580.65.06", "pci": "0000:41:00", "instances": "n/80"}
    assert mine["labels"][GPU] == expected
    assert of(mine)["processes"] == 1
    assert of(mine)["processes_memory_bytes"] == of(mine, "n/80")["gpu_memory_used_bytes"] == 4096
    assert foreign["labels"][GPU]["instances"] == ""
    assert of(foreign)["processes_memory_bytes"] == 4096
    assert of(foreign, "n/80") == {}


def test_clients_of_mps_are_processes_and_unknown_memory_is_unknown(driver: Path) -> None:
    by_mps, unknown, nobody = read(
        driver,
        [
            step(f"{MPS} 0 ME 0", "process_bytes 0 7 0"),
            step(f"{RUNNING} 0 ME 0", f"process_bytes 0 0 {NOT_SUPPORTED}"),
            step(f"{RUNNING} 0 0 {NOT_SUPPORTED}", f"{MPS} 0 0 {NOT_SUPPORTED}"),
        ],
    )
    assert by_mps["labels"][GPU]["instances"] == "n/80"
    assert of(by_mps)["processes_memory_bytes"] == 7
    assert of(unknown)["processes"] == 1
    nan = (of(unknown)["processes_memory_bytes"], of(unknown, "n/80")["gpu_memory_used_bytes"])
    assert all(value != value for value in nan)
    assert "processes" not in of(nobody)
    assert "instances" not in nobody["labels"][GPU]


def test_a_new_instance_is_joined_to_its_gpu_at_once(driver: Path) -> None:
    steps = [step(f"{RUNNING} 0 ME 0", after=1) | {"instances": found} for found in ([], ["n/80"], ["n/80", "n/81"])]
    joined = [reading["labels"][GPU]["instances"] for reading in read(driver, steps)]
    assert joined[:2] == ["", "n/80"]
    assert joined[2] in {"n/80", "n/81"}  # both are the same process


def test_one_instance_on_two_gpus(driver: Path) -> None:
    lines = ("count 0 2 0", *(f"{RUNNING} {gpu} ME 0\nprocess_bytes {gpu} {5 + gpu} 0" for gpu in (0, 1)))
    (reading,) = read(driver, [step(*lines)])
    assert of(reading, "n/80")["gpu_memory_used_bytes"] == 11


def test_mig_instances_are_gpus_with_a_parent(driver: Path) -> None:
    mig = [f"nvmlDeviceGetMigMode 0 {two(1, 1)} 0", "mig 0 2 0"]
    tenant = [f"{RUNNING} {gpu} ME 0\nprocess_bytes {gpu} 4096 0" for gpu in (0, 101)]
    unsaid = [f"nvmlDeviceGetUtilizationRates 0 0 {NOT_SUPPORTED}"]
    whole = "nvmlDeviceGetMemoryInfo 101 8192 0"
    (reading, lost) = read(
        driver, [step(*mig, *tenant, *unsaid, whole), step(*mig, f"nvmlDeviceGetPowerUsage 0 0 {LOST}")]
    )
    assert of(reading)["mig_instances"] == 2
    assert "utilisation_ratio" not in of(reading)
    part = of(reading, "n/gpu/MIG-0101")
    assert part == {
        "memory_used_bytes": 8192,
        "memory_total_bytes": 10 << 30,
        "processes": 1,
        "processes_memory_bytes": 4096,
    }
    labels = {"index": "0:1", "name": "Stub GPU MIG 1g.10gb", "parent": GPU, "instances": "n/80"}
    assert reading["labels"]["n/gpu/MIG-0101"] == labels
    assert of(reading, "n/gpu/MIG-0100")["processes"] == 0
    # The whole tells of the same process: it is counted once.
    assert of(reading, "n/80")["gpu_memory_used_bytes"] == 4096
    assert of(lost, "n/gpu/MIG-0101") == {}


def test_sixteen_gpus(driver: Path) -> None:
    (reading,) = read(
        driver, [step("count 0 16 0", *(f"nvmlDeviceGetPowerUsage {gpu} {gpu}000 0" for gpu in range(16)))]
    )
    assert [of(reading, f"n/gpu/GPU-{gpu:04}")["power_watts"] for gpu in range(16)] == list(range(16))


def test_without_a_driver(driver: Path, tmp_path: Path) -> None:
    (without_library,) = read(tmp_path, [step()])
    (without_driver,) = read(driver, [step(f"nvmlInitWithFlags 0 0 {DRIVER_NOT_LOADED}")])
    (without_gpu,) = read(driver, [step("count 0 0 0")])
    assert without_library == {"unavailable": "no NVIDIA driver, which only a host with GPUs needs", "remedy": ""}
    assert without_driver["unavailable"].startswith("no NVML:")
    assert "load the NVIDIA driver" in without_driver["remedy"]
    assert without_gpu == {"unavailable": "NVML sees no GPU", "remedy": ""}


def test_every_signal_that_is_declared_is_driven_here() -> None:
    driven = {name for _, _, signals in DRIVEN for name in signals}
    driven |= {name for signal, together, _ in BITS.values() for name in (signal, together) if name}
    driven |= {signal for signal, _, _ in FAULTS} | {"fault_nvlink", "fault_lost", "lost"}
    driven |= {f"pcie_{name}_per_second" for name in ("replays", "sent_bytes", "received_bytes")}
    driven |= {"nvlink_links", "nvlink_links_up"}
    driven |= {f"nvlink_{name}_per_second" for name in ("crc_errors", "replays", "recoveries")}
    driven |= {"mig_instances", "processes", "processes_memory_bytes", "gpu_memory_used_bytes"}
    assert driven == {signal.name for signal in Gpu.signals}


CONTRACT = """
import os
from pathlib import Path
from trimtab.agent.check import check_collector
from trimtab.agent.collectors import gpu, gpu_faults
from trimtab.agent.registry import Instance

lines = ["count 0 2 0", "xid 0 31 0", "xid 1 79 0", "mig 1 1 0", f"nvmlDeviceGetMigMode 1 {1 << 32} 0"]
lines += [f"nvmlDeviceGetComputeRunningProcesses_v3 0 {os.getpid()} 0", "field:91:0 0 2 0"]
Path(os.environ["NVML_STUB"]).write_text("\\n".join(lines))
me = Instance("check/80", "torchserve", os.getpid(), 0.0, 80, 0, ())
for module in (gpu, gpu_faults):
    readings = check_collector(module.COLLECTOR, [me])
    print(len(readings), sum(len(reading.events) for reading in readings) > 0)
"""


def test_the_contract_on_a_host_with_gpus(driver: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONTRACT],
        env=environment(driver),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "2 False\n2 True\n", done.stderr


HANGING = """
import os, time
from pathlib import Path
from tests.agent.fakes import Fake, until
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.gpu import COLLECTOR
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.registry import Host
from trimtab.agent.worker import Worker

host, vitals = Host("n1", SystemClock()), Vitals()
state = Path(os.environ["NVML_STUB"])
state.write_text("count 0 1 0\\n")
gpu, other = Worker(COLLECTOR(), host, vitals), Worker(Fake(), host, vitals)
for worker in (gpu, other):
    worker.ask(()).result(10)
    worker.take()
state.write_text("count 0 1 0\\nnvmlDeviceGetPowerUsage 0 0 1000\\n")
stuck = gpu.ask(())
for _ in range(3):
    other.ask(()).result(10)
    assert other.take() is not None
    assert gpu.take() is None
assert not stuck.done() and gpu.ask(()) is None
print("goes on", vitals.collector_failures)
"""


def test_a_gpu_that_hangs_takes_nothing_else_down(driver: Path) -> None:
    assert HANG == 1000
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        env=environment(driver),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "goes on 3\n", done.stderr
