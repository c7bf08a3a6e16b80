"""The session of a runtime that says all it has to say in one Prometheus exposition."""

from __future__ import annotations

from collections.abc import Callable, Collection

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes import prometheus
from trimtab.agent.runtimes.base import NoAnswer
from trimtab.agent.runtimes.endpoint import Endpoint
from trimtab.agent.runtimes.vocabulary import Scrape

ROLE = "metrics"


class MetricsOnly:
    """`tell` says in trimtab's words what the samples named `names` say; it may raise ValueError."""

    def __init__(
        self, instance: Instance, names: Collection[str], tell: Callable[[prometheus.Exposition], Scrape]
    ) -> None:
        self._endpoint = Endpoint(instance, ROLE)
        self._names = frozenset(names)
        self._tell = tell

    def scrape(self) -> Scrape:
        body = self._endpoint.get("/metrics")
        try:
            return self._tell(prometheus.parse(body, self._names))
        except ValueError as error:
            raise NoAnswer(f"/metrics: {error}") from error

    def close(self) -> None:
        self._endpoint.close()
