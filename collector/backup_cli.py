"""`trimtab backup`: a copy of the store while the collector runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from trimtab import Exit, TrimtabError
from trimtab.agent.clock import SystemClock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector import options
from trimtab.collector.beside import beside
from trimtab.collector.client import ClientSettings
from trimtab.collector.offline import answer, state_option

if TYPE_CHECKING:
    from trimtab.collector.store import Store

_DEADLINE_SECONDS = 3660.0
"""A little more than the collector takes at most."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@options.collector
@state_option
@click.pass_obj
def backup(settings: ClientSettings, *, file: Path, collector: str | None, state: Path | None) -> None:
    """Copy the store to FILE as it is now, also while the collector runs. How to restore it: docs/store.md."""
    clock = SystemClock()
    began = clock.monotonic()
    with beside(file, replace=False) as part:
        chunks = answer(
            settings,
            collector,
            state,
            lambda query: query.Backup(pb.BackupRequest(), timeout=_DEADLINE_SECONDS),
            _read,
        )
        contents = _written(chunks, part, file)
        # It holds what not everyone on this host may read.
        part.chmod(0o600)
        size = part.stat().st_size
    taken = datetime.fromtimestamp(contents.unix_ns // 10**9, UTC)
    rows = sum(table.rows for table in contents.tables)
    click.echo(
        f"{file}: {rows:,} rows of {len(contents.tables)} tables as of {taken:%Y-%m-%d %H:%M:%S} UTC, "
        f"{size / 1e6:,.1f} MB, read back and found whole, in {clock.monotonic() - began:,.1f} s"
    )


def _written(chunks: Iterator[pb.BackupChunk], part: Path, file: Path) -> pb.BackupContents:
    from trimtab.collector.backup_file import NotWhole, write  # noqa: PLC0415 - they load DuckDB and Arrow
    from trimtab.collector.store import StoreError  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("copying and checking", total=None)
        try:
            return write(chunks, part, lambda done, total: bar.update(task, completed=done, total=total))
        except (NotWhole, StoreError) as error:
            raise TrimtabError(f"{file}: not made: {error}", Exit.STATE) from error


def _read(store: Store) -> Iterator[pb.BackupChunk]:
    from trimtab.collector.backup import backup as chunks  # noqa: PLC0415
    from trimtab.collector.store import StoreError  # noqa: PLC0415

    try:
        yield from chunks(store, SystemClock())
    except StoreError as error:
        raise TrimtabError(f"{store.path}: {error}", Exit.STATE) from error
