"""What people order, of incidents and of weights: its words are checked, and it takes effect once it is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from trimtab.agent.wire.columns import TEXT_MAX, Malformed
from trimtab.collector.store import StoreError
from trimtab.collector.writer import Rows, Writer

NOTE_MAX = 4 * TEXT_MAX
"""Longest note or reason."""
STORE_SECONDS_MAX = 5.0
_NAMED_MAX = 8


class NotFound(Exception):
    """There is nothing that the order could be about: one line that says what there is."""


def check_text(field: str, text: str, characters_max: int, *, empty: bool = False) -> None:
    """Raises Malformed where it is not one printable line."""
    if len(text) > characters_max or not text.isprintable() or not (text.strip() or (empty and not text)):
        least = 0 if empty else 1
        raise Malformed(f"{field}: not one line of {least} to {characters_max} printable characters")


def few(names: Sequence[str]) -> str:
    """The first of them."""
    return (", ".join(names[:_NAMED_MAX]) or "nothing") + " …" * (len(names) > _NAMED_MAX)


def once_stored(writer: Writer, key: str, rows: Rows, apply: Callable[[], None]) -> None:
    """Have it stored, and `apply` it then: also when that is later than anybody waits. Raises StoreError when it is."""
    done: Future[None] = Future()

    def stored(_: Future[None]) -> None:
        apply()
        done.set_result(None)

    writer.save(key, rows).add_done_callback(stored)
    try:
        done.result(STORE_SECONDS_MAX)
    except FutureTimeoutError:
        message = "it cannot be written now, and the collector's log says why; this is done as soon as it can"
        raise StoreError(message) from None
