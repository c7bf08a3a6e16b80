"""What the agent tells of itself: whether it sees, whether it delivers, what it costs. docs/metrics.md lists it.

What it sees of its host is not here: that goes to the collector.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

from trimtab import __version__
from trimtab.agent import procfs
from trimtab.agent.clock import Clock
from trimtab.agent.collectors.own import Reads, Vitals
from trimtab.agent.losses import LOSSES
from trimtab.agent.probes import Probes
from trimtab.agent.spool import Spool
from trimtab.agent.wire.metrics import Figure, Values

PREFIX = "trimtab_agent_"


def figures_of(vitals: Vitals, spool: Spool, probes: Probes, clock: Clock, spool_bytes_max: int) -> list[Figure]:
    """The figures of an agent that is made of these."""
    return [
        *_about_the_process(clock),
        *_about_windows(vitals),
        *_about_delivery(vitals, spool, spool_bytes_max),
        *_about_collectors(vitals),
        Figure(
            "sampling_probability",
            "gauge",
            "Probability with which a request is sampled in the kernel.",
            lambda: probes.sampling_probability,
        ),
        Figure(
            "probe_on",
            "gauge",
            "1 where a probe is attached, 0 where the budget has switched it off.",
            lambda: {probe.name: float(probe.on) for probe in probes.all()},
            "probe",
        ),
    ]


def _about_the_process(clock: Clock) -> list[Figure]:
    started = clock.unix_ns() / 1e9

    def stat() -> procfs.ProcessStat:
        return procfs.process_stat(procfs.read("/proc/self/stat"))

    return [
        Figure("build_info", "gauge", "1, with the version as a label.", lambda: {__version__: 1.0}, "version"),
        Figure("start_time_seconds", "gauge", "When the agent started, Unix time.", lambda: started),
        Figure(
            "cpu_seconds", "counter", "CPU time the agent has used, probes not included.", lambda: stat().cpu_seconds
        ),
        Figure("resident_memory_bytes", "gauge", "Memory of the agent.", lambda: stat().resident_bytes),
        Figure("threads", "gauge", "Threads of the agent.", lambda: stat().threads),
        Figure(
            "open_fds", "gauge", "File descriptors that are open.", lambda: len(list(Path("/proc/self/fd").iterdir()))
        ),
        Figure(
            "max_fds", "gauge", "Most that may be open.", lambda: float(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        ),
    ]


def _about_windows(vitals: Vitals) -> list[Figure]:
    return [
        Figure("windows_closed", "counter", "Windows closed and handed to the spool.", lambda: vitals.windows_closed),
        Figure(
            "windows_skipped",
            "counter",
            "Windows never read: the host was suspended or is overloaded.",
            lambda: vitals.windows_skipped,
        ),
        Figure("window_read_seconds", "gauge", "How long the last window took to read.", lambda: vitals.window_seconds),
        Figure("events", "counter", "Events sent within windows.", lambda: vitals.events),
        Figure(
            "values_dropped",
            "counter",
            "Values dropped: infinite, not declared, or over a limit.",
            lambda: vitals.values_dropped,
        ),
    ]


def _about_delivery(vitals: Vitals, spool: Spool, spool_bytes_max: int) -> list[Figure]:
    return [
        Figure(
            "windows_lost",
            "counter",
            "Windows that nobody will see, by what took them.",
            lambda: dict.fromkeys(LOSSES, 0.0) | dict(vitals.windows_lost_by),
            "reason",
        ),
        Figure("windows_refused", "counter", "Windows that the collector refused.", lambda: vitals.windows_refused),
        Figure("spool_bytes", "gauge", "Size of the spool on disk.", lambda: vitals.spool_bytes),
        Figure("spool_limit_bytes", "gauge", "Size at which the oldest windows are dropped.", lambda: spool_bytes_max),
        Figure("spool_waiting_windows", "gauge", "Windows not acknowledged yet.", lambda: spool.waiting),
        Figure(
            "spool_memory_windows",
            "gauge",
            "Those of them that the disk has not taken.",
            lambda: len(spool.unwritten),
        ),
        Figure(
            "spool_oldest_age_seconds",
            "gauge",
            "How long the oldest window has been waiting; 0 when none is.",
            lambda: spool.oldest_age_seconds,
        ),
        Figure("spool_writable", "gauge", "1 where the disk takes windows, else 0.", lambda: float(spool.writable)),
        Figure(
            "connected",
            "gauge",
            "1 while the collector service takes windows, else 0.",
            lambda: float(vitals.connected),
        ),
        Figure(
            "connections", "counter", "How often the collector service has welcomed the agent.", lambda: vitals.streams
        ),
        Figure(
            "certificates_renewed",
            "counter",
            "How often new certificate files were taken up.",
            lambda: vitals.certificates_renewed,
        ),
        Figure(
            "certificates_refused",
            "counter",
            "How often changed certificate files did not fit together, and the old ones were kept.",
            lambda: vitals.certificates_refused,
        ),
    ]


def _about_collectors(vitals: Vitals) -> list[Figure]:
    def each(value: Callable[[Reads], float | None]) -> Callable[[], Values]:
        def read() -> Values:
            told = {name: value(reads) for name, reads in dict(vitals.reads).items()}
            return {name: float(figure) for name, figure in told.items() if figure is not None}

        return read

    return [
        Figure(
            "collector_available",
            "gauge",
            "1 where a source of signals is open, 0 where this host lacks what it needs.",
            each(lambda reads: reads.available),
            "collector",
        ),
        Figure(
            "collector_success",
            "gauge",
            "1 where its last reading came, whole and in time, else 0.",
            each(lambda reads: reads.success),
            "collector",
        ),
        Figure("collector_reads", "counter", "Its readings.", each(lambda reads: reads.count), "collector"),
        Figure(
            "collector_read_seconds", "counter", "Time that its readings took.", each(lambda r: r.seconds), "collector"
        ),
        Figure(
            "collector_last_read_seconds",
            "gauge",
            "Time that its last reading took.",
            each(lambda reads: reads.last_seconds),
            "collector",
        ),
        Figure(
            "collector_failures",
            "counter",
            "Its readings that failed or came too late.",
            each(lambda reads: reads.failures),
            "collector",
        ),
    ]
