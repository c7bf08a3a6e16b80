"""The thread that keeps the store in shape: it checkpoints, rolls up and deletes, on a connection of its own."""

from __future__ import annotations

import logging
import os
import shutil
import threading

from trimtab.agent.clock import Clock
from trimtab.collector.forgetting import Forgets, gone
from trimtab.collector.retention import DAY_US, Retention
from trimtab.collector.roller import Roller
from trimtab.collector.settings import CollectorSettings
from trimtab.collector.store import Store, StoreError, StoreLost, translated
from trimtab.collector.vitals import Vitals

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often it looks at the size of the write-ahead log."""
TURN_SECONDS = 5.0
"""How often it rolls up and deletes."""
LOG_BYTES = 32 << 20
"""How much the write-ahead log may hold: what a start has to read again, and what waits in memory."""
LOG_SECONDS = 600.0
"""How long something may be in that log only."""
FORGET_SECONDS = 3600.0
"""How often it looks for subjects, spools and nodes that are gone."""
BACKOFF_SECONDS = 5.0
NICE = 5


class Keeper:
    """`start` once, `stop` once."""

    def __init__(
        self, settings: CollectorSettings, store: Store, clock: Clock, vitals: Vitals, forgets: Forgets
    ) -> None:
        connection = store.cursor()
        self._roller = Roller(store, connection, vitals)
        self._retention = Retention(settings, store, connection, vitals)
        self._connection = connection
        self._store = store
        self._clock = clock
        self._vitals = vitals
        self._settings = settings
        self._forgets = forgets
        self._forget_at = clock.monotonic() + FORGET_SECONDS
        self._checkpointed = clock.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction at hand. What was not rolled up is so next time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._connection.close()

    def turn(self) -> bool:
        """Roll up and delete what is due; whether there is more to do. Raises StoreError."""
        now_us = self._clock.unix_ns() // 1000
        with translated():
            if self._clock.monotonic() >= self._forget_at:
                self._forget(now_us)
            more = self._roller.turn(now_us, self._stop)
            return self._retention.turn(now_us, self._stop) or more

    def _forget(self, now_us: int) -> None:
        found = gone(self._connection, now_us - int(self._settings.keep_hours_days * DAY_US))
        if found:
            self._forgets.forget(found)
        self._forget_at = self._clock.monotonic() + FORGET_SECONDS

    def checkpoint_if_due(self) -> None:
        """Raises StoreError where others write just now."""
        size, now = self._store.wal_bytes(), self._clock.monotonic()
        # On a small disk a log of that size may not fit into the file any more.
        most = min(LOG_BYTES, shutil.disk_usage(self._store.path.parent).free // 4)
        if size > most or (size and now - self._checkpointed >= LOG_SECONDS):
            self._store.checkpoint()
            self._checkpointed = self._clock.monotonic()
            self._vitals.checkpoints += 1
            self._vitals.checkpoint_seconds += self._checkpointed - now

    def _run(self) -> None:
        # To Linux a thread has a priority of its own: on a busy host answers go first.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        due, failing = self._clock.monotonic(), False
        while not self._stop.is_set():
            try:
                self.checkpoint_if_due()
                if self._clock.monotonic() >= due:
                    more = self.turn()
                    due = self._clock.monotonic() + (0 if more else TURN_SECONDS)
                    if failing:
                        log.warning("the store is kept in shape again")
                    failing = False
            except StoreLost:
                # The writer says so, and the collector ends.
                return
            except StoreError as error:
                self._vitals.keeper_failures += 1
                due = self._clock.monotonic() + BACKOFF_SECONDS
                if not failing:
                    log.warning("cannot roll up or delete: %s; trying again", error)
                failing = True
            except Exception:
                self._vitals.keeper_failures += 1
                due = self._clock.monotonic() + BACKOFF_SECONDS
                if not failing:
                    log.exception("cannot roll up or delete")
                failing = True
            self._clock.wait(self._stop, LOOK_SECONDS)
