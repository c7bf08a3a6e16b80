"""The incidents as pages for a browser on this host: a list of all, and everything about one, with a plot of each piece of evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import grpc
from jinja2 import Environment, PackageLoader, StrictUndefined

from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.exposition import NotNow, Page, Wrong
from trimtab.agent.wire.query_pb2_grpc import QueryStub
from trimtab.detector import impact, show
from trimtab.detector.plot import HEIGHT, WIDTH, plot
from trimtab.detector.quantity import quantity
from trimtab.detector.when import clock as time

PATH = "/incidents"
CONTENT_TYPE = "text/html; charset=utf-8"
SECONDS_MAX = 2.0
"""The thread that makes the page serves all others too."""
LISTED_MAX = 200


class NotThere(Wrong):
    """There is no such incident."""

    status = "404 Not Found"


def pages(query: QueryStub, clock: Clock) -> Mapping[str, Page]:
    """By their paths. What they show is asked of the collector like any other question, within its limits."""
    return {PATH: _Incidents(query, clock).page}


class _Incidents:
    def __init__(self, query: QueryStub, clock: Clock) -> None:
        self._query, self._clock = query, clock
        templates = Environment(
            loader=PackageLoader("trimtab.detector"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        templates.globals.update(
            plot=plot, quantity=quantity, time=time, width=WIDTH, height=HEIGHT,
            status=show.status, lasted=show.lasted, seconds=show.seconds, rows=impact.rows,
        )  # fmt: skip
        self._one, self._all = templates.get_template("incident.html"), templates.get_template("incidents.html")

    def page(self, accept: str, query: str) -> tuple[str, Callable[[], bytes]]:
        """See `trimtab.agent.wire.exposition.Page`."""
        given = parse_qs(query, keep_blank_values=True, max_num_fields=4)
        strange = sorted(given.keys() - {"id"})
        if strange:
            raise Wrong(f"{strange[0]}: not known here; ?id=i-7 shows one incident")
        wanted = given.get("id", [""])[-1]
        return CONTENT_TYPE, (lambda: self._show(wanted)) if wanted else self._list

    def _list(self) -> bytes:
        reply = self._ask(self._query.Incidents, pb.IncidentsRequest(limit=LISTED_MAX))
        return self._all.render(incidents=reply.incidents, now=self._clock.unix_ns()).encode()

    def _show(self, wanted: str) -> bytes:
        reply = self._ask(self._query.IncidentReport, pb.IncidentReportRequest(id=wanted))
        return self._one.render(reply=reply, incident=reply.incident, now=self._clock.unix_ns()).encode()

    def _ask(self, question: Callable[..., Any], request: Any) -> Any:
        try:
            return question(request, timeout=SECONDS_MAX)
        except grpc.RpcError as error:
            told = f"{error.details()}"
            raise (NotThere if error.code() == grpc.StatusCode.NOT_FOUND else NotNow)(told) from error
