"""How a command answers from the file itself, when no collector runs that has it open."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import state_dir
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.query_pb2_grpc import QueryStub
from trimtab.collector.client import ClientSettings, stub
from trimtab.collector.settings import CollectorSettings

if TYPE_CHECKING:
    from trimtab.collector.store import Store

T = TypeVar("T")
Ask = Callable[[str], list[list[Any]]]
"""A question in SQL in, the rows out."""
QUESTION_SECONDS = 120.0
state_option = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="State directory to read when no collector runs."
)


def answer(
    settings: ClientSettings,
    collector: str | None,
    state: Path | None,
    online: Callable[[QueryStub], Iterator[T]],
    offline: Callable[[Store], Iterator[T]],
) -> Iterator[T]:
    """What the collector says; where none answers, what the store in `state` says. Raises TrimtabError."""
    begun = False
    try:
        with stub(settings, collector) as query:
            for part in online(query):
                begun = True
                yield part
            return
    except TrimtabError as error:
        if error.exit_code != Exit.UNREACHABLE:
            raise
        if begun:
            message = "the collector went away, or the time was over, before the answer was whole; ask again"
            raise TrimtabError(message, Exit.UNREACHABLE) from error
        path = _database(state)
        if collector or path is None:
            raise
    click.echo(f"no collector answers; reading {path}", err=True)
    with _opened(path) as store:
        yield from offline(store)


@contextmanager
def asking(settings: ClientSettings, collector: str | None, state: Path | None) -> Iterator[Ask]:
    """One who answers several questions: the collector; where none answers, the store in `state`. Raises TrimtabError."""

    def online(sql: str) -> list[list[Any]]:
        with stub(settings, collector) as query:
            return _whole(query.Sql(pb.SqlRequest(sql=sql), timeout=QUESTION_SECONDS))

    try:
        online("SELECT 1")
    except TrimtabError as error:
        path = _database(state)
        if error.exit_code != Exit.UNREACHABLE or collector or path is None:
            raise
    else:
        yield online
        return
    click.echo(f"no collector answers; reading {path}", err=True)
    with _opened(path) as store:
        yield lambda sql: _whole(answer_sql(store, sql))


def answer_sql(store: Store, sql: str) -> Iterator[pb.SqlChunk]:
    """What the collector would answer. Raises TrimtabError."""
    from trimtab.collector.sql import QuestionError, ask  # noqa: PLC0415 - a client needs no DuckDB until then

    settings = CollectorSettings()
    try:
        yield from ask(store, sql, settings.query_seconds_max, settings.query_rows_max)
    except QuestionError as error:
        raise TrimtabError(str(error), Exit.USAGE) from error


def _whole(chunks: Iterator[pb.SqlChunk]) -> list[list[Any]]:
    """All rows. Raises TrimtabError when some were left out."""
    rows: list[list[Any]] = []
    for chunk in chunks:
        rows += map(json.loads, chunk.rows)
        if chunk.truncated:
            raise TrimtabError(
                f"only {len(rows)} rows of the answer came: raise collector.query_rows_max, or ask for less"
            )
    return rows


def _database(state: Path | None) -> Path | None:
    from trimtab.collector.store import FILE  # noqa: PLC0415 - a client needs no DuckDB until it reads the file itself

    try:
        path = (state or state_dir(None)) / "collector" / FILE
    except TrimtabError:
        return None
    return path if path.exists() else None


@contextmanager
def _opened(path: Path) -> Iterator[Store]:
    from trimtab.collector.store import Corrupt, Store  # noqa: PLC0415

    try:
        store = Store(path, CollectorSettings().memory_bytes_max, read_only=True)
    except Corrupt as error:
        raise TrimtabError(str(error), Exit.STATE) from error
    try:
        yield store
    finally:
        store.close()
