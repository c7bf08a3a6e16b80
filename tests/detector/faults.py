"""One fault for every mechanism, as it shows in the signals of instance `VICTIM` of a fleet with GPUs and two nodes."""

from __future__ import annotations

import math

from tests.detector.fleet import Fault, Scene

VICTIM, NEIGHBOUR, NODE, CARD = "n0/8080", "n0/8090", "n0", "n0/gpu/GPU-0"
GB = float(1 << 30)


def signals(subject: str, slower: float = 1.0, **values: float) -> Fault:
    """These signals have these values from now on; the victim is slower."""

    def fault(scene: Scene, elapsed: float) -> None:
        if subject in scene.signals:
            scene.signals[subject].update(values)
            scene.slower[VICTIM] *= slower

    return fault


def event(subject: str, name: str, slower: float = 1.0) -> Fault:
    """This happens in the first second; the victim is slower from then on."""

    def fault(scene: Scene, elapsed: float) -> None:
        if subject in scene.signals:
            scene.slower[VICTIM] *= slower
            if elapsed < 1:
                scene.events.append((subject, name))

    return fault


def together(*faults: Fault) -> Fault:
    def fault(scene: Scene, elapsed: float) -> None:
        for each in faults:
            each(scene, elapsed)

    return fault


def slow(factor: float, *victims: str) -> Fault:
    """These instances are slower, and nothing says why; all of them when none is named."""

    def fault(scene: Scene, elapsed: float) -> None:
        for instance in scene.slower:
            if not victims or instance in victims:
                scene.slower[instance] *= factor

    return fault


def failing(scene: Scene, elapsed: float) -> None:
    if VICTIM in scene.failing:
        scene.failing[VICTIM] = 0.4


def crashing(scene: Scene, elapsed: float) -> None:
    failing(scene, elapsed)
    if VICTIM in scene.signals:
        dies = int(elapsed) % 4 == 0
        scene.signals[VICTIM] |= {"worker_restarts_per_second": float(dies), "workers_ready": 1.0 if dies else 2.0}
        scene.events += [(VICTIM, "worker_death")] * dies


def hanging(scene: Scene, elapsed: float) -> None:
    if VICTIM in scene.signals:
        scene.slower[VICTIM] = math.inf
        scene.signals[VICTIM] |= {"runtime_answers": 0.0, "cpu_used_cores": 0.0, "workers_ready": math.nan}


def surge(scene: Scene, elapsed: float) -> None:
    for instance in scene.load:
        scene.load[instance] *= 3
        scene.slower[instance] *= 4
        scene.signals[instance]["queue_depth"] = 8.0


STARVED = signals(VICTIM, 3, cpu_run_queue_ratio=0.6)
CLOCKED_DOWN = {"sm_clock_hertz": 6e8}

FAULTS: dict[str, Fault] = {
    "GPU thermal throttling": signals(CARD, 3, throttle_thermal=1, throttle_hardware=1, temperature_celsius=89, **CLOCKED_DOWN),
    "GPU power throttling": signals(CARD, 3, throttle_power=1, power_limit_watts=150, **CLOCKED_DOWN),
    "GPU hardware slowdown": signals(CARD, 3, throttle_hardware=1, **CLOCKED_DOWN),
    "ECC error": signals(CARD, 3, ecc_uncorrected_total=2),
    "row remap pending": signals(CARD, 3, row_remap_pending=1),
    "XID": event(CARD, "xid", 3),
    "GPU lost": together(event(CARD, "gpu_lost"), signals(CARD, 8, lost=1, utilisation_ratio=math.nan, power_watts=math.nan)),
    "PCIe degraded": signals(CARD, 3, pcie_width=4),
    "NVLink degraded": signals(CARD, 3, nvlink_links_up=17, fault_nvlink=1),
    "CPU contention": together(STARVED, signals(NODE, cpu_other_cores=2.4)),
    "cgroup CPU quota": signals(
        VICTIM, 4, cpu_limit_cores=0.2, cpu_throttled_ratio=0.7, cpu_run_queue_ratio=0.6, cpu_used_cores=0.15
    ),
    "memory pressure": together(
        signals(VICTIM, 3, major_faults_per_second=300),
        signals(NODE, psi_memory_some_ratio=0.4, swap_in_bytes_per_second=4e6, disk_await_seconds=0.03, memory_available_bytes=0.2 * GB),
    ),
    "out of memory": together(event(NODE, "oom_kill"), crashing),
    "disk latency": signals(NODE, 3, disk_await_seconds=0.08, psi_io_some_ratio=0.5, disk_busy_ratio=0.98),
    "network loss": signals(VICTIM, 3, tcp_retransmits_per_second=6),
    "noisy neighbour": together(STARVED, signals(NEIGHBOUR, cpu_used_cores=3.0)),
    "worker crash loop": crashing,
    "fail-fast errors": failing,
    "server stalled": hanging,
    "traffic surge": surge,
    "model regression": slow(3),
    "unknown": slow(3, VICTIM),
}  # fmt: skip
