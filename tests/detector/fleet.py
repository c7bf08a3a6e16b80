"""A simulated fleet that makes the collector's windows: lognormal service, noise that a node shares, faults at the level of signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trimtab.agent.sketch.loglinear import of_seconds
from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as query
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import (
    check_schema,
    pack_sketches,
    pack_values,
    schema_hash,
)
from trimtab.collector.window import Window
from trimtab.detector.explain import Explainer
from trimtab.detector.history import History
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.watch import Watch

START_NS = 1_700_000_000_000_000_000
SERVICE_SECONDS, SERVICE_SIGMA, REQUESTS_PER_SECOND = 0.012, 0.35, 13.0
GB = float(1 << 30)

NODE = {
    "cpu_cores": ("cores", 16.0), "cpu_busy_cores": ("cores", 3.0), "cpu_other_cores": ("cores", 0.4), "cpu_steal_cores": ("cores", 0.02),
    "cpu_iowait_cores": ("cores", 0.02), "memory_available_bytes": ("bytes", 40 * GB), "memory_total_bytes": ("bytes", 64 * GB),
    "swap_in_bytes_per_second": ("bytes/s", 0.0), "major_faults_per_second": ("1/s", 0.2), "oom_kills_per_second": ("1/s", 0.0),
    "psi_cpu_some_ratio": ("1", 0.02), "psi_memory_some_ratio": ("1", 0.0), "psi_memory_full_ratio": ("1", 0.0),
    "psi_io_some_ratio": ("1", 0.01), "psi_io_full_ratio": ("1", 0.005), "disk_busy_ratio": ("1", 0.05), "disk_await_seconds": ("s", 0.002),
    "disk_read_bytes_per_second": ("bytes/s", 1e5), "disk_write_bytes_per_second": ("bytes/s", 5e5),
    "network_receive_bytes_per_second": ("bytes/s", 1e6), "network_transmit_bytes_per_second": ("bytes/s", 1e6),
    "network_errors_per_second": ("1/s", 0.0), "network_drops_per_second": ("1/s", 0.0), "tcp_retransmits_per_second": ("1/s", 0.3),
}  # fmt: skip
INSTANCE = {
    "requests_per_second": ("1/s", REQUESTS_PER_SECOND), "requests_in_flight": ("1", 0.3), "connections_per_second": ("1/s", 1.0),
    "tcp_retransmits_per_second": ("1/s", 0.0), "cpu_used_cores": ("cores", 0.25), "cpu_run_queue_ratio": ("1", 0.02),
    "cpu_throttled_ratio": ("1", 0.0), "cpu_limit_cores": ("cores", 4.0), "memory_resident_bytes": ("bytes", 1 * GB),
    "major_faults_per_second": ("1/s", 0.0), "threads": ("1", 40.0), "process_restarts": ("1", 0.0), "workers_ready": ("1", 2.0),
    "workers_total": ("1", 2.0), "worker_restarts_per_second": ("1/s", 0.0), "queue_depth": ("1", 0.1),
    "predictions_per_second": ("1/s", REQUESTS_PER_SECOND), "inference_latency_seconds": ("s", 0.011),
    "queue_latency_seconds": ("s", 0.0004),
    "errors_per_second": ("1/s", 0.0), "request_errors_per_second": ("1/s", 0.0),
    "client_errors_per_second": ("1/s", 0.0), "runtime_answers": ("1", 1.0),
    "processes_stopped": ("1", 0.0),
}  # fmt: skip
GPU = {
    "utilisation_ratio": ("1", 0.5), "memory_used_bytes": ("bytes", 10 * GB), "memory_total_bytes": ("bytes", 40 * GB),
    "power_watts": ("W", 180.0), "power_limit_watts": ("W", 300.0), "temperature_celsius": ("°C", 62.0), "sm_clock_hertz": ("Hz", 1.4e9),
    "sm_clock_max_hertz": ("Hz", 1.41e9), "throttle_thermal": ("1", 0.0), "throttle_power": ("1", 0.0), "throttle_hardware": ("1", 0.0),
    "ecc_uncorrected_total": ("1", 0.0), "row_remap_pending": ("1", 0.0), "row_remap_failure": ("1", 0.0), "pcie_generation": ("1", 4.0),
    "pcie_width": ("1", 16.0), "pcie_replays_per_second": ("1/s", 0.0), "lost": ("1", 0.0),
    "fault_xid": ("1", 0.0), "fault_nvlink": ("1", 0.0), "nvlink_links_up": ("1", 18.0),
}  # fmt: skip
MODEL = {f"predictions_bin_{k}_per_second": ("1/s", 0.0) for k in range(8)}
SCORES = (0.3, 0.2, 0.1, 0.05, 0.05, 0.05, 0.1, 0.15)
"""Share of the predictions with a score in each bin."""
# What is a state or a count, and does not tremble.
_STEADY = {
    "cpu_cores", "memory_total_bytes", "cpu_limit_cores", "threads", "workers_ready", "workers_total", "process_restarts",
    "runtime_answers",
    "power_limit_watts", "sm_clock_max_hertz", "pcie_generation", "pcie_width", "nvlink_links_up",
}  # fmt: skip
# What follows from the answers alone.
_MADE = {"request_errors_per_second", *MODEL}
KINDS = {
    "node": (pb.SUBJECT_KIND_NODE, NODE),
    "gpu": (pb.SUBJECT_KIND_GPU, GPU),
    "instance": (pb.SUBJECT_KIND_INSTANCE, INSTANCE),
    "model": (pb.SUBJECT_KIND_MODEL, MODEL),
}


@dataclass
class Scene:
    """One node in one second, before it is measured. Faults change it."""

    signals: dict[str, dict[str, float]]
    """By subject, then by signal."""
    slower: dict[str, float]
    """By instance: factor of its service time."""
    failing: dict[str, float]
    """By instance: share of answers that are errors."""
    load: dict[str, float]
    """By instance: factor of its traffic."""
    scores: dict[str, Sequence[float]]
    """By instance: share of its predictions in each bin of their score."""
    events: list[tuple[str, str]] = field(default_factory=list)
    tells_errors: bool = True
    """Whether the runtimes say how many of their answers are errors; the kernel sees it in any case."""


Fault = Callable[[Scene, float], None]
"""Changes a scene, given how many seconds ago the fault began."""


@dataclass
class Noise:
    """What a shared virtual machine does to everybody on it."""

    own_sigma: float = 0.05
    common_sigma: float = 0.12
    common_memory: float = 0.8
    bursts_per_second: float = 1 / 60
    burst_factor: tuple[float, float] = (2.0, 3.0)
    burst_seconds: tuple[float, float] = (2.0, 6.0)
    blips_per_second: float = 1 / 200
    """Of each instance: a neighbour gets in its way, for up to three seconds."""
    quiet_seconds: float = 10.0
    """Between two bursts, and between two blips of an instance: a row of them without a gap would be a fault."""


class Node:
    """One simulated node."""

    def __init__(
        self,
        name: str,
        models: Sequence[str],
        chance: np.random.Generator,
        noise: Noise,
        gpus: bool,
        scored: bool = False,
        labels: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.name, self.chance, self.noise, self.labels = name, chance, noise, labels or {}
        self.instances = [f"{name}/{8080 + 10 * i}" for i in range(len(models))]
        self.models = dict(zip(self.instances, models, strict=True))
        self.gpus = [f"{name}/gpu/GPU-{i}" for i in range(len(models))] if gpus else []
        self.scored = [f"{i}/{self.models[i]}" for i in self.instances] if scored else []
        self.version = "1.0"
        self.schema = self._schema()
        self.seq = 0
        self.common = 0.0
        self.burst = (-60.0, 1.0)
        self.blips = dict.fromkeys(self.instances, (-60.0, 1.0))

    def subjects(self, kind: str) -> list[str]:
        return {"node": [self.name], "gpu": self.gpus, "instance": self.instances, "model": self.scored}[kind]

    def scene(self, seconds: float) -> Scene:
        self._shake(seconds)
        signals = {}
        for kind, (_, series) in KINDS.items():
            for subject in self.subjects(kind):
                bases = {name: base for name, (_, base) in series.items() if name not in _MADE}
                tremble = np.exp(0.05 * self.chance.standard_normal(len(bases))).tolist()
                signals[subject] = {
                    name: base if name in _STEADY else base * t
                    for (name, base), t in zip(bases.items(), tremble, strict=True)
                }
        noise = np.exp(self.noise.own_sigma * self.chance.standard_normal(len(self.instances))).tolist()
        slower = {
            i: math.exp(self.common) * self.burst[1] * self.blips[i][1] * n
            for i, n in zip(self.instances, noise, strict=True)
        }
        return Scene(
            signals,
            slower,
            failing=dict.fromkeys(self.instances, 0.0),
            load=dict.fromkeys(self.instances, 1.0),
            scores=dict.fromkeys(self.instances, SCORES),
        )

    def window(self, scene: Scene, start_ns: int, seconds: float) -> Window:
        """The scene as the collector gets it."""
        message = self.message(scene, start_ns, seconds)
        return Window(self.name, "spool", self.seq, start_ns, message.duration_ns, self.schema, message)

    def message(self, scene: Scene, start_ns: int, seconds: float) -> pb.Window:
        """The scene as an agent sends it."""
        self.seq += 1
        latencies = {i: self._measure(scene, i, seconds) for i in self.instances}
        message = pb.Window(
            seq=self.seq,
            schema_hash=self.schema.hash,
            start_unix_ns=start_ns,
            start_boottime_ns=start_ns - START_NS,
            duration_ns=round(seconds * 1e9),
        )
        tables = [t for t in KINDS if self.subjects(t)]
        for kind in tables:
            rows = [[scene.signals[s].get(name, math.nan) for s in self.subjects(kind)] for name in KINDS[kind][1]]
            message.values.append(pack_values(np.asarray(rows, dtype=np.float64)))
        full = [k for k, i in enumerate(self.instances) if len(latencies[i])]
        for name, share in (("request_latency", 1.0), ("request_queue", 0.05)):
            sketches = [of_seconds(latencies[self.instances[k]] * share) for k in full]
            message.sketches.append(pack_sketches(tables.index("instance"), name, "s", full, sketches))
        for subject, name in scene.events:
            kind = KINDS[self._kind(subject)][0]
            message.events.add(subject=subject, name=name, unix_ns=start_ns, value=1, subject_kind=kind)
        return message

    def _measure(self, scene: Scene, instance: str, seconds: float) -> np.ndarray:
        signals, factor = scene.signals[instance], scene.slower[instance]
        rate = REQUESTS_PER_SECOND * scene.load[instance]
        count = int(self.chance.poisson(rate * seconds))
        if not math.isfinite(factor):
            # Whoever hangs answers nothing.
            signals |= {
                "requests_per_second": 0.0,
                "requests_in_flight": 20.0,
                "predictions_per_second": math.nan,
                "errors_per_second": math.nan,
            }
            return np.empty(0)
        errors = int(self.chance.binomial(count, scene.failing[instance]))
        signals["requests_per_second"] = signals["predictions_per_second"] = count / seconds
        signals["errors_per_second"] = errors / seconds if scene.tells_errors else math.nan
        signals["request_errors_per_second"] = errors / seconds
        if self.scored:
            bins = self.chance.multinomial(count - errors, scene.scores[instance]) / seconds
            scene.signals[f"{instance}/{self.models[instance]}"] = dict(zip(MODEL, bins.tolist(), strict=True))
        signals["inference_latency_seconds"] *= factor
        signals["requests_in_flight"] = rate * SERVICE_SECONDS * factor
        latencies = SERVICE_SECONDS * factor * np.exp(SERVICE_SIGMA * self.chance.standard_normal(count))
        latencies[:errors] = 0.001
        return latencies

    def _shake(self, seconds: float) -> None:
        noise = self.noise
        memory = noise.common_memory**seconds
        self.common = (
            memory * self.common + math.sqrt(1 - memory**2) * noise.common_sigma * self.chance.standard_normal()
        )
        rate = noise.bursts_per_second * seconds
        self.burst = self._next(self.burst, seconds, rate, noise.burst_seconds, noise.burst_factor)
        rate = noise.blips_per_second * seconds
        self.blips = {i: self._next(blip, seconds, rate, (1, 3), (1.5, 3)) for i, blip in self.blips.items()}

    def _next(
        self,
        now: tuple[float, float],
        seconds: float,
        rate: float,
        lengths: tuple[float, float],
        factors: tuple[float, float],
    ) -> tuple[float, float]:
        """How long it still lasts, and its factor; negative: for how long it has been over."""
        left = now[0] - seconds
        if left > 0:
            return left, now[1]
        if left < -self.noise.quiet_seconds and self.chance.random() < rate:
            return self.chance.uniform(*lengths), self.chance.uniform(*factors)
        return left, 1.0

    def _kind(self, subject: str) -> str:
        return next(kind for kind in KINDS if subject in self.subjects(kind))

    def _schema(self) -> pb.Schema:
        schema = pb.Schema()
        for kind, (number, series) in KINDS.items():
            if not self.subjects(kind):
                continue
            table = schema.tables.add(kind=number)
            for name, (unit, _) in series.items():
                table.series.add(name=name, unit=unit, kind=pb.SERIES_KIND_GAUGE)
            for k, subject in enumerate(self.subjects(kind)):
                labels = {
                    "node": {},
                    "gpu": {"index": str(k), "instances": self.instances[min(k, len(self.instances) - 1)]},
                    "model": {"model": subject.rpartition("/")[2], "version": self.version},
                }.get(kind)
                if labels is None:
                    port = subject.partition("/")[2]
                    labels = {"runtime": "torchserve", "model": self.models[subject], "addresses": f"127.0.0.1:{port}"}
                table.subjects.add(id=subject, labels=labels | self.labels.get(subject, {}))
        schema.hash = schema_hash(schema)
        check_schema(schema)
        return schema


class Fleet:
    """Several nodes that move through time together."""

    def __init__(
        self,
        nodes: Sequence[Sequence[str]] = (("m",) * 4,),
        seed: int = 0,
        noise: Noise | None = None,
        gpus: bool = False,
        window_seconds: float = 1.0,
        scored: bool = False,
        labels: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`nodes` holds, for each node, the model of each of its instances; `scored`: whether their handlers count scores.

        `labels` are those that a subject has besides.
        """
        chance = np.random.default_rng(seed)
        self.nodes = [
            Node(f"n{k}", models, chance, noise or Noise(), gpus, scored, labels) for k, models in enumerate(nodes)
        ]
        self.window_seconds = window_seconds
        self.now_ns = START_NS
        self.fault: Fault | None = None
        self.onset_ns = 0

    @property
    def instances(self) -> list[str]:
        return [i for node in self.nodes for i in node.instances]

    def strike(self, fault: Fault | None) -> None:
        """From now on."""
        self.fault, self.onset_ns = fault, self.now_ns

    def step(self) -> list[Window]:
        """One window of every node."""
        out = []
        for node in self.nodes:
            scene = node.scene(self.window_seconds)
            if self.fault:
                self.fault(scene, (self.now_ns - self.onset_ns) / 1e9)
            out.append(node.window(scene, self.now_ns, self.window_seconds))
        self.now_ns += round(self.window_seconds * 1e9)
        return out


class Recorder:
    """A journal that remembers."""

    def __init__(self, stored: Sequence[query.Incident] = ()) -> None:
        self.stored = {incident.id: incident for incident in stored}
        self.saves: list[query.Incident] = []
        self.remembered, self.refused = "", list[str]()
        self.nodes: list[wire.Heard] = []

    def incidents(self, limit: int = 1000) -> list[query.Incident]:
        return sorted(self.stored.values(), key=lambda i: -i.opened_unix_ns)[:limit]

    def save_incident(self, incident: query.Incident) -> None:
        self.stored[incident.id] = incident
        self.saves.append(incident)

    def memory(self) -> str:
        return self.remembered

    def heard(self) -> list[wire.Heard]:
        return self.nodes

    def remember(self, memory: str) -> None:
        self.remembered = memory

    def refuse_memory(self, why: str) -> None:
        self.refused.append(why)


class Silent:
    """An explainer that finds nothing."""

    def explain(self, history: History, subject: str, since_unix_ns: int, peers: Sequence[str]) -> list[query.Cause]:
        return [query.Cause(subject=subject, mechanism="unknown", confidence=0.1)]

    def blamed(self, history: History, instance: str, since_unix_ns: int) -> list[str]:
        return []


class Stage:
    """A fleet, and the Watch that looks at it, second by second."""

    def __init__(self, fleet: Fleet, explainer: Explainer | None = None, journal: Recorder | None = None) -> None:
        self.fleet, self.explainer = fleet, explainer or Silent()
        self.journal = journal or Recorder()
        self.changes: list[query.Incident] = []
        self.restart()

    def restart(self) -> None:
        """As when the collector is started again: nothing is left but the journal."""
        self.watch = Watch(DetectorSettings(), self.explainer, 180)
        self.watch.start(self.journal, self.changes.append)

    def run(self, windows: int) -> query.FleetState:
        for _ in range(windows):
            self.watch.observe(self.fleet.step())
            self.state = self.watch.tick(self.fleet.now_ns + 200_000_000)
        return self.state

    @property
    def incidents(self) -> list[query.Incident]:
        """Oldest first."""
        return self.journal.incidents()[::-1]
