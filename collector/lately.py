"""Which series there are, and how many subjects have had a value of each lately."""

from __future__ import annotations

import datetime
from itertools import groupby

from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.sql import limited, quoted
from trimtab.collector.store import Connection, Store

SINCE_SECONDS = 120.0
"""How far back "lately" is: twice the longest window, because a window is stored after its end and dated by its beginning."""
_SERIES = """
SELECT kind, name, unit, form FROM series
WHERE ($kind = '' OR kind = $kind) AND starts_with(name, $prefix) ORDER BY kind, name
"""


def series(store: Store, request: pb.SeriesRequest, clock: Clock, seconds_max: float) -> pb.SeriesReply:
    """By kind and name. Raises StoreError, and QuestionError when it takes too long."""
    since = datetime.datetime.fromtimestamp(clock.unix_ns() / 1e9 - SINCE_SECONDS, datetime.UTC)
    reply = pb.SeriesReply(since_seconds=SINCE_SECONDS)
    with store.reading() as connection, limited(connection, seconds_max):
        found = connection.execute(_SERIES, {"kind": request.kind, "prefix": request.prefix}).fetchall()
        for kind, rows in groupby(found, key=lambda row: row[0]):
            of_kind = [pb.SeriesState(kind=kind, name=name, unit=unit, form=form) for _, name, unit, form in rows]
            for one, subjects in zip(of_kind, _subjects(connection, kind, of_kind, since), strict=True):
                one.subjects = subjects
            reply.series.extend(of_kind)
    return reply


def _subjects(
    connection: Connection, kind: str, of_kind: list[pb.SeriesState], since: datetime.datetime
) -> tuple[int, ...]:
    """How many subjects have each, in one pass: first one row a subject, then a count of those that are not NULL."""
    columns = [quoted(f"{one.name}_count" if one.form == "sketch" else one.name) for one in of_kind]
    each = ", ".join(f"any_value({column}) AS {column}" for column in columns)
    counts = ", ".join(f"count({column})" for column in columns)
    question = f"""
    SELECT {counts} FROM (SELECT {each} FROM {quoted(f"fingerprint_{kind}")} WHERE start >= ? GROUP BY subject)
    """  # noqa: S608 - names of the store's own, quoted
    [row] = connection.execute(question, [since.replace(tzinfo=None)]).fetchall()
    return tuple(row)
