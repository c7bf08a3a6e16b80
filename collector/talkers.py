"""Who talks to instances: the sketches of the store, merged over time and instances when they are asked for."""

from __future__ import annotations

import logging
import math

from trimtab.agent.clock import Clock
from trimtab.agent.sketch.talkers import MERGED_LOG2, Bounded, Tally
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.scope import WITHIN, parameters
from trimtab.collector.sql import QuestionError, limited
from trimtab.collector.store import Store

log = logging.getLogger(__name__)

REMOTES_MAX = 1000
"""Most remotes in one reply."""
_FETCH_ROWS = 256
# WITHIN is ours, and what is asked for goes in as parameters.
_FIND = f"""
SELECT i.instance, t.name, t.frequent_items, t.hll
FROM talkers t JOIN instances i USING (subject) WHERE t.start >= $since AND {WITHIN}
"""  # noqa: S608


def talkers(store: Store, request: pb.TalkersRequest, clock: Clock, seconds_max: float) -> pb.TalkersReply:
    """The answer. Raises QuestionError for what cannot be asked or takes too long, and StoreError."""
    wanted = parameters(request, clock)
    requests, errors = Tally(MERGED_LOG2), Tally(MERGED_LOG2)
    by_name = {"requests": requests, "errors": errors}
    instances: set[str] = set()
    with store.reading() as connection, limited(connection, seconds_max) as expired:
        connection.execute(_FIND, {**wanted.scope, "since": wanted.since})
        while found := connection.fetchmany(_FETCH_ROWS):
            if expired.is_set():
                raise QuestionError("out of time")
            for subject, name, frequent_items, hll in found:
                if name in by_name:
                    _merge(by_name[name], frequent_items, hll)
                    instances.add(subject)
    most = min(request.limit or REMOTES_MAX, REMOTES_MAX)
    return pb.TalkersReply(
        talkers=[_talker(remote, bounds, errors) for remote, bounds in requests.top(most)],
        instances=sorted(instances),
        requests=requests.total,
        errors=errors.total,
        remotes=_estimate(requests.distinct()),
    )


def _merge(into: Tally, frequent_items: bytes, hll: bytes) -> None:
    try:
        into.merge(frequent_items, hll)
    except ValueError as error:
        # It was checked before it was stored: the file is damaged, and the rest of it may still answer.
        log.warning("%s; it is left out", error)


def _talker(remote: str, requests: Bounded, errors: Tally) -> pb.Talker:
    failed = errors.of(remote)
    # A remote that the sketch does not name has between none and its bound: no number stands for that.
    unknown = failed.high > 0 == failed.value
    value = math.nan if unknown else failed.value
    # More cannot have failed than there were.
    bounded = Bounded(value, failed.low, min(failed.high, requests.high))
    return pb.Talker(remote=remote, requests=_estimate(requests), errors=_estimate(bounded))


def _estimate(bounded: Bounded) -> pb.Estimate:
    return pb.Estimate(value=bounded.value, low=bounded.low, high=bounded.high)
