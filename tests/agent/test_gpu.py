"""GPUs, through the real nvidia-ml-py and a library that stands in for the driver's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LOST, NOT_SUPPORTED, DRIVER_NOT_LOADED = 15, 3, 9

# Runs in a process of its own, for pynvml loads its library once and for all. Prints one JSON object a state.
READ = """
import json, math, os, sys
from pathlib import Path
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.gpu import COLLECTOR
from trimtab.agent.registry import Host, Instance, Reading, Unavailable

states = json.load(sys.stdin)
me = Instance("n/80", "torchserve", os.getpid(), 0.0, 80, 0, ())
collector = COLLECTOR()
seconds = math.nan
for state in states:
    Path(os.environ["NVML_STUB"]).write_text(state.replace("ME", str(os.getpid())))
    if math.isnan(seconds):
        try:
            collector.open(Host("n", ManualClock()))
        except Unavailable as error:
            print(json.dumps({"unavailable": error.reason, "remedy": error.remedy}))
            sys.exit()
    reading = Reading([me], seconds)
    collector.read(reading)
    values = {f"{subject} {name}": value for (kind, subject, name), value in reading.values.items()}
    labels = {subject: labels for (kind, subject), labels in reading.labels.items()}
    print(json.dumps({"values": values, "labels": labels, "events": reading.events}))
    seconds = 2.0
collector.close()
"""


def build(folder: Path, *flags: str) -> Path:
    library = folder / "libnvidia-ml.so.1"
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", *flags, soname, "-o", library, HERE / "nvml" / "nvml.c"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def read(library: Path, *states: str) -> list[dict[str, Any]]:
    env = os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_STUB": str(library / "state")}
    done = subprocess.run(
        [sys.executable, "-c", READ], input=json.dumps(states), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def one(library: Path, *lines: str) -> dict[str, float]:
    (reading,) = read(library, "\n".join(("count 0 1 0", *lines)))
    return {name.removeprefix("n/gpu/GPU-0000 "): value for name, value in reading["values"].items()}


def test_every_signal_in_its_unit(driver: Path) -> None:
    values = one(
        driver,
        "nvmlDeviceGetUtilizationRates 0 37 0",
        "nvmlDeviceGetMemoryInfo 0 1073741824 0",
        "nvmlDeviceGetPowerUsage 0 250500 0",
        "nvmlDeviceGetEnforcedPowerLimit 0 300000 0",
        "nvmlDeviceGetTemperature 0 61 0",
        "nvmlDeviceGetClockInfo 0 1410 0",
        "nvmlDeviceGetMaxClockInfo 0 1980 0",
        "nvmlDeviceGetCurrPcieLinkGeneration 0 4 0",
        "nvmlDeviceGetCurrPcieLinkWidth 0 16 0",
    )
    assert values == pytest.approx(
        {
            "utilisation_ratio": 0.37,
            "memory_used_bytes": 1 << 30,
            "memory_total_bytes": 80 << 30,
            "power_watts": 250.5,
            "power_limit_watts": 300,
            "temperature_celsius": 61,
            "sm_clock_hertz": 1.41e9,
            "sm_clock_max_hertz": 1.98e9,
            "throttle_thermal": 0,
            "throttle_power": 0,
            "throttle_hardware": 0,
            "ecc_uncorrected_total": 0,
            "row_remap_pending": 0,
            "row_remap_failure": 0,
            "pcie_generation": 4,
            "pcie_width": 16,
            "lost": 0,
        }
    )


def test_throttling_is_named(driver: Path) -> None:
    bits = {
        0x08: ("throttle_hardware", "hardware slowdown"),
        0x20: ("throttle_thermal", "software thermal slowdown"),
        0x40: ("throttle_thermal", "hardware thermal slowdown"),
        0x04: ("throttle_power", "software power cap"),
        0x80: ("throttle_power", "hardware power brake"),
    }
    states = [f"count 0 1 0\nnvmlDeviceGetCurrentClocksEventReasons 0 {bit} 0" for bit in (1, *bits, 0x80, 1)]
    readings = read(driver, *states)
    signals = {"throttle_thermal", "throttle_power", "throttle_hardware"}
    on = [{s for s in signals if reading["values"][f"n/gpu/GPU-0000 {s}"]} for reading in readings]
    assert on == [set(), *({signal} for signal, _ in bits.values()), {"throttle_power"}, set()]
    onsets = [[(name, detail) for _, _, name, _, detail in reading["events"]] for reading in readings]
    assert onsets == [[], *([("throttle_onset", reason)] for _, reason in bits.values()), [], []]


def test_an_old_driver_knows_throttling_by_another_name(tmp_path: Path) -> None:
    library = build(tmp_path, "-DOLD_DRIVER")
    assert one(library, "nvmlDeviceGetCurrentClocksThrottleReasons 0 64 0")["throttle_thermal"] == 1


def test_memory_errors(driver: Path) -> None:
    remapped, waiting, failed = 1, 3, 5
    errors = "count 0 1 0\nnvmlDeviceGetTotalEccErrors 0 7 0\nnvmlDeviceGetRemappedRows 0 {} 0"
    readings = read(driver, *(errors.format(bits) for bits in (remapped, waiting, failed)))
    names = ("row_remap_pending", "row_remap_failure", "ecc_uncorrected_total")
    values = [[reading["values"][f"n/gpu/GPU-0000 {name}"] for name in names] for reading in readings]
    assert values == [[0, 0, 7], [1, 0, 7], [0, 1, 7]]


def test_replays_are_a_rate(driver: Path) -> None:
    first, second = read(driver, *(f"count 0 1 0\nnvmlDeviceGetPcieReplayCounter 0 {n} 0" for n in (100, 110)))
    assert "n/gpu/GPU-0000 pcie_replays_per_second" not in first["values"]
    assert second["values"]["n/gpu/GPU-0000 pcie_replays_per_second"] == 5


def test_what_the_gpu_cannot_say_is_unknown(driver: Path) -> None:
    calls = {
        "nvmlDeviceGetUtilizationRates": {"utilisation_ratio"},
        "nvmlDeviceGetMemoryInfo": {"memory_used_bytes", "memory_total_bytes"},
        "nvmlDeviceGetPowerUsage": {"power_watts"},
        "nvmlDeviceGetTotalEccErrors": {"ecc_uncorrected_total"},
        "nvmlDeviceGetRemappedRows": {"row_remap_pending", "row_remap_failure"},
        "nvmlDeviceGetTemperature": {"temperature_celsius"},
    }
    everything = one(driver).keys()
    values = one(driver, *(f"{call} 0 0 {NOT_SUPPORTED}" for call in calls))
    assert everything - values.keys() == set().union(*calls.values())


def test_a_lost_gpu_is_told_once_and_the_others_are_read(driver: Path) -> None:
    healthy, lost = "count 0 2 0", f"count 0 2 0\nnvmlDeviceGetTemperature 0 0 {LOST}"
    _, first, second, back = read(driver, healthy, lost, lost, healthy)
    assert {name: value for name, value in first["values"].items() if "GPU-0000" in name} == {"n/gpu/GPU-0000 lost": 1}
    assert first["values"]["n/gpu/GPU-0001 lost"] == 0
    assert [event[:3] for event in first["events"]] == [["gpu", "n/gpu/GPU-0000", "gpu_lost"]]
    assert second["events"] == []
    assert back["values"]["n/gpu/GPU-0000 lost"] == 0


def test_a_gpu_that_was_lost_before_the_agent_came_is_told(driver: Path) -> None:
    (reading,) = read(driver, f"count 0 2 0\nnvmlDeviceGetHandleByIndex_v2 1 0 {LOST}")
    assert reading["values"]["n/gpu/index-1 lost"] == 1


def test_instances_on_the_gpu_are_labels(driver: Path) -> None:
    running = "nvmlDeviceGetComputeRunningProcesses_v3"
    mine, foreign = read(driver, f"count 0 1 0\n{running} 0 ME 0", f"count 0 1 0\n{running} 0 1 0")
    assert mine["labels"]["n/gpu/GPU-0000"] == {"index": "0", "name": "Stub GPU", "instances": "n/80"}
    assert foreign["labels"]["n/gpu/GPU-0000"]["instances"] == ""


def test_without_a_driver(driver: Path, tmp_path: Path) -> None:
    (without_library,) = read(tmp_path, "")
    (without_driver,) = read(driver, f"nvmlInitWithFlags 0 0 {DRIVER_NOT_LOADED}")
    (without_gpu,) = read(driver, "count 0 0 0")
    assert without_library == {"unavailable": "no NVIDIA driver, which only a host with GPUs needs", "remedy": ""}
    assert without_driver["unavailable"].startswith("no NVML:")
    assert "load the NVIDIA driver" in without_driver["remedy"]
    assert without_gpu == {"unavailable": "NVML sees no GPU", "remedy": ""}
