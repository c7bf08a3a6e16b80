"""How the collector opens its store: one of an older version is brought up to date, one that is broken is set aside, or only its log
where the file itself is whole."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from trimtab.agent.clock import Clock
from trimtab.collector.migrate import VERSIONS, migrate
from trimtab.collector.store import Corrupt, CorruptFile, Outdated, Store, opening

log = logging.getLogger(__name__)


def open_or_set_aside(path: Path, memory_bytes_max: int, clock: Clock) -> Store:
    """The store in `path`. A file that is no database is renamed, said so, and a new one begun; an older one is migrated.

    Raises TrimtabError, also for a file of a version that is not known here.
    """
    try:
        return _opened(path, memory_bytes_max, clock)
    except Corrupt as error:
        aside = path.with_name(f"{path.name}.corrupt-{clock.unix_ns() // 10**9}")
        log_file = Path(f"{path}.wal")
        if log_file.exists():
            log_file.rename(f"{aside}.wal")
            if not isinstance(error, CorruptFile):
                with suppress(Corrupt):
                    store = _opened(path, memory_bytes_max, clock)
                    log.error(
                        "%s; its log is set aside as %s.wal: what came last is lost, the rest is used", error, aside
                    )
                    return store
        path.rename(aside)
        log.error("%s; set aside as %s, and a new database begun", error, aside)
        return Store(path, memory_bytes_max)


def _opened(path: Path, memory_bytes_max: int, clock: Clock) -> Store:
    try:
        return Store(path, memory_bytes_max)
    except Outdated as error:
        if error.version not in VERSIONS:
            raise
        with opening(path):
            migrate(path, error.version, memory_bytes_max, clock.unix_ns() // 10**9)
    return Store(path, memory_bytes_max)
