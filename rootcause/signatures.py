"""The table of mechanisms: by which signals each is known, how sure that makes us, and what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trimtab.detector.history import GPU, INSTANCE, NODE
from trimtab.rootcause.evidence import levels
from trimtab.rootcause.movement import Movement

Link = Literal["PCIe", "NVLink"]
DEVIATIONS_MIN = 4.0
"""How many robust standard deviations a signal must move, besides its least meaningful change."""
_MIB = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Sign:
    """A movement that counts: of which signal, which way, and from where on it means something."""

    kind: int
    signal: str
    direction: int
    minimum: float
    """Least change, in the signal's unit."""
    factor: float = 1.0
    """Least ratio between the larger and the smaller level."""
    sparse: bool = False
    """It happens now and then: its mean tells, its median is 0."""

    def scale(self, movement: Movement) -> float:
        """One robust standard deviation; a signal that stood still is given a quarter of its least meaningful change."""
        return max(movement.spread if math.isfinite(movement.spread) else 0.0, self.minimum / DEVIATIONS_MIN)

    def change(self, movement: Movement) -> float:
        """By how much it moved in the direction that counts; NaN where a side is unknown."""
        before, after = levels(movement, self.sparse)
        return self.direction * (after - before)

    def moved(self, movement: Movement) -> bool:
        """Whether it moved so that it counts. What is unknown did not."""
        before, after = levels(movement, self.sparse)
        low, high = (before, after) if self.direction > 0 else (after, before)
        # Written so that NaN is no movement.
        enough = self.change(movement) >= max(self.minimum, DEVIATIONS_MIN * self.scale(movement) * (not self.sparse))
        return enough and high >= self.factor * low


@dataclass(frozen=True, slots=True)
class Signature:
    """By what a mechanism is known."""

    mechanism: str
    confidence: float
    """With one of `leads`; each of `supports` takes away a third of the doubt that is left."""
    leads: tuple[Sign, ...]
    """One must have moved; the first that did is the leading signal: what stays as long as the cause does comes first."""
    summary: str
    """With {subject}, {signal}, {before} and {after} of the leading signal."""
    remedy: str
    needs: tuple[Sign, ...] = ()
    """All must have moved."""
    supports: tuple[Sign, ...] = ()
    events: tuple[str, ...] = ()
    """Each proves it alone."""
    unless: tuple[Sign, ...] = ()
    """It is not this when one of these moved on most peers as well."""
    common: bool = False
    """What leads may have moved on the peers as well: it comes from outside, and hits all."""
    entails: frozenset[str] = frozenset()
    """Signals that it moves by itself, besides those that it is known by: they are no evidence of another mechanism beside it."""
    link: Link | None = None
    """It may be of such a link that GPUs share: whether those of the others moved as well is told."""


def _instance(signal: str, direction: int, minimum: float, factor: float = 1.0, sparse: bool = False) -> Sign:
    return Sign(INSTANCE, signal, direction, minimum, factor, sparse)


def _node(signal: str, direction: int, minimum: float, factor: float = 1.0, sparse: bool = False) -> Sign:
    return Sign(NODE, signal, direction, minimum, factor, sparse)


def _gpu(signal: str, direction: int, minimum: float, factor: float = 1.0, sparse: bool = False) -> Sign:
    return Sign(GPU, signal, direction, minimum, factor, sparse)


RUN_QUEUE = _instance("cpu_run_queue_ratio", 1, 0.1, 2.0)
CPU_USED = _instance("cpu_used_cores", 1, 0.3, 1.5)
REQUESTS = _instance("requests_per_second", 1, 2.0, 1.5)
ERROR_RATIO = _instance("error_ratio", 1, 0.05, sparse=True)
LATENCY = _instance("request_latency", 1, 0.005, 1.3)
ANSWERS = _instance("runtime_answers", -1, 0.5)
IDLE = _instance("cpu_used_cores", -1, 0.02, 2.0)

# More specific ones first: of two that explain equally well, the first wins.
SIGNATURES = (
    Signature(
        "GPU lost",
        0.97,
        leads=(_gpu("lost", 1, 0.5),),
        link="PCIe",
        events=("gpu_lost",),
        summary="{subject} fell off the bus",
        remedy="Drain the node, look for XID 79 in the kernel log, and reset or reseat the GPU.",
    ),
    Signature(
        "XID",
        0.95,
        leads=(_gpu("fault_xid", 1, 0.5),),
        events=("xid",),
        summary="the driver reported an XID error on {subject}",
        remedy="The event names the suspect and what to do; most need the application restarted or the GPU reset.",
    ),
    Signature(
        "ECC error",
        0.95,
        leads=(_gpu("ecc_uncorrected_total", 1, 0.5),),
        summary="{subject} counted uncorrectable memory errors: {before} → {after}",
        remedy="Restart the instance, reset the GPU, and have it replaced if the errors return.",
    ),
    Signature(
        "row remap pending",
        0.94,
        leads=(
            _gpu("row_remap_failure", 1, 0.5),
            _gpu("row_remap_pending", 1, 0.5),
            _gpu("retired_pages_pending", 1, 0.5),
        ),
        summary="{subject} waits for a reset to remap faulty memory rows",
        remedy="Drain the GPU and reset it; replace it when a remap has failed.",
    ),
    Signature(
        "GPU thermal throttling",
        0.94,
        leads=(_gpu("throttle_thermal", 1, 0.3),),
        supports=(_gpu("temperature_celsius", 1, 5.0), _gpu("sm_clock_hertz", -1, 5e7, 1.05)),
        entails=frozenset({"throttle_hardware"}),
        summary="{subject} throttles its clock because it is too hot",
        remedy="Check fans, airflow and inlet temperature of the node; move load away until it has cooled.",
    ),
    Signature(
        "GPU power throttling",
        0.92,
        leads=(_gpu("power_limit_watts", -1, 10.0, 1.05), _gpu("throttle_power", 1, 0.3)),
        needs=(_gpu("throttle_power", 1, 0.3),),
        supports=(_gpu("sm_clock_hertz", -1, 5e7, 1.05),),
        entails=frozenset({"throttle_hardware"}),
        summary="{subject} throttles its clock at its power limit",
        remedy="Raise the power limit (nvidia-smi -pl) where the supply allows it, or give the GPU less work.",
    ),
    Signature(
        "GPU hardware slowdown",
        0.88,
        leads=(_gpu("throttle_hardware", 1, 0.3),),
        supports=(_gpu("sm_clock_hertz", -1, 5e7, 1.05),),
        summary="{subject} is slowed down by its hardware (power brake or over-temperature)",
        remedy="Check the power supply, its cables and the cooling of the node.",
    ),
    Signature(
        "PCIe degraded",
        0.9,
        leads=(
            _gpu("pcie_width", -1, 0.5),
            _gpu("pcie_generation", -1, 0.5),
            _gpu("pcie_replays_per_second", 1, 1.0, 3.0, True),
        ),
        link="PCIe",
        summary="the PCIe link of {subject} got worse: {signal} {before} → {after}",
        remedy="Reseat the card or its riser; look for AER messages in the kernel log.",
    ),
    Signature(
        "NVLink degraded",
        0.9,
        leads=(
            _gpu("fault_nvlink", 1, 0.5),
            _gpu("nvlink_links_up", -1, 0.5),
            _gpu("nvlink_replays_per_second", 1, 1.0, 3.0, True),
            _gpu("nvlink_recoveries_per_second", 1, 0.05, 3.0, True),
        ),
        link="NVLink",
        summary="the NVLinks of {subject} got worse: {signal} {before} → {after}",
        remedy="Look for XID 74 and, with switches, the fabric manager's log; reset the GPU; have bridge or baseboard checked.",
    ),
    Signature(
        "out of memory",
        0.96,
        leads=(_node("oom_kills_per_second", 1, 0.005, 3.0, True),),
        events=("oom_kill",),
        summary="the kernel killed processes on {subject} because memory ran out",
        remedy="Give the instance more memory or fewer workers; look for what grew in the kernel log.",
    ),
    Signature(
        "worker crash loop",
        0.94,
        leads=(
            _instance("worker_restarts_per_second", 1, 0.02, 3.0, True),
            _instance("process_restarts", 1, 0.5),
            _instance("workers_ready", -1, 0.5),
        ),
        events=("worker_death", "process_restart"),
        summary="workers of {subject} die and are started again",
        remedy="Read the worker's log for the exception or the signal that ends it.",
    ),
    Signature(
        "server stalled",
        0.95,
        leads=(_instance("processes_stopped", 1, 0.15, sparse=True),),
        supports=(ANSWERS,),
        summary="processes of {subject} are stopped, by a signal or a debugger, all the time or in bursts",
        remedy="Find who stops them (a debugger, a batch scheduler, SIGSTOP); SIGCONT lets them go on.",
    ),
    Signature(
        "server stalled",
        0.93,
        leads=(ANSWERS,),
        needs=(IDLE,),
        summary="{subject} hangs: its API does not answer and it uses no CPU",
        remedy="Take a stack dump if you can, then restart it; a stopped process goes on with SIGCONT.",
    ),
    Signature(
        "cgroup CPU quota",
        0.94,
        leads=(_instance("cpu_limit_cores", -1, 0.05, 1.1), _instance("cpu_throttled_ratio", 1, 0.05, 2.0)),
        needs=(_instance("cpu_throttled_ratio", 1, 0.05, 2.0),),
        supports=(_instance("cpu_used_cores", -1, 0.1, 1.2),),
        # Threads that are throttled wait in a run queue, and the host's pressure counts them.
        entails=frozenset({"cpu_run_queue_ratio", "psi_cpu_some_ratio"}),
        summary="{subject} is throttled by the CPU quota of its cgroup",
        remedy="Raise the quota (cpu.max, the container's CPU limit), or give the instance less work.",
    ),
    Signature(
        "memory pressure",
        0.9,
        leads=(
            _node("psi_memory_some_ratio", 1, 0.05, 2.0),
            _node("swap_in_bytes_per_second", 1, _MIB, 3.0),
            _instance("major_faults_per_second", 1, 20.0, 3.0),
        ),
        supports=(_node("memory_available_bytes", -1, 256 * _MIB, 1.3), _node("major_faults_per_second", 1, 50.0, 3.0)),
        summary="{subject} waits for memory: {signal} {before} → {after}",
        remedy="Find what took the memory; move it, or give the instances a memory reservation.",
    ),
    Signature(
        "network loss",
        0.78,
        leads=(
            _instance("tcp_retransmits_per_second", 1, 0.5, 3.0, True),
            _node("network_drops_per_second", 1, 5.0, 3.0, True),
            _node("network_errors_per_second", 1, 1.0, 3.0, True),
        ),
        supports=(_node("tcp_retransmits_per_second", 1, 2.0, 3.0, True),),
        summary="packets to {subject} are lost: {signal} {before} → {after}",
        remedy="Check the link, the switch port and the interface's queues; compare with other hosts of the rack.",
    ),
    Signature(
        "disk latency",
        0.82,
        # The second is of a solid-state disk, which answers in a tenth of a millisecond.
        leads=(_node("disk_await_seconds", 1, 0.01, 2.0), _node("disk_await_seconds", 1, 0.002, 5.0)),
        supports=(_node("psi_io_some_ratio", 1, 0.05, 2.0), _node("disk_busy_ratio", 1, 0.2, 1.5)),
        summary="the disks of {subject} answer slowly: {before} → {after}",
        remedy="Find what reads or writes so much (iotop), and keep model files and logs off that disk.",
    ),
    Signature(
        "fail-fast errors",
        0.91,
        leads=(ERROR_RATIO,),
        unless=(REQUESTS,),
        supports=(_instance("errors_per_second", 1, 0.5, 3.0, True),),
        summary="{subject} answers {after} of its requests with errors, at once, though its workers live",
        remedy="Read its log for the exception; a missing dependency, a broken model file or a full GPU memory are usual.",
    ),
    Signature(
        "CPU contention",
        0.85,
        leads=(
            _node("cpu_other_cores", 1, 0.3, 1.3),
            _node("cpu_steal_cores", 1, 0.3, 2.0),
            _node("psi_cpu_some_ratio", 1, 0.1, 2.0),
            RUN_QUEUE,
        ),
        needs=(RUN_QUEUE,),
        supports=(_node("psi_cpu_some_ratio", 1, 0.1, 1.5),),
        summary="threads of {instance} wait for a CPU: {signal} {before} → {after}",
        remedy="Find who takes the CPUs (top, pidstat), and pin or limit it; or give the instance CPUs of its own.",
    ),
    Signature(
        "traffic surge",
        0.84,
        leads=(REQUESTS,),
        common=True,
        supports=(_instance("queue_depth", 1, 1.0, 2.0), _instance("requests_in_flight", 1, 1.0, 2.0)),
        summary="{subject} gets more requests than it can serve: {before} → {after}",
        remedy="Add instances, or shed load.",
    ),
)

NEIGHBOUR_REMEDY = (
    "Set the two apart: other CPUs or another GPU for one of them, or a limit for the one whose load rose."
)
DEPENDENCY_REMEDY = (
    "Mend the one that is called, by its own incident; a time limit or a fallback for that call spares its callers."
)
REGRESSION_REMEDY = (
    "Compare the model's version, its configuration and its inputs with those before the change; roll back."
)
UNKNOWN_REMEDY = "Look at the signals that moved most, below; trimtab knows no mechanism that fits them."
# What moves because the instance is degraded: it explains nothing.
SYMPTOMS = frozenset(
    {
        "request_latency", "request_queue", "error_ratio", "latency_count", "latency_sum", "latency_log_sum", "queue_count", "queue_sum",
        "queue_log_sum", "inference_latency_seconds", "queue_latency_seconds", "errors_per_second", "requests_in_flight", "queue_depth",
    }
)  # fmt: skip
