"""The collector's own metrics: what each is, and where it is read."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from trimtab import __version__
from trimtab.agent.clock import Clock
from trimtab.agent.wire.metrics import Figure, Values
from trimtab.collector.analyst import Analyst
from trimtab.collector.analyst_apart import AnalystApart
from trimtab.collector.booking import Item
from trimtab.collector.federate import Federation
from trimtab.collector.inbox import Inbox
from trimtab.collector.ingest import Connected
from trimtab.collector.journal import StoredJournal
from trimtab.collector.opening import redo_of
from trimtab.collector.port.port import Port
from trimtab.collector.store import Store
from trimtab.collector.vitals import Vitals

PREFIX = "trimtab_collector_"
_PAGE_BYTES = resource.getpagesize()


def figures_of(
    vitals: Vitals,
    *,
    store: Store,
    inbox: Inbox[Item],
    connected: Connected,
    port: Port,
    analyst: Analyst | AnalystApart,
    journal: StoredJournal,
    clock: Clock,
    federation: Federation,
) -> list[Figure]:
    """All of them."""
    started = clock.unix_ns() / 1e9
    return [
        Figure("build_info", "gauge", "1, with the version as a label.", lambda: {__version__: 1.0}, "version"),
        Figure("start_time_seconds", "gauge", "When the collector started, Unix time.", lambda: started),
        Figure("cpu_seconds", "counter", "CPU time the collector has used, without its analysis.", _cpu_seconds),
        Figure("resident_memory_bytes", "gauge", "Memory of the collector.", _resident_bytes),
        *_ingest(vitals, inbox, connected, port),
        *_store(vitals, store),
        Figure("questions", "counter", "Questions answered, by method.", lambda: dict(vitals.questions), "method"),
        Figure("question_seconds", "counter", "Time that took.", lambda: vitals.question_seconds),
        Figure("analysis_restarts", "counter", "How often the analysis had to be started again.", lambda: analyst.restarts),
        Figure("analysis_left_out_windows", "counter", "Windows that the analysis, being behind, left out.", lambda: analyst.left_out),
        Figure("analysis_memories_damaged", "counter", "Times that what it had learnt was damaged.", lambda: journal.memories_refused),
        Figure("federate_cut_series", "gauge", "Series that the last page of the fleet had no room for.", lambda: federation.cut),
        Figure("webhook_sent", "counter", "Messages of incidents that were taken.", lambda: vitals.webhook_sent),
        Figure("webhook_failed", "counter", "Messages that were not, or were dropped.", lambda: vitals.webhook_failed),
    ]  # fmt: skip


def _ingest(vitals: Vitals, inbox: Inbox[Item], connected: Connected, port: Port) -> list[Figure]:
    return [
        Figure("agents_connected", "gauge", "Agents that are connected.", lambda: len(connected.names())),
        Figure("connections", "gauge", "Connections on the port, of agents and of others.", lambda: len(port.connections)),
        Figure("connections_turned_away", "counter", "Connections that said nothing sensible, or were too many.", lambda: port.turned_away),
        Figure("windows_stored", "counter", "Windows stored.", lambda: vitals.windows),
        Figure("values_stored", "counter", "Values in them; a distribution counts as one.", lambda: vitals.samples),
        Figure("windows_repeated", "counter", "Windows that came again, and were not stored again.", lambda: vitals.duplicates),
        Figure("windows_lost", "counter", "Windows that an agent had to drop, by the gaps in its numbers.", lambda: vitals.lost),
        Figure("windows_refused", "counter", "Windows refused, by the field that was wrong.", lambda: dict(vitals.refused), "field"),
        Figure("received_bytes", "counter", "Bytes of messages of agents.", lambda: vitals.received_bytes),
        Figure("held_up", "counter", "How often a message had to wait for room.", lambda: vitals.held_up),
        Figure("inbox_items", "gauge", "Windows that wait for the writer.", lambda: len(inbox)),
        Figure("inbox_bytes", "gauge", "What they take as rows, at most.", lambda: inbox.size_bytes),
    ]  # fmt: skip


def _store(vitals: Vitals, store: Store) -> list[Figure]:
    return [
        Figure("transactions", "counter", "Transactions committed.", lambda: vitals.transactions),
        Figure("transaction_seconds", "counter", "Time they took.", lambda: vitals.transaction_seconds),
        Figure("transaction_failures", "counter", "Transactions that failed, and were tried again.", lambda: vitals.failures),
        Figure("checkpoints", "counter", "How often the file was brought up to date.", lambda: vitals.checkpoints),
        Figure("checkpoint_seconds", "counter", "Time that took.", lambda: vitals.checkpoint_seconds),
        Figure("rollups", "counter", "Minutes and hours rolled up.", lambda: vitals.rollups),
        Figure("rollups_late", "counter", "Minutes rolled up again, for windows that came late.", lambda: vitals.rollups_late),
        Figure("rollups_damaged", "counter", "Rollups left out: the file is broken there.", lambda: vitals.rollups_damaged),
        Figure("deleted_rows", "counter", "Rows deleted for age or size; unrolled: in no rollup.", lambda: dict(vitals.deleted), "tier"),
        Figure("keeper_failures", "counter", "Rollups and the like that failed, and were tried again.", lambda: vitals.keeper_failures),
        Figure("database_bytes", "gauge", "Size of the database file.", _size_of(store.path)),
        Figure("redo_bytes", "gauge", "Size of the redo log: what waits for the database.", _size_of(redo_of(store.path))),
        Figure("log_bytes", "gauge", "Size of its write-ahead log.", _size_of(Path(f"{store.path}.wal"))),
        Figure("disk_free_bytes", "gauge", "Room left on its disk.", lambda: shutil.disk_usage(store.path.parent).free),
    ]  # fmt: skip


def _size_of(path: Path) -> Callable[[], Values]:
    return lambda: path.stat().st_size if path.exists() else 0


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
